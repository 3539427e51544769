// The cosines of the samples' own pairs, by the same instructions in the same order as the tile kernels compute all
// others. Ranks compare with these, so that rows with the same numbers tie bit by bit. (The loss uses the more exact
// cosines of contrastive_prepare_kernel.)
#pragma once

#include "cuda/contrastive_problem.cuh"
#include "cuda/tile.cuh"

namespace sleepfm::cuda {

constexpr int own_warps = 8;

__device__ __forceinline__ std::uint32_t two_halves(std::uint16_t const* at) {
    return *reinterpret_cast<std::uint32_t const*>(at);
}

// Fragments a [16, 16] and b [16, 8] (ptx.h) from global memory. `from` is row g, element 2 t of the operand.
__device__ __forceinline__ void own_a(std::uint32_t (&a)[4], std::uint16_t const* from, Index d_padded) {
    a[0] = two_halves(from);
    a[1] = two_halves(from + 8 * d_padded);
    a[2] = two_halves(from + 8);
    a[3] = two_halves(from + 8 * d_padded + 8);
}

__device__ __forceinline__ void own_b(std::uint32_t (&b)[2], std::uint16_t const* from) {
    b[0] = two_halves(from);
    b[1] = two_halves(from + 8);
}

// own [n_oriented, n_padded]: raw cosines, -infinity where the sample is not valid. A warp takes 16 samples of the
// oriented problem q = blockIdx.y: it multiplies their 16 x 16 similarities and keeps the diagonal.
template <bool split>
__global__ void __launch_bounds__(32 * own_warps) contrastive_own_kernel(ContrastiveOperands o, float* own) {
    int const lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    int const q = static_cast<int>(blockIdx.y), p = q < o.n_problems ? q : q - static_cast<int>(o.n_problems);
    Index const first = (static_cast<Index>(blockIdx.x) * own_warps + threadIdx.x / 32) * 16;
    Sides const sides = sides_of(o, q);
    Index const ld = o.d_padded, at = (first + g) * ld + 2 * t;
    float sums[2][4] = {};
    for (Index k = 0; k < ld; k += 64) {
        float part[2][4] = {};  // split: summed apart for 64 dimensions, as in multiply_slice and multiply_logits
#pragma unroll
        for (Index step = 0; step < 64; step += 16) {
            std::uint32_t a[4], a_low[4], b[2], b_low[2];
            own_a(a, sides.rows + at + k + step, ld);
            if constexpr (split) {
                own_a(a_low, sides.rows_low + at + k + step, ld);
            }
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                own_b(b, sides.columns + at + k + step + 8 * n * ld);
                if constexpr (split) {
                    own_b(b_low, sides.columns_low + at + k + step + 8 * n * ld);
                }
                multiply<split>(split ? part[n] : sums[n], a, a_low, b, b_low);
            }
        }
        if constexpr (split) {
#pragma unroll
            for (int n = 0; n < 2; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    sums[n][i] += part[n][i];
                }
            }
        }
    }
    // Of row g the lane has columns 2 t and 2 t + 1 in sums[0][0, 1]; of row g + 8, columns 2 t + 8 and 2 t + 9 in
    // sums[1][2, 3]. Lane t = g / 2 of the four has column g (g + 8), the diagonal's.
    if (t == g / 2) {
        float const upper = g % 2 == 0 ? sums[0][0] : sums[0][1], lower = g % 2 == 0 ? sums[1][2] : sums[1][3];
        for (int half = 0; half < 2; ++half) {
            Index const r = first + g + 8 * half;
            bool const valid = o.valid[p * o.n_padded + r] != 0;
            own[q * o.n_padded + r] = valid ? (half == 0 ? upper : lower) : -INFINITY;
        }
    }
}

}  // namespace sleepfm::cuda
