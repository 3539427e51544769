// Products of the joint pass on unit rows that lie as x does, [sample][dimension]: nothing is packed or turned. Cosines
// are sums along dimensions, in the lanes of vectors; gradients are sums of rows.
#pragma once

#include <type_traits>

#include "cpu/contrastive_prepare.h"

namespace sleepfm::SLEEPFM_ISA {

// Rows of e and columns whose inner products stay in registers, and the columns whose rows stay in the first cache
// (16 KB at D = 512) while the others pass by.
constexpr Index INNER_ROWS = 2;
constexpr Index INNER_COLUMNS = 4;
constexpr Index NEAR_COLUMNS = 8;

// From v[0 .. COUNT) to v[0], whose lane l COUNT + i holds a part of the sum of v[i]'s lanes.
template <typename T, int COUNT>
inline void fold_lanes(Vec<T>* v) {
    constexpr auto lanes = std::make_index_sequence<static_cast<std::size_t>(WIDTH<T>)>{};
    if constexpr (COUNT > 1) {
#pragma GCC unroll 8
        for (int i = 0; i < COUNT / 2; ++i) {
            v[i] = interleave_low<T>(v[i], v[i + COUNT / 2], lanes) + interleave_high<T>(v[i], v[i + COUNT / 2], lanes);
        }
        fold_lanes<T, COUNT / 2>(v);
    }
}

// Keeps a vector that several sums take in a register: read from memory by each of them, it is one load too many.
template <typename V>
inline void hold([[maybe_unused]] V& vector) {
#if defined(__AVX512F__)
    asm("" : "+v"(vector));
#elif defined(__AVX__)
    if constexpr (sizeof vector <= 32) {
        asm("" : "+x"(vector));
    }
#endif
}

// out[m][n] = <a_m, b_n>, rows `stride` elements apart; every element is summed in the same order, whatever its place.
template <typename T>
inline void inner_products(Index n_k, Index stride, T const* a, T const* b, T* out) {
    constexpr int width = WIDTH<T>;
    constexpr int n_sums = INNER_ROWS * INNER_COLUMNS;
    Vec<T> sum[n_sums] = {};
    for (Index k = 0; k < n_k; k += width) {
        Vec<T> const first = load<T>(a + k);
        Vec<T> const second = load<T>(a + stride + k);
#pragma GCC unroll 4
        for (int n = 0; n < INNER_COLUMNS; ++n) {
            Vec<T> right = load<T>(b + n * stride + k);
            hold(right);
            sum[n] += first * right;
            sum[INNER_COLUMNS + n] += second * right;
        }
    }
    constexpr int together = width < n_sums ? width : n_sums;
#pragma GCC unroll 8
    for (int at = 0; at < n_sums; at += together) {
        fold_lanes<T, together>(sum + at);
        alignas(64) T lane[width];
        store<T>(lane, sum[at]);
        for (int half = width / 2; half >= together; half /= 2) {
            for (int i = 0; i < half; ++i) {
                lane[i] += lane[i + half];
            }
        }
        for (int i = 0; i < together; ++i) {
            out[at + i] = lane[i];
        }
    }
}

// Rows of e that lie one after the other, and the weights that go with them.
template <typename T>
struct Run {
    T const* weight;  // of row m and e's row k: weight[m * weight_stride + k]
    T const* row;     // its first vector
};

// sums[m][w] = sum over runs and k < n_k of weight(m, k) row(k)[w WIDTH ...]. No run is empty: sums that a loop might
// pass by would live in memory.
template <typename T, int VECTORS>
inline void sum_rows(Run<T> const* run, Index n_runs, Index n_k, Index weight_stride, Index stride,
                     Vec<T> (&sums)[ROWS][VECTORS]) {
    Vec<T> sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 3
        for (int w = 0; w < VECTORS; ++w) {
            sum[m][w] = Vec<T>{};
        }
    }
    Run<T> const* const end = run + n_runs;
    do {
        T const* weight = run->weight;
        T const* row = run->row;
        T const* const last = weight + n_k;
        do {
            Vec<T> right[VECTORS];
#pragma GCC unroll 3
            for (int w = 0; w < VECTORS; ++w) {
                right[w] = load<T>(row + w * WIDTH<T>);
            }
#pragma GCC unroll 8
            for (int m = 0; m < ROWS; ++m) {
                T const factor = weight[m * weight_stride];
#pragma GCC unroll 3
                for (int w = 0; w < VECTORS; ++w) {
                    sum[m][w] += factor * right[w];
                }
            }
            row += stride;
        } while (++weight != last);
    } while (++run != end);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 3
        for (int w = 0; w < VECTORS; ++w) {
            sums[m][w] = sum[m][w];
        }
    }
}

// VECTORS vectors of T to n elements at `out`, which need not be aligned.
template <typename T, typename Element>
inline void write_elements(Vec<T> const* from, int n_vectors, Element* out, Index n) {
    constexpr int width = WIDTH<T>;
    for (int w = 0; w < n_vectors; ++w) {
        alignas(64) T lane[width];
        store<T>(lane, from[w]);
        Index const left = n - w * width;
        if (left >= width) {
            if constexpr (std::is_same_v<T, Element>) {
                std::memcpy(out + w * width, &from[w], sizeof from[w]);
            } else {
                Element whole[width];
                for (int l = 0; l < width; ++l) {
                    narrow(lane[l], whole[l]);
                }
                std::memcpy(out + w * width, whole, sizeof whole);
            }
        } else {
            for (Index l = 0; l < left; ++l) {
                narrow(lane[l], out[w * width + l]);
            }
        }
    }
}

// e = x / max(|x|, 1e-12) of one row, and zeros up to a whole vector.
template <typename T, typename Element>
inline void write_unit(Element const* x, Index D, double norm, T* e) {
    double const divisor = norm < NORM_FLOOR ? NORM_FLOOR : norm;
    double const inverse = 1.0 / divisor;
#if defined(__FMA__)
    // The double reciprocal as two floats: rounded once but for one case in 2^24, without a detour through doubles.
    if constexpr (sizeof(T) == 4) {
        if (inverse > 1e-30 && inverse < 1e30) {
            T const high = static_cast<T>(inverse);
            T const low = static_cast<T>(inverse - static_cast<double>(high));
            for (Index k = 0; k < D; ++k) {
                T const value = widen(x[k]);
                e[k] = __builtin_fmaf(value, high, value * low);
            }
            return;
        }
    }
#endif
    for (Index k = 0; k < D; ++k) {
        e[k] = unit_element<T>(x[k], divisor, inverse);
    }
}

}  // namespace sleepfm::SLEEPFM_ISA
