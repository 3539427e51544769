// Cuts a workspace, one block of memory, into the pieces that a kernel wants. Compiled once for each instruction set.
#pragma once

#include "cpu/index.h"
#include "cpu/poison.h"

namespace sleepfm::SLEEPFM_ISA {

// Each piece begins on a cache line of its own. From a null base it only counts the bytes, so that the same code says
// how large a workspace has to be.
class Carver {
  public:
    explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
    template <typename U>
    U* take(Index n) {
        Index const n_bytes = n * static_cast<Index>(sizeof(U));
        Index const n_held = round_up(n_bytes, 64) + GAP;
        char* const piece = base_ == nullptr ? nullptr : base_ + used_;
        if (piece != nullptr) {
            allow_only(piece, static_cast<std::size_t>(n_bytes), static_cast<std::size_t>(n_held));
        }
        used_ += n_held;
        return reinterpret_cast<U*>(piece);
    }
    Index used() const { return used_; }  // bytes

  private:
    char* base_;
    Index used_ = 0;
};

}  // namespace sleepfm::SLEEPFM_ISA
