// Conversion of float32 to the bits of bfloat16 and float16 in integer arithmetic: the same result on every processor,
// whether or not it has instructions for it. Both round to nearest, ties to even; overflow gives infinity, NaN a quiet
// NaN.
#pragma once

#include <string.h>

#include <cstdint>

#include "host_device.h"

namespace sleepfm {

SLEEPFM_HOST_DEVICE static inline std::uint16_t to_bf16(float value) {
    std::uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return static_cast<std::uint16_t>((bits >> 16) | 0x40u);  // quiet NaN
    }
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

SLEEPFM_HOST_DEVICE static inline std::uint16_t to_f16(float value) {
    std::uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    std::uint32_t const sign = (bits >> 16) & 0x8000u;
    bits &= 0x7fffffffu;
    // Every case is computed and one is selected, without a branch, so that compilers vectorise loops over this.
    // Below 2^-14, float16's smallest normal number: 0.5 has a unit in the last place of 2^-24, which is float16's
    // smallest step, so that the addition of 0.5 rounds to it and leaves the result in the lowest bits.
    float magnitude;
    memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    std::uint32_t subnormal;
    memcpy(&subnormal, &magnitude, sizeof subnormal);
    subnormal -= 0x3f000000u;
    // Otherwise: exponent bias from 127 to 15, and round away 13 bits. From 65520 on the carry makes it infinity.
    std::uint32_t const normal = (bits + 0xc8000fffu + ((bits >> 13) & 1u)) >> 13;
    std::uint32_t half = bits < 0x38800000u ? subnormal : normal;
    half = bits >= 0x47800000u ? 0x7c00u : half;  // 65536 and above
    half = bits > 0x7f800000u ? 0x7e00u : half;   // NaN
    return static_cast<std::uint16_t>(half | sign);
}

}  // namespace sleepfm
