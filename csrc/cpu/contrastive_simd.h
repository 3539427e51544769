// Vector arithmetic of the contrastive loss, in the compilers' vector extension, compiled once for each instruction
// set: contrastive_{portable,avx2,avx512}.cpp define SLEEPFM_ISA (the namespace) and SLEEPFM_VECTOR_BYTES, then include
// the headers. Everything lives in that namespace, so that the linker never replaces one instruction set's code by that
// of another, which the processor may lack.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/index.h"

namespace sleepfm::SLEEPFM_ISA {

template <typename T>
struct Simd;

template <>
struct Simd<float> {
    typedef float V __attribute__((vector_size(SLEEPFM_VECTOR_BYTES)));
    typedef std::int32_t I __attribute__((vector_size(SLEEPFM_VECTOR_BYTES)));
    typedef std::uint32_t Bits __attribute__((vector_size(SLEEPFM_VECTOR_BYTES)));
    using Integer = std::int32_t;
    static constexpr int WIDTH = SLEEPFM_VECTOR_BYTES / 4;
};

template <>
struct Simd<double> {
    typedef double V __attribute__((vector_size(SLEEPFM_VECTOR_BYTES)));
    typedef std::int64_t I __attribute__((vector_size(SLEEPFM_VECTOR_BYTES)));
    typedef std::uint64_t Bits __attribute__((vector_size(SLEEPFM_VECTOR_BYTES)));
    using Integer = std::int64_t;
    static constexpr int WIDTH = SLEEPFM_VECTOR_BYTES / 8;
};

template <typename T>
using Vec = typename Simd<T>::V;
template <typename T>
using IntVec = typename Simd<T>::I;
template <typename T>
constexpr int WIDTH = Simd<T>::WIDTH;

// Samples are padded to a multiple of this: of every vector's width, and of all blocks of registers.
constexpr Index SAMPLES = 16;

// load and store need pointers aligned to a vector; workspaces are, and their rows are padded.
template <typename T>
inline Vec<T> load(T const* p) {
    return *reinterpret_cast<Vec<T> const*>(p);
}
template <typename T>
inline void store(T* p, Vec<T> v) {
    *reinterpret_cast<Vec<T>*>(p) = v;
}
template <typename T>
inline Vec<T> splat(T value) {
    Vec<T> v;
    for (int i = 0; i < WIDTH<T>; ++i) {
        v[i] = value;
    }
    return v;
}

// Prefetches n elements to the second cache. For operands too large for it: the hardware's own prefetching of the
// strided reads comes too late.
template <typename T>
inline void fetch(T const* from, Index n) {
    for (Index i = 0; i < n; i += static_cast<Index>(64 / sizeof(T))) {
        __builtin_prefetch(from + i, 0, 2);
    }
}

// The lanes' sum, in a fixed binary tree.
template <typename T>
inline T sum_of_lanes(Vec<T> v) {
    alignas(64) T lane[WIDTH<T>];
    store<T>(lane, v);
    for (int half = WIDTH<T> / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) {
            lane[i] += lane[i + half];
        }
    }
    return lane[0];
}
template <typename T>
inline T max_of_lanes(Vec<T> v) {
    alignas(64) T lane[WIDTH<T>];
    store<T>(lane, v);
    for (int half = WIDTH<T> / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) {
            lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
        }
    }
    return lane[0];
}
template <typename T>
inline std::int32_t count_of_lanes(IntVec<T> v) {
    std::int32_t total = 0;
    for (int i = 0; i < WIDTH<T>; ++i) {
        total += static_cast<std::int32_t>(v[i]);
    }
    return total;
}

// exp(x) for x <= 0 (a logit less its maximum). Exactly 0 below `lowest`, where it no longer changes a sum that has a 1
// in it, and where products with the gradient's weights would be subnormal. NaN stays NaN. x = n ln 2 + r with
// |r| <= ln(2) / 2 and ln 2 in two parts (Cody and Waite); exp(r) is a polynomial (float: Cephes'), and n is added to
// the exponent bits.
inline Vec<float> exponential(Vec<float> x) {
    using V = Vec<float>;
    using Bits = Simd<float>::Bits;  // unsigned: far below `lowest` and for NaN the addition overflows, and is not used
    constexpr float lowest = -64.0F;
    constexpr float round_to_integer = 12582912.0F;  // 1.5 * 2^23: adding it leaves the integer in the low bits
    V const shifted = x * 1.44269504088896341F + round_to_integer;
    V const n = shifted - round_to_integer;
    V const r = (x - n * 0.693359375F) - n * -2.12194440e-4F;
    V p = r * 1.9875691500e-4F + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    p = (p * (r * r) + r) + 1.0F;
    Bits const bits = reinterpret_cast<Bits>(p) + (reinterpret_cast<Bits>(shifted) << 23);
    V const value = reinterpret_cast<V>(bits);
    V const nan_or_value = x != x ? x : value;
    return x < lowest ? V{} : nan_or_value;
}

inline Vec<double> exponential(Vec<double> x) {
    using V = Vec<double>;
    using Bits = Simd<double>::Bits;
    constexpr double lowest = -700.0;
    constexpr double round_to_integer = 6755399441055744.0;  // 1.5 * 2^52
    V const shifted = x * 1.4426950408889634 + round_to_integer;
    V const n = shifted - round_to_integer;
    V const r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
    // Taylor to r^13: the remainder is 4e-18 at |r| = ln(2)/2.
    V p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = (p * (r * r) + r) + 1.0;
    Bits const bits = reinterpret_cast<Bits>(p) + (reinterpret_cast<Bits>(shifted) << 52);
    V const value = reinterpret_cast<V>(bits);
    V const nan_or_value = x != x ? x : value;
    return x < lowest ? V{} : nan_or_value;
}

// ---- transpose of WIDTH x WIDTH elements ----------------------------------------------------------------------------

template <typename T, std::size_t... lane>
inline Vec<T> interleave_low(Vec<T> a, Vec<T> b, std::index_sequence<lane...>) {
    return __builtin_shufflevector(a, b, static_cast<int>(lane / 2 + (lane % 2) * sizeof...(lane))...);
}
template <typename T, std::size_t... lane>
inline Vec<T> interleave_high(Vec<T> a, Vec<T> b, std::index_sequence<lane...>) {
    return __builtin_shufflevector(a, b,
                                   static_cast<int>(lane / 2 + sizeof...(lane) / 2 + (lane % 2) * sizeof...(lane))...);
}

// to[j][i] = from[i][j], i, j < WIDTH; strides in elements. Interleaving vector i with vector i + WIDTH / 2 is repeated
// log2(WIDTH) times.
template <typename T>
inline void transpose(T const* from, std::int64_t from_stride, T* to, std::int64_t to_stride) {
    constexpr int width = WIDTH<T>;
    constexpr auto lanes = std::make_index_sequence<static_cast<std::size_t>(width)>{};
    Vec<T> v[width];
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) {
        v[i] = load<T>(from + i * from_stride);
    }
#pragma GCC unroll 4
    for (int stage = 1; stage < width; stage *= 2) {
        Vec<T> w[width];
#pragma GCC unroll 8
        for (int i = 0; i < width / 2; ++i) {
            w[2 * i] = interleave_low<T>(v[i], v[i + width / 2], lanes);
            w[2 * i + 1] = interleave_high<T>(v[i], v[i + width / 2], lanes);
        }
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) {
            v[i] = w[i];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) {
        store<T>(to + i * to_stride, v[i]);
    }
}

}  // namespace sleepfm::SLEEPFM_ISA
