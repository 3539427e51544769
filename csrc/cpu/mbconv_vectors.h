// Vectors of SLEEPFM_LANES float32, in the compilers' vector extension: loads and stores (of the first n lanes too),
// sums over lanes, ReLU6. Compiled once for each instruction set, in a namespace of its own.
#pragma once

#include <string.h>

#include <cstdint>

#include "cpu/index.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace sleepfm::SLEEPFM_ISA {

namespace {

using Vector = float __attribute__((vector_size(SLEEPFM_LANES * sizeof(float))));
using Mask = std::int32_t __attribute__((vector_size(SLEEPFM_LANES * sizeof(float))));

constexpr Index LANES = SLEEPFM_LANES;

inline Vector splat(float value) {
    return value - Vector{};  // compiles to a broadcast: x - 0 is x for every x, while -0 + 0 is not -0
}

// A vector at any address of a float. Not by memcpy: that may change anything, so that the compiler would read pointers
// again after every store. A typedef, since Clang ignores `aligned` in a `using`.
typedef float Unaligned __attribute__((vector_size(SLEEPFM_LANES * sizeof(float)), aligned(alignof(float))));

inline Vector load(float const* from) {
    return *reinterpret_cast<Unaligned const*>(from);
}

inline void store(float* to, Vector v) {
    *reinterpret_cast<Unaligned*>(to) = v;
}

// Prefetches n numbers that will be read soon.
template <typename T>
inline void prefetch(T const* from, Index n) {
    for (Index i = 0; i < n; i += 64 / static_cast<Index>(sizeof(T))) {
        __builtin_prefetch(from + i);
    }
}

// Prefetches n numbers that will be written soon.
template <typename T>
inline void prefetch_to_write(T* to, Index n) {
    for (Index i = 0; i < n; i += 64 / static_cast<Index>(sizeof(T))) {
        __builtin_prefetch(to + i, 1);
    }
}

// All bits set in the first n lanes.
inline Mask lanes_before(Index n) {
    Mask lane;
    for (int i = 0; i < SLEEPFM_LANES; ++i) {
        lane[i] = i;
    }
    return lane < static_cast<std::int32_t>(n);
}

// Loads the first n lanes; the others are zero, and their memory is not touched.
inline Vector load_first(float const* from, Index n) {
    if (n >= LANES) {
        return load(from);
    }
#if SLEEPFM_LANES == 16 && defined(__AVX512F__)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << (n < 0 ? 0 : n)) - 1u), from);
#elif SLEEPFM_LANES == 8 && defined(__AVX__)
    Mask const lanes = lanes_before(n);
    return _mm256_maskload_ps(from, reinterpret_cast<__m256i const&>(lanes));
#else
    Vector v{};
    for (int i = 0; i < SLEEPFM_LANES; ++i) {
        if (i < n) {
            v[i] = from[i];
        }
    }
    return v;
#endif
}

// Stores the first n lanes; memory of the others is not touched.
inline void store_first(float* to, Vector v, Index n) {
    if (n >= LANES) {
        store(to, v);
        return;
    }
#if SLEEPFM_LANES == 16 && defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << (n < 0 ? 0 : n)) - 1u), v);
#elif SLEEPFM_LANES == 8 && defined(__AVX__)
    // In halves, since a masked store takes some processors 40 operations.
    __m128 part = _mm256_castps256_ps128(v);
    if (n & 4) {
        _mm_storeu_ps(to, part);
        part = _mm256_extractf128_ps(v, 1);
        to += 4;
    }
    if (n & 2) {
        _mm_storel_pi(reinterpret_cast<__m64*>(to), part);
        part = _mm_movehl_ps(part, part);
        to += 2;
    }
    if (n & 1) {
        _mm_store_ss(to, part);
    }
#else
    for (int i = 0; i < SLEEPFM_LANES; ++i) {
        if (i < n) {
            to[i] = v[i];
        }
    }
#endif
}

// v with zeros in all but the first n lanes.
inline Vector first_lanes(Vector v, Index n) {
    if (n >= LANES) {
        return v;
    }
    return lanes_before(n) ? v : Vector{};
}

// A register of float64, which has half as many lanes.
constexpr Index WIDE_LANES = SLEEPFM_LANES / 2;
using Doubles = double __attribute__((vector_size(SLEEPFM_LANES * sizeof(float))));
using HalfVector = float __attribute__((vector_size(SLEEPFM_LANES / 2 * sizeof(float))));

// The sum of all lanes in float64, in a binary tree: at most four additions wait for each other, in place of fifteen.
inline double total(Doubles v) {
    double lanes[WIDE_LANES];
    memcpy(lanes, &v, sizeof lanes);
    for (Index half = WIDE_LANES / 2; half > 0; half /= 2) {
        for (Index i = 0; i < half; ++i) {
            lanes[i] += lanes[i + half];
        }
    }
    return lanes[0];
}

inline double total(Vector v) {
    HalfVector halves[2];
    memcpy(halves, &v, sizeof halves);
    return total(__builtin_convertvector(halves[0], Doubles) + __builtin_convertvector(halves[1], Doubles));
}

inline Doubles load_wide(double const* from) {
    Doubles v;
    memcpy(&v, from, sizeof v);
    return v;
}

inline void store_wide(double* to, Doubles v) {
    memcpy(to, &v, sizeof v);
}

inline Doubles load_widened(float const* from) {
    HalfVector v;
    memcpy(&v, from, sizeof v);
    return __builtin_convertvector(v, Doubles);
}

// v times `by`, rounded once.
inline Vector scaled(Vector v, double by) {
    HalfVector halves[2];
    memcpy(halves, &v, sizeof halves);
    for (HalfVector& half : halves) {
        half = __builtin_convertvector(__builtin_convertvector(half, Doubles) * by, HalfVector);
    }
    memcpy(&v, halves, sizeof v);
    return v;
}

inline void store_narrowed(float* to, Doubles v) {
    HalfVector const half = __builtin_convertvector(v, HalfVector);
    memcpy(to, &half, sizeof half);
}

// NaN stays NaN, as in torch: of a NaN and a number, x86's maximum and minimum give their second operand, which is v
// here, and ARM's give NaN. From comparisons and selections the compiler would make four instructions.
inline Vector relu6(Vector v) {
#if SLEEPFM_LANES == 16 && defined(__AVX512F__)
    return _mm512_min_ps(splat(6.0f), _mm512_max_ps(Vector{}, v));
#elif SLEEPFM_LANES == 8 && defined(__AVX__)
    return _mm256_min_ps(splat(6.0f), _mm256_max_ps(Vector{}, v));
#elif SLEEPFM_LANES == 4 && defined(__SSE2__)
    return _mm_min_ps(splat(6.0f), _mm_max_ps(Vector{}, v));
#elif defined(__aarch64__)
    return vminq_f32(splat(6.0f), vmaxq_f32(Vector{}, v));
#else
    v = v < 0.0f ? Vector{} : v;
    return v > 6.0f ? splat(6.0f) : v;
#endif
}

// `gradient` in lanes where 0 < at < 6 or `at` is NaN; else zero.
inline Vector relu6_gradient(Vector at, Vector gradient) {
#if SLEEPFM_LANES == 16 && defined(__AVX512F__)
    __mmask16 const above = _mm512_cmp_ps_mask(at, Vector{}, _CMP_NLE_UQ);
    return _mm512_maskz_mov_ps(_mm512_mask_cmp_ps_mask(above, at, splat(6.0f), _CMP_NGE_UQ), gradient);
#elif SLEEPFM_LANES == 8 && defined(__AVX__)
    return _mm256_and_ps(
        gradient, _mm256_and_ps(_mm256_cmp_ps(at, Vector{}, _CMP_NLE_UQ), _mm256_cmp_ps(at, splat(6.0f), _CMP_NGE_UQ)));
#else
    Mask const outside = (at <= 0.0f) | (at >= 6.0f);
    Mask bits;
    memcpy(&bits, &gradient, sizeof bits);
    bits &= ~outside;
    Vector result;
    memcpy(&result, &bits, sizeof result);
    return result;
#endif
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
