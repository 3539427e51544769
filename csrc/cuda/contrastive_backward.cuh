// Backward of the contrastive loss on the tensor cores, in the manner of attention kernels. A block keeps ROWS rows of
// an oriented problem in shared memory and streams all columns past them, COLUMNS at a time in two stages. For each
// tile it multiplies the similarities again, turns them into coefficients
//     g_rc = w_r exp(s (x_rc - m_r)) + w_c exp(s (x_rc - m_c)),   0 on the diagonal,
// the softmax probabilities by row and by column, writes those to shared memory as float16, and adds their product with
// the streamed columns to the rows' gradient, which stays in registers. The columns' gradient is that of the exchanged
// problem's rows (q = P + p), so that no block adds to another's results. The diagonal, scale and the factor of the
// loss are left to contrastive_combine.cuh.
//
// Two barriers a tile: one when its columns have arrived, after which the previous tile's stage and coefficients may be
// overwritten, and one when the coefficients are complete.
#pragma once

#include "cuda/contrastive_problem.cuh"
#include "cuda/tile.cuh"

namespace sleepfm::cuda {

// ROWS x COLUMNS: a tile of similarities, cut among LOGIT_WARPS_M x LOGIT_WARPS_N of the block's eight warps. The
// gradient [ROWS, DIM] is cut among 8 / DIM_WARPS x DIM_WARPS warps. SPLIT: as ContrastiveOperands has it.
template <int DIM_, int ROWS_, int COLUMNS_, int LOGIT_WARPS_M_, int LOGIT_WARPS_N_, int DIM_WARPS_, bool SPLIT_>
struct BackwardPolicy {
    static constexpr int DIM = DIM_, ROWS = ROWS_, COLUMNS = COLUMNS_;
    static constexpr int LOGIT_WARPS_M = LOGIT_WARPS_M_, LOGIT_WARPS_N = LOGIT_WARPS_N_;
    static constexpr int WARPS = 8, THREADS = 32 * WARPS, DIM_WARPS = DIM_WARPS_, ROW_WARPS = WARPS / DIM_WARPS;
    static constexpr bool SPLIT = SPLIT_;
    static constexpr int PARTS = SPLIT ? 2 : 1;
    static constexpr int CHUNKS = DIM / half_per_chunk, COLUMN_CHUNKS = COLUMNS / half_per_chunk;
    static constexpr int LOGIT_ROWS = ROWS / LOGIT_WARPS_M, LOGIT_COLUMNS = COLUMNS / LOGIT_WARPS_N;
    static constexpr int LOGIT_M_TILES = LOGIT_ROWS / 16, LOGIT_N_TILES = LOGIT_COLUMNS / 8;
    static constexpr int M_TILES = ROWS / ROW_WARPS / 16, N_TILES = DIM / DIM_WARPS / 8;
    static_assert(LOGIT_WARPS_M * LOGIT_WARPS_N <= WARPS, "each part of the similarities has a warp");
    static_assert(LOGIT_ROWS % 16 == 0 && LOGIT_COLUMNS % 8 == 0 && COLUMNS % 16 == 0, "whole fragments");
    static_assert(ROWS % (16 * ROW_WARPS) == 0 && DIM % (16 * DIM_WARPS) == 0, "whole fragments");
    static constexpr int STAGES = 2;
    static constexpr int SHARED_BYTES =
        8 * LOGIT_WARPS_N * ROWS + 2 * PARTS * (ROWS * DIM + STAGES * COLUMNS * DIM + ROWS * COLUMNS);
};

// How an exponential becomes a probability: weight * exp(s (x - reference)). Arrays are [P, 2, n_padded], direction 0
// by row and 1 by column, unless said otherwise.
struct GradientWeights {
    float* reference;  // a raw cosine; infinity where the sample is not valid
    float* weight;     // times 2^shift
    float* own;        // [P, n_padded] raw cosine of the sample's own pair
    int* shift;        // [P] a coefficient times 2^shift is below 2^14, well within float16
};

struct BackwardTiles {
    ContrastiveOperands operands;
    void const* log_temperature;
    GradientWeights weights;
    int begin, end;   // samples that are rows; all samples are columns
    float* gradient;  // [2 P, end - begin, d_padded] times 2^shift and contrastive_operand_scale, without the diagonal
    double* slope;    // [2 P, n_padded] for each row, sum over c of (its probability of c) (x_rc - x_rr), times 2^shift
};

constexpr int weight_threads = 256;

// One block for each problem: the shift, from the largest probabilities missed. Off the diagonal a probability is at
// most what its row (column) misses, so that the two largest ones together bound every coefficient.
static __global__ void __launch_bounds__(weight_threads)
    contrastive_shift_kernel(ContrastiveOperands o, double const* state, bool both_directions, int* shift) {
    SLEEPFM_SHARED(double, largest, [2][weight_threads]);
    Index const N = o.n_samples, p = blockIdx.x;
    unsigned const thread = threadIdx.x;
    double const* const missed = state + (p * CONTRASTIVE_STATE_ROWS + 3) * N;
    double by_row = 0.0, by_column = 0.0;
    for (Index r = thread; r < N; r += weight_threads) {
        by_row = fmax(by_row, missed[r]);
        by_column = fmax(by_column, missed[3 * N + r]);
    }
    largest[0][thread] = by_row;
    largest[1][thread] = both_directions ? by_column : 0.0;
    ptx::sync_threads();
    for (unsigned half = weight_threads / 2; half > 0; half /= 2) {
        if (thread < half) {
            largest[0][thread] = fmax(largest[0][thread], largest[0][thread + half]);
            largest[1][thread] = fmax(largest[1][thread], largest[1][thread + half]);
        }
        ptx::sync_threads();
    }
    if (thread == 0) {
        double const bound = largest[0][0] + largest[1][0];
        int exponent = 14;
        if (bound > 0.0) {
            frexp(bound, &exponent);
        }
        shift[p] = 14 - (exponent < -900 ? -900 : exponent);  // bound < 2^exponent; 2^shift stays a normal double
    }
}

// The weights, from forward's state. blockIdx.x: block of weight_threads samples; blockIdx.y: 2 p + direction.
static __global__ void __launch_bounds__(weight_threads)
    contrastive_weights_kernel(ContrastiveOperands o, void const* log_temperature, double const* state,
                               bool both_directions, GradientWeights out) {
    Index const N = o.n_samples, n_padded = o.n_padded;
    Index const r = static_cast<Index>(blockIdx.x) * weight_threads + threadIdx.x;
    Index const p = blockIdx.y / 2, direction = blockIdx.y % 2;
    if (r >= n_padded) {
        return;
    }
    Softmax const softmax(log_temperature);
    bool const valid = o.valid[p * n_padded + r] != 0;
    double const* const s = state + p * CONTRASTIVE_STATE_ROWS * N + r;
    Index const at = (2 * p + direction) * n_padded + r;
    float reference = INFINITY, weight = 0.0f;
    if (valid) {
        double const largest = s[(1 + 3 * direction) * N];
        double inverse = s[(2 + 3 * direction) * N];
        reference = static_cast<float>(largest * raw_one);
        if (!softmax.running) {
            inverse *= exp(static_cast<double>(softmax.scale) * (1.0 - largest));
            reference = raw_one;
        }
        weight = direction == 0 || both_directions ? static_cast<float>(ldexp(inverse, out.shift[p])) : 0.0f;
    }
    out.reference[at] = reference;
    out.weight[at] = weight;
    if (direction == 0) {
        out.own[p * n_padded + r] = valid ? static_cast<float>(s[0] * raw_one) : 0.0f;
    }
}

// What the elements of a row need of it.
struct RowWeight {
    float reference, weight, own;
};

// Stored at once: the 8 bytes of four neighbouring lanes are a sector of 32 bytes.
struct alignas(8) TwoFloats {
    float first, second;
};

template <typename Policy>
struct BackwardShared {
    double* slopes;      // [LOGIT_WARPS_N, ROWS]; an element is written by one lane only, so that no barrier is needed
    Half* rows;          // [PARTS][ROWS, DIM]
    Half* columns;       // [STAGES][PARTS][COLUMNS, DIM]
    Half* coefficients;  // [PARTS][ROWS, COLUMNS]

    static constexpr int ROW_PART = Policy::ROWS * Policy::DIM, COLUMN_PART = Policy::COLUMNS * Policy::DIM;
    static constexpr int COEFFICIENT_PART = Policy::ROWS * Policy::COLUMNS;

    __device__ __forceinline__ explicit BackwardShared(double* memory)
        : slopes(memory),
          rows(reinterpret_cast<Half*>(slopes + Policy::LOGIT_WARPS_N * Policy::ROWS)),
          columns(rows + Policy::PARTS * ROW_PART),
          coefficients(columns + Policy::STAGES * Policy::PARTS * COLUMN_PART) {}

    __device__ __forceinline__ Half* stage(int tile) const {
        return columns + tile % Policy::STAGES * Policy::PARTS * COLUMN_PART;
    }
};

// x = the warp's part of the tile's similarities, from `row` and `column` on. Split products start new sums every 64
// dimensions, which are added with rounding: tensor cores truncate where they add.
template <typename Policy>
__device__ __forceinline__ void multiply_logits(float (&x)[Policy::LOGIT_M_TILES][Policy::LOGIT_N_TILES][4],
                                                BackwardShared<Policy> const& shared, Half const* stage, int row,
                                                int column, int lane) {
    constexpr int CHUNKS = Policy::CHUNKS, M_TILES = Policy::LOGIT_M_TILES, N_TILES = Policy::LOGIT_N_TILES;
    constexpr int CHUNKS_OF_64 = 64 / half_per_chunk;
    Half const* const rows_low = shared.rows + BackwardShared<Policy>::ROW_PART;
    Half const* const stage_low = stage + BackwardShared<Policy>::COLUMN_PART;
#pragma unroll 1
    for (int first = 0; first < CHUNKS; first += CHUNKS_OF_64) {
        float part[Policy::SPLIT ? M_TILES : 1][Policy::SPLIT ? N_TILES : 1][4] = {};
#pragma unroll
        for (int chunk = first; chunk < first + CHUNKS_OF_64; chunk += 2) {
            std::uint32_t a[M_TILES][4], a_low[M_TILES][4], b[N_TILES][2], b_low[N_TILES][2];
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
                load_a<CHUNKS>(a[m], shared.rows, row + 16 * m, chunk, lane);
                if constexpr (Policy::SPLIT) {
                    load_a<CHUNKS>(a_low[m], rows_low, row + 16 * m, chunk, lane);
                }
            }
            if constexpr (N_TILES == 1) {
                load_b<CHUNKS>(b[0], stage, column, chunk, lane);
                if constexpr (Policy::SPLIT) {
                    load_b<CHUNKS>(b_low[0], stage_low, column, chunk, lane);
                }
            } else {
#pragma unroll
                for (int n = 0; n < N_TILES; n += 2) {
                    load_b<CHUNKS>(b[n], b[n + 1], stage, column + 8 * n, chunk, lane);
                    if constexpr (Policy::SPLIT) {
                        load_b<CHUNKS>(b_low[n], b_low[n + 1], stage_low, column + 8 * n, chunk, lane);
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
#pragma unroll
                for (int n = 0; n < N_TILES; ++n) {
                    if constexpr (Policy::SPLIT) {
                        multiply<true>(part[m][n], a[m], a_low[m], b[n], b_low[n]);
                    } else {
                        ptx::mma_m16n8k16_f16(x[m][n], a[m], b[n]);
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
                        x[m][n][i] += part[m][n][i];
                    }
                }
            }
        }
    }
}

// Turns the warp's similarities x into coefficients in shared memory, as float16 and, if split, what float16 left of
// them; adds each row's part to its slope, slopes[ROWS]. row, column: of the warp's part within the tile, which begins
// at first_row and first_column. The weights are read again for every tile: registers are scarcer than those loads.
template <typename Policy, bool RUNNING>
__device__ __forceinline__ void write_coefficients(float (&x)[Policy::LOGIT_M_TILES][Policy::LOGIT_N_TILES][4],
                                                   BackwardTiles const& tiles, int q, Softmax const& softmax,
                                                   BackwardShared<Policy> const& shared, double* slopes, int row,
                                                   int first_row, int column, int first_column, int lane) {
    Index const n_padded = tiles.operands.n_padded;
    int const P = static_cast<int>(tiles.operands.n_problems), n_samples = static_cast<int>(tiles.operands.n_samples);
    int const p = q < P ? q : q - P;
    Index const of_rows = (2 * p + (q < P ? 0 : 1)) * n_padded, of_columns = (2 * p + (q < P ? 1 : 0)) * n_padded;
    float const* const column_reference = tiles.weights.reference + of_columns;
    float const* const column_weight = tiles.weights.weight + of_columns;
    RowWeight by_row[Policy::LOGIT_M_TILES][2];
    int const g = lane / 4, t = lane % 4;
    float reference[Policy::LOGIT_N_TILES][2], weight[Policy::LOGIT_N_TILES][2];
    bool all_count = true;  // no pair of this lane is on the diagonal or of a sample that is not valid
#pragma unroll
    for (int n = 0; n < Policy::LOGIT_N_TILES; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            int const c = first_column + column + 8 * n + 2 * t + e;
            reference[n][e] = c < n_samples ? column_reference[c] : INFINITY;
            weight[n][e] = c < n_samples ? column_weight[c] : 0.0f;
            all_count = all_count && reference[n][e] != INFINITY;
        }
    }
#pragma unroll
    for (int m = 0; m < Policy::LOGIT_M_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int const r = first_row + row + 16 * m + lane / 4 + 8 * half;
            by_row[m][half] = {INFINITY, 0.0f, 0.0f};
            if (r < tiles.end) {
                by_row[m][half] = {tiles.weights.reference[of_rows + r], tiles.weights.weight[of_rows + r],
                                   tiles.weights.own[p * n_padded + r]};
            }
            all_count = all_count && by_row[m][half].reference != INFINITY;
        }
    }
    // How far the part's first row is below the diagonal at its first column.
    int const off_diagonal = first_row + row - first_column - column;
    all_count = all_count && (off_diagonal >= Policy::LOGIT_COLUMNS || -off_diagonal >= Policy::LOGIT_ROWS);
    if (ptx::any(!all_count)) {
#pragma unroll
        for (int m = 0; m < Policy::LOGIT_M_TILES; ++m) {
#pragma unroll
            for (int n = 0; n < Policy::LOGIT_N_TILES; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    int const below = off_diagonal + 16 * m + g + 8 * (i / 2) - 8 * n - 2 * t - i % 2;
                    bool const counts =
                        below != 0 && by_row[m][i / 2].reference != INFINITY && reference[n][i % 2] != INFINITY;
                    x[m][n][i] = counts ? x[m][n][i] : excluded;
                }
            }
        }
    }
#pragma unroll
    for (int m = 0; m < Policy::LOGIT_M_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            RowWeight const& r = by_row[m][half];
            float tile_slope = 0.0f;
#pragma unroll
            for (int n = 0; n < Policy::LOGIT_N_TILES; ++n) {
                float coefficient[2];
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float const cosine = x[m][n][2 * half + e];
                    float const exponential = softmax.relative(cosine, RUNNING ? r.reference : raw_one);
                    float const probability = exponential * r.weight;
                    float const across = RUNNING ? softmax.relative(cosine, reference[n][e]) : exponential;
                    coefficient[e] = probability + across * weight[n][e];
                    tile_slope += probability * (cosine - r.own);
                }
                std::uint32_t const packed = ptx::pack_f16(coefficient[0], coefficient[1]);
                int const to = swizzled<Policy::COLUMN_CHUNKS>(row + 16 * m + g + 8 * half, column / 8 + n) + 2 * t;
                *reinterpret_cast<std::uint32_t*>(shared.coefficients + to) = packed;
                if constexpr (Policy::SPLIT) {
                    float const low = coefficient[0] - ptx::from_f16(static_cast<Half>(packed));
                    float const high = coefficient[1] - ptx::from_f16(static_cast<Half>(packed >> 16));
                    *reinterpret_cast<std::uint32_t*>(shared.coefficients + BackwardShared<Policy>::COEFFICIENT_PART +
                                                      to) = ptx::pack_f16(low, high);
                }
            }
            tile_slope += ptx::shuffle_xor(tile_slope, 1);
            tile_slope += ptx::shuffle_xor(tile_slope, 2);
            if (t == 0) {
                slopes[row + 16 * m + g + 8 * half] += static_cast<double>(tile_slope);
            }
        }
    }
}

// gradient += coefficients [ROWS, COLUMNS] times the stage's columns [COLUMNS, DIM], the warp's part: rows from `row`
// on, dimensions from 8 dim_chunk on.
template <typename Policy>
__device__ __forceinline__ void multiply_gradient(float (&gradient)[Policy::M_TILES][Policy::N_TILES][4],
                                                  BackwardShared<Policy> const& shared, Half const* stage, int row,
                                                  int dim_chunk, int lane) {
    constexpr int CHUNKS = Policy::CHUNKS, COLUMN_CHUNKS = Policy::COLUMN_CHUNKS;
    Half const* const coefficients_low = shared.coefficients + BackwardShared<Policy>::COEFFICIENT_PART;
    Half const* const stage_low = stage + BackwardShared<Policy>::COLUMN_PART;
    if constexpr (!Policy::SPLIT) {
#pragma unroll
        for (int c = 0; c < Policy::COLUMNS; c += 16) {
            std::uint32_t a[Policy::M_TILES][4];
#pragma unroll
            for (int m = 0; m < Policy::M_TILES; ++m) {
                load_a<COLUMN_CHUNKS>(a[m], shared.coefficients, row + 16 * m, c / 8, lane);
            }
#pragma unroll
            for (int n = 0; n < Policy::N_TILES; n += 2) {
                std::uint32_t b[2][2];
                load_b_across<CHUNKS>(b[0], b[1], stage, c, dim_chunk + n, lane);
#pragma unroll
                for (int m = 0; m < Policy::M_TILES; ++m) {
                    ptx::mma_m16n8k16_f16(gradient[m][n], a[m], b[0]);
                    ptx::mma_m16n8k16_f16(gradient[m][n + 1], a[m], b[1]);
                }
            }
        }
    } else {
        // New sums for every tile, which are added with rounding: tensor cores truncate where they add.
        constexpr int STEPS = Policy::COLUMNS / 16;
#pragma unroll
        for (int n = 0; n < Policy::N_TILES; n += 2) {
            std::uint32_t b[STEPS][2][2], b_low[STEPS][2][2];
#pragma unroll
            for (int c = 0; c < STEPS; ++c) {
                load_b_across<CHUNKS>(b[c][0], b[c][1], stage, 16 * c, dim_chunk + n, lane);
                load_b_across<CHUNKS>(b_low[c][0], b_low[c][1], stage_low, 16 * c, dim_chunk + n, lane);
            }
#pragma unroll
            for (int m = 0; m < Policy::M_TILES; ++m) {
                float part[2][4] = {};
#pragma unroll
                for (int c = 0; c < STEPS; ++c) {
                    std::uint32_t a[4], a_low[4];
                    load_a<COLUMN_CHUNKS>(a, shared.coefficients, row + 16 * m, 2 * c, lane);
                    load_a<COLUMN_CHUNKS>(a_low, coefficients_low, row + 16 * m, 2 * c, lane);
                    multiply<true>(part[0], a, a_low, b[c][0], b_low[c][0]);
                    multiply<true>(part[1], a, a_low, b[c][1], b_low[c][1]);
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    gradient[m][n][i] += part[0][i];
                    gradient[m][n + 1][i] += part[1][i];
                }
            }
        }
    }
}

template <typename Policy>
__device__ __forceinline__ void copy_columns(Half* stage, Sides const& sides, int first, int n_samples) {
    Index const at = static_cast<Index>(first) * Policy::DIM;
    int const n = n_samples - first < Policy::COLUMNS ? n_samples - first : Policy::COLUMNS;
    copy_tile<Policy::COLUMNS, Policy::CHUNKS, Policy::THREADS>(stage, sides.columns + at, Policy::DIM, n);
    if constexpr (Policy::SPLIT) {
        copy_tile<Policy::COLUMNS, Policy::CHUNKS, Policy::THREADS>(stage + BackwardShared<Policy>::COLUMN_PART,
                                                                    sides.columns_low + at, Policy::DIM, n);
    }
}

template <typename Policy>
__device__ __forceinline__ void copy_rows(Half* rows, Sides const& sides, int first, int n_samples) {
    Index const at = static_cast<Index>(first) * Policy::DIM;
    int const n = n_samples - first < Policy::ROWS ? n_samples - first : Policy::ROWS;
    copy_tile<Policy::ROWS, Policy::CHUNKS, Policy::THREADS>(rows, sides.rows + at, Policy::DIM, n);
    if constexpr (Policy::SPLIT) {
        copy_tile<Policy::ROWS, Policy::CHUNKS, Policy::THREADS>(rows + BackwardShared<Policy>::ROW_PART,
                                                                 sides.rows_low + at, Policy::DIM, n);
    }
}

// blockIdx.x: block of ROWS rows, from tiles.begin on; blockIdx.y: oriented problem q.
template <typename Policy>
__global__ void __launch_bounds__(Policy::THREADS, 1) contrastive_backward_kernel(BackwardTiles tiles) {
    SLEEPFM_DYNAMIC_SHARED(double, memory);
    BackwardShared<Policy> const shared(memory);
    int const lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
    int const g = lane / 4, t = lane % 4;
    int const q = static_cast<int>(blockIdx.y);
    int const N = static_cast<int>(tiles.operands.n_samples);
    Index const n_padded = tiles.operands.n_padded;
    int const first_row = tiles.begin + static_cast<int>(blockIdx.x) * Policy::ROWS;
    int const n_tiles = (N + Policy::COLUMNS - 1) / Policy::COLUMNS;
    Sides const sides = sides_of(tiles.operands, q);
    Softmax const softmax(tiles.log_temperature);

    copy_rows<Policy>(shared.rows, sides, first_row, N);
    copy_columns<Policy>(shared.stage(0), sides, 0, N);
    ptx::cp_async_commit();

    bool const has_logits = warp < Policy::LOGIT_WARPS_M * Policy::LOGIT_WARPS_N;
    int const logit_row = warp / Policy::LOGIT_WARPS_N * Policy::LOGIT_ROWS;
    int const logit_column = warp % Policy::LOGIT_WARPS_N * Policy::LOGIT_COLUMNS;
    double* const slopes = shared.slopes + warp % Policy::LOGIT_WARPS_N * Policy::ROWS;
    if (has_logits && t == 0) {
        for (int i = g; i < Policy::LOGIT_ROWS; i += 8) {
            slopes[logit_row + i] = 0.0;
        }
    }
    int const gradient_row = warp / Policy::DIM_WARPS * (16 * Policy::M_TILES);
    int const gradient_chunk = warp % Policy::DIM_WARPS * Policy::N_TILES;
    float gradient[Policy::M_TILES][Policy::N_TILES][4] = {};
    for (int tile = 0; tile < n_tiles; ++tile) {
        int const first_column = tile * Policy::COLUMNS;
        ptx::cp_async_wait<0>();
        // The tile (with the first one also the rows) has arrived for all threads; the stage of the previous tile and
        // its coefficients are no longer read.
        ptx::sync_threads();
        if (tile + 1 < n_tiles) {
            copy_columns<Policy>(shared.stage(tile + 1), sides, first_column + Policy::COLUMNS, N);
        }
        ptx::cp_async_commit();
        Half const* const stage = shared.stage(tile);
        if (has_logits) {
            float x[Policy::LOGIT_M_TILES][Policy::LOGIT_N_TILES][4] = {};
            multiply_logits<Policy>(x, shared, stage, logit_row, logit_column, lane);
            if (softmax.running) {
                write_coefficients<Policy, true>(x, tiles, q, softmax, shared, slopes, logit_row, first_row,
                                                 logit_column, first_column, lane);
            } else {
                write_coefficients<Policy, false>(x, tiles, q, softmax, shared, slopes, logit_row, first_row,
                                                  logit_column, first_column, lane);
            }
        }
        ptx::sync_threads();  // all warps have written their coefficients
        multiply_gradient<Policy>(gradient, shared, stage, gradient_row, gradient_chunk, lane);
    }
    ptx::cp_async_wait<0>();
    int const n_rows = tiles.end - tiles.begin;
#pragma unroll
    for (int m = 0; m < Policy::M_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int const r = first_row - tiles.begin + gradient_row + 16 * m + g + 8 * half;
            if (r >= n_rows) {
                continue;
            }
            float* const to = tiles.gradient + (static_cast<Index>(q) * n_rows + r) * Policy::DIM + 8 * gradient_chunk;
#pragma unroll
            for (int n = 0; n < Policy::N_TILES; ++n) {
                *reinterpret_cast<TwoFloats*>(to + 8 * n + 2 * t) = {gradient[m][n][2 * half],
                                                                     gradient[m][n][2 * half + 1]};
            }
        }
    }
    // The last tile's second barrier stands between the slopes' writers and this loop.
    for (int i = static_cast<int>(threadIdx.x); i < Policy::ROWS && first_row + i < tiles.end; i += Policy::THREADS) {
        double sum = 0.0;
        for (int w = 0; w < Policy::LOGIT_WARPS_N; ++w) {
            sum += shared.slopes[w * Policy::ROWS + i];
        }
        tiles.slope[q * n_padded + first_row + i] = sum;
    }
}

}  // namespace sleepfm::cuda
