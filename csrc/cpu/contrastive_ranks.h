// Retrieval ranks: for each clip of two modalities, how many candidates of the other modality are ahead of its own
// counterpart. A product of 16-bit integers (rank_product.h) screens all pairs of a tile, in both directions; the pairs
// that its error bound leaves open are decided in double. The inequalities are those of PairRanks in params.h;
// sleepfm_fast/ranks.py computes the bounds. Counts are integers, so that threads may take tiles in any order.
#pragma once

#include "cpu/carver.h"
#include "cpu/rank_operands.h"

namespace sleepfm::SLEEPFM_ISA {

constexpr Index RANK_BLOCK = 192;  // edge of a tile; with its operands at D = 512 it fills the second cache

// True if any lane is not 0; lanes are 0 or -1.
inline bool any_lane(IntVec<float> lanes) {
#if SLEEPFM_VECTOR_BYTES == 64 && defined(__AVX512DQ__)
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(lanes)) != 0;
#elif SLEEPFM_VECTOR_BYTES == 32 && defined(__AVX2__)
    return _mm256_movemask_epi8(reinterpret_cast<__m256i>(lanes)) != 0;
#elif SLEEPFM_VECTOR_BYTES == 16 && defined(__SSE2__)
    return _mm_movemask_epi8(reinterpret_cast<__m128i>(lanes)) != 0;
#elif defined(__aarch64__)
    return vmaxvq_u32(reinterpret_cast<uint32x4_t>(lanes)) != 0;
#else
    return count_of_lanes<float>(lanes) != 0;
#endif
}

inline Vec<double> load_widened(float const* from) {
#if SLEEPFM_VECTOR_BYTES == 64 && defined(__AVX512F__)
    return _mm512_cvtps_pd(_mm256_loadu_ps(from));
#elif SLEEPFM_VECTOR_BYTES == 32 && defined(__AVX2__)
    return _mm256_cvtps_pd(_mm_loadu_ps(from));
#elif defined(__aarch64__)
    return vcvt_f64_f32(vld1_f32(from));
#else
    Vec<double> v;
    for (int l = 0; l < WIDTH<double>; ++l) {
        v[l] = static_cast<double>(from[l]);
    }
    return v;
#endif
}

// <a, b> in double, where a product of floats is exact: sixteen sums in a fixed order, so that equal vectors give equal
// bits on every instruction set.
inline double exact_inner(float const* a, float const* b, Index n) {
    constexpr Index width = WIDTH<double>;
    Vec<double> sums[16 / width] = {};
    Index i = 0;
    for (; i + 16 <= n; i += 16) {
#pragma GCC unroll 8
        for (Index l = 0; l < 16 / width; ++l) {
            sums[l] += load_widened(a + i + l * width) * load_widened(b + i + l * width);
        }
    }
    alignas(64) double lane[16];
    for (Index l = 0; l < 16 / width; ++l) {
        store<double>(lane + l * width, sums[l]);
    }
    for (int l = 0; i < n; ++i, ++l) {
        lane[l] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    }
    for (int half = 8; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) {
            lane[l] += lane[l + half];
        }
    }
    return lane[0];
}

struct RankWork {
    Index n_pairs;                      // pairs of dimensions
    Index rows_padded, columns_padded;  // whole panels
    std::int32_t* rows;                 // panels of a - mean_a, quantised: see rank_product.h
    std::int32_t* columns;              // panels of b - mean_b, quantised
    // [columns_padded] the columns' members of RankOperand; beyond the last column, such that none is ahead or open
    float *step, *length, *loss, *shift, *low, *high;
    std::int32_t* tiles;     // [n_threads, RANK_BLOCK * RANK_BLOCK] integer products
    std::int32_t* of_tile;   // [n_threads, RANK_BLOCK] number ahead in each column of a tile
    std::int32_t* of_block;  // [n_threads, rows_padded + columns_padded] number ahead in all tiles of a thread
    Index bytes;

    RankWork(void* base, Index n_rows, Index n_columns, Index n_dim, int n_threads) {
        n_pairs = rank_pairs(n_dim);
        rows_padded = round_up(n_rows, RANK_ROWS);
        columns_padded = round_up(n_columns, RANK_PANEL);
        Carver carver(base);
        rows = carver.take<std::int32_t>(rows_padded * n_pairs);
        columns = carver.take<std::int32_t>(columns_padded * n_pairs);
        for (float** const each : {&step, &length, &loss, &shift, &low, &high}) {
            *each = carver.take<float>(columns_padded);
        }
        tiles = carver.take<std::int32_t>(n_threads * RANK_BLOCK * RANK_BLOCK);
        of_tile = carver.take<std::int32_t>(n_threads * RANK_BLOCK);
        of_block = carver.take<std::int32_t>(n_threads * (rows_padded + columns_padded));
        bytes = carver.used();
    }
};

// A panel of columns, from column `first` on, and its members of RankOperand.
inline void pack_columns(PairRanks const& call, RankWork const& work, Index first) {
    RankOperand const& columns = call.columns;
    pack_integers(columns, call.n_dim, first, RANK_PANEL, true, work.columns + first * work.n_pairs);
    for (Index j = first; j < first + RANK_PANEL; ++j) {
        bool const real = j < columns.n;
        work.step[j] = real ? columns.step[j] : 0.0F;
        work.length[j] = real ? columns.length[j] : 0.0F;
        work.loss[j] = real ? columns.loss[j] : 0.0F;
        work.shift[j] = real ? columns.shift[j] : -__builtin_inff();
        work.low[j] = real ? columns.low[j] : __builtin_inff();
        work.high[j] = real ? columns.high[j] : __builtin_inff();
    }
}

// The pairs of a tile that the integer product leaves open, each as
// row << 16 | column << 2 | (open in the column's ranking) << 1 | (open in the row's ranking).
struct OpenPairs {
    static constexpr Index CAPACITY = 1024;
    Index n = 0;
    std::uint32_t pair[CAPACITY + WIDTH<float>];  // writes beyond n are overwritten or not read
};

// Decides the open pairs in double, and empties the list. Pairs come row by row, so that rows stay in the cache; a
// column's embedding is prefetched while two other pairs are decided. A clip's own pair is not counted.
inline void decide(PairRanks const& call, Index r0, Index c0, OpenPairs& open, std::int32_t* ahead_rows,
                   std::int32_t* ahead_columns) {
    for (Index at = 0; at < open.n; ++at) {
        if (at + 2 < open.n) {
            fetch(call.columns.x + (c0 + (open.pair[at + 2] >> 2 & 0x3FFF)) * call.n_dim, call.n_dim);
        }
        std::uint32_t const pair = open.pair[at];
        Index const i = r0 + (pair >> 16), j = c0 + (pair >> 2 & 0x3FFF);
        Index const a = call.rows.first + i, b = call.columns.first + j;
        if (a != b) {
            double const inner = exact_inner(call.rows.x + i * call.n_dim, call.columns.x + j * call.n_dim, call.n_dim);
            double const own_a = call.rows.own[i], own_b = call.columns.own[j];
            ahead_rows[i] += (pair & 1) != 0 && (inner > own_a || (inner == own_a && b < a));
            ahead_columns[j] += (pair & 2) != 0 && (inner > own_b || (inner == own_b && a < b));
        }
    }
    open.n = 0;
}

// Counts a tile's pairs that are certainly ahead, and collects and decides the open ones.
inline void count_tile(PairRanks const& call, RankWork const& work, Index r0, Index n_rows, Index c0, Index n_columns,
                       std::int32_t const* tile, std::int32_t* of_tile, std::int32_t* ahead_rows,
                       std::int32_t* ahead_columns) {
    using V = Vec<float>;
    using I = IntVec<float>;
    constexpr Index width = WIDTH<float>;
    std::memset(of_tile, 0, sizeof(std::int32_t) * RANK_BLOCK);
    I lanes;
    for (int l = 0; l < width; ++l) {
        lanes[l] = l << 2;
    }
    OpenPairs open;
    Index const n_real = least(n_rows, call.rows.n - r0);
    for (Index r = 0; r < n_real; ++r) {
        Index const i = r0 + r;
        float const step = call.rows.step[i], length = call.rows.length[i], loss = call.rows.loss[i];
        float const shift = call.rows.shift[i], low = call.rows.low[i], high = call.rows.high[i];
        I above{};
        for (Index c = 0; c < n_columns; c += width) {
            Index const j = c0 + c;
            auto const* const products = tile + (c / RANK_PANEL * n_rows + r) * RANK_PANEL + c % RANK_PANEL;
            V const product = __builtin_convertvector(*reinterpret_cast<I const*>(products), V);
            V const value = product * load(work.step + j) * step + (load(work.shift + j) + shift);
            V const error = loss * load(work.length + j) + length * load(work.loss + j);
            V const lowest = value - error, highest = value + error;
            I const in_row = lowest > high, in_column = lowest > load(work.high + j);
            // Not certainly ahead and not certainly behind. The own pair is always open, as low <= own <= high.
            I const open_in_row = in_row ^ (highest >= low),
                    open_in_column = in_column ^ (highest >= load(work.low + j));
            above -= in_row;
            *reinterpret_cast<I*>(of_tile + c) -= in_column;
            I const either = open_in_row | open_in_column;
            if (any_lane(either)) {
                I const pairs =
                    (lanes + static_cast<std::int32_t>(r << 16 | c << 2)) | (open_in_row & 1) | (open_in_column & 2);
                for (int l = 0; l < width; ++l) {  // without a branch: n grows by 1 where the lane is -1
                    open.pair[open.n] = static_cast<std::uint32_t>(pairs[l]);
                    open.n -= either[l];
                }
                if (open.n >= OpenPairs::CAPACITY - width) {
                    decide(call, r0, c0, open, ahead_rows, ahead_columns);
                }
            }
        }
        ahead_rows[i] += count_of_lanes<float>(above);
    }
    for (Index c = 0; c < n_columns; ++c) {
        ahead_columns[c0 + c] += of_tile[c];
    }
    decide(call, r0, c0, open, ahead_rows, ahead_columns);
}

inline void pair_ranks(PairRanks const& call) {
    Index const n_rows = call.rows.n, n_columns = call.columns.n;
    RankWork const work(call.workspace, n_rows, n_columns, call.n_dim, call.n_threads);
    Index const n_row_blocks = (n_rows + RANK_BLOCK - 1) / RANK_BLOCK;
    Index const n_column_blocks = (n_columns + RANK_BLOCK - 1) / RANK_BLOCK;
    Index const n_counts = work.rows_padded + work.columns_padded;
    [[maybe_unused]] int const n_threads = useful_threads(n_rows * n_columns * call.n_dim, call.n_threads);
    SLEEPFM_OMP(omp parallel num_threads(n_threads)) {
        SLEEPFM_OMP(omp for schedule(static) nowait)
        for (Index first = 0; first < (call.new_rows ? work.rows_padded : 0); first += RANK_ROWS) {
            pack_integers(call.rows, call.n_dim, first, RANK_ROWS, false, work.rows + first * work.n_pairs);
        }
        SLEEPFM_OMP(omp for schedule(static) nowait)
        for (Index first = 0; first < work.columns_padded; first += RANK_PANEL) {
            pack_columns(call, work, first);
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (int thread = 0; thread < call.n_threads; ++thread) {
            std::memset(work.of_block + thread * n_counts, 0,
                        sizeof(std::int32_t) * static_cast<std::size_t>(n_counts));
        }
        Index const thread = thread_number();
        std::int32_t* const tile = work.tiles + thread * RANK_BLOCK * RANK_BLOCK;
        std::int32_t* const ahead_rows = work.of_block + thread * n_counts;
        RankProducts integer_products;
        SLEEPFM_OMP(omp for schedule(dynamic, 1))
        for (Index task = 0; task < n_row_blocks * n_column_blocks; ++task) {
            Index const r0 = task / n_column_blocks * RANK_BLOCK, c0 = task % n_column_blocks * RANK_BLOCK;
            Index const rows_left = work.rows_padded - r0, columns_left = work.columns_padded - c0;
            Index const tile_rows = least(rows_left, RANK_BLOCK);
            Index const tile_columns = least(columns_left, RANK_BLOCK);
            integer_products(tile_rows, tile_columns, work.n_pairs, work.rows + r0 * work.n_pairs,
                             work.columns + c0 * work.n_pairs, tile);
            count_tile(call, work, r0, tile_rows, c0, tile_columns, tile, work.of_tile + thread * RANK_BLOCK,
                       ahead_rows, ahead_rows + work.rows_padded);
        }
    }
    for (int thread = 0; thread < call.n_threads; ++thread) {
        std::int32_t const* const counts = work.of_block + thread * n_counts;
        for (Index i = 0; i < n_rows; ++i) {
            call.rows.ahead[i] += counts[i];
        }
        for (Index j = 0; j < n_columns; ++j) {
            call.columns.ahead[j] += counts[work.rows_padded + j];
        }
    }
}

inline std::int64_t pair_ranks_bytes(std::int64_t n_rows, std::int64_t n_columns, std::int64_t n_dim, int n_threads) {
    return RankWork(nullptr, n_rows, n_columns, n_dim, n_threads).bytes;
}

// own[r] = <a_r, b_r>.
inline void own_inner_products(float const* a, float const* b, double* own, Index n_rows, Index n_dim) {
    for (Index r = 0; r < n_rows; ++r) {
        own[r] = exact_inner(a + r * n_dim, b + r * n_dim, n_dim);
    }
}

}  // namespace sleepfm::SLEEPFM_ISA
