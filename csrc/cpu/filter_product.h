// The multiply-adds of filter_row.h, under the same rules: included once per instruction set, inside that namespace.
#pragma once

#include <string.h>

#include <cstdint>

#include "params.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sleepfm::cpu::SLEEPFM_ISA {

namespace {

using Vector = float __attribute__((vector_size(SLEEPFM_LANES * sizeof(float))));

inline Vector load(float const* from) {
    Vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float* to, Vector v) {
    memcpy(to, &v, sizeof v);
}

// ---- groups of outputs ----------------------------------------------------------------------------------------------

// A group is filter_group outputs that lie side by side in vectors. Every tap meets one sample, which all outputs of
// the group share; several groups whose samples lie `step` apart share the taps, one load for all of them.
constexpr int vectors = static_cast<int>(filter_group) / SLEEPFM_LANES;
// Sums that stay in registers: 16 of 32 with AVX-512 (whose multiply-add takes the sample from memory), 12 of 16 with
// AVX2, 8 of 16 where products need a register of their own.
constexpr int most_groups = SLEEPFM_LANES == 16 ? 16 : SLEEPFM_LANES == 8 ? 6 : 2;
// Long sums are made of pieces: their rounding error stays that of short ones.
constexpr std::int64_t piece_taps = 256;

template <int n_groups>
using Sums = Vector[n_groups][vectors];

template <int n_groups>
inline void multiply_add(float const* x, std::int64_t step, float const* taps, std::int64_t stride, std::int64_t n_taps,
                         Sums<n_groups>& sums) {
    for (std::int64_t t = 0; t < n_taps; ++t, taps += stride, ++x) {
        Vector tap[vectors];
        for (int v = 0; v < vectors; ++v) {
            tap[v] = load(taps + v * SLEEPFM_LANES);
        }
#pragma GCC unroll 16
        for (int i = 0; i < n_groups; ++i) {
            float const sample = x[i * step];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                sums[i][v] += tap[v] * sample;
            }
        }
    }
}

// Sums of n_groups <= most_groups groups: put(group, vector, sums).
template <int n_groups, typename Put>
inline void product(float const* x, std::int64_t step, float const* taps, std::int64_t stride, std::int64_t n_taps,
                    Put put) {
    Sums<n_groups> sums = {};
    if (n_taps <= 2 * piece_taps) {
        multiply_add<n_groups>(x, step, taps, stride, n_taps, sums);
    } else {
        Sums<n_groups> total = {};
        for (std::int64_t begin = 0; begin < n_taps; begin += piece_taps) {
            Sums<n_groups> piece = {};
            multiply_add<n_groups>(x + begin, step, taps + begin * stride, stride,
                                   n_taps - begin < piece_taps ? n_taps - begin : piece_taps, piece);
            for (int i = 0; i < n_groups; ++i) {
                for (int v = 0; v < vectors; ++v) {
                    total[i][v] += piece[i][v];
                }
            }
        }
        memcpy(sums, total, sizeof sums);
    }
    for (int i = 0; i < n_groups; ++i) {
        for (int v = 0; v < vectors; ++v) {
            put(i, v, sums[i][v]);
        }
    }
}

template <int n_groups, typename Put>
inline void remaining_product(std::int64_t n, float const* x, std::int64_t step, float const* taps, std::int64_t stride,
                              std::int64_t n_taps, Put put) {
    if (n == n_groups) {
        product<n_groups>(x, step, taps, stride, n_taps, put);
    } else if constexpr (n_groups > 1) {
        remaining_product<n_groups - 1>(n, x, step, taps, stride, n_taps, put);
    }
}

// Any number of groups, first to last: put(group, vector, sums).
template <typename Put>
inline void products(std::int64_t n, float const* x, std::int64_t step, float const* taps, std::int64_t stride,
                     std::int64_t n_taps, Put put) {
    for (std::int64_t begin = 0; begin < n; begin += most_groups) {
        auto const here = [begin, put](std::int64_t i, int v, Vector sums) { put(begin + i, v, sums); };
        float const* first = x + begin * step;
        if (n - begin >= most_groups) {
            product<most_groups>(first, step, taps, stride, n_taps, here);
        } else {
            remaining_product<most_groups - 1>(n - begin, first, step, taps, stride, n_taps, here);
        }
    }
}

// ---- single outputs -------------------------------------------------------------------------------------------------

#if defined(__x86_64__)

// The lanes of v folded onto four.
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

// Four sums at once: a transposition with additions.
inline void sum4(Vector va, Vector vb, Vector vc, Vector vd, float* out) {
    __m128 const a = fold(va), b = fold(vb), c = fold(vc), d = fold(vd);
    __m128 const ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
    __m128 const cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
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

// out[i] = sum_t x[i * step + t] * taps[t] for n <= 4 outputs; n_taps is a multiple of filter_tap_padding.
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
