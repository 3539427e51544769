// The two kernels that read a tile of similarities, once each (statistics in forward, gradient in backward), and the
// one that merges the statistics of tiles. A block takes 256 rows x 128 columns; its warps take 4 rows at a time, a
// lane 4 of their columns. Rows are summed across the warp's lanes; columns are carried along in registers and meet in
// shared memory at the end. No atomics, and every sum has a fixed order.
#pragma once

#include <cmath>

#include "cuda/contrastive_epilogue.h"
#include "cuda/ptx.h"

namespace sleepfm::cuda {

using Index = std::int64_t;

constexpr int epilogue_warps = 8, epilogue_threads = 32 * epilogue_warps;
constexpr int rows_at_once = 4, columns_of_lane = 4;
constexpr double log2_of_e = 1.4426950408889634;

__device__ __forceinline__ double scale_of(ContrastiveGemm const& g) {
    return exp(static_cast<double>(*g.log_temperature));
}

// The factor f with 2^(f (x - y)) = exp(s (x' - y')) for two numbers x, y of a tile and their cosines x', y'. s is at
// least 1e-20, where every logit is 0 to float32's precision anyway: were f to round to 0, 0 times the -inf of a pair
// that does not count would be NaN.
__device__ __forceinline__ float exponent_scale(ContrastiveGemm const& g) {
    double const s = scale_of(g);
    return static_cast<float>((s < 1e-20 ? 1e-20 : s) * log2_of_e / static_cast<double>(gemm_product_scale));
}

// The sum of all threads' values, in a binary tree; every thread gets it. scratch: [blockDim.x] in shared memory, free
// again on return. blockDim.x is a power of two.
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

// A lane's 4 x 4 similarities; -inf where a pair does not count: on the diagonal, of samples that are not valid, beyond
// the tile.
struct Patch {
    float x[rows_at_once][columns_of_lane];
    int offset;  // number of the first row less that of the first column: (i, j) is on the diagonal if j - i = offset

    // row, column: the first ones, within the tile. columns_valid: of valid_columns. Loads 16 bytes of each row, which
    // `stride`, a multiple of 4, leaves within the tile's memory; what lies beyond n_columns is not used.
    __device__ __forceinline__ void load(ContrastiveGemm const& g, Index row, Index column, unsigned columns_valid) {
        offset = static_cast<int>(g.row + row - g.column - column);
#pragma unroll
        for (int i = 0; i < rows_at_once; ++i) {
            bool const counts = row + i < g.n_rows && g.valid[g.row + row + i] != 0;
            ptx::Words4 words{};
            if (counts && column < g.n_columns) {
                words = ptx::load_16_streaming(g.tile + (row + i) * g.stride + column);
            }
            float const of_row = counts && g.row_shift != nullptr ? g.row_shift[g.row + row + i] : 0.0f;
#pragma unroll
            for (int j = 0; j < columns_of_lane; ++j) {
                float value;
                memcpy(&value, &words.word[j], sizeof value);
                bool const shifted = g.column_shift != nullptr && (columns_valid >> j & 1u) != 0;
                value += shifted ? g.column_shift[g.column + column + j] : of_row;
                x[i][j] = counts && (columns_valid >> j & 1u) != 0 && j != offset + i ? value : -INFINITY;
            }
        }
    }
};

// Bit j: column `column` + j of the tile exists and its sample is valid.
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

// Combines each of a lane's four values with those of the other lanes. While it halves the number of lanes that have
// yet to meet, it halves the number of values too, which makes 2 + 1 + 3 = 6 exchanges and not 4 x 5; the result of
// value i ends up in lanes i * lanes_of_row and the following ones. Warp-collective.
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

// What a row's exponentials are relative to: its maximum, or 0 if it has no pairs, since -inf - -inf would be NaN.
__device__ __forceinline__ float reference_of(float largest) {
    return largest == -INFINITY ? 0.0f : largest;
}

// Maximum, sum of exponentials relative to it, and number ahead of the own one, for each row of the tile over 128
// columns and for each column over 256 rows. blockIdx.x: strip of columns; blockIdx.y: segment of rows.
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
                // Of two equal cosines the one whose sample has the lower number is ahead. before: column before row.
                bool const counts = x != -INFINITY, before = j < patch.offset + i;
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
            total[j] *= ptx::ex2((largest[j] - reference) * scale);  // to the new maximum
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

// Adds the n_partials partial results [3, n_partials, n] of a row or column `line` of the tile to those of all tiles so
// far, so_far[3, N], at `place`.
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

// A thread for each row of the tile, then for each column.
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

// Four float16 numbers in one store of 8 bytes; `low` has the first two.
__device__ __forceinline__ void store_halves(std::uint16_t* to, std::uint32_t low, std::uint32_t high) {
    *reinterpret_cast<std::uint64_t*>(to) = static_cast<std::uint64_t>(high) << 32 | low;
}

// Stores four gradients in float16 and, where `rest` is not null, 2^11 times what the rounding left of them.
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

// The gradient of each similarity of the tile, less the common factor and times the problem's scale: the probability by
// row and the one by column, 0 where a pair does not count (the diagonal among them). Adds the block's part of the
// temperature's gradient to a slope of its own. Blocks as in gemm_statistics_kernel.
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

}  // namespace sleepfm::cuda
