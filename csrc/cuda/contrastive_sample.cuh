// One sample of the contrastive loss, which a warp works on: which modalities it has, their norms, and its unit rows,
// computed from x whenever they are needed.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/ptx.h"
#include "params.h"

namespace sleepfm::cuda {

using Index = std::int64_t;

constexpr double norm_floor = 1e-12;  // torch.nn.functional.normalize's eps

template <DType type>
__device__ __forceinline__ float load_element(void const* x, Index i) {
    if constexpr (type == DType::f32) {
        return static_cast<float const*>(x)[i];
    } else if constexpr (type == DType::bf16) {
        return ptx::from_bf16(static_cast<std::uint16_t const*>(x)[i]);
    } else {
        return ptx::from_f16(static_cast<std::uint16_t const*>(x)[i]);
    }
}

__device__ __forceinline__ double sum_of_warp(double value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        value += ptx::shuffle_xor(value, mask);
    }
    return value;
}

// The number of the pair (i, j), i < j, among all pairs of M in lexicographic order, which is the problem's number.
__device__ __forceinline__ int number_of_pair(int i, int j, int M) {
    return i * (2 * M - i - 1) / 2 + j - i - 1;
}

// A sample of at most LIMIT modalities. A modality is "shared" if the sample has it and at least one other: alone it
// has nothing to be compared with. All lanes hold the same values; the constructor is warp-collective.
template <DType type, int LIMIT>
struct Sample {
    void const* x;
    Index row, stride;  // where the sample's row of modality 0 begins in x, and from one modality's row to the next's
    bool shared[LIMIT];
    double norm[LIMIT];     // 0 where not shared: such rows are not read
    double inverse[LIMIT];  // 1 / max(norm, norm_floor)
    int n_dim;
    int n_others;  // number of modalities that a shared one's mean is of; 1 where none is shared

    __device__ __forceinline__ Sample(ContrastiveInput const& in, Index r, int lane)
        : x(in.x), row(r * in.stride_sample), stride(in.stride_modality), n_dim(static_cast<int>(in.n_dim)) {
        int n_present = 0;
#pragma unroll
        for (int m = 0; m < LIMIT; ++m) {
            shared[m] = m < in.n_modalities && r < in.n_samples &&
                        (in.mask == nullptr || in.mask[m * in.mask_stride_modality + r * in.mask_stride_sample] != 0);
            n_present += shared[m] ? 1 : 0;
        }
        n_others = n_present > 1 ? n_present - 1 : 1;
#pragma unroll
        for (int m = 0; m < LIMIT; ++m) {
            shared[m] = shared[m] && n_present > 1;
            double squares = 0.0;
            if (shared[m]) {
                for (int k = lane; k < n_dim; k += 32) {
                    double const value = element(m, k);
                    squares += value * value;
                }
            }
            norm[m] = sqrt(sum_of_warp(squares));
            inverse[m] = 1.0 / (norm[m] < norm_floor ? norm_floor : norm[m]);
        }
    }

    __device__ __forceinline__ float element(int m, Index k) const {
        return load_element<type>(x, m * stride + row + k);
    }

    // e[m]: element k of modality m's unit row, rounded to float32; 0 where not shared, and for k >= D.
    __device__ __forceinline__ void unit_rows(int k, float (&e)[LIMIT]) const {
#pragma unroll
        for (int m = 0; m < LIMIT; ++m) {
            e[m] = shared[m] && k < n_dim ? static_cast<float>(element(m, k) * inverse[m]) : 0.0f;
        }
    }

    // The mean over the shared modalities other than i of one element e. Added in the order of modalities, so that all
    // kernels get the same bits.
    __device__ __forceinline__ float mean_of_others(int i, float const (&e)[LIMIT]) const {
        float total = 0.0f;
#pragma unroll
        for (int m = 0; m < LIMIT; ++m) {
            total += m == i ? 0.0f : e[m];
        }
        return total / static_cast<float>(n_others);
    }
};

}  // namespace sleepfm::cuda
