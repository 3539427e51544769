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
    std::uint32_t half;
    if (bits > 0x7f800000u) {
        half = 0x7e00u;                // NaN
    } else if (bits >= 0x47800000u) {  // 65536 and above
        half = 0x7c00u;
    } else if (bits < 0x38800000u) {  // below the smallest normal number: align the fraction by adding 0.5
        float magnitude;
        memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5f;
        std::uint32_t shifted;
        memcpy(&shifted, &magnitude, sizeof shifted);
        half = shifted - 0x3f000000u;
    } else {  // 65520 and above carry into infinity by themselves
        half = (bits + 0xc8000fffu + ((bits >> 13) & 1u)) >> 13;
    }
    return static_cast<std::uint16_t>(half | sign);
}

}  // namespace sleepfm
