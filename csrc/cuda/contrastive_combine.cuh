// From the gradients of both sides of every problem to the gradient of x. For each modality of a sample a warp adds up
// the sides that it is a part of (as a row, as a column, as a member of a mean) with the diagonal's contribution, and
// goes through the normalisation e = x / |x|: dx = (de - e <e, de>) / |x|.
#pragma once

#include "cuda/contrastive_launch.h"
#include "cuda/contrastive_problem.cuh"
#include "cuda/contrastive_sample.cuh"
#include "half_precision.h"

namespace sleepfm::cuda {

constexpr int combine_warps = 4;
constexpr int combine_total_threads = 256;

struct Combine {
    ContrastiveOperands operands;
    void const* gradient_loss;    // [] float32
    std::int64_t const* n_valid;  // [P]
    double const* state;          // [P, CONTRASTIVE_STATE_ROWS, N]
    bool both_directions;
    Index begin, end;
    // [2 P, end - begin, d_padded] of the oriented problems' rows [begin, end): rows, and from P on columns; times
    // 2^(shift + 8), without the diagonal.
    float const* gradient;
    int const* shift;  // [P]
    void* gradient_x;  // [M, N, D]
};

// s * gradient_loss / (number of terms in the mean): the factor that turns probabilities into the gradient of cosines.
__device__ __forceinline__ double loss_factor(Softmax const& softmax, void const* gradient_loss,
                                              std::int64_t const* n_valid, int P, bool both_directions) {
    std::int64_t n = 0;
    for (int p = 0; p < P; ++p) {
        n += n_valid[p];
    }
    n *= both_directions ? 2 : 1;
    return static_cast<double>(softmax.scale) * static_cast<double>(*static_cast<float const*>(gradient_loss)) /
           static_cast<double>(n > 0 ? n : 1);
}

template <DType type>
__device__ __forceinline__ void store_element(void* x, Index i, float value) {
    if constexpr (type == DType::f32) {
        static_cast<float*>(x)[i] = value;
    } else if constexpr (type == DType::bf16) {
        static_cast<std::uint16_t*>(x)[i] = to_bf16(value);
    } else {
        static_cast<std::uint16_t*>(x)[i] = to_f16(value);
    }
}

template <DType type, int LIMIT>
__global__ void __launch_bounds__(32 * combine_warps, 2) contrastive_combine_kernel(ContrastiveInput in, Combine c) {
    // A warp's sum over the sides. A lane reads only what it wrote itself, so that no barrier is needed.
    SLEEPFM_SHARED(float, rows, [combine_warps][contrastive_largest_dim]);
    int const lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
    Index const r = c.begin + static_cast<Index>(blockIdx.x) * combine_warps + warp;
    if (r >= c.end) {
        return;
    }
    ContrastiveOperands const& o = c.operands;
    Index const N = o.n_samples, D = o.n_dim, n_rows = c.end - c.begin;
    int const M = static_cast<int>(o.n_modalities), P = static_cast<int>(o.n_problems);
    Softmax const softmax(in.log_temperature);
    double const factor = loss_factor(softmax, c.gradient_loss, c.n_valid, P, c.both_directions);
    Sample<type, LIMIT> const sample(in, r, lane);
    double const factor_of_mean = factor / sample.n_others;
#pragma unroll
    for (int i = 0; i < LIMIT; ++i) {
        if (i >= M) {
            break;
        }
        // Pairwise, modality i is a side of one problem with each other j. Leave-one-out, it is the rows of problem i
        // (with the mean) and a member of the mean in every other problem j.
        float const* side[LIMIT];
        double unscale[LIMIT], pull[LIMIT];
#pragma unroll
        for (int j = 0; j < LIMIT; ++j) {
            side[j] = nullptr;
            unscale[j] = pull[j] = 0.0;
            if (!sample.shared[i] || !sample.shared[j] || (o.pairwise && i == j)) {
                continue;
            }
            int const p = !o.pairwise ? j : i < j ? number_of_pair(i, j, M) : number_of_pair(j, i, M);
            bool const is_row = o.pairwise ? i < j : i == j;
            double const share = !o.pairwise && i != j ? factor_of_mean : factor;
            double const* const missed = c.state + (static_cast<Index>(p) * CONTRASTIVE_STATE_ROWS + 3) * N + r;
            side[j] = c.gradient + ((is_row ? p : P + p) * n_rows + r - c.begin) * o.d_padded;
            pull[j] = -share * (missed[0] + (c.both_directions ? missed[3 * N] : 0.0));
            unscale[j] = ldexp(share, -8 - c.shift[p]);  // contrastive_operand_scale is 2^8
        }
        double along = 0.0;  // <e, de>
        for (int k = lane; sample.shared[i] && k < D; k += 32) {
            float e[LIMIT];
            sample.unit_rows(k, e);
            double sum = 0.0;
#pragma unroll
            for (int j = 0; j < LIMIT; ++j) {
                if (side[j] != nullptr) {
                    float const partner = j == i ? sample.mean_of_others(i, e) : e[j];
                    sum += unscale[j] * static_cast<double>(side[j][k]) + pull[j] * static_cast<double>(partner);
                }
            }
            rows[warp][k] = static_cast<float>(sum);
            along += static_cast<double>(e[i]) * sum;
        }
        along = sum_of_warp(along);
        along = sample.norm[i] < norm_floor ? 0.0 : along;  // below the floor, e is x times a constant
        for (int k = lane; k < D; k += 32) {
            float value = 0.0f;
            if (sample.shared[i]) {
                double const e = sample.element(i, k) * sample.inverse[i];
                value = static_cast<float>((static_cast<double>(rows[warp][k]) - e * along) * sample.inverse[i]);
            }
            store_element<type>(c.gradient_x, (i * N + r) * D + k, value);
        }
    }
}

// One block: the gradient of log_temperature, from the rows' slopes [2 P, n_padded], raw and times 2^shift.
static __global__ void __launch_bounds__(combine_total_threads)
    contrastive_slope_kernel(Combine c, void const* log_temperature, double const* slope,
                             float* gradient_log_temperature) {
    SLEEPFM_SHARED(double, sums, [combine_total_threads]);
    int const P = static_cast<int>(c.operands.n_problems);
    double total = 0.0;
    for (int q = 0; q < 2 * P; ++q) {
        double sum = 0.0;
        for (Index r = c.begin + threadIdx.x; r < c.end; r += combine_total_threads) {
            sum += slope[q * c.operands.n_padded + r];
        }
        total += ldexp(sum, -c.shift[q < P ? q : q - P]);
    }
    sums[threadIdx.x] = total;
    ptx::sync_threads();
    for (unsigned half = combine_total_threads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            sums[threadIdx.x] += sums[threadIdx.x + half];
        }
        ptx::sync_threads();
    }
    if (threadIdx.x == 0) {
        Softmax const softmax(log_temperature);
        double const factor = loss_factor(softmax, c.gradient_loss, c.n_valid, P, c.both_directions);
        *gradient_log_temperature = static_cast<float>(factor * sums[0] / raw_one);
    }
}

}  // namespace sleepfm::cuda
