// Storage formats of 16 bits and their conversion, rounding to nearest even; NaN stays NaN, overflow becomes infinity.
// Plain integer arithmetic, so that every instruction set gives the same bits. Static: one copy per translation unit.
#pragma once

#include <cstdint>
#include <cstring>

#include "half_precision.h"

namespace sleepfm {

struct BFloat16 {
    std::uint16_t bits;
};
struct Float16 {
    std::uint16_t bits;
};

namespace {

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
    std::uint32_t finite;
    std::memcpy(&finite, &scaled, sizeof finite);
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
    out.bits = to_bf16(value);
}
inline void narrow(float value, Float16& out) {
    out.bits = to_f16(value);
}

}  // namespace

}  // namespace sleepfm
