// Cuts a workspace, one block of memory, into the pieces that a kernel wants. Compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "cpu/poison.h"

namespace sleepfm::SLEEPFM_ISA {

// Each piece begins on a cache line of its own. From a null base it only counts the bytes, so that the same code says
// how large a workspace has to be.
class Carver {
  public:
    explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
    template <typename U>
    U* take(std::int64_t n) {
        std::int64_t const n_bytes = n * static_cast<std::int64_t>(sizeof(U));
        std::int64_t const n_held = (n_bytes + 63) / 64 * 64 + GAP;
        char* const piece = base_ == nullptr ? nullptr : base_ + used_;
        if (piece != nullptr) {
            allow_only(piece, static_cast<std::size_t>(n_bytes), static_cast<std::size_t>(n_held));
        }
        used_ += n_held;
        return reinterpret_cast<U*>(piece);
    }
    std::int64_t used() const { return used_; }  // bytes

  private:
    char* base_;
    std::int64_t used_ = 0;
};

}  // namespace sleepfm::SLEEPFM_ISA
