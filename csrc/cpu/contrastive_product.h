// Matrix products of the contrastive loss, all by one micro-kernel of ROWS x COLUMN_VECTORS vector sums in registers.
//
// A matrix [samples, dimensions] is stored in panels of PANEL samples, [panel][dimension][sample of the panel]; a tile
// of similarities as [panel of columns][row][column of the panel]. One such copy of an operand serves all three
// products (similarities, and the gradients of both operands), either as the vectors, read along the panel, or as the
// factor that is broadcast element by element. Every read has a constant stride and stays within few pages.
#pragma once

#include "cpu/contrastive_simd.h"

namespace sleepfm::SLEEPFM_ISA {

// The micro-kernel's sums take 24 of 32 vector registers with AVX-512 and on ARM, 12 of 16 elsewhere.
#if SLEEPFM_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr Index ROWS = 8;
#else
constexpr Index ROWS = 4;
#endif
constexpr int COLUMN_VECTORS = 3;
// Samples of a panel: COLUMN_VECTORS vectors of float32 (a multiple for float64 and for narrow vectors), and a multiple
// of ROWS. What the micro-kernel reads as vectors is then one run of memory; 128 dimensions of it, or the 192 rows of a
// tile, stay in the first cache.
constexpr Index PANEL = SLEEPFM_VECTOR_BYTES == 64 ? 48 : 24;
constexpr Index SUMS_PANEL = PANEL;  // the same of the gradients
constexpr Index DIMENSIONS = ROWS;   // dimensions are padded to a multiple of this

// Samples on a side of a tile: about eight blocks on a side, so that threads find work, but at most 192 samples in
// each, so that a tile and its transpose stay in the second cache. 48 samples are whole panels of every instruction
// set. Where all samples fit into one panel, blocks may be parts of it.
inline Index block_length(Index n_samples) {
    Index const block = round_up(n_samples, SAMPLES) <= PANEL ? SAMPLES : round_up((n_samples + 7) / 8, 48);
    return least(block, 192);
}

// Where element (row m, step k) of the broadcast factor lies.
enum class Left {
    by_step,  // a[k * PANEL + m]
    by_row    // a[m * PANEL + k]
};

template <typename T, int VECTORS>
struct Accumulators {
    Vec<T> sum[ROWS][VECTORS];

    void clear() {
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 3
            for (int w = 0; w < VECTORS; ++w) {
                sum[m][w] = Vec<T>{};
            }
        }
    }
    // Every element is one chain of multiply-adds in the order of k, wherever it lies, so that equal operands give
    // equal bits; the exact treatment of ties in ranks relies on that.
    template <Left left>
    void multiply_add(Index n_k, T const* a, T const* b) {
        for (Index k = 0; k < n_k; ++k) {
            Vec<T> right[VECTORS];
#pragma GCC unroll 3
            for (int w = 0; w < VECTORS; ++w) {
                right[w] = load<T>(b + k * PANEL + w * WIDTH<T>);
            }
#pragma GCC unroll 8
            for (int m = 0; m < ROWS; ++m) {
                T const factor = left == Left::by_step ? a[k * PANEL + m] : a[m * PANEL + k];
#pragma GCC unroll 3
                for (int w = 0; w < VECTORS; ++w) {
                    sum[m][w] += factor * right[w];
                }
            }
        }
    }
    // To c[row][PANEL], or added to it.
    void write(T* c, bool add) const {
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 3
            for (int w = 0; w < VECTORS; ++w) {
                T* const out = c + m * PANEL + w * WIDTH<T>;
                store<T>(out, add ? load<T>(out) + sum[m][w] : sum[m][w]);
            }
        }
    }
};

// D is summed in pieces of this length, whose sums are added up: a piece of a panel (12 or 24 KB of float32) stays in
// the first cache, and the rounding error of long rows is little more than that of short ones.
constexpr Index PIECE = 128;

// One panel of columns (VECTORS vectors of it) against n_rows rows, over n_k dimensions. cold: nobody has read these
// rows before, so that the next panel of them is prefetched, a share with each step.
template <typename T, int VECTORS>
inline void cosines_of_panel(Index n_rows, Index n_k, Index panel_stride, T const* a, T const* b, T* c, bool add,
                             bool cold) {
    for (Index r = 0; r < n_rows; r += ROWS) {
        if (cold && r / PANEL * PANEL + PANEL < n_rows) {
            fetch(a + (r / PANEL + 1) * panel_stride + r % PANEL * n_k, ROWS * n_k);
        }
        Accumulators<T, VECTORS> sums;
        sums.clear();
        sums.template multiply_add<Left::by_step>(n_k, a + r / PANEL * panel_stride + r % PANEL, b);
        sums.write(c + r * PANEL, add);
    }
}

// Similarities: tile[c / PANEL][r][c % PANEL] = sum over k < n_dim of a(r, k) b(c, k). Panels of a and b lie
// panel_stride elements apart. n_columns is a multiple of the vector's width, n_rows of ROWS.
template <typename T>
inline void cosines(Index n_rows, Index n_columns, Index n_dim, Index panel_stride, T const* a, T const* b, T* tile) {
    constexpr Index width = WIDTH<T>;
    for (Index k = 0; k < n_dim; k += PIECE) {
        Index const n_k = least(n_dim - k, PIECE);
        for (Index panel = 0; panel * PANEL < n_columns; ++panel) {
            Index const in_panel = least(n_columns - panel * PANEL, PANEL);
            for (Index v = 0; v < in_panel; v += COLUMN_VECTORS * width) {
                T const* const right = b + panel * panel_stride + k * PANEL + v;
                T* const out = tile + panel * n_rows * PANEL + v;
                T const* const left = a + k * PANEL;
                bool const cold = panel == 0 && v == 0;
                switch ((in_panel - v) / width) {
                    case 1: cosines_of_panel<T, 1>(n_rows, n_k, panel_stride, left, right, out, k > 0, cold); break;
                    case 2: cosines_of_panel<T, 2>(n_rows, n_k, panel_stride, left, right, out, k > 0, cold); break;
                    default: cosines_of_panel<T, 3>(n_rows, n_k, panel_stride, left, right, out, k > 0, cold); break;
                }
            }
        }
    }
}

// One panel of `out` (VECTORS vectors of it). Prefetches what comes next of `out`, if it is added to, and of a.
template <typename T, int VECTORS>
inline void gather_panel(Index n_dim, Index n_k, Index panel_stride, T const* a, T const* b, T* c, bool add,
                         bool cold) {
    for (Index d = 0; d < n_dim; d += ROWS) {
        if (d + ROWS < n_dim) {
            if (add) {
                fetch(c + (d + ROWS) * PANEL, ROWS * PANEL);
            }
            for (Index k = 0; cold && k < n_k; k += PANEL) {
                fetch(a + k / PANEL * panel_stride + (d + ROWS) * PANEL, ROWS * PANEL);
            }
        }
        Accumulators<T, VECTORS> sums;
        sums.clear();
        for (Index k = 0; k < n_k; k += PANEL) {
            sums.template multiply_add<Left::by_row>(least(n_k - k, PANEL), a + k / PANEL * panel_stride + d * PANEL,
                                                     b + k * PANEL);
        }
        sums.write(c + d * PANEL, add);
    }
}

// Gradients: out(c, d) = sum over r < n_rows of tile(r, c) a(r, d), or added to it. Panels of out and a lie
// panel_stride elements apart; n_dim is a multiple of ROWS.
template <typename T>
inline void gather(Index n_rows, Index n_columns, Index n_dim, Index panel_stride, T const* a, T const* tile, T* out,
                   bool add) {
    constexpr Index width = WIDTH<T>;
    for (Index panel = 0; panel * PANEL < n_columns; ++panel) {
        Index const in_panel = least(n_columns - panel * PANEL, PANEL);
        for (Index v = 0; v < in_panel; v += COLUMN_VECTORS * width) {
            T const* const right = tile + panel * n_rows * PANEL + v;
            T* const sums = out + panel * panel_stride + v;
            bool const cold = panel == 0 && v == 0;
            switch ((in_panel - v) / width) {
                case 1: gather_panel<T, 1>(n_dim, n_rows, panel_stride, a, right, sums, add, cold); break;
                case 2: gather_panel<T, 2>(n_dim, n_rows, panel_stride, a, right, sums, add, cold); break;
                default: gather_panel<T, 3>(n_dim, n_rows, panel_stride, a, right, sums, add, cold); break;
            }
        }
    }
}

}  // namespace sleepfm::SLEEPFM_ISA
