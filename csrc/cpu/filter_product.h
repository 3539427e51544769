// The multiply-adds of filter_row.h, under the same rules: included once for each instruction set, in its namespace.
#pragma once

#include <string.h>

#include <cstdint>

#include "params.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace sleepfm::cpu::SLEEPFM_ISA {

namespace {

// Arguments that are vectors would pass through memory in a call; such functions are always inlined.
#define SLEEPFM_INLINE_LAMBDA __attribute__((always_inline))
#define SLEEPFM_INLINE inline SLEEPFM_INLINE_LAMBDA

using Vector = float __attribute__((vector_size(SLEEPFM_LANES * sizeof(float))));

inline Vector load(float const* from) {
    Vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float* to, Vector v) {
    memcpy(to, &v, sizeof v);
}

inline void fill_zeros(float* to, std::int64_t n) {
    memset(to, 0, static_cast<std::size_t>(n) * sizeof(float));
}

// ---- groups of outputs ----------------------------------------------------------------------------------------------

// A group is filter_group outputs that lie side by side in vectors. A row of taps, one for each output of the group, is
// multiplied by one sample, broadcast. Several groups, whose samples lie `step` apart, share each load of taps.
constexpr int vectors = static_cast<int>(filter_group) / SLEEPFM_LANES;
// The most groups whose sums stay in registers. These take 16 of 32 with AVX-512 (whose multiply-add broadcasts the
// sample from memory), 24 of 32 on ARM, 12 of 16 with AVX2, and 8 of 16 where products need a register of their own.
#if SLEEPFM_LANES == 16
constexpr int most_groups = 16;
#elif SLEEPFM_LANES == 8 || defined(__aarch64__)
constexpr int most_groups = 6;
#else
constexpr int most_groups = 2;
#endif
// Longer sums are made of parts, so that their rounding error is little more than that of short ones.
constexpr std::int64_t most_taps_in_a_sum = 512;

template <int n_groups, int n_vectors>
using Sums = Vector[n_groups][n_vectors];

// Makes a value opaque to the compiler. Else it would compute the addresses of up to 16 groups ahead, and keep each in
// a register of its own.
template <typename T>
inline void hide(T& value) {
    asm("" : "+r"(value));
}

// sums[i][v] += taps of vector v times the sample of group i, over n_taps rows of taps. Group i's samples begin at
// x + i step; vectors of taps lie `apart`, rows `stride`.
template <int n_groups, int n_vectors>
SLEEPFM_INLINE void multiply_add(float const* x, std::int64_t step, float const* taps, std::int64_t apart,
                                 std::int64_t stride, std::int64_t n_taps, Sums<n_groups, n_vectors>& sums) {
    // The addresses of eight groups need only four index registers: an address may be base + index * 1, 2, 4 or 8.
    std::int64_t s1 = step * static_cast<std::int64_t>(sizeof(float)), s3 = 3 * s1, s5 = 5 * s1, s7 = 7 * s1;
    char const* low = reinterpret_cast<char const*>(x);
    char const* high = low + (n_groups > 8 ? 8 * s1 : 0);
    hide(s1);
    hide(s3);
    hide(s5);
    hide(s7);
    hide(high);
    do {  // n_taps >= 1. If the loop could be skipped, the compiler would keep the sums in memory.
        Vector tap[n_vectors];
        for (int v = 0; v < n_vectors; ++v) {
            tap[v] = load(taps + v * apart);
        }
        std::int64_t const place[8] = {0, s1, 2 * s1, s3, 4 * s1, s5, 2 * s3, s7};
#pragma GCC unroll 16
        for (int i = 0; i < n_groups; ++i) {
            float sample;
            memcpy(&sample, (i < 8 ? low : high) + place[i % 8], sizeof sample);
#pragma GCC unroll 4
            for (int v = 0; v < n_vectors; ++v) {
                sums[i][v] += tap[v] * sample;
            }
        }
        taps += stride;
        low += sizeof(float);
        high += sizeof(float);
    } while (--n_taps > 0);
}

// The operands of a product: taps [n_taps][stride], vectors of a row `apart` floats from each other; samples from x on
// for the first group, `step` samples later for each next one. Taps are taken in runs of `run`; run r is multiplied by
// the samples from x + r run_step on.
struct Operands {
    float const* x;
    std::int64_t step;
    float const* taps;
    std::int64_t apart, stride, n_taps, run, run_step;
};

// Consecutive samples, whose runs only divide long sums.
inline Operands one_run(float const* x, std::int64_t step, float const* taps, std::int64_t stride,
                        std::int64_t n_taps) {
    std::int64_t const run = n_taps <= most_taps_in_a_sum ? n_taps : most_taps_in_a_sum / 2;
    return {x, step, taps, SLEEPFM_LANES, stride, n_taps, run, run};
}

template <int n_groups, int n_vectors, typename Put>
SLEEPFM_INLINE void put_all(Sums<n_groups, n_vectors> const& sums, Put put) {
#pragma GCC unroll 16
    for (int i = 0; i < n_groups; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < n_vectors; ++v) {
            put(i, v, sums[i][v]);
        }
    }
}

// Computes n_groups groups and calls put(group, vector, sums) for every vector.
template <int n_groups, int n_vectors = vectors, typename Put>
SLEEPFM_INLINE void product(Operands const& a, Put put) {
    float const *x = a.x, *taps = a.taps;
    std::int64_t left = a.n_taps;
    auto const add_run = [&](Sums<n_groups, n_vectors>& sums) SLEEPFM_INLINE_LAMBDA {
        multiply_add<n_groups, n_vectors>(x, a.step, taps, a.apart, a.stride, left < a.run ? left : a.run, sums);
        x += a.run_step;
        taps += a.run * a.stride;
        left -= a.run;
    };
    if (a.n_taps <= most_taps_in_a_sum) {
        Sums<n_groups, n_vectors> sums = {};
        do {
            add_run(sums);
        } while (left > 0);
        put_all<n_groups, n_vectors>(sums, put);
        return;
    }
    Sums<n_groups, n_vectors> total = {};
    do {
        Sums<n_groups, n_vectors> part = {};
        add_run(part);
        put_all<n_groups, n_vectors>(part, [&](int i, int v, Vector sum) SLEEPFM_INLINE_LAMBDA { total[i][v] += sum; });
    } while (left > 0);
    put_all<n_groups, n_vectors>(total, put);
}

// The same for n groups, 1 <= n <= n_groups, where n is not known to the compiler.
template <int n_groups, int n_vectors, typename Put>
SLEEPFM_INLINE void product_of(std::int64_t n, Operands const& a, Put put) {
    if (n == n_groups) {
        product<n_groups, n_vectors>(a, put);
    } else if constexpr (n_groups > 1) {
        product_of<n_groups - 1, n_vectors>(n, a, put);
    }
}

// The same for any number of groups, from the first to the last, in as few parts as registers allow and of nearly equal
// size: with few sums, each multiply-add would have to wait for the one before it.
template <int most = most_groups, int n_vectors = vectors, typename Put>
SLEEPFM_INLINE void products(std::int64_t n, Operands a, Put put) {
    std::int64_t begin = 0;
    for (std::int64_t parts = (n + most - 1) / most; parts > 0; --parts) {
        std::int64_t const size = (n - begin) / parts;
        product_of<most, n_vectors>(
            size, a, [begin, put](int i, int v, Vector sums) SLEEPFM_INLINE_LAMBDA { put(begin + i, v, sums); });
        begin += size;
        a.x += size * a.step;
    }
}

// ---- single outputs -------------------------------------------------------------------------------------------------

#if defined(__x86_64__)

// Adds the lanes of v up to four.
inline __m128 fold(Vector v) {
#if SLEEPFM_LANES == 16
    __m512 const wide = (__m512)v;
    __m256 const half = _mm256_add_ps(_mm512_castps512_ps256(wide), _mm512_extractf32x8_ps(wide, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif SLEEPFM_LANES == 8
    __m256 const half = (__m256)v;
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#else
    return (__m128)v;
#endif
}

// out[i] = the sum of the lanes of the i-th vector: a transposition with additions in between.
inline void sum4(Vector va, Vector vb, Vector vc, Vector vd, float* out) {
    __m128 const a = fold(va), b = fold(vb), c = fold(vc), d = fold(vd);
    __m128 const ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
    __m128 const cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
}

#elif defined(__aarch64__)

inline void sum4(Vector a, Vector b, Vector c, Vector d, float* out) {
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

#else

inline void sum4(Vector a, Vector b, Vector c, Vector d, float* out) {
    Vector const v[4] = {a, b, c, d};
    for (int i = 0; i < 4; ++i) {
        out[i] = 0;
        for (int l = 0; l < SLEEPFM_LANES; ++l) {
            out[i] += v[i][l];
        }
    }
}

#endif

// out[i] = sum over t of x[i step + t] taps[t] for n <= 4 outputs; n_taps is a multiple of filter_tap_padding.
inline void dot4(std::int64_t n, float const* x, std::int64_t step, float const* taps, std::int64_t n_taps,
                 float* out) {
    float const* const x1 = x + (n > 1 ? step : 0);
    float const* const x2 = x + (n > 2 ? 2 * step : 0);
    float const* const x3 = x + (n > 3 ? 3 * step : 0);
    Vector a{}, b{}, c{}, d{};
    for (std::int64_t t = 0; t < n_taps; t += SLEEPFM_LANES) {
        Vector const tap = load(taps + t);
        a += tap * load(x + t);
        b += tap * load(x1 + t);
        c += tap * load(x2 + t);
        d += tap * load(x3 + t);
    }
    float sums[4];
    sum4(a, b, c, d, sums);
    for (std::int64_t i = 0; i < n; ++i) {
        out[i] = sums[i];
    }
}

}  // namespace

}  // namespace sleepfm::cpu::SLEEPFM_ISA
