// The contrastive loss's library path before and after its tiles: operands from x; losses, ranks and state from the
// statistics; the scale of the gradient; gradients of x and of the temperature from the products. Each kernel goes
// through its data once, with a warp for each sample where there are D elements of it, else a thread.
#pragma once

#include "cuda/contrastive_epilogue.cuh"
#include "cuda/contrastive_sample.cuh"
#include "half_precision.h"

namespace sleepfm::cuda {

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

// Element k of row r of a (is_row) or b, in the layout of ContrastiveGemm::a.
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
    row[0] = is_row ? low : high;
    row[g.width] = is_row ? high : low;
    row[2 * g.width] = high;
}

// A warp for each sample: its rows of a and b for the problem, own cosine and validity. The statistics of its row and
// column are set to those of no pairs.
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

// ---- what follows from the statistics -------------------------------------------------------------------------------

// A thread for each sample. blockIdx.x: block of samples; blockIdx.y: direction. Samples that are not valid or outside
// [begin, end) get rank -1 and a state of zeros. With the sum S over the other pairs relative to their maximum m, the
// loss is log(1 + exp(excess)), excess = log S - s (own - m).
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
        if (line[r] == -INFINITY && total == 0) {  // nothing to compare with: 0, or NaN where own is not finite
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

// One block: means over the valid samples, and the loss, their mean over all problems and directions that count.
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

// One block: the weights of one problem and the scale of its gradient. The gradient of a similarity, less the common
// factor, is weight_r exp(...) + weight_c exp(...) with exponentials of at most 1. It is bounded by the largest weights
// of a row and of a column together, and also by the largest probabilities missed together; the smaller bound times
// 2^(15 - exponent) is at most 2^15, well within float16.
constexpr int weights_threads = 512;

__global__ void __launch_bounds__(weights_threads) gemm_weights_kernel(ContrastiveGemm const g) {
    SLEEPFM_SHARED(double, scratch, [4][weights_threads]);
    Index const N = g.n_samples, thread = threadIdx.x;
    double const* const state = g.state + g.problem * CONTRASTIVE_STATE_ROWS * N;
    double const columns_count = g.both_directions != 0 ? 1 : 0;
    constexpr int sources[4] = {2, 3, 5, 6};  // rows of state: inverse and missed, by row and by column
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        double largest = 0;
        for (Index r = thread; r < N; r += weights_threads) {
            largest = fmax(largest, state[sources[k] * N + r]);
        }
        scratch[k][thread] = largest;
    }
    ptx::sync_threads();
    for (int half = weights_threads / 2; half > 0; half /= 2) {
        if (thread < half) {
            for (int k = 0; k < 4; ++k) {
                scratch[k][thread] = fmax(scratch[k][thread], scratch[k][thread + half]);
            }
        }
        ptx::sync_threads();
    }
    double const largest =
        fmin(scratch[0][0] + columns_count * scratch[2][0], scratch[1][0] + columns_count * scratch[3][0]);
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

// A warp for each sample: adds to gradient_unit what one problem contributes, the products of its gradient and the
// diagonal's part, -(probabilities missed) times the partner.
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

// A warp for each sample: dx = (de - e <e, de>) / |x|, zeros where the sample lacks the modality, is alone or is
// outside [begin, end). The last block computes the temperature's gradient instead.
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
        auto const unit = [&](Index k) { return static_cast<float>(sample.element(m, k) * sample.inverse[m]); };
        double along = 0;
        if (counts && !(sample.norm[m] < norm_floor)) {
            for (Index k = lane; k < D; k += 32) {
                along += static_cast<double>(unit(k)) * static_cast<double>(gradient[k]);
            }
        }
        float const projection = static_cast<float>(sum_of_warp(along));
        double const multiplier = factor * sample.inverse[m];
        for (Index k = lane; k < D; k += 32) {
            float const value = counts ? static_cast<float>((gradient[k] - unit(k) * projection) * multiplier) : 0.0f;
            Index const at = (m * N + r) * D + k;
            if constexpr (type == DType::f32) {
                static_cast<float*>(g.gradient_x)[at] = value;
            } else {
                static_cast<std::uint16_t*>(g.gradient_x)[at] = type == DType::bf16 ? to_bf16(value) : to_f16(value);
            }
        }
    }
}

}  // namespace sleepfm::cuda
