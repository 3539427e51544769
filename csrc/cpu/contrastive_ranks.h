// Counts of candidates that come before a clip's own, in both directions, from one tile of products: the tile loop of
// the contrastive loss with comparisons in place of exponentials. See sleepfm_fast/ranks.py for the inequalities.
#pragma once

#include "cpu/contrastive_prepare.h"

namespace sleepfm::SLEEPFM_ISA {

constexpr Index RANK_BLOCK = 192;  // as in the loss

// <a, b> in double, where products of floats are exact: four sums in a fixed order, equal vectors give equal bits.
inline double exact_inner(float const* a, float const* b, Index n) {
    double lane[4] = {};
    Index i = 0;
    for (; i + 4 <= n; i += 4) {
        for (int l = 0; l < 4; ++l) {
            lane[l] += static_cast<double>(a[i + l]) * static_cast<double>(b[i + l]);
        }
    }
    for (; i < n; ++i) {
        lane[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    }
    return (lane[0] + lane[1]) + (lane[2] + lane[3]);
}

struct RankWork {
    Index d_padded, panel_stride;
    Index rows_padded, columns_padded;
    float* rows;             // panels of a - mean_a
    float* columns;          // panels of b - mean_b
    float* shift;            // [columns_padded] of the comparison in a row; -inf beyond the last column
    float* limits;           // [2, columns_padded] of the comparison in a column
    float* tiles;            // [n_threads, RANK_BLOCK * RANK_BLOCK]
    std::int32_t* of_tile;   // [n_threads, 2, RANK_BLOCK] comparisons passed by the columns of a tile
    std::int32_t* of_block;  // [n_threads, rows_padded + columns_padded] ahead
    Index bytes;

    RankWork(void* base, Index n_rows, Index n_columns, Index n_dim, int n_threads) {
        d_padded = round_up(n_dim, ROWS);
        panel_stride = d_padded * PANEL;
        rows_padded = round_up(n_rows, PANEL);
        columns_padded = round_up(n_columns, PANEL);
        Carver carver(base);
        rows = carver.take<float>(rows_padded * d_padded);
        columns = carver.take<float>(columns_padded * d_padded);
        shift = carver.take<float>(columns_padded);
        limits = carver.take<float>(2 * columns_padded);
        tiles = carver.take<float>(n_threads * RANK_BLOCK * RANK_BLOCK);
        of_tile = carver.take<std::int32_t>(n_threads * 2 * RANK_BLOCK);
        of_block = carver.take<std::int32_t>(n_threads * (rows_padded + columns_padded));
        bytes = carver.used();
    }
};

// One panel of x - mean; zero beyond the last row.
inline void pack_centred(float const* x, Index n_rows, Index n_dim, float const* mean, Index first, float* panel) {
    constexpr Index width = WIDTH<float>;
    alignas(64) float square[width * width];
    for (Index r = 0; r < PANEL; r += width) {
        for (Index k = 0; k < n_dim; k += width) {
            Index const n = n_dim - k < width ? n_dim - k : width;
            for (Index l = 0; l < width; ++l) {
                float* const row = square + l * width;
                if (first + r + l >= n_rows || n < width) {
                    std::memset(row, 0, sizeof(float) * width);
                }
                if (first + r + l < n_rows) {
                    float const* const from = x + (first + r + l) * n_dim + k;
                    for (Index i = 0; i < n; ++i) {
                        row[i] = from[i] - mean[k + i];
                    }
                }
            }
            if (n == width) {
                transpose<float>(square, width, panel + k * PANEL + r, PANEL);
            } else {
                for (Index i = 0; i < n; ++i) {
                    for (Index l = 0; l < width; ++l) {
                        panel[(k + i) * PANEL + r + l] = square[l * width + i];
                    }
                }
            }
        }
    }
}

// Comparisons closer than the limits are left to double. `exact(i, j)` is <a_i, b_j> less the own of the query.
inline void count_tile(PairRanks const& call, RankWork const& work, Index r0, Index n_rows, Index c0, Index n_columns,
                       float const* tile, std::int32_t* of_tile, std::int32_t* ahead_rows,
                       std::int32_t* ahead_columns) {
    using V = Vec<float>;
    using I = IntVec<float>;
    constexpr Index width = WIDTH<float>;
    Index const padded = round_up(n_columns, width);
    I* const above_columns = reinterpret_cast<I*>(of_tile);
    I* const reach_columns = reinterpret_cast<I*>(of_tile + RANK_BLOCK);
    for (Index v = 0; v < padded / width; ++v) {
        above_columns[v] = reach_columns[v] = I{};
    }
    float const* const low_of_columns = work.limits + c0;
    float const* const high_of_columns = low_of_columns + work.columns_padded;
    auto const in_tile = [&](Index r, Index c) { return (c / PANEL * n_rows + r) * PANEL + c % PANEL; };
    auto const is_ahead = [&](Index i, Index j, Index query, Index candidate, double own) {
        double const inner = exact_inner(call.a + i * call.n_dim, call.b + j * call.n_dim, call.n_dim);
        return inner > own || (inner == own && candidate < query);
    };
    Index const n_real = n_rows < call.n_rows - r0 ? n_rows : call.n_rows - r0;
    for (Index r = 0; r < n_real; ++r) {
        Index const i = r0 + r;
        float const low = call.low_of_rows[i], high = call.high_of_rows[i];
        float const shift = call.shift_of_columns[i];
        I above{}, reach{};
        for (Index c = 0; c < padded; c += width) {
            V const product = load<float>(tile + in_tile(r, c));
            V const in_row = product + load<float>(work.shift + c0 + c);
            above -= in_row > high;
            reach -= in_row >= low;
            V const in_column = product + shift;
            above_columns[c / width] -= in_column > load<float>(high_of_columns + c);
            reach_columns[c / width] -= in_column >= load<float>(low_of_columns + c);
        }
        std::int32_t n_above = count_of_lanes<float>(above);
        if (count_of_lanes<float>(reach) > n_above) {
            Index const query = call.first_row + i;
            for (Index c = 0; c < n_columns; ++c) {
                Index const j = c0 + c;
                float const value = tile[in_tile(r, c)] + work.shift[j];
                if (value >= low && value <= high && call.first_column + j != query) {
                    n_above += is_ahead(i, j, query, call.first_column + j, call.own_of_rows[i]);
                }
            }
        }
        ahead_rows[i] += n_above;
    }
    for (Index c = 0; c < n_columns; ++c) {
        Index const j = c0 + c;
        std::int32_t n_above = of_tile[c];
        if (of_tile[RANK_BLOCK + c] > n_above) {
            Index const query = call.first_column + j;
            for (Index r = 0; r < n_real; ++r) {
                Index const i = r0 + r;
                float const value = tile[in_tile(r, c)] + call.shift_of_columns[i];
                if (value >= low_of_columns[c] && value <= high_of_columns[c] && call.first_row + i != query) {
                    n_above += is_ahead(i, j, query, call.first_row + i, call.own_of_columns[j]);
                }
            }
        }
        ahead_columns[j] += n_above;
    }
}

inline void pair_ranks(PairRanks const& call) {
    RankWork const work(call.workspace, call.n_rows, call.n_columns, call.n_dim, call.n_threads);
    Index const n_row_panels = work.rows_padded / PANEL;
    Index const n_column_panels = work.columns_padded / PANEL;
    Index const n_row_blocks = (call.n_rows + RANK_BLOCK - 1) / RANK_BLOCK;
    Index const n_column_blocks = (call.n_columns + RANK_BLOCK - 1) / RANK_BLOCK;
    Index const n_counts = work.rows_padded + work.columns_padded;
    [[maybe_unused]] int const n_threads = useful_threads(call.n_rows * call.n_columns * call.n_dim, call.n_threads);
    SLEEPFM_OMP(omp parallel num_threads(n_threads)) {
        SLEEPFM_OMP(omp for schedule(static) nowait)
        for (Index panel = 0; panel < (call.new_rows ? n_row_panels : 0); ++panel) {
            pack_centred(call.a, call.n_rows, call.n_dim, call.mean_a, panel * PANEL,
                         work.rows + panel * work.panel_stride);
        }
        SLEEPFM_OMP(omp for schedule(static) nowait)
        for (Index panel = 0; panel < n_column_panels; ++panel) {
            pack_centred(call.b, call.n_columns, call.n_dim, call.mean_b, panel * PANEL,
                         work.columns + panel * work.panel_stride);
            for (Index j = panel * PANEL; j < (panel + 1) * PANEL; ++j) {
                bool const real = j < call.n_columns;
                work.shift[j] = real ? call.shift_of_rows[j] : -__builtin_inff();
                work.limits[j] = real ? call.low_of_columns[j] : __builtin_inff();
                work.limits[work.columns_padded + j] = real ? call.high_of_columns[j] : __builtin_inff();
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (int thread = 0; thread < call.n_threads; ++thread) {
            std::memset(work.of_block + thread * n_counts, 0,
                        sizeof(std::int32_t) * static_cast<std::size_t>(n_counts));
        }
        Index const thread = thread_number();
        float* const tile = work.tiles + thread * RANK_BLOCK * RANK_BLOCK;
        std::int32_t* const ahead_rows = work.of_block + thread * n_counts;
        SLEEPFM_OMP(omp for schedule(dynamic, 1))
        for (Index task = 0; task < n_row_blocks * n_column_blocks; ++task) {
            Index const r0 = task / n_column_blocks * RANK_BLOCK, c0 = task % n_column_blocks * RANK_BLOCK;
            Index const left = round_up(call.n_rows - r0, SAMPLES);
            Index const n_rows = left < RANK_BLOCK ? left : RANK_BLOCK;
            Index const n_columns = call.n_columns - c0 < RANK_BLOCK ? call.n_columns - c0 : RANK_BLOCK;
            cosines<float>(n_rows, round_up(n_columns, SAMPLES), call.n_dim, work.panel_stride,
                           work.rows + r0 / PANEL * work.panel_stride, work.columns + c0 / PANEL * work.panel_stride,
                           tile);
            count_tile(call, work, r0, n_rows, c0, n_columns, tile, work.of_tile + thread * 2 * RANK_BLOCK, ahead_rows,
                       ahead_rows + work.rows_padded);
        }
    }
    for (int thread = 0; thread < call.n_threads; ++thread) {  // whole numbers: any order gives the same sum
        std::int32_t const* const counts = work.of_block + thread * n_counts;
        for (Index i = 0; i < call.n_rows; ++i) {
            call.ahead_of_rows[i] += counts[i];
        }
        for (Index j = 0; j < call.n_columns; ++j) {
            call.ahead_of_columns[j] += counts[work.rows_padded + j];
        }
    }
}

// own[r] = <a_r, b_r> of the rows of two blocks.
inline void own_inner_products(float const* a, float const* b, double* own, Index n_rows, Index n_dim) {
    for (Index r = 0; r < n_rows; ++r) {
        own[r] = exact_inner(a + r * n_dim, b + r * n_dim, n_dim);
    }
}

}  // namespace sleepfm::SLEEPFM_ISA
