// The storage formats of 16 bits, and their conversion from (narrow) and to (widen) the type of arithmetic. narrow
// rounds as half_precision.h says. In integer arithmetic, so that every instruction set gives the same bits. The
// unnamed namespace makes a copy for each translation unit, that is for each instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "half_precision.h"
#include "params.h"

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
    // No intermediate float32 may be subnormal: a thread may flush those to zero (torch.set_flush_denormal).
    std::uint32_t const normal = (rest << 13) + 0x38000000U;                      // exponent bias from 15 to 127
    float const small = float_of((rest << 13) + 0x38800000U) - 6.103515625e-05F;  // a subnormal as (2^-14 + it) - 2^-14
    std::uint32_t subnormal;
    std::memcpy(&subnormal, &small, sizeof subnormal);
    std::uint32_t const special = (rest << 13) | 0x7f800000U;  // infinity and NaN
    std::uint32_t const finite = rest < 0x400U ? subnormal : normal;
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

// Calls body(element) with an element of the type that `dtype` names, of those whose arithmetic is in T: double of
// double, float of the others.
template <typename T, typename Body>
inline void with_element(DType dtype, Body const& body) {
    if constexpr (sizeof(T) == sizeof(double)) {
        body(double{});
    } else {
        switch (dtype) {
            case DType::bf16: body(BFloat16{}); break;
            case DType::f16: body(Float16{}); break;
            default: body(float{}); break;
        }
    }
}

}  // namespace

}  // namespace sleepfm
