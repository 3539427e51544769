// Workspaces: one block of memory, cut into pieces. Compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "cpu/poison.h"

namespace sleepfm::SLEEPFM_ISA {

// Cuts one block into pieces, each on a cache line of its own; from a null base it only counts.
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
