// Kernels around the library's matrix products of the contrastive loss; see contrastive_epilogue.h. A tile of
// similarities is read once: a warp holds 4 rows of 128 columns in registers, takes the rows' sums across its lanes and
// carries the columns' along. No atomics, and every sum in a fixed order.
#pragma once

#include <cmath>

#include "cuda/contrastive_epilogue.h"
#include "cuda/contrastive_launch.h"
#include "cuda/contrastive_sample.cuh"
#include "cuda/ptx.h"
#include "half_precision.h"

namespace sleepfm::cuda {

constexpr int epilogue_warps = 8, epilogue_threads = 32 * epilogue_warps;
constexpr int rows_at_once = 4, columns_of_lane = 4;
constexpr double log2_of_e = 1.4426950408889634;

__device__ __forceinline__ double scale_of(ContrastiveGemm const& g) {
    return exp(static_cast<double>(*g.log_temperature));
}

// 2^(this (x - y)) is exp(s (cosine - cosine)) for two numbers of the product.
__device__ __forceinline__ float exponent_scale(ContrastiveGemm const& g) {
    return static_cast<float>(scale_of(g) * log2_of_e / static_cast<double>(gemm_product_scale));
}

inline __host__ __device__ ContrastiveInput input_of(ContrastiveGemm const& g) {
    ContrastiveInput in{};
    in.x = g.x;
    in.dtype = static_cast<DType>(g.dtype);
    in.stride_modality = g.stride_modality;
    in.stride_sample = g.stride_sample;
    in.n_modalities = g.n_modalities;
    in.n_samples = g.n_samples;
    in.n_dim = g.n_dim;
    in.log_temperature = g.log_temperature;
    in.mask = g.mask;
    in.mask_stride_modality = g.mask_stride_modality;
    in.mask_stride_sample = g.mask_stride_sample;
    in.pairwise = g.pairwise != 0;
    in.both_directions = g.both_directions != 0;
    return in;
}

// ---- operands -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void store_operand(ContrastiveGemm const& g, std::uint16_t* operand, bool is_row, Index r,
                                              Index k, float value) {
    float const scaled = value * gemm_operand_scale;
    std::uint16_t const high = to_f16(scaled);
    if (g.split == 0) {
        operand[r * g.width + k] = high;
        return;
    }
    std::uint16_t const low = to_f16(scaled - ptx::from_f16(high));
    std::uint16_t* const row = operand + r * 3 * g.width + k;
    row[0] = high;
    row[g.width] = is_row ? low : high;
    row[2 * g.width] = is_row ? high : low;
}

template <DType type, int LIMIT>
__global__ void __launch_bounds__(epilogue_threads) gemm_operands_kernel(ContrastiveGemm const g) {
    int const lane = static_cast<int>(threadIdx.x % 32);
    Index const r = static_cast<Index>(blockIdx.x) * epilogue_warps + threadIdx.x / 32, N = g.n_samples;
    if (r >= N) {
        return;
    }
    ContrastiveInput const in = input_of(g);
    Sample<type, LIMIT> const sample(in, r, lane);
    bool row_shared = false, column_shared = false;
#pragma unroll
    for (int m = 0; m < LIMIT; ++m) {
        row_shared = m == g.i ? sample.shared[m] : row_shared;
        column_shared = m == g.j ? sample.shared[m] : column_shared;
    }
    bool const valid = row_shared && column_shared;
    double own = 0;
    for (Index k = lane; k < g.width; k += 32) {
        float e[LIMIT];
        sample.unit_rows(static_cast<int>(k), e);
        float row = 0, column = 0;
#pragma unroll
        for (int m = 0; m < LIMIT; ++m) {
            row = m == g.i ? e[m] : row;
            column = m == g.j ? e[m] : column;
        }
        column = g.pairwise != 0 ? column : sample.mean_of_others(static_cast<int>(g.i), e);
        row = valid ? row : 0.0f;
        column = valid ? column : 0.0f;
        own += static_cast<double>(row) * static_cast<double>(column);
        store_operand(g, g.a, true, r, k, row);
        store_operand(g, g.b, false, r, k, column);
    }
    own = sum_of_warp(own);
    if (lane == 0) {
        g.own[r] = own;
        g.valid[r] = valid ? 1 : 0;
        if (g.rows != nullptr) {
            g.rows[r] = g.columns[r] = -INFINITY;
            g.rows[N + r] = g.columns[N + r] = 0.0f;
            g.rows[2 * N + r] = g.columns[2 * N + r] = 0.0f;
        }
    }
}

// ---- one tile -------------------------------------------------------------------------------------------------------

// Four rows of four columns of a lane; -inf where a pair does not count: the diagonal, what is not valid, what is
// beyond the tile.
struct Patch {
    float x[rows_at_once][columns_of_lane];
    int offset;  // number of the first row less that of the first column: (i, j) is on the diagonal if j - i is this

    // row, column: of the tile. columns_valid: one bit each.
    __device__ __forceinline__ void load(ContrastiveGemm const& g, Index row, Index column, unsigned columns_valid) {
        offset = static_cast<int>(g.row + row - g.column - column);
#pragma unroll
        for (int i = 0; i < rows_at_once; ++i) {
            bool const counts = row + i < g.n_rows && g.valid[g.row + row + i] != 0;
            ptx::Words4 words{};
            if (counts && column < g.n_columns) {
                words = ptx::load_16_streaming(g.tile + (row + i) * g.stride + column);
            }
#pragma unroll
            for (int j = 0; j < columns_of_lane; ++j) {
                float value;
                memcpy(&value, &words.word[j], sizeof value);
                x[i][j] = counts && (columns_valid >> j & 1u) != 0 && j != offset + i ? value : -INFINITY;
            }
        }
    }
};

__device__ __forceinline__ unsigned valid_columns(ContrastiveGemm const& g, Index column) {
    unsigned bits = 0;
#pragma unroll
    for (int j = 0; j < columns_of_lane; ++j) {
        bits |= column + j < g.n_columns && g.valid[g.column + column + j] != 0 ? 1u << j : 0u;
    }
    return bits;
}

struct Larger {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Sum {
    __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

// Combines each of the values across the warp in 6 exchanges; lane gets the result of value lane / lanes_of_row.
constexpr int lanes_of_row = 32 / rows_at_once;

template <typename Combine>
__device__ __forceinline__ float reduce_rows(float (&v)[rows_at_once], int lane, Combine combine) {
#pragma unroll
    for (int half = rows_at_once / 2, mask = 16; half > 0; half /= 2, mask /= 2) {
        bool const upper = (lane & mask) != 0;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            float const kept = upper ? v[i + half] : v[i], sent = upper ? v[i] : v[i + half];
            v[i] = combine(kept, ptx::shuffle_xor(sent, mask));
        }
    }
#pragma unroll
    for (int mask = lanes_of_row / 2; mask > 0; mask /= 2) {
        v[0] = combine(v[0], ptx::shuffle_xor(v[0], mask));
    }
    return v[0];
}

// The reference that exponentials of a row are relative to: its largest, or anything where there is none.
__device__ __forceinline__ float reference_of(float largest) {
    return largest == -INFINITY ? 0.0f : largest;
}

__global__ void __launch_bounds__(epilogue_threads, 3) gemm_statistics_kernel(ContrastiveGemm const g) {
    SLEEPFM_SHARED(float, of_warps, [3][epilogue_warps][gemm_strip]);
    int const lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
    Index const column = static_cast<Index>(blockIdx.x) * gemm_strip + columns_of_lane * lane;
    Index const first = static_cast<Index>(blockIdx.y) * gemm_segment;
    Index const last = first + gemm_segment < g.n_rows ? first + gemm_segment : g.n_rows;
    unsigned const columns_valid = valid_columns(g, column);
    float const scale = exponent_scale(g);
    float own[columns_of_lane], largest[columns_of_lane], total[columns_of_lane], ahead[columns_of_lane];
#pragma unroll
    for (int j = 0; j < columns_of_lane; ++j) {
        own[j] = column + j < g.n_columns ? g.own_product[g.column + column + j] : 0.0f;
        largest[j] = -INFINITY;
        total[j] = 0.0f;
        ahead[j] = 0.0f;
    }
    for (Index row = first + rows_at_once * warp; row < last; row += rows_at_once * epilogue_warps) {
        Patch patch;
        patch.load(g, row, column, columns_valid);
        float of_row[rows_at_once], row_reference[rows_at_once];
#pragma unroll
        for (int i = 0; i < rows_at_once; ++i) {
            float const own_row = row + i < g.n_rows ? g.own_product[g.row + row + i] : 0.0f;
            of_row[i] = 0.0f;
#pragma unroll
            for (int j = 0; j < columns_of_lane; ++j) {
                float const x = patch.x[i][j];
                bool const counts = x != -INFINITY, before = j < patch.offset + i;  // the column before the row
                of_row[i] += counts && (x > own_row || (x == own_row && before)) ? 1.0f : 0.0f;
                ahead[j] += counts && (x > own[j] || (x == own[j] && !before)) ? 1.0f : 0.0f;
            }
        }
        float const row_ahead = reduce_rows(of_row, lane, Sum{});
#pragma unroll
        for (int i = 0; i < rows_at_once; ++i) {
            of_row[i] = fmaxf(fmaxf(patch.x[i][0], patch.x[i][1]), fmaxf(patch.x[i][2], patch.x[i][3]));
        }
        float const row_largest = reduce_rows(of_row, lane, Larger{});
#pragma unroll
        for (int i = 0; i < rows_at_once; ++i) {
            row_reference[i] = reference_of(ptx::shuffle_idx(row_largest, lanes_of_row * i));
        }
#pragma unroll
        for (int i = 0; i < rows_at_once; ++i) {
            of_row[i] = 0.0f;
#pragma unroll
            for (int j = 0; j < columns_of_lane; ++j) {
                of_row[i] += ptx::ex2((patch.x[i][j] - row_reference[i]) * scale);
            }
        }
        float const row_total = reduce_rows(of_row, lane, Sum{});
        if (lane % lanes_of_row == 0 && row + lane / lanes_of_row < g.n_rows) {
            Index const strips = gridDim.x, at = blockIdx.x * g.n_rows + row + lane / lanes_of_row;
            g.row_partials[at] = row_largest;
            g.row_partials[strips * g.n_rows + at] = row_total;
            g.row_partials[2 * strips * g.n_rows + at] = row_ahead;
        }
#pragma unroll
        for (int j = 0; j < columns_of_lane; ++j) {
            float larger = largest[j];
#pragma unroll
            for (int i = 0; i < rows_at_once; ++i) {
                larger = fmaxf(larger, patch.x[i][j]);
            }
            float const reference = reference_of(larger);
            total[j] *= ptx::ex2((largest[j] - reference) * scale);
#pragma unroll
            for (int i = 0; i < rows_at_once; ++i) {
                total[j] += ptx::ex2((patch.x[i][j] - reference) * scale);
            }
            largest[j] = larger;
        }
    }
#pragma unroll
    for (int j = 0; j < columns_of_lane; ++j) {
        of_warps[0][warp][columns_of_lane * lane + j] = largest[j];
        of_warps[1][warp][columns_of_lane * lane + j] = total[j];
        of_warps[2][warp][columns_of_lane * lane + j] = ahead[j];
    }
    ptx::sync_threads();
    int const c = static_cast<int>(threadIdx.x);
    Index const at = static_cast<Index>(blockIdx.x) * gemm_strip + c;
    if (c < gemm_strip && at < g.n_columns) {
        float larger = -INFINITY, sum = 0.0f, count = 0.0f;
        for (int k = 0; k < epilogue_warps; ++k) {
            larger = fmaxf(larger, of_warps[0][k][c]);
        }
        for (int k = 0; k < epilogue_warps; ++k) {
            sum += of_warps[1][k][c] * ptx::ex2((of_warps[0][k][c] - reference_of(larger)) * scale);
            count += of_warps[2][k][c];
        }
        Index const segments = gridDim.y, place = blockIdx.y * g.n_columns + at;
        g.column_partials[place] = larger;
        g.column_partials[segments * g.n_columns + place] = sum;
        g.column_partials[2 * segments * g.n_columns + place] = count;
    }
}

// Adds n_partials partial results [3, n_partials, n] of line `line` to those so far, [3, N].
__device__ __forceinline__ void merge_line(float* so_far, Index N, Index place, float const* partials, Index n_partials,
                                           Index n, Index line, float scale) {
    float const before = so_far[place];
    float larger = before;
    for (Index k = 0; k < n_partials; ++k) {
        larger = fmaxf(larger, partials[k * n + line]);
    }
    float const reference = reference_of(larger);
    float total = so_far[N + place] * ptx::ex2((before - reference) * scale), ahead = so_far[2 * N + place];
    for (Index k = 0; k < n_partials; ++k) {
        total += partials[(n_partials + k) * n + line] * ptx::ex2((partials[k * n + line] - reference) * scale);
        ahead += partials[(2 * n_partials + k) * n + line];
    }
    so_far[place] = larger;
    so_far[N + place] = total;
    so_far[2 * N + place] = ahead;
}

__global__ void __launch_bounds__(epilogue_threads) gemm_merge_kernel(ContrastiveGemm const g) {
    Index const line = static_cast<Index>(blockIdx.x) * epilogue_threads + threadIdx.x;
    float const scale = exponent_scale(g);
    if (line < g.n_rows) {
        merge_line(g.rows, g.n_samples, g.row + line, g.row_partials, (g.n_columns + gemm_strip - 1) / gemm_strip,
                   g.n_rows, line, scale);
    } else if (g.columns != nullptr && line - g.n_rows < g.n_columns) {
        merge_line(g.columns, g.n_samples, g.column + line - g.n_rows, g.column_partials,
                   (g.n_rows + gemm_segment - 1) / gemm_segment, g.n_columns, line - g.n_rows, scale);
    }
}

// ---- what follows from the statistics ---------------------------------------------------------------------------------

template <typename T>
__device__ T sum_of_block(T value, T* scratch) {
    scratch[threadIdx.x] = value;
    ptx::sync_threads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            scratch[threadIdx.x] += scratch[threadIdx.x + half];
        }
        ptx::sync_threads();
    }
    T const sum = scratch[0];
    ptx::sync_threads();
    return sum;
}

// grid: (blocks, directions)
__global__ void __launch_bounds__(gemm_finish_threads) gemm_finish_kernel(ContrastiveGemm const g) {
    SLEEPFM_SHARED(double, losses, [gemm_finish_threads]);
    SLEEPFM_SHARED(Index, counts, [gemm_finish_threads]);
    Index const r = static_cast<Index>(blockIdx.x) * gemm_finish_threads + threadIdx.x, N = g.n_samples;
    Index const direction = blockIdx.y, at = direction == 0 ? 1 : 4;
    bool const exists = r < N, valid = exists && g.valid[r] != 0;
    bool const inside = valid && r >= g.begin && r < g.end;
    double loss = 0, largest = 0, inverse = 0, missed = 0, own = 0;
    int rank = -1;
    if (inside) {
        float const* const line = direction == 0 ? g.rows : g.columns;
        own = g.own[r];
        rank = static_cast<int>(line[2 * N + r]);
        double const total = line[N + r];
        if (line[r] == -INFINITY && total == 0) {  // nothing to compare with: 0, or not a number where own is none
            loss = largest = inverse = missed = 0 * own;
        } else {
            largest = static_cast<double>(line[r]) / static_cast<double>(gemm_product_scale);
            double const lead = scale_of(g) * (own - largest), excess = log(total) - lead;
            loss = excess > 40 ? excess : log1p(exp(excess));
            inverse = 1 / (total + exp(lead));
            missed = 1 / (1 + exp(-excess));
        }
    }
    if (exists) {
        double* const state = g.state + g.problem * CONTRASTIVE_STATE_ROWS * N + r;
        if (direction == 0) {
            state[0] = own;
        }
        state[at * N] = largest;
        state[(at + 1) * N] = inverse;
        state[(at + 2) * N] = missed;
        g.ranks[(2 * g.problem + direction) * N + r] = rank;
    }
    loss = sum_of_block(loss, losses);
    Index const correct = sum_of_block<Index>(rank == 0 ? 1 : 0, counts);
    Index const n_valid = sum_of_block<Index>(valid ? 1 : 0, counts);
    if (threadIdx.x == 0) {
        Index const place = (2 * g.problem + direction) * gridDim.x + blockIdx.x;
        g.partial_losses[place] = loss;
        g.partial_correct[place] = correct;
        if (direction == 0) {
            g.partial_valid[g.problem * gridDim.x + blockIdx.x] = n_valid;
        }
    }
}

__device__ inline Index problems_of(ContrastiveGemm const& g) {
    return g.pairwise != 0 ? g.n_modalities * (g.n_modalities - 1) / 2 : g.n_modalities;
}

__device__ inline double number_of_terms(ContrastiveGemm const& g) {
    Index n = 0;
    for (Index problem = 0; problem < problems_of(g); ++problem) {
        n += g.n_valid[problem];
    }
    n *= g.both_directions != 0 ? 2 : 1;
    return static_cast<double>(n > 0 ? n : 1);
}

__device__ inline double common_factor(ContrastiveGemm const& g) {
    return scale_of(g) * static_cast<double>(*g.gradient_loss) / number_of_terms(g);
}

// one block
__global__ void __launch_bounds__(gemm_finish_threads) gemm_total_kernel(ContrastiveGemm const g) {
    SLEEPFM_SHARED(double, losses, [gemm_finish_threads]);
    SLEEPFM_SHARED(Index, counts, [gemm_finish_threads]);
    Index const P = problems_of(g), blocks = (g.n_samples + gemm_finish_threads - 1) / gemm_finish_threads;
    double total = 0;
    for (Index problem = 0; problem < P; ++problem) {
        Index n = 0;
        for (Index k = threadIdx.x; k < blocks; k += gemm_finish_threads) {
            n += g.partial_valid[problem * blocks + k];
        }
        n = sum_of_block(n, counts);
        if (threadIdx.x == 0) {
            g.n_valid[problem] = n;
        }
        for (Index direction = 0; direction < 2; ++direction) {
            Index const q = 2 * problem + direction;
            double loss = 0;
            Index correct = 0;
            for (Index k = threadIdx.x; k < blocks; k += gemm_finish_threads) {
                loss += g.partial_losses[q * blocks + k];
                correct += g.partial_correct[q * blocks + k];
            }
            loss = sum_of_block(loss, losses);
            correct = sum_of_block(correct, counts);
            total += direction == 1 && g.both_directions == 0 ? 0 : loss;
            if (threadIdx.x == 0) {
                g.losses[q] = static_cast<float>(loss / static_cast<double>(n > 0 ? n : 1));
                g.correct[q] = correct;
            }
        }
    }
    if (threadIdx.x == 0) {
        *g.loss = static_cast<float>(total / number_of_terms(g));
    }
}

// ---- backward -------------------------------------------------------------------------------------------------------

// One block. The gradient of a similarity, less the common factor, is at most the largest weight of a row and that of a
// column together: a power of two makes that at most 2^15 in float16.
__global__ void __launch_bounds__(1024) gemm_weights_kernel(ContrastiveGemm const g) {
    SLEEPFM_SHARED(double, scratch, [2][1024]);
    Index const N = g.n_samples, thread = threadIdx.x;
    double const* const state = g.state + g.problem * CONTRASTIVE_STATE_ROWS * N;
    double const columns_count = g.both_directions != 0 ? 1 : 0;
    double row = 0, column = 0;
    for (Index r = thread; r < N; r += blockDim.x) {
        row = fmax(row, state[2 * N + r]);
        column = fmax(column, columns_count * state[5 * N + r]);
    }
    scratch[0][thread] = row;
    scratch[1][thread] = column;
    ptx::sync_threads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (thread < half) {
            scratch[0][thread] = fmax(scratch[0][thread], scratch[0][thread + half]);
            scratch[1][thread] = fmax(scratch[1][thread], scratch[1][thread + half]);
        }
        ptx::sync_threads();
    }
    double const largest = scratch[0][0] + scratch[1][0];
    int exponent = 0;
    if (largest > 0 && largest < INFINITY) {
        frexp(largest, &exponent);  // largest < 2^exponent
    }
    double const scale = ldexp(1.0, gemm_gradient_exponent - exponent);
    double const of_product = static_cast<double>(gemm_product_scale);
    for (Index r = thread; r < N; r += blockDim.x) {
        g.own_scaled[r] = static_cast<float>(state[r] * of_product);
        g.row_largest[r] = static_cast<float>(state[N + r] * of_product);
        g.row_weight[r] = static_cast<float>(state[2 * N + r] * scale);
        g.column_largest[r] = static_cast<float>(state[4 * N + r] * of_product);
        g.column_weight[r] = static_cast<float>(columns_count * state[5 * N + r] * scale);
    }
    for (Index k = thread; k < g.n_slopes; k += blockDim.x) {
        g.slopes[g.problem * g.n_slopes + k] = 0;
    }
    if (thread == 0) {
        g.unscale[g.problem] = ldexp(1.0, exponent - gemm_gradient_exponent);
    }
}

// One store of 8 bytes.
__device__ __forceinline__ void store_halves(std::uint16_t* to, std::uint32_t low, std::uint32_t high) {
    *reinterpret_cast<std::uint64_t*>(to) = static_cast<std::uint64_t>(high) << 32 | low;
}

// Four gradients in float16 and, where rest is not null, 2^11 times what the rounding leaves.
__device__ __forceinline__ void store_gradients(std::uint16_t* high, std::uint16_t* rest, Index at,
                                                float const (&value)[columns_of_lane]) {
    std::uint32_t const rounded[2] = {ptx::pack_f16(value[0], value[1]), ptx::pack_f16(value[2], value[3])};
    store_halves(high + at, rounded[0], rounded[1]);
    if (rest == nullptr) {
        return;
    }
    float left[columns_of_lane];
#pragma unroll
    for (int j = 0; j < columns_of_lane; ++j) {
        std::uint16_t const bits = static_cast<std::uint16_t>(rounded[j / 2] >> (16 * (j % 2)));
        left[j] = (value[j] - ptx::from_f16(bits)) * gemm_rest_scale;
    }
    store_halves(rest + at, ptx::pack_f16(left[0], left[1]), ptx::pack_f16(left[2], left[3]));
}

__global__ void __launch_bounds__(epilogue_threads, 3) gemm_gradient_kernel(ContrastiveGemm const g) {
    SLEEPFM_SHARED(double, scratch, [epilogue_threads]);
    int const lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
    Index const column = static_cast<Index>(blockIdx.x) * gemm_strip + columns_of_lane * lane;
    Index const first = static_cast<Index>(blockIdx.y) * gemm_segment;
    Index const last = first + gemm_segment < g.n_rows ? first + gemm_segment : g.n_rows;
    unsigned const columns_valid = valid_columns(g, column);
    float const scale = exponent_scale(g), columns_count = g.slope_of_columns != 0 ? 1.0f : 0.0f;
    float own_c[columns_of_lane], largest_c[columns_of_lane], weight_c[columns_of_lane];
#pragma unroll
    for (int j = 0; j < columns_of_lane; ++j) {
        Index const c = g.column + column + j;
        bool const exists = column + j < g.n_columns;
        own_c[j] = exists ? g.own_scaled[c] : 0.0f;
        largest_c[j] = exists ? g.column_largest[c] : 0.0f;
        weight_c[j] = exists ? g.column_weight[c] : 0.0f;
    }
    float slope = 0.0f;
    for (Index row = first + rows_at_once * warp; row < last; row += rows_at_once * epilogue_warps) {
        Patch patch;
        patch.load(g, row, column, columns_valid);
#pragma unroll
        for (int i = 0; i < rows_at_once; ++i) {
            if (row + i >= g.n_rows || column >= g.n_columns) {
                continue;
            }
            Index const r = g.row + row + i;
            float const own = g.own_scaled[r], largest = g.row_largest[r], weight = g.row_weight[r];
            float gradient[columns_of_lane];
#pragma unroll
            for (int j = 0; j < columns_of_lane; ++j) {
                float const x = patch.x[i][j];
                float const by_row = ptx::ex2((x - largest) * scale) * weight;
                float const by_column = ptx::ex2((x - largest_c[j]) * scale) * weight_c[j];
                bool const counts = x != -INFINITY;
                gradient[j] = counts ? by_row + by_column : 0.0f;
                slope += counts ? by_row * (x - own) + columns_count * by_column * (x - own_c[j]) : 0.0f;
            }
            store_gradients(g.gradient_high, g.gradient_low, (row + i) * g.stride + column, gradient);
        }
    }
    double const sum = sum_of_block(static_cast<double>(slope), scratch);
    if (threadIdx.x == 0) {
        g.slopes[g.problem * g.n_slopes + blockIdx.y * gridDim.x + blockIdx.x] += sum;
    }
}

// A warp per sample: adds what one problem contributes to the gradients of the unit rows.
template <DType type, int LIMIT>
__global__ void __launch_bounds__(epilogue_threads) gemm_accumulate_kernel(ContrastiveGemm const g) {
    int const lane = static_cast<int>(threadIdx.x % 32);
    Index const r = g.begin + static_cast<Index>(blockIdx.x) * epilogue_warps + threadIdx.x / 32;
    Index const N = g.n_samples, D = g.n_dim;
    if (r >= g.end || g.valid[r] == 0) {
        return;
    }
    Sample<type, LIMIT> const sample(input_of(g), r, lane);
    double const* const state = g.state + g.problem * CONTRASTIVE_STATE_ROWS * N + r;
    float const pull = -static_cast<float>(state[3 * N] + (g.both_directions != 0 ? state[6 * N] : 0.0));
    double const unscale = g.unscale[g.problem] / static_cast<double>(gemm_operand_scale);
    for (Index k = lane; k < D; k += 32) {
        float e[LIMIT];
        sample.unit_rows(static_cast<int>(k), e);
        float row = 0, column = 0;
#pragma unroll
        for (int m = 0; m < LIMIT; ++m) {
            row = m == g.i ? e[m] : row;
            column = m == g.j ? e[m] : column;
        }
        column = g.pairwise != 0 ? column : sample.mean_of_others(static_cast<int>(g.i), e);
        float const of_row = static_cast<float>(g.gradient_a[r * g.width + k] * unscale) + pull * column;
        float const of_column = static_cast<float>(g.gradient_b[r * g.width + k] * unscale) + pull * row;
        g.gradient_unit[(g.i * N + r) * D + k] += of_row;
        if (g.pairwise != 0) {
            g.gradient_unit[(g.j * N + r) * D + k] += of_column;
            continue;
        }
        float const share = of_column / static_cast<float>(sample.n_others);
#pragma unroll
        for (int m = 0; m < LIMIT; ++m) {
            if (m != g.i && sample.shared[m]) {
                g.gradient_unit[(m * N + r) * D + k] += share;
            }
        }
    }
}

// A warp per sample: dx = (de - e <e, de>) / |x|; the last block: the temperature's gradient.
template <DType type, int LIMIT>
__global__ void __launch_bounds__(epilogue_threads, 2) gemm_finish_gradient_kernel(ContrastiveGemm const g) {
    SLEEPFM_SHARED(double, scratch, [epilogue_threads]);
    double const factor = common_factor(g);
    Index const N = g.n_samples, D = g.n_dim;
    if (blockIdx.x == gridDim.x - 1) {
        double total = 0;
        for (Index problem = 0; problem < problems_of(g); ++problem) {
            double sum = 0;
            for (Index k = threadIdx.x; k < g.n_slopes; k += epilogue_threads) {
                sum += g.slopes[problem * g.n_slopes + k];
            }
            total += sum_of_block(sum, scratch) * g.unscale[problem];
        }
        if (threadIdx.x == 0) {
            *g.gradient_log_temperature = static_cast<float>(factor * total / static_cast<double>(gemm_product_scale));
        }
        return;
    }
    int const lane = static_cast<int>(threadIdx.x % 32);
    Index const r = static_cast<Index>(blockIdx.x) * epilogue_warps + threadIdx.x / 32;
    if (r >= N) {
        return;
    }
    Sample<type, LIMIT> const sample(input_of(g), r, lane);
    bool const inside = r >= g.begin && r < g.end;
#pragma unroll
    for (int m = 0; m < LIMIT; ++m) {
        if (m >= g.n_modalities) {
            break;
        }
        float const* const gradient = g.gradient_unit + (m * N + r) * D;
        bool const counts = inside && sample.shared[m];
        auto const unit = [&](Index k) {
            return static_cast<float>(load_element<type>(g.x, sample.first[m] + k) * sample.inverse[m]);
        };
        double along = 0;
        if (counts && !(sample.norm[m] < norm_floor)) {
            for (Index k = lane; k < D; k += 32) {
                along += static_cast<double>(unit(k)) * static_cast<double>(gradient[k]);
            }
        }
        float const projection = static_cast<float>(sum_of_warp(along));
        double const multiplier = factor * sample.inverse[m];
        for (Index k = lane; k < D; k += 32) {
            float const value =
                counts ? static_cast<float>((gradient[k] - unit(k) * projection) * multiplier) : 0.0f;
            Index const at = (m * N + r) * D + k;
            if constexpr (type == DType::f32) {
                static_cast<float*>(g.gradient_x)[at] = value;
            } else {
                static_cast<std::uint16_t*>(g.gradient_x)[at] = type == DType::bf16 ? to_bf16(value) : to_f16(value);
            }
        }
    }
}

// ---- launches -------------------------------------------------------------------------------------------------------

inline unsigned blocks_for(Index n, Index each) {
    return static_cast<unsigned>((n + each - 1) / each);
}

template <DType type, typename Launch>
void for_gemm_modalities(Index n_modalities, Launch launch) {
    std::integral_constant<DType, type> const element;
    if (n_modalities <= 4) {
        launch(element, std::integral_constant<int, 4>{});
    } else {
        launch(element, std::integral_constant<int, 8>{});
    }
}

// Kernels that go through x once are bound by memory: fewer of them than for_element_and_modalities makes.
template <typename Launch>
void for_gemm_elements(ContrastiveGemm const& g, Launch launch) {
    SLEEPFM_CHECK(g.n_modalities >= 2 && g.n_modalities <= 8, "contrastive_gemm: x has ", g.n_modalities,
                  " modalities; expected 2 to 8.");
    switch (static_cast<DType>(g.dtype)) {
        case DType::f32: for_gemm_modalities<DType::f32>(g.n_modalities, launch); return;
        case DType::bf16: for_gemm_modalities<DType::bf16>(g.n_modalities, launch); return;
        case DType::f16: for_gemm_modalities<DType::f16>(g.n_modalities, launch); return;
        case DType::f64: break;
    }
    SLEEPFM_CHECK(false, "contrastive_gemm: x is of type ", g.dtype, "; expected float32, bfloat16 or float16.");
}

// queue: see contrastive_launch.h.
template <typename Queue>
void launch_gemm_step(Queue& queue, GemmStep step, ContrastiveGemm const& g) {
    Grid const of_tile{blocks_for(g.n_columns, gemm_strip), blocks_for(g.n_rows, gemm_segment)};
    switch (step) {
        case GemmStep::operands:
            for_gemm_elements(g, [&](auto type, auto limit) {
                queue(&gemm_operands_kernel<decltype(type)::value, decltype(limit)::value>,
                      Grid{blocks_for(g.n_samples, epilogue_warps), 1}, epilogue_threads, 0, g);
            });
            return;
        case GemmStep::statistics: queue(&gemm_statistics_kernel, of_tile, epilogue_threads, 0, g); return;
        case GemmStep::merge:
            queue(&gemm_merge_kernel, Grid{blocks_for(g.n_rows + g.n_columns, epilogue_threads), 1}, epilogue_threads,
                  0, g);
            return;
        case GemmStep::finish:
            queue(&gemm_finish_kernel, Grid{blocks_for(g.n_samples, gemm_finish_threads), 2},
                  static_cast<int>(gemm_finish_threads), 0, g);
            return;
        case GemmStep::total:
            queue(&gemm_total_kernel, Grid{1, 1}, static_cast<int>(gemm_finish_threads), 0, g);
            return;
        case GemmStep::weights: queue(&gemm_weights_kernel, Grid{1, 1}, 1024, 0, g); return;
        case GemmStep::gradient: queue(&gemm_gradient_kernel, of_tile, epilogue_threads, 0, g); return;
        case GemmStep::accumulate:
            for_gemm_elements(g, [&](auto type, auto limit) {
                queue(&gemm_accumulate_kernel<decltype(type)::value, decltype(limit)::value>,
                      Grid{blocks_for(g.end - g.begin, epilogue_warps), 1}, epilogue_threads, 0, g);
            });
            return;
        case GemmStep::finish_gradient:
            for_gemm_elements(g, [&](auto type, auto limit) {
                queue(&gemm_finish_gradient_kernel<decltype(type)::value, decltype(limit)::value>,
                      Grid{blocks_for(g.n_samples, epilogue_warps) + 1, 1}, epilogue_threads, 0, g);
            });
            return;
    }
    SLEEPFM_CHECK(false, "contrastive_gemm: step ", static_cast<std::int64_t>(step), " is none of 0 to 8.");
}

}  // namespace sleepfm::cuda
