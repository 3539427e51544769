// Storage formats of 16 bits and their conversion, rounding to nearest even; NaN stays NaN, overflow becomes infinity.
// Plain integer arithmetic, so that every instruction set gives the same bits. Static: one copy per translation unit.
#pragma once

#include <cstdint>
#include <cstring>

namespace sleepfm {

struct BFloat16 {
    std::uint16_t bits;
};
struct Float16 {
    std::uint16_t bits;
};

namespace {

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float widen(float value) {
    return value;
}
inline double widen(double value) {
    return value;
}
inline float widen(BFloat16 value) {
    return float_of(static_cast<std::uint32_t>(value.bits) << 16);
}
inline float widen(Float16 value) {
    std::uint32_t const sign = (value.bits & 0x8000U) << 16;
    std::uint32_t const rest = value.bits & 0x7fffU;
    // Read as float32, the shifted bits lie 2^112 too low; subnormals come out right as well.
    float const scaled = float_of(rest << 13) * 5.192296858534828e33F;
    std::uint32_t const finite = bits_of(scaled);
    std::uint32_t const special = (rest << 13) | 0x7f800000U;  // infinity and NaN
    return float_of(sign | (rest >= 0x7c00U ? special : finite));
}

inline void narrow(float value, float& out) {
    out = value;
}
inline void narrow(double value, double& out) {
    out = value;
}
inline void narrow(float value, BFloat16& out) {
    std::uint32_t const bits = bits_of(value);
    std::uint32_t const rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    std::uint32_t const quiet_nan = (bits >> 16) | 0x40U;
    out.bits = static_cast<std::uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? quiet_nan : rounded);
}
inline void narrow(float value, Float16& out) {
    std::uint32_t const bits = bits_of(value);
    std::uint32_t const sign = (bits >> 16) & 0x8000U;
    std::uint32_t const magnitude = bits & 0x7fffffffU;
    std::uint32_t half;
    if (magnitude > 0x7f800000U) {
        half = 0x7e00U;
    } else if (magnitude >= 0x477ff000U) {  // 65520 and more round to infinity
        half = 0x7c00U;
    } else if (magnitude >= 0x38800000U) {  // 2^-14: normal
        half = (magnitude - 0x38000000U + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
    } else {
        // Adding 0.5 leaves the subnormal's bits, rounded by the hardware, at the end of the sum.
        half = bits_of(float_of(magnitude) + 0.5F) - bits_of(0.5F);
    }
    out.bits = static_cast<std::uint16_t>(sign | half);
}

}  // namespace

}  // namespace sleepfm
