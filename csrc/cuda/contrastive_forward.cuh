// Forward of the contrastive loss, tile by tile. The tensor cores multiply a tile of similarities (ROWS x COLUMNS, in
// slices of 64 dimensions that cp.async brings STAGES - 1 ahead), and in the registers of its sums the warps take the
// exponentials, sum them by row and by column, and count the cosines ahead of each own one.
//
// A block walks its part of one oriented problem's tiles: row blocks row_group, row_group + row_groups, ..., and for
// each of them a contiguous range of column blocks. For each row and each column it writes one Share (a sum of
// exponentials, its maximum, a count), which contrastive_finish.cuh merges. No atomics: the order of all sums depends
// on shape and device alone, and so do their bits.
//
// Barriers: one at the top of every slice (the slice has arrived; the one before it is no longer read, so its stage can
// be filled again) and one between the warps' sums of a tile and their merging.
#pragma once

#include "cuda/contrastive_problem.cuh"
#include "cuda/tile.cuh"

namespace sleepfm::cuda {

// ROWS x COLUMNS: a block's tile, cut among WARPS_M x WARPS_N warps. STAGES: slices of 64 dimensions that shared memory
// holds. A stage is [ROWS, 64] of rows, [COLUMNS, 64] of columns and, if SPLIT, the same of the low parts. Behind the
// stages lies ForwardScratch.
template <int ROWS_, int COLUMNS_, int WARPS_M_, int WARPS_N_, int STAGES_, bool SPLIT_, int BLOCKS_>
struct ForwardPolicy {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, STAGES = STAGES_;
    static constexpr bool SPLIT = SPLIT_;
    static constexpr int BLOCKS = BLOCKS_;  // blocks that share a multiprocessor, which caps a thread's registers
    static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr int SLICE = 64, CHUNKS = SLICE / half_per_chunk;
    static constexpr int PARTS = SPLIT ? 2 : 1;
    static constexpr int STAGE = PARTS * (ROWS + COLUMNS) * SLICE;  // in elements
    static constexpr int WARP_ROWS = ROWS / WARPS_M, WARP_COLUMNS = COLUMNS / WARPS_N;
    static constexpr int M_TILES = WARP_ROWS / 16, N_TILES = WARP_COLUMNS / 8;
    static_assert(WARP_ROWS % 16 == 0 && WARP_COLUMNS % 16 == 0, "ldmatrix loads 16 rows of either operand");
    static constexpr int SHARED_BYTES = 2 * STAGES * STAGE + 16 * ROWS + 12 * (WARPS_N * ROWS + WARPS_M * COLUMNS);
};

// What is known of some of a row's (or column's) cosines: their sum of exponentials relative to `largest`, and how many
// of them are ahead of the own one. The own pair is not among them.
struct Share {
    double sum;
    float largest;
    int ahead;
};

// Arrays of shares, [n_oriented, groups, n_padded] each.
struct Shares {
    double* sum;
    float* largest;
    int* ahead;
};

// Adds a share to `into`, both sums brought to the larger of the two maxima.
__device__ __forceinline__ void merge(Share& into, Softmax const& softmax, double sum, float largest, int ahead) {
    float const top = fmaxf(into.largest, largest);
    into.sum = into.sum * static_cast<double>(softmax.relative(into.largest, top)) +
               sum * static_cast<double>(softmax.relative(largest, top));
    into.largest = top;
    into.ahead += ahead;
}

struct ForwardTiles {
    ContrastiveOperands operands;
    void const* log_temperature;
    float const* own;   // [n_oriented, n_padded] raw, of contrastive_own_kernel
    int begin, end;     // samples that are rows; all samples are columns
    int row_blocks;     // blocks of ROWS rows, from `begin`
    int column_blocks;  // blocks of COLUMNS columns, from 0
    int row_groups;     // group i has the row blocks i, i + row_groups, ...
    int column_groups;  // each has a contiguous range of column blocks
    Shares rows;        // [n_oriented, column_groups, n_padded]
    Shares columns;     // [P, row_groups, n_padded]; sum null: columns are rows of exchanged problems instead
};

// The largest float below x, so that "above next_below(x)" is "x or above". NaN and -infinity are returned as they are.
__device__ __forceinline__ float next_below(float x) {
    std::uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x > 0.0f) {
        bits -= 1;
    } else if (x == 0.0f) {
        bits = 0x80000001u;
    } else if (x > -INFINITY) {
        bits += 1;
    }
    memcpy(&x, &bits, sizeof x);
    return x;
}

// The block's sums in shared memory.
template <typename Policy>
struct ForwardScratch {
    double* row_sum;     // [ROWS] over the row block's tiles so far; these three belong to one thread for each row
    float* row_largest;  // [ROWS]
    int* row_ahead;      // [ROWS]
    float* sum_of_row;   // [WARPS_N, ROWS] over the columns of one warp, of the current tile
    float* largest_of_row;
    int* ahead_of_row;
    float* sum_of_column;  // [WARPS_M, COLUMNS] over the rows of one warp, of the current tile
    float* largest_of_column;
    int* ahead_of_column;

    __device__ __forceinline__ explicit ForwardScratch(void* memory)
        : row_sum(static_cast<double*>(memory)),
          row_largest(reinterpret_cast<float*>(row_sum + Policy::ROWS)),
          row_ahead(reinterpret_cast<int*>(row_largest + Policy::ROWS)),
          sum_of_row(reinterpret_cast<float*>(row_ahead + Policy::ROWS)),
          largest_of_row(sum_of_row + Policy::WARPS_N * Policy::ROWS),
          ahead_of_row(reinterpret_cast<int*>(largest_of_row + Policy::WARPS_N * Policy::ROWS)),
          sum_of_column(reinterpret_cast<float*>(ahead_of_row + Policy::WARPS_N * Policy::ROWS)),
          largest_of_column(sum_of_column + Policy::WARPS_M * Policy::COLUMNS),
          ahead_of_column(reinterpret_cast<int*>(largest_of_column + Policy::WARPS_M * Policy::COLUMNS)) {}
};

// Where a tile lies, and the own cosines that its cosines are compared with.
struct TilePlace {
    int row, column;     // the tile's first row and first column
    int n_samples, end;  // ends of the columns and of the rows
    float const* own;    // [n_padded] of the oriented problem, raw
};

// From a warp's part of a tile (`sums`, raw cosines in mma fragments) to sums, maxima and counts in the scratch.
//
// A cosine is ahead of the own one if it is larger, or equal and of a sample of lower number. EXACT_PAIRS: the tile
// holds a part of the diagonal, or pairs that do not count; each pair is looked at. Otherwise all pairs count and all
// rows lie on one side of all columns, so that ties go one way for the whole tile: in `rows_tie` every equal cosine is
// ahead in its row, in `columns_tie` in its column, and comparing with next_below(own) says so in one instruction.
// RUNNING: exponentials are relative to the maxima of the warp's part, else to a cosine of 1.
template <typename Policy, bool EXACT_PAIRS, bool RUNNING>
__device__ __forceinline__ void reduce_warp_tile(float (&sums)[Policy::M_TILES][Policy::N_TILES][4],
                                                 ForwardScratch<Policy> const& scratch, TilePlace const& place,
                                                 Softmax const& softmax, bool count_columns, int warp_m, int warp_n,
                                                 int lane) {
    int const g = lane / 4, t = lane % 4;
    int const row0 = warp_m * Policy::WARP_ROWS + g, column0 = warp_n * Policy::WARP_COLUMNS + 2 * t;
    bool const rows_tie = place.column < place.row, columns_tie = place.row < place.column;
    float column_own[Policy::N_TILES][2], column_top[Policy::N_TILES][2], column_sum[Policy::N_TILES][2];
    unsigned column_ahead[Policy::N_TILES];  // counts of a tile's two columns, 16 bits each; at most WARP_ROWS
#pragma unroll
    for (int n = 0; n < Policy::N_TILES; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            int const c = place.column + column0 + 8 * n + e;
            float const own = c < place.n_samples ? place.own[c] : -INFINITY;
            column_own[n][e] = !EXACT_PAIRS && columns_tie ? next_below(own) : own;
            column_top[n][e] = RUNNING ? raw_floor : raw_one;
            column_sum[n][e] = 0.0f;
        }
        column_ahead[n] = 0;
    }
    if constexpr (EXACT_PAIRS) {
#pragma unroll
        for (int m = 0; m < Policy::M_TILES; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                int const r = place.row + row0 + 16 * m + 8 * (i / 2);
                bool const row_counts = r < place.end && place.own[r] != -INFINITY;
#pragma unroll
                for (int n = 0; n < Policy::N_TILES; ++n) {
                    bool const counts =
                        row_counts && column_own[n][i % 2] != -INFINITY && r != place.column + column0 + 8 * n + i % 2;
                    sums[m][n][i] = counts ? sums[m][n][i] : excluded;
                }
            }
        }
    }
    if constexpr (RUNNING) {
#pragma unroll
        for (int n = 0; n < Policy::N_TILES; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float top = raw_floor;
#pragma unroll
                for (int m = 0; m < Policy::M_TILES; ++m) {
                    top = fmaxf(top, fmaxf(sums[m][n][e], sums[m][n][e + 2]));
                }
#pragma unroll
                for (int mask = 4; mask < 32; mask *= 2) {
                    top = fmaxf(top, ptx::shuffle_xor(top, mask));
                }
                column_top[n][e] = top;
            }
        }
    }
#pragma unroll
    for (int m = 0; m < Policy::M_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int const row = row0 + 16 * m + 8 * half;
            int const r = place.row + row;
            float own = r < place.end ? place.own[r] : -INFINITY;
            own = !EXACT_PAIRS && rows_tie ? next_below(own) : own;
            float top = raw_one;
            if constexpr (RUNNING) {
                top = raw_floor;
#pragma unroll
                for (int n = 0; n < Policy::N_TILES; ++n) {
                    top = fmaxf(top, fmaxf(sums[m][n][2 * half], sums[m][n][2 * half + 1]));
                }
                top = fmaxf(top, ptx::shuffle_xor(top, 1));
                top = fmaxf(top, ptx::shuffle_xor(top, 2));
            }
            float sum = 0.0f;
            int ahead = 0;
#pragma unroll
            for (int n = 0; n < Policy::N_TILES; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float const x = sums[m][n][2 * half + e];
                    float const by_row = softmax.relative(x, top);
                    sum += by_row;
                    column_sum[n][e] += RUNNING ? softmax.relative(x, column_top[n][e]) : by_row;
                    if constexpr (EXACT_PAIRS) {
                        int const c = place.column + column0 + 8 * n + e;
                        ahead += x > own || (x == own && c < r) ? 1 : 0;
                        column_ahead[n] += x > column_own[n][e] || (x == column_own[n][e] && r < c) ? 1u << 16 * e : 0u;
                    } else {
                        ahead += x > own ? 1 : 0;
                        column_ahead[n] += x > column_own[n][e] ? 1u << 16 * e : 0u;
                    }
                }
            }
#pragma unroll
            for (int mask = 1; mask < 4; mask *= 2) {
                sum += ptx::shuffle_xor(sum, mask);
                ahead += ptx::shuffle_xor(ahead, mask);
            }
            if (t == 0) {
                int const at = warp_n * Policy::ROWS + row;
                scratch.sum_of_row[at] = sum;
                scratch.largest_of_row[at] = top;
                scratch.ahead_of_row[at] = ahead;
            }
        }
    }
    if (!count_columns) {
        return;
    }
#pragma unroll
    for (int n = 0; n < Policy::N_TILES; ++n) {
        unsigned ahead = column_ahead[n];
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
            ahead += ptx::shuffle_xor(ahead, mask);
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            float sum = column_sum[n][e];
#pragma unroll
            for (int mask = 4; mask < 32; mask *= 2) {
                sum += ptx::shuffle_xor(sum, mask);
            }
            if (g == 0) {
                int const at = warp_m * Policy::COLUMNS + column0 + 8 * n + e;
                scratch.sum_of_column[at] = sum;
                scratch.largest_of_column[at] = column_top[n][e];
                scratch.ahead_of_column[at] = static_cast<int>(ahead >> 16 * e & 0xffffu);
            }
        }
    }
}

// A place in the block's walk: slices innermost, then its column blocks, then its row blocks.
struct TileWalk {
    int slice, column, row;  // slice of 64 dimensions, column block, row block

    __device__ __forceinline__ void advance(int n_slices, int first_column, int end_column, int row_step) {
        if (++slice == n_slices) {
            slice = 0;
            if (++column == end_column) {
                column = first_column;
                row += row_step;
            }
        }
    }
};

// Begins the copy of a slice of both operands to a stage. Rows from N on become zeros. (Rows between tiles.end and N
// are copied and multiplied, and do not count.)
template <typename Policy>
__device__ __forceinline__ void copy_slice(Half* stage, ForwardTiles const& tiles, Sides const& sides,
                                           TileWalk const& at) {
    constexpr int ROWS = Policy::ROWS, COLUMNS = Policy::COLUMNS, CHUNKS = Policy::CHUNKS, THREADS = Policy::THREADS;
    Index const ld = tiles.operands.d_padded;
    int const N = static_cast<int>(tiles.operands.n_samples);
    int const row = tiles.begin + at.row * ROWS, column = at.column * COLUMNS;
    Index const row_at = row * ld + at.slice * Policy::SLICE, column_at = column * ld + at.slice * Policy::SLICE;
    int const n_rows = N - row < ROWS ? N - row : ROWS;
    int const n_columns = N - column < COLUMNS ? N - column : COLUMNS;
    copy_tile<ROWS, CHUNKS, THREADS>(stage, sides.rows + row_at, ld, n_rows);
    stage += ROWS * Policy::SLICE;
    copy_tile<COLUMNS, CHUNKS, THREADS>(stage, sides.columns + column_at, ld, n_columns);
    if constexpr (Policy::SPLIT) {
        stage += COLUMNS * Policy::SLICE;
        copy_tile<ROWS, CHUNKS, THREADS>(stage, sides.rows_low + row_at, ld, n_rows);
        stage += ROWS * Policy::SLICE;
        copy_tile<COLUMNS, CHUNKS, THREADS>(stage, sides.columns_low + column_at, ld, n_columns);
    }
}

// sums += the product of one slice, the warp's part. Split products start new sums for each slice, which are added with
// rounding: tensor cores truncate where they add, a bias that grows with the length of the chain.
template <typename Policy>
__device__ __forceinline__ void multiply_slice(float (&sums)[Policy::M_TILES][Policy::N_TILES][4], Half const* stage,
                                               int warp_m, int warp_n, int lane) {
    constexpr int CHUNKS = Policy::CHUNKS, M_TILES = Policy::M_TILES, N_TILES = Policy::N_TILES;
    Half const* const rows = stage;
    Half const* const columns = rows + Policy::ROWS * Policy::SLICE;
    Half const* const rows_low = columns + Policy::COLUMNS * Policy::SLICE;
    Half const* const columns_low = rows_low + Policy::ROWS * Policy::SLICE;
    int const row = warp_m * Policy::WARP_ROWS, column = warp_n * Policy::WARP_COLUMNS;
    float part[Policy::SPLIT ? M_TILES : 1][Policy::SPLIT ? N_TILES : 1][4] = {};
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk += 2) {
        std::uint32_t a[M_TILES][4], a_low[M_TILES][4];
#pragma unroll
        for (int m = 0; m < M_TILES; ++m) {
            load_a<CHUNKS>(a[m], rows, row + 16 * m, chunk, lane);
            if constexpr (Policy::SPLIT) {
                load_a<CHUNKS>(a_low[m], rows_low, row + 16 * m, chunk, lane);
            }
        }
#pragma unroll
        for (int n = 0; n < N_TILES; n += 2) {
            std::uint32_t b[2][2], b_low[2][2];
            load_b<CHUNKS>(b[0], b[1], columns, column + 8 * n, chunk, lane);
            if constexpr (Policy::SPLIT) {
                load_b<CHUNKS>(b_low[0], b_low[1], columns_low, column + 8 * n, chunk, lane);
            }
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    if constexpr (Policy::SPLIT) {
                        multiply<true>(part[m][n + j], a[m], a_low[m], b[j], b_low[j]);
                    } else {
                        ptx::mma_m16n8k16_f16(sums[m][n + j], a[m], b[j]);
                    }
                }
            }
        }
    }
    if constexpr (Policy::SPLIT) {
#pragma unroll
        for (int m = 0; m < M_TILES; ++m) {
#pragma unroll
            for (int n = 0; n < N_TILES; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    sums[m][n][i] += part[m][n][i];
                }
            }
        }
    }
}

// True if every pair of the warp's part of the tile counts and the tile lies off the diagonal. Warp-collective; all
// lanes get the same.
template <typename Policy>
__device__ __forceinline__ bool all_pairs_count(TilePlace const& place, int warp_m, int warp_n, int lane) {
    if (place.row < place.column + Policy::COLUMNS && place.column < place.row + Policy::ROWS) {
        return false;
    }
    bool counts = true;
    for (int i = lane; i < Policy::WARP_ROWS; i += 32) {
        int const r = place.row + warp_m * Policy::WARP_ROWS + i;
        counts = counts && r < place.end && place.own[r] != -INFINITY;
    }
    for (int i = lane; i < Policy::WARP_COLUMNS; i += 32) {
        int const c = place.column + warp_n * Policy::WARP_COLUMNS + i;
        counts = counts && c < place.n_samples && place.own[c] != -INFINITY;
    }
    return !ptx::any(!counts);
}

// Adds the warps' sums of a tile to the running sums of its rows (written out with the row block's last tile) and to
// this block's shares of its columns, which stay in global memory meanwhile. An entry is always the same thread's, so
// that no barrier is needed between tiles.
template <typename Policy>
__device__ __forceinline__ void merge_tile(ForwardScratch<Policy> const& scratch, ForwardTiles const& tiles,
                                           TilePlace const& place, Softmax const& softmax, Index column_share,
                                           bool first_of_columns, bool first_of_rows, bool last_of_rows,
                                           Index row_share) {
    bool const count_columns = tiles.columns.sum != nullptr;
    for (int i = static_cast<int>(threadIdx.x); i < Policy::ROWS + Policy::COLUMNS; i += Policy::THREADS) {
        if (i < Policy::ROWS) {
            Share share{0.0, raw_floor, 0};
            if (!first_of_rows) {
                share = {scratch.row_sum[i], scratch.row_largest[i], scratch.row_ahead[i]};
            }
#pragma unroll
            for (int w = 0; w < Policy::WARPS_N; ++w) {
                int const at = w * Policy::ROWS + i;
                merge(share, softmax, static_cast<double>(scratch.sum_of_row[at]), scratch.largest_of_row[at],
                      scratch.ahead_of_row[at]);
            }
            if (!last_of_rows) {
                scratch.row_sum[i] = share.sum;
                scratch.row_largest[i] = share.largest;
                scratch.row_ahead[i] = share.ahead;
            } else if (place.row + i < place.end) {
                Index const at = row_share + place.row + i;
                tiles.rows.sum[at] = share.sum;
                tiles.rows.largest[at] = share.largest;
                tiles.rows.ahead[at] = share.ahead;
            }
            continue;
        }
        int const column = i - Policy::ROWS;
        if (!count_columns || place.column + column >= place.n_samples) {
            continue;
        }
        Index const at = column_share + place.column + column;
        Share share{0.0, raw_floor, 0};
        if (!first_of_columns) {
            share = {tiles.columns.sum[at], tiles.columns.largest[at], tiles.columns.ahead[at]};
        }
#pragma unroll
        for (int w = 0; w < Policy::WARPS_M; ++w) {
            int const from = w * Policy::COLUMNS + column;
            merge(share, softmax, static_cast<double>(scratch.sum_of_column[from]), scratch.largest_of_column[from],
                  scratch.ahead_of_column[from]);
        }
        tiles.columns.sum[at] = share.sum;
        tiles.columns.largest[at] = share.largest;
        tiles.columns.ahead[at] = share.ahead;
    }
}

// blockIdx.x: row group + row_groups * column group; blockIdx.y: oriented problem q.
template <typename Policy>
__global__ void __launch_bounds__(Policy::THREADS, Policy::BLOCKS) contrastive_forward_kernel(ForwardTiles tiles) {
    SLEEPFM_DYNAMIC_SHARED(Half, shared);
    ForwardScratch<Policy> const scratch(shared + Policy::STAGES * Policy::STAGE);
    int const lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
    int const warp_m = warp / Policy::WARPS_N, warp_n = warp % Policy::WARPS_N;
    int const q = static_cast<int>(blockIdx.y);
    int const row_group = static_cast<int>(blockIdx.x) % tiles.row_groups;
    int const column_group = static_cast<int>(blockIdx.x) / tiles.row_groups;
    auto const column_begin = [&](Index group) {
        return static_cast<int>(group * tiles.column_blocks / tiles.column_groups);
    };
    int const first_column = column_begin(column_group), end_column = column_begin(column_group + 1);
    int const n_slices = static_cast<int>(tiles.operands.d_padded / Policy::SLICE);
    int const n_rows = (tiles.row_blocks - row_group + tiles.row_groups - 1) / tiles.row_groups;
    Index const total = static_cast<Index>(n_rows) * (end_column - first_column) * n_slices;
    Sides const sides = sides_of(tiles.operands, q);
    Softmax const softmax(tiles.log_temperature);
    float const* const own = tiles.own + q * tiles.operands.n_padded;
    Index const row_share = (static_cast<Index>(q) * tiles.column_groups + column_group) * tiles.operands.n_padded;
    Index const column_share = (static_cast<Index>(q) * tiles.row_groups + row_group) * tiles.operands.n_padded;

    TileWalk ahead{0, first_column, row_group}, at = ahead;  // the next slice to copy, and to multiply
    Index n_issued = 0;
    // Commits a group even where nothing is left to copy, so that a wait for all but STAGES - 2 groups always means
    // the same slice.
    auto const issue = [&] {
        if (n_issued < total) {
            copy_slice<Policy>(shared + n_issued % Policy::STAGES * Policy::STAGE, tiles, sides, ahead);
            ahead.advance(n_slices, first_column, end_column, tiles.row_groups);
        }
        ++n_issued;
        ptx::cp_async_commit();
    };
    for (int stage = 0; stage < Policy::STAGES - 1; ++stage) {
        issue();
    }
    float sums[Policy::M_TILES][Policy::N_TILES][4] = {};
    for (Index i = 0; i < total; ++i) {
        ptx::cp_async_wait<Policy::STAGES - 2>();
        ptx::sync_threads();  // slice i has arrived for all threads; slice i - 1, which issue() overwrites, was read
        issue();
        multiply_slice<Policy>(sums, shared + i % Policy::STAGES * Policy::STAGE, warp_m, warp_n, lane);
        if (at.slice == n_slices - 1) {
            TilePlace const place{tiles.begin + at.row * Policy::ROWS, at.column * Policy::COLUMNS,
                                  static_cast<int>(tiles.operands.n_samples), tiles.end, own};
            bool const plain = all_pairs_count<Policy>(place, warp_m, warp_n, lane);
            bool const count_columns = tiles.columns.sum != nullptr;
            if (softmax.running) {
                reduce_warp_tile<Policy, true, true>(sums, scratch, place, softmax, count_columns, warp_m, warp_n,
                                                     lane);
            } else if (plain) {
                reduce_warp_tile<Policy, false, false>(sums, scratch, place, softmax, count_columns, warp_m, warp_n,
                                                       lane);
            } else {
                reduce_warp_tile<Policy, true, false>(sums, scratch, place, softmax, count_columns, warp_m, warp_n,
                                                      lane);
            }
            // All warps have written the scratch. It is written again only after the next slice's barrier, which no
            // thread passes before all have merged.
            ptx::sync_threads();
            merge_tile<Policy>(scratch, tiles, place, softmax, column_share, at.row == row_group,
                               at.column == first_column, at.column == end_column - 1, row_share);
#pragma unroll
            for (int m = 0; m < Policy::M_TILES; ++m) {
#pragma unroll
                for (int n = 0; n < Policy::N_TILES; ++n) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        sums[m][n][e] = 0.0f;
                    }
                }
            }
        }
        at.advance(n_slices, first_column, end_column, tiles.row_groups);
    }
    ptx::cp_async_wait<0>();
}

}  // namespace sleepfm::cuda
