// Centred vectors as 16-bit integers, for both kinds of operands of retrieval ranks.
#pragma once

#include <cstring>

#include "cpu/index.h"

namespace sleepfm::SLEEPFM_ISA {

constexpr Index RANK_CHUNK = 256;  // dimensions of one sample that are quantised at a time, on the stack

// q = the integers nearest to (x - mean) factor / 2. Halves are subtracted, since the difference of two finite numbers
// may overflow. Not inlined, so that measure_row and pack_integers get the same integers: inlined, the compiler might
// contract the arithmetic to multiply-adds in one place and not in the other.
__attribute__((noinline)) inline void quantise(float const* x, float const* mean, float factor, Index n,
                                               std::int16_t* q) {
    constexpr float round_to_integer = 12582912.0F;  // 1.5 * 2^23: adding it leaves the integer in the low bits
    for (Index k = 0; k < n; ++k) {
        float const shifted = (0.5F * x[k] - 0.5F * mean[k]) * factor + round_to_integer;
        std::int32_t bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        q[k] = static_cast<std::int16_t>(bits);
    }
}

}  // namespace sleepfm::SLEEPFM_ISA
