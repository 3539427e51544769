// From x to what the tensor cores multiply. A warp normalises all modalities of one sample and writes, as
// ContrastiveOperands has them: the unit rows and the means of the others in float16, whether the sample is valid in
// each problem, and the cosine of its own pair. Norms and cosines are sums in double.
#pragma once

#include "cuda/contrastive.h"
#include "cuda/contrastive_launch.h"
#include "cuda/contrastive_sample.cuh"

namespace sleepfm::cuda {

constexpr int prepare_warps = 4;

// Stores elements `at` and `at` + 1 in float16 and, where `low` is not null, what the rounding left of each.
__device__ __forceinline__ void store_operand(std::uint16_t* high, std::uint16_t* low, Index at, float a, float b) {
    a *= contrastive_operand_scale;
    b *= contrastive_operand_scale;
    std::uint32_t const packed = ptx::pack_f16(a, b);
    *reinterpret_cast<std::uint32_t*>(high + at) = packed;
    if (low != nullptr) {
        float const rest_a = a - ptx::from_f16(static_cast<std::uint16_t>(packed));
        float const rest_b = b - ptx::from_f16(static_cast<std::uint16_t>(packed >> 16));
        *reinterpret_cast<std::uint32_t*>(low + at) = ptx::pack_f16(rest_a, rest_b);
    }
}

template <DType type, int LIMIT>
__global__ void __launch_bounds__(32 * prepare_warps, 2)
    contrastive_prepare_kernel(ContrastiveInput in, ContrastiveOperands out) {
    constexpr int N_PAIRS = LIMIT * (LIMIT - 1) / 2;
    constexpr int N_OWN = N_PAIRS > LIMIT ? N_PAIRS : LIMIT;
    int const lane = static_cast<int>(threadIdx.x % 32);
    int const M = static_cast<int>(out.n_modalities), d_padded = static_cast<int>(out.d_padded);
    // A sample for each warp, padding included: n_padded is a multiple of prepare_warps. For r >= N nothing is shared.
    Index const r = static_cast<Index>(blockIdx.x) * prepare_warps + threadIdx.x / 32;
    Sample<type, LIMIT> const sample(in, r, lane);
    double own[N_OWN] = {};
    for (int k = 2 * lane; k < d_padded; k += 64) {
        float e[LIMIT], e_next[LIMIT];
        sample.unit_rows(k, e);
        sample.unit_rows(k + 1, e_next);
#pragma unroll
        for (int i = 0; i < LIMIT; ++i) {
            if (i >= M) {
                break;
            }
            Index const at = (i * out.n_padded + r) * d_padded + k;
            store_operand(out.unit, out.unit_low, at, e[i], e_next[i]);
            if (out.pairwise) {
#pragma unroll
                for (int j = i + 1; j < LIMIT; ++j) {
                    // The pair's number among LIMIT modalities, not M: a constant, so that own stays in registers.
                    int const p = i * (2 * LIMIT - i - 1) / 2 + j - i - 1;
                    own[p] += static_cast<double>(e[i]) * static_cast<double>(e[j]);
                    own[p] += static_cast<double>(e_next[i]) * static_cast<double>(e_next[j]);
                }
            } else {
                float const o = sample.shared[i] ? sample.mean_of_others(i, e) : 0.0f;
                float const o_next = sample.shared[i] ? sample.mean_of_others(i, e_next) : 0.0f;
                store_operand(out.mean, out.mean_low, at, o, o_next);
                own[i] += static_cast<double>(e[i]) * static_cast<double>(o);
                own[i] += static_cast<double>(e_next[i]) * static_cast<double>(o_next);
            }
        }
    }
    auto const write = [&](Index problem, double sum, bool valid) {
        double const cosine = sum_of_warp(sum);
        if (lane == 0) {
            out.own[problem * out.n_padded + r] = valid ? cosine : 0.0;
            out.valid[problem * out.n_padded + r] = valid ? 1 : 0;
        }
    };
#pragma unroll
    for (int i = 0; i < LIMIT; ++i) {
        if (i >= M) {
            break;
        }
        if (!out.pairwise) {
            write(i, own[i], sample.shared[i]);
            continue;
        }
#pragma unroll
        for (int j = i + 1; j < LIMIT; ++j) {
            if (j < M) {
                write(number_of_pair(i, j, M), own[i * (2 * LIMIT - i - 1) / 2 + j - i - 1],
                      sample.shared[i] && sample.shared[j]);
            }
        }
    }
}

// queue: see contrastive_launch.h.
template <typename Queue>
void launch_prepare(Queue& queue, ContrastiveInput const& in, ContrastiveOperands const& out) {
    for_element_and_modalities(in, [&](auto type, auto limit) {
        queue(&contrastive_prepare_kernel<decltype(type)::value, decltype(limit)::value>,
              Grid{static_cast<unsigned>(out.n_padded / prepare_warps), 1}, 32 * prepare_warps, 0, in, out);
    });
}

}  // namespace sleepfm::cuda
