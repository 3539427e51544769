// float32 to bfloat16 and float16 bits, the same on every processor.
#pragma once

#include <string.h>

#include <cstdint>

#include "host_device.h"

namespace sleepfm {

// Round to nearest, ties to even; overflow becomes infinity, NaN stays NaN.
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
    // All cases are computed and one is chosen: loops over this become vector code.
    float magnitude;  // below the smallest normal number: adding 0.5 aligns the fraction
    memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    std::uint32_t subnormal;
    memcpy(&subnormal, &magnitude, sizeof subnormal);
    subnormal -= 0x3f000000u;
    std::uint32_t const normal = (bits + 0xc8000fffu + ((bits >> 13) & 1u)) >> 13;  // from 65520 carries into infinity
    std::uint32_t half = bits < 0x38800000u ? subnormal : normal;
    half = bits >= 0x47800000u ? 0x7c00u : half;  // 65536 and above
    half = bits > 0x7f800000u ? 0x7e00u : half;   // NaN
    return static_cast<std::uint16_t>(half | sign);
}

}  // namespace sleepfm
