// What the kernel for small batches knows of samples and problems, and its first phase: unit rows, means and norms.
#pragma once

#include "cuda/contrastive_sample.cuh"
#include "cuda/contrastive_small.h"
#include "cuda/contrastive_small_tile.cuh"
#include "half_precision.h"

namespace sleepfm::cuda {

constexpr int small_warps = small_threads / 32;
constexpr int small_modalities = 8;

__device__ inline float load_element(void const* x, DType dtype, std::int64_t i) {
    switch (dtype) {
        case DType::bf16: return load_element<DType::bf16>(x, i);
        case DType::f16: return load_element<DType::f16>(x, i);
        default: return load_element<DType::f32>(x, i);
    }
}

__device__ inline void store_element(void* x, DType dtype, std::int64_t i, float value) {
    if (dtype == DType::f32) {
        static_cast<float*>(x)[i] = value;
    } else {
        static_cast<std::uint16_t*>(x)[i] = dtype == DType::bf16 ? to_bf16(value) : to_f16(value);
    }
}

template <typename T>
__device__ T sum_over_warp(T value) {
    for (int mask = 16; mask > 0; mask /= 2) {
        value += ptx::shuffle_xor(value, mask);
    }
    return value;
}

__device__ inline bool is_present(ContrastiveInput const& p, std::int64_t m, std::int64_t r) {
    return p.mask == nullptr || p.mask[m * p.mask_stride_modality + r * p.mask_stride_sample] != 0;
}

// The modalities of a problem's rows and columns; leave-one-out, both are the problem's number, and the columns are the
// means of the others.
__device__ inline void problem_modalities(ContrastiveInput const& p, int problem, int& i, int& j) {
    i = problem;
    j = problem;
    if (p.pairwise) {
        int const M = static_cast<int>(p.n_modalities);
        i = 0;
        while (problem >= M - 1 - i) {
            problem -= M - 1 - i;
            ++i;
        }
        j = i + 1 + problem;
    }
}

// The operands of one problem.
struct SmallProblem {
    float const *rows, *columns;                       // [N, D]
    std::uint8_t const *rows_shared, *columns_shared;  // [N] ContrastiveSmallArrays::shared of both modalities

    __device__ SmallProblem(ContrastiveInput const& p, ContrastiveSmallArrays const& w, int problem) {
        int i, j;
        problem_modalities(p, problem, i, j);
        std::int64_t const size = p.n_samples * p.n_dim;
        rows = w.unit + i * size;
        columns = (p.pairwise ? w.unit : w.mean) + j * size;
        rows_shared = w.shared + i * p.n_samples;
        columns_shared = w.shared + j * p.n_samples;
    }
    __device__ bool valid(std::int64_t r) const { return (rows_shared[r] & columns_shared[r]) != 0; }
};

// Unit rows, means of the others and norms of sample r, by all threads of a block. scratch: [small_warps,
// small_modalities] in shared memory; its first row then holds 1 / norm of each modality, -1 where it is not shared.
__device__ inline void prepare_sample(ContrastiveInput const& p, ContrastiveSmallArrays const& w, std::int64_t r,
                                      double* scratch) {
    int const M = static_cast<int>(p.n_modalities), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    std::int64_t const N = p.n_samples, D = p.n_dim;
    int n_present = 0;
    for (int m = 0; m < M; ++m) {
        n_present += is_present(p, m, r) ? 1 : 0;
    }
    ptx::sync_threads();  // all have read scratch for the previous sample
    for (int m = 0; m < M; ++m) {
        double squares = 0;
        if (n_present > 1 && is_present(p, m, r)) {
            std::int64_t const row = m * p.stride_modality + r * p.stride_sample;
            for (std::int64_t d = threadIdx.x; d < D; d += small_threads) {
                double const value = load_element(p.x, p.dtype, row + d);
                squares += value * value;
            }
        }
        squares = sum_over_warp(squares);
        if (lane == 0) {
            scratch[warp * small_modalities + m] = squares;
        }
    }
    ptx::sync_threads();
    int const m = static_cast<int>(threadIdx.x);
    if (m < M) {
        double squares = 0;
        for (int k = 0; k < small_warps; ++k) {
            squares += scratch[k * small_modalities + m];
        }
        bool const shared = n_present > 1 && is_present(p, m, r);
        double const norm = sqrt(squares);
        double const inverse = 1 / (norm < norm_floor ? norm_floor : norm);
        // Below the floor the normalisation is a division by a constant, without a projection in its backward; the sign
        // says so.
        w.inverse_norm[m * N + r] = norm < norm_floor ? -inverse : inverse;
        w.shared[m * N + r] = shared ? 1 : 0;
        // In place of warp 0's sum of squares, which only this thread reads. Absence has the sign as its mark and not
        // 0: 0 is the inverse of an infinite norm, which must make the row's infinite elements NaN.
        scratch[m] = shared ? inverse : -1;
    }
    ptx::sync_threads();
    auto const unit = [&](int k, std::int64_t d) {
        return scratch[k] < 0
                   ? 0.0f
                   : static_cast<float>(load_element(p.x, p.dtype, k * p.stride_modality + r * p.stride_sample + d) *
                                        scratch[k]);
    };
    float const n_others = static_cast<float>(n_present > 1 ? n_present - 1 : 1);
    for (std::int64_t d = threadIdx.x; d < D; d += small_threads) {
        for (int i = 0; i < M; ++i) {
            std::int64_t const at = (i * N + r) * D + d;
            w.unit[at] = unit(i, d);
            if (!p.pairwise) {
                float others = 0;
                for (int k = 0; k < M; ++k) {
                    others += k == i ? 0.0f : unit(k, d);
                }
                w.mean[at] = scratch[i] < 0 ? 0.0f : others / n_others;
            }
        }
    }
}

}  // namespace sleepfm::cuda
