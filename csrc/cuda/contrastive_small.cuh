// The contrastive loss of a small batch in one cooperative launch. Five phases, each spread over all blocks, with a
// grid barrier after each but the last: unit rows and means; similarities; statistics of each row of them; gradients of
// the operands; backward of the normalisation. What passes between phases (ContrastiveSmallArrays) stays in the
// second-level cache; since it is written during the launch, nothing may read it by the read-only path.
//
// Direction 1 of a problem is direction 0 of the transposed similarities, which are stored too, so that the 2 P
// softmaxes (q = 2 problem + direction) are treated alike. The gradient with respect to similarity x_rc of softmax q,
// off the diagonal and less the common factor, is, with q' = q ^ 1 the problem's other direction,
//     G_q[r, c] = w_q[r] exp(s (x_rc - m_q[r])) + w_q'[c] exp(s (x_rc - m_q'[c])).
// Every sum has a fixed order: the bits do not depend on the number of blocks.
#pragma once

#include <cmath>

#include "cuda/contrastive_small_sample.cuh"

namespace sleepfm::cuda {

// Similarities of all problems, both as they are and transposed. Tiles without a row or a column in [begin, end) are
// left out, and their memory holds anything.
template <int tile>
__device__ void multiply_cosines(ContrastiveSmall const& p, ContrastiveSmallArrays const& w, float* shared) {
    int const N = static_cast<int>(p.input.n_samples), D = static_cast<int>(p.input.n_dim);
    int const strips = (N + tile - 1) / tile, begin = static_cast<int>(p.begin), end = static_cast<int>(p.end);
    int const n_tiles = static_cast<int>(contrastive_n_problems(p.input)) * strips * strips;
    for (int index = static_cast<int>(blockIdx.x); index < n_tiles; index += static_cast<int>(gridDim.x)) {
        int const problem = index / (strips * strips), r0 = index / strips % strips * tile, c0 = index % strips * tile;
        if ((r0 >= end || r0 + tile <= begin) && (c0 >= end || c0 + tile <= begin)) {
            continue;
        }
        SmallProblem const of(p.input, w, problem);
        float const* const rows = of.rows + std::int64_t{r0} * D;
        float const* const columns = of.columns + std::int64_t{c0} * D;
        auto const a = [&](int i, int k) { return r0 + i < N ? rows[i * D + k] : 0.0f; };
        auto const b = [&](int k, int j) { return c0 + j < N ? columns[j * D + k] : 0.0f; };
        auto const same = [](int, int, float value) { return value; };
        multiply_tile<tile, true, true>(D, shared, a, same, b, [&](int i, int j, float value) {
            int const r = r0 + i, c = c0 + j;
            if (r < N && c < N) {
                float const cosine = of.valid(r) && of.valid(c) ? value : -INFINITY;
                float* const matrix = w.cosine + std::int64_t{2 * problem} * N * N;
                matrix[std::int64_t{r} * N + c] = cosine;
                matrix[std::int64_t{N + c} * N + r] = cosine;
            }
        });
    }
}

// What follows from one row of cosines, without the own pair.
struct RowSums {
    float largest;
    double total, moment;  // sums of exp(s (x - largest)) and of (x - own) exp(s (x - largest))
    int rank;              // number of cosines ahead of the own one
    bool alone;            // there is no other pair
};

// By a warp, for row r. In backward (given_largest) the maximum comes from the state, so that weights fit to it.
__device__ inline RowSums sum_row(float const* cosine, std::int64_t N, std::int64_t r, float scale_log2,
                                  bool given_largest, float largest) {
    int const lane = threadIdx.x % 32;
    float const own = cosine[r];
    RowSums sums{-INFINITY, 0, 0, 0, true};
    bool counts = false;
    for (std::int64_t c = lane; c < N; c += 32) {
        float const x = cosine[c];
        if (c != r && x != -INFINITY) {  // NaN counts as a pair, and makes the sums NaN
            counts = true;
            sums.largest = fmaxf(sums.largest, x);
            sums.rank += x > own || (x == own && c < r) ? 1 : 0;
        }
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        sums.largest = fmaxf(sums.largest, ptx::shuffle_xor(sums.largest, mask));
    }
    sums.rank = sum_over_warp(sums.rank);
    sums.alone = !ptx::any(counts);
    sums.largest = given_largest ? largest : sums.largest;
    float total = 0, moment = 0;
    for (std::int64_t c = lane; c < N; c += 32) {
        float const x = cosine[c];
        if (c != r && x != -INFINITY) {
            float const exponential = ptx::ex2((x - sums.largest) * scale_log2);
            total += exponential;
            moment += exponential * (x - own);
        }
    }
    sums.total = sum_over_warp(static_cast<double>(total));
    sums.moment = sum_over_warp(static_cast<double>(moment));
    return sums;
}

// Loss and state of one row. `total` leaves the own pair out; excess is the log of its ratio to the own exponential.
struct RowLoss {
    double loss, largest, inverse, missed;

    __device__ RowLoss(double own, double largest_other, double total, bool alone, double scale) {
        if (alone) {  // nothing to compare with: 0, or NaN where own is not finite
            loss = largest = inverse = missed = 0 * own;
            return;
        }
        double const lead = scale * (own - largest_other), excess = log(total) - lead;
        loss = excess > 40 ? excess : log1p(exp(excess));  // beyond 40 both are equal in double
        largest = largest_other;
        inverse = 1 / (total + exp(lead));
        missed = 1 / (1 + exp(-excess));
    }
};

__device__ inline double temperature_scale(ContrastiveSmall const& p) {
    return exp(static_cast<double>(*static_cast<float const*>(p.input.log_temperature)));
}

// Number of terms that the loss is the mean of. n_valid must be complete: after the statistics' barrier, or given.
__device__ inline double number_of_terms(ContrastiveSmall const& p) {
    std::int64_t n = 0;
    for (std::int64_t problem = 0; problem < contrastive_n_problems(p.input); ++problem) {
        n += p.n_valid[problem];
    }
    n *= p.input.both_directions ? 2 : 1;
    return static_cast<double>(n > 0 ? n : 1);
}

// The factor of all gradients: s * gradient_loss / number of terms.
__device__ inline double common_factor(ContrastiveSmall const& p) {
    double const upstream = p.gradient_loss == nullptr ? 1.0 : static_cast<double>(*p.gradient_loss);
    return temperature_scale(p) * upstream / number_of_terms(p);
}

// The statistics of every row of similarities, a warp each, and the number of valid samples of every problem. Backward
// (given_state) takes them from the state, and only needs the rows' slopes besides.
__device__ inline void find_statistics(ContrastiveSmall const& p, ContrastiveSmallArrays const& w, double scale) {
    std::int64_t const N = p.input.n_samples, P = contrastive_n_problems(p.input);
    std::int64_t const n_warps = std::int64_t{gridDim.x} * small_warps;
    int const lane = threadIdx.x % 32;
    float const scale_log2 = static_cast<float>(scale * 1.4426950408889634);
    for (std::int64_t task = std::int64_t{blockIdx.x} * small_warps + threadIdx.x / 32; task < 2 * P * N + P;
         task += n_warps) {
        if (task >= 2 * P * N) {  // the last P tasks count a problem's valid samples
            std::int64_t const problem = task - 2 * P * N;
            SmallProblem const of(p.input, w, static_cast<int>(problem));
            std::int64_t n = 0;
            for (std::int64_t r = lane; r < N; r += 32) {
                n += of.valid(r) ? 1 : 0;
            }
            n = sum_over_warp(n);
            if (lane == 0 && !p.given_state) {
                p.n_valid[problem] = n;
            }
            continue;
        }
        std::int64_t const q = task / N, r = task % N, problem = q / 2;
        bool const is_column = q % 2 == 1;
        SmallProblem const of(p.input, w, static_cast<int>(problem));
        bool const valid = of.valid(r), inside = r >= p.begin && r < p.end;
        double* const state = p.state == nullptr ? nullptr : p.state + problem * CONTRASTIVE_STATE_ROWS * N + r;
        std::int64_t const at = is_column ? 4 : 1;  // row of the state that begins with largest, inverse, missed
        if (p.given_state) {
            // For samples outside [begin, end) too: they are columns in the gradients of those within.
            float const counts = is_column && !p.input.both_directions ? 0.0f : 1.0f;
            float const largest = static_cast<float>(state[at * N]);
            float const weight = counts * static_cast<float>(state[(at + 1) * N]);
            double slope = 0;
            if (valid && inside) {
                RowSums const sums = sum_row(w.cosine + task * N, N, r, scale_log2, true, largest);
                slope = weight * sums.moment;
            }
            if (lane == 0) {
                w.largest[task] = largest;
                w.weight[task] = weight;
                w.missed[task] = counts * static_cast<float>(state[(at + 2) * N]);
                w.slopes[task] = slope;
            }
            continue;
        }
        RowSums sums{0, 0, 0, -1, true};
        double own = 0;
        if (valid && inside) {
            sums = sum_row(w.cosine + task * N, N, r, scale_log2, false, 0);
            own = w.cosine[task * N + r];
        }
        if (lane != 0) {
            continue;
        }
        RowLoss const row(own, sums.largest, sums.total, sums.alone, scale);
        float const counts = is_column && !p.input.both_directions ? 0.0f : 1.0f;
        w.losses[task] = row.loss;
        w.largest[task] = static_cast<float>(row.largest);
        w.weight[task] = counts * static_cast<float>(row.inverse);
        w.missed[task] = counts * static_cast<float>(row.missed);
        w.slopes[task] = sums.alone ? 0 * own : counts * row.inverse * sums.moment;
        p.ranks[task] = sums.rank;
        if (state != nullptr) {
            if (!is_column) {
                state[0] = own;
            }
            state[at * N] = row.largest;
            state[(at + 1) * N] = row.inverse;
            state[(at + 2) * N] = row.missed;
        }
    }
}

// The operand that the rows of softmax q are compared with.
__device__ inline float const* softmax_columns(ContrastiveInput const& p, ContrastiveSmallArrays const& w, int q) {
    SmallProblem const of(p, w, q / 2);
    return q % 2 == 0 ? of.columns : of.rows;
}

// Gradients of the operands, less the common factor: for softmax q the product of G_q [N, N], which is made from the
// similarities as they are loaded, with the other operand [N, D]. On the diagonal G_q is minus the probabilities
// missed, by row and by column.
template <int tile>
__device__ void multiply_gradients(ContrastiveSmall const& p, ContrastiveSmallArrays const& w, double scale,
                                   float* shared) {
    int const N = static_cast<int>(p.input.n_samples), D = static_cast<int>(p.input.n_dim);
    int const strips = (N + tile - 1) / tile, depth = (D + tile - 1) / tile;
    int const begin = static_cast<int>(p.begin), end = static_cast<int>(p.end);
    int const n_tiles = 2 * static_cast<int>(contrastive_n_problems(p.input)) * strips * depth;
    float const scale_log2 = static_cast<float>(scale * 1.4426950408889634);
    for (int index = static_cast<int>(blockIdx.x); index < n_tiles; index += static_cast<int>(gridDim.x)) {
        int const q = index / (strips * depth), r0 = index / depth % strips * tile, d0 = index % depth * tile;
        if (r0 >= end || r0 + tile <= begin) {
            continue;
        }
        float const* const other = softmax_columns(p.input, w, q) + d0;
        float const* const cosine = w.cosine + (std::int64_t{q} * N + r0) * N;
        // The row's weights are those of softmax q, the column's those of q ^ 1.
        int const of_row = q * N + r0, of_column = (q ^ 1) * N;
        // Rows before `begin` that are in the tile may hold anything; their gradients are not read.
        auto const a = [&](int i, int c) { return r0 + i < end ? cosine[i * N + c] : -INFINITY; };
        auto const convert = [&](int i, int c, float x) {
            if (c == r0 + i) {
                return c < end ? -(w.missed[of_row + i] + w.missed[of_column + c]) : 0.0f;
            }
            return x == -INFINITY ? 0.0f
                                  : ptx::ex2((x - w.largest[of_row + i]) * scale_log2) * w.weight[of_row + i] +
                                        ptx::ex2((x - w.largest[of_column + c]) * scale_log2) * w.weight[of_column + c];
        };
        auto const b = [&](int c, int j) { return d0 + j < D ? other[c * D + j] : 0.0f; };
        multiply_tile<tile, true, false>(N, shared, a, convert, b, [&](int i, int j, float value) {
            if (r0 + i < N && d0 + j < D) {
                w.gradient[(std::int64_t{q} * N + r0 + i) * D + d0 + j] = value;
            }
        });
    }
}

// Element d of the gradient of unit row (m, r): from the problems that it is a side of, and, times `share` = 1 /
// (number of others), from the problems in whose means it is.
__device__ inline float unit_gradient(ContrastiveInput const& p, ContrastiveSmallArrays const& w, int m, std::int64_t r,
                                      std::int64_t d, float share) {
    std::int64_t const size = p.n_samples * p.n_dim, at = r * p.n_dim + d;
    int const M = static_cast<int>(p.n_modalities);
    float sum = 0;
    if (p.pairwise) {
        int problem = 0;
        for (int i = 0; i < M; ++i) {
            for (int j = i + 1; j < M; ++j, ++problem) {
                if (i == m || j == m) {
                    sum += w.gradient[(2 * problem + (i == m ? 0 : 1)) * size + at];
                }
            }
        }
        return sum;
    }
    for (int k = 0; k < M; ++k) {
        sum += k == m ? 0.0f : w.gradient[(2 * k + 1) * size + at];
    }
    return w.gradient[2 * m * size + at] + share * sum;
}

// dx = (de - e <e, de>) / |x|, a warp for each row. Rows that are not shared or outside [begin, end) get zeros.
__device__ inline void normalisation_backward(ContrastiveSmall const& p, ContrastiveSmallArrays const& w,
                                              double factor) {
    ContrastiveInput const& input = p.input;
    std::int64_t const N = input.n_samples, D = input.n_dim, M = input.n_modalities;
    int const lane = threadIdx.x % 32;
    for (std::int64_t task = std::int64_t{blockIdx.x} * small_warps + threadIdx.x / 32; task < M * N;
         task += std::int64_t{gridDim.x} * small_warps) {
        int const m = static_cast<int>(task / N);
        std::int64_t const r = task % N;
        if (w.shared[task] == 0 || r < p.begin || r >= p.end) {
            for (std::int64_t d = lane; d < D; d += 32) {
                store_element(p.gradient_x, p.gradient_dtype, task * D + d, 0.0f);
            }
            continue;
        }
        int n_others = -1;
        for (int k = 0; k < M; ++k) {
            n_others += w.shared[k * N + r];
        }
        float const share = 1.0f / static_cast<float>(n_others);
        float const* const unit = w.unit + task * D;
        double along = 0;
        for (std::int64_t d = lane; d < D; d += 32) {
            along += unit[d] * unit_gradient(input, w, m, r, d, share);
        }
        along = sum_over_warp(along);
        double const inverse = w.inverse_norm[task];
        float const projection = inverse < 0 ? 0.0f : static_cast<float>(along);
        double const multiplier = factor * fabs(inverse);
        for (std::int64_t d = lane; d < D; d += 32) {
            float const gradient = unit_gradient(input, w, m, r, d, share) - unit[d] * projection;
            store_element(p.gradient_x, p.gradient_dtype, task * D + d, static_cast<float>(gradient * multiplier));
        }
    }
}

// Losses and counts (unless given) and the temperature's gradient: sums over all rows in a fixed order, by one block.
// scratch: [2 P, 2] loss and slope, at most 2 * 64 elements.
__device__ inline void add_up(ContrastiveSmall const& p, ContrastiveSmallArrays const& w, double* scratch) {
    std::int64_t const N = p.input.n_samples;
    int const n_rows = static_cast<int>(2 * contrastive_n_problems(p.input)), lane = threadIdx.x % 32;
    ptx::sync_threads();  // scratch is free
    for (int q = threadIdx.x / 32; q < n_rows; q += small_warps) {
        double loss = 0, slope = 0;
        std::int64_t n_correct = 0;
        for (std::int64_t r = lane; r < N; r += 32) {
            slope += w.slopes[q * N + r];
            if (!p.given_state) {
                loss += w.losses[q * N + r];
                n_correct += p.ranks[q * N + r] == 0 ? 1 : 0;
            }
        }
        loss = sum_over_warp(loss);
        slope = sum_over_warp(slope);
        n_correct = sum_over_warp(n_correct);
        if (lane == 0) {
            scratch[2 * q] = loss;
            scratch[2 * q + 1] = slope;
            if (!p.given_state) {
                std::int64_t const n = p.n_valid[q / 2];
                p.losses[q] = static_cast<float>(loss / static_cast<double>(n > 0 ? n : 1));
                p.correct[q] = n_correct;
            }
        }
    }
    ptx::sync_threads();
    if (threadIdx.x == 0) {
        double loss = 0, slope = 0;
        for (int q = 0; q < n_rows; ++q) {
            loss += q % 2 == 1 && !p.input.both_directions ? 0 : scratch[2 * q];
            slope += scratch[2 * q + 1];
        }
        if (!p.given_state) {
            *p.loss = static_cast<float>(loss / number_of_terms(p));
        }
        if (p.gradient_x != nullptr) {
            *p.gradient_log_temperature = static_cast<float>(common_factor(p) * slope);
        }
    }
}

// The caller keeps N and D below 2^15 and N D below 2^30, so that places within one matrix fit into 32 bits.
template <int tile>
__global__ void __launch_bounds__(small_threads, 2) contrastive_small_kernel(ContrastiveSmall const p) {
    SLEEPFM_DYNAMIC_SHARED(float, shared);
    SLEEPFM_SHARED(double, scratch, [2 * small_modalities * small_modalities]);
    SLEEPFM_SHARED(ContrastiveSmallArrays, arrays, [1]);  // in registers the addresses would crowd out the sums
    ContrastiveSmallArrays& w = arrays[0];
    bool const gradient = p.gradient_x != nullptr;
    if (threadIdx.x == 0) {
        contrastive_small_arrays(p.input, gradient, w);
    }
    ptx::sync_threads();
    auto const barrier = [&] {
        if (gridDim.x == 1) {
            ptx::sync_threads();
        } else {
            ptx::grid_barrier(p.barrier, gridDim.x);
        }
    };
    for (std::int64_t r = blockIdx.x; r < p.input.n_samples; r += gridDim.x) {
        prepare_sample(p.input, w, r, scratch);
    }
    barrier();
    multiply_cosines<tile>(p, w, shared);
    barrier();
    find_statistics(p, w, temperature_scale(p));
    barrier();
    if (gradient) {
        multiply_gradients<tile>(p, w, temperature_scale(p), shared);
        barrier();
        normalisation_backward(p, w, common_factor(p));
    }
    if (blockIdx.x == gridDim.x - 1) {  // the block with the fewest tasks, where they do not divide evenly
        add_up(p, w, scratch);
    }
}

}  // namespace sleepfm::cuda
