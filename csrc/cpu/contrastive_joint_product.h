// Products of the joint pass on unit rows that lie as in x, [sample][dimension]: nothing is packed or transposed. For
// cosines, vectors lie along the dimensions, and their lanes are summed at the end; gradients are sums of rows.
#pragma once

#include <type_traits>

#include "cpu/contrastive_prepare.h"

namespace sleepfm::SLEEPFM_ISA {

// Inner products of INNER_ROWS x INNER_COLUMNS rows stay in registers; NEAR_COLUMNS rows of one side (16 KB of float32
// at D = 512) stay in the first cache while all rows of the other side pass by.
constexpr Index INNER_ROWS = 2;
constexpr Index INNER_COLUMNS = 4;
constexpr Index NEAR_COLUMNS = 8;

// Folds COUNT vectors into v[0], whose lanes i, COUNT + i, 2 COUNT + i, ... add up to the sum of v[i]'s lanes.
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

// Makes the compiler keep a vector, which several multiply-adds use, in a register. Else it may fold the load into each
// of them.
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

// out[m][n] = <a_m, b_n> for INNER_ROWS x INNER_COLUMNS rows that lie `stride` elements apart. The order of a sum does
// not depend on m and n, so that equal rows give equal bits.
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

// Consecutive rows of e and the weights they are multiplied with.
template <typename T>
struct Run {
    T const* weight;  // weight[m * weight_stride + k] for result m and row k of e
    T const* row;     // the first of the wanted vectors of row 0
};

// sums[m][w] = sum over runs and k < n_k of weight(m, k) times vector w of row k, for ROWS results m. There is at least
// one run and n_k >= 1, hence the do loops: if the loops could be skipped, compilers would keep the sums in memory.
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

// Writes the first n elements of n_vectors vectors to `out`, which need not be aligned.
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

// e = x / max(|x|, 1e-12), D elements.
template <typename T, typename Element>
inline void write_unit(Element const* x, Index D, double norm, T* e) {
    double const divisor = divisor_of(norm);
    double const inverse = 1.0 / divisor;
#if defined(__FMA__)
    // The reciprocal as the sum of two floats, so that no element passes through double; the result is rounded once in
    // all but about one case in 2^24.
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
