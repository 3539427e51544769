// Tiles of float16 rows in shared memory, and how a warp reads them as fragments for mma.m16n8k16 (ptx.h).
//
// A tile [rows, ROW_CHUNKS * 8] is stored in chunks of 16 bytes, 8 of which make a line of 128 bytes, once through all
// banks. ldmatrix reads the same chunk of eight consecutive rows at a time. Stored in order, those would share banks
// (all eight do in rows of 64 or more elements); a row's chunks are therefore permuted by an exclusive or with the
// row's number (the swizzle), after which the eight lie in different banks.
#pragma once

#include <cstdint>

#include "cuda/ptx.h"

namespace sleepfm::cuda {

using Half = std::uint16_t;  // the bits of a float16
constexpr int half_per_chunk = 8;

// Where chunk `chunk` of row `row` lies, in elements. Rows shorter than a line share one, and are then permuted by the
// line's number.
template <int ROW_CHUNKS>
__device__ __forceinline__ int swizzled(int row, int chunk) {
    static_assert(ROW_CHUNKS == 2 || ROW_CHUNKS == 4 || ROW_CHUNKS % 8 == 0, "rows of 16, 32 or a multiple of 64");
    constexpr int ROWS_PER_LINE = ROW_CHUNKS >= 8 ? 1 : 8 / ROW_CHUNKS;
    constexpr int MASK = ROW_CHUNKS >= 8 ? 7 : ROW_CHUNKS - 1;
    return (row * ROW_CHUNKS + (chunk ^ (row / ROWS_PER_LINE & MASK))) * half_per_chunk;
}

// Begins an asynchronous copy of ROWS x ROW_CHUNKS chunks, shared out among all threads of the block; rows from n_valid
// on become zeros. The caller commits, waits and synchronises.
template <int ROWS, int ROW_CHUNKS, int THREADS>
__device__ __forceinline__ void copy_tile(Half* tile, Half const* from, std::int64_t row_stride, int n_valid) {
#pragma unroll 2  // unrolled further, every iteration's address would be kept in a register
    for (int i = 0; i < (ROWS * ROW_CHUNKS + THREADS - 1) / THREADS; ++i) {
        int const at = static_cast<int>(threadIdx.x) + i * THREADS;
        if (ROWS * ROW_CHUNKS % THREADS == 0 || at < ROWS * ROW_CHUNKS) {
            int const row = at / ROW_CHUNKS, chunk = at % ROW_CHUNKS;
            ptx::cp_async_16(tile + swizzled<ROW_CHUNKS>(row, chunk), from + row * row_stride + chunk * half_per_chunk,
                             row < n_valid);
        }
    }
}

// Fragment a [16, 16]: the tile's rows [row, row + 16), elements of `chunk` and the next one.
template <int ROW_CHUNKS>
__device__ __forceinline__ void load_a(std::uint32_t (&a)[4], Half const* tile, int row, int chunk, int lane) {
    ptx::ldmatrix_x4(a, tile + swizzled<ROW_CHUNKS>(row + lane % 16, chunk + lane / 16));
}

// Two fragments b [16, 8] of a product with the tile transposed: the tile's rows [row, row + 8) are the columns of
// `first`, rows [row + 8, row + 16) those of `second`; b's rows are the elements of `chunk` and the next one.
template <int ROW_CHUNKS>
__device__ __forceinline__ void load_b(std::uint32_t (&first)[2], std::uint32_t (&second)[2], Half const* tile, int row,
                                       int chunk, int lane) {
    std::uint32_t r[4];
    ptx::ldmatrix_x4(r, tile + swizzled<ROW_CHUNKS>(row + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2));
    first[0] = r[0];
    first[1] = r[1];
    second[0] = r[2];
    second[1] = r[3];
}

// The first of these two alone.
template <int ROW_CHUNKS>
__device__ __forceinline__ void load_b(std::uint32_t (&b)[2], Half const* tile, int row, int chunk, int lane) {
    ptx::ldmatrix_x2(b, tile + swizzled<ROW_CHUNKS>(row + lane % 8, chunk + lane / 8 % 2));
}

// Two fragments b [16, 8] of a product with the tile itself: its rows [row, row + 16) are b's rows; the columns of
// `first` are the elements of `chunk`, those of `second` the elements of the next chunk.
template <int ROW_CHUNKS>
__device__ __forceinline__ void load_b_across(std::uint32_t (&first)[2], std::uint32_t (&second)[2], Half const* tile,
                                              int row, int chunk, int lane) {
    std::uint32_t r[4];
    ptx::ldmatrix_x4_trans(r, tile + swizzled<ROW_CHUNKS>(row + lane % 16, chunk + lane / 16));
    first[0] = r[0];
    first[1] = r[1];
    second[0] = r[2];
    second[1] = r[3];
}

// d += a b. split: the factors are a + a_low and b + b_low; of the four products, a_low b_low is left out, which is at
// most 2^-22 of a b.
template <bool split>
__device__ __forceinline__ void multiply(float (&d)[4], std::uint32_t const (&a)[4], std::uint32_t const (&a_low)[4],
                                         std::uint32_t const (&b)[2], std::uint32_t const (&b_low)[2]) {
    ptx::mma_m16n8k16_f16(d, a, b);
    if constexpr (split) {
        ptx::mma_m16n8k16_f16(d, a, b_low);
        ptx::mma_m16n8k16_f16(d, a_low, b);
    }
}

}  // namespace sleepfm::cuda
