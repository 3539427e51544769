// The contrastive loss of a small batch: preparation, similarities, statistics, gradients and normalisation's backward,
// one launch with a barrier between each two. Everything in between stays in the second-level cache.
//
// Direction 1 of a problem is direction 0 of the transposed similarities, so that the 2 P softmaxes (q = 2 problem +
// direction) are one case: G_q[r, c] = w_q[r] exp(s (x_rc - m_q[r])) + w_q'[c] exp(s (x_rc - m_q'[c])), q' = q ^ 1.
// Sums have a fixed order: the same bits for every number of blocks.
#pragma once

#include <math.h>

#include "cuda/contrastive_sample.cuh"
#include "cuda/contrastive_small.h"
#include "cuda/ptx.h"
#include "half_precision.h"

namespace sleepfm::cuda {

constexpr int small_threads = static_cast<int>(contrastive_small_threads), small_warps = small_threads / 32;
constexpr int small_slab = static_cast<int>(contrastive_small_slab);
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

// Problem number -> modality of the rows, of the columns (leave-one-out: the same).
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

struct SmallProblem {
    float const *rows, *columns;                      // [N, D]
    std::uint8_t const *rows_shared, *columns_shared;  // [N]

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

// Unit rows, means of the others and norms; a block per sample.
__device__ inline void prepare_sample(ContrastiveInput const& p, ContrastiveSmallArrays const& w, std::int64_t r,
                                      double* scratch) {
    int const M = static_cast<int>(p.n_modalities), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    std::int64_t const N = p.n_samples, D = p.n_dim;
    int n_present = 0;
    for (int m = 0; m < M; ++m) {
        n_present += is_present(p, m, r) ? 1 : 0;
    }
    bool shared[small_modalities];
    double inverse[small_modalities];
    ptx::sync_threads();  // scratch has been read
#pragma unroll
    for (int m = 0; m < small_modalities; ++m) {
        shared[m] = m < M && n_present > 1 && is_present(p, m, r);
        double square = 0;
        if (shared[m]) {
            std::int64_t const row = m * p.stride_modality + r * p.stride_sample;
            for (std::int64_t d = threadIdx.x; d < D; d += small_threads) {
                double const value = load_element(p.x, p.dtype, row + d);
                square += value * value;
            }
        }
        square = sum_over_warp(square);
        if (lane == 0) {
            scratch[warp * small_modalities + m] = square;
        }
    }
    ptx::sync_threads();
#pragma unroll
    for (int m = 0; m < small_modalities; ++m) {
        double square = 0;
        for (int k = 0; k < small_warps; ++k) {
            square += scratch[k * small_modalities + m];
        }
        double const norm = sqrt(square);
        inverse[m] = 1 / (norm < norm_floor ? norm_floor : norm);
        if (m < M && threadIdx.x == 0) {
            // Below the floor the normalisation is a division by a constant; backward is told by the sign.
            w.inverse_norm[m * N + r] = norm < norm_floor ? -inverse[m] : inverse[m];
            w.shared[m * N + r] = shared[m] ? 1 : 0;
        }
    }
    float const share = n_present > 1 ? 1.0f / static_cast<float>(n_present - 1) : 0.0f;
    for (std::int64_t d = threadIdx.x; d < D; d += small_threads) {
        float value[small_modalities];
#pragma unroll
        for (int m = 0; m < small_modalities; ++m) {
            value[m] = 0;
            if (shared[m]) {
                float const element = load_element(p.x, p.dtype, m * p.stride_modality + r * p.stride_sample + d);
                value[m] = static_cast<float>(element * inverse[m]);
            }
            if (m < M) {
                w.unit[(m * N + r) * D + d] = value[m];
            }
        }
        if (p.pairwise) {
            continue;
        }
#pragma unroll
        for (int m = 0; m < small_modalities; ++m) {
            float others = 0;
#pragma unroll
            for (int k = 0; k < small_modalities; ++k) {
                others += k == m ? 0.0f : value[k];
            }
            if (m < M) {
                w.mean[(m * N + r) * D + d] = shared[m] ? others * share : 0.0f;
            }
        }
    }
}

template <int n>
struct alignas(4 * n) Consecutive {
    float value[n];
};

// store(row, column, sum over k < n_k of a(row, k) b(k, column)) for a tile x tile matrix. Threads are four groups, each
// with a quarter of every slab of k; a thread of a group has (tile / 8)^2 sums. by_row: neighbouring threads load
// neighbouring k of a (of b), else neighbouring rows (columns). Every sum has the same order wherever it lies.
template <int tile, bool a_by_row, bool b_by_row, typename A, typename B, typename Store>
__device__ void multiply_tile(std::int64_t n_k, float* shared, A a, B b, Store store) {
    constexpr int pitch = tile + 4, edge = tile / 8, quarter = small_slab / 4;
    constexpr int n_loads = tile * small_slab / small_threads;
    float* const shared_a = shared;
    float* const shared_b = shared + small_slab * pitch;
    int const thread = static_cast<int>(threadIdx.x), group = thread / 64;
    int const row = thread % 64 / 8 * edge, column = thread % 8 * edge;
    auto const k_of = [&](bool by_row, int i) {
        int const index = thread + i * small_threads;
        return by_row ? index % small_slab : index / tile;
    };
    auto const line_of = [&](bool by_row, int i) {
        int const index = thread + i * small_threads;
        return by_row ? index / small_slab : index % tile;
    };
    float next_a[n_loads], next_b[n_loads];
    auto const load = [&](std::int64_t k0) {
#pragma unroll
        for (int i = 0; i < n_loads; ++i) {
            std::int64_t const ka = k0 + k_of(a_by_row, i), kb = k0 + k_of(b_by_row, i);
            next_a[i] = ka < n_k ? a(line_of(a_by_row, i), ka) : 0.0f;
            next_b[i] = kb < n_k ? b(kb, line_of(b_by_row, i)) : 0.0f;
        }
    };
    float sums[edge][edge] = {};
    load(0);
    for (std::int64_t k0 = 0; k0 < n_k; k0 += small_slab) {
        ptx::sync_threads();  // the last slab, or the last tile's sums, have been read
#pragma unroll
        for (int i = 0; i < n_loads; ++i) {
            shared_a[k_of(a_by_row, i) * pitch + line_of(a_by_row, i)] = next_a[i];
            shared_b[k_of(b_by_row, i) * pitch + line_of(b_by_row, i)] = next_b[i];
        }
        ptx::sync_threads();
        if (k0 + small_slab < n_k) {
            load(k0 + small_slab);
        }
#pragma unroll 4
        for (int k = group * quarter; k < (group + 1) * quarter; ++k) {
            auto const x = *reinterpret_cast<Consecutive<edge> const*>(shared_a + k * pitch + row);
            auto const y = *reinterpret_cast<Consecutive<edge> const*>(shared_b + k * pitch + column);
#pragma unroll
            for (int i = 0; i < edge; ++i) {
#pragma unroll
                for (int j = 0; j < edge; ++j) {
                    sums[i][j] += x.value[i] * y.value[j];
                }
            }
        }
    }
    ptx::sync_threads();  // the slab has been read; its memory takes the sums of the groups
#pragma unroll
    for (int i = 0; i < edge; ++i) {
#pragma unroll
        for (int j = 0; j < edge; ++j) {
            shared[(group * tile + row + i) * tile + column + j] = sums[i][j];
        }
    }
    ptx::sync_threads();
    for (int index = thread; index < tile * tile; index += small_threads) {
        float const low = shared[index] + shared[tile * tile + index];
        float const high = shared[2 * tile * tile + index] + shared[3 * tile * tile + index];
        store(index / tile, index % tile, low + high);
    }
}

template <int tile>
__device__ void multiply_cosines(ContrastiveSmall const& p, ContrastiveSmallArrays const& w, float* shared) {
    std::int64_t const N = p.input.n_samples, D = p.input.n_dim, strips = (N + tile - 1) / tile;
    std::int64_t const n_tiles = contrastive_n_problems(p.input) * strips * strips;
    for (std::int64_t index = blockIdx.x; index < n_tiles; index += gridDim.x) {
        int const problem = static_cast<int>(index / (strips * strips));
        std::int64_t const r0 = index / strips % strips * tile, c0 = index % strips * tile;
        bool const rows_count = r0 < p.end && r0 + tile > p.begin, columns_count = c0 < p.end && c0 + tile > p.begin;
        if (!rows_count && !columns_count) {
            continue;
        }
        SmallProblem const of(p.input, w, problem);
        auto const a = [&](int i, std::int64_t k) { return r0 + i < N ? of.rows[(r0 + i) * D + k] : 0.0f; };
        auto const b = [&](std::int64_t k, int j) { return c0 + j < N ? of.columns[(c0 + j) * D + k] : 0.0f; };
        multiply_tile<tile, true, true>(D, shared, a, b, [&](int i, int j, float value) {
            std::int64_t const r = r0 + i, c = c0 + j;
            if (r < N && c < N) {
                float const cosine = of.valid(r) && of.valid(c) ? value : -INFINITY;
                w.cosine[(2 * problem * N + r) * N + c] = cosine;
                w.cosine[((2 * problem + 1) * N + c) * N + r] = cosine;
            }
        });
    }
}

// What follows from one row of cosines; a warp. largest: of state, in backward.
struct RowSums {
    float largest;
    double total, moment;  // of exp(s (x - largest)), and times (x - own)
    int rank;
    bool alone;
};

__device__ inline RowSums sum_row(float const* cosine, std::int64_t N, std::int64_t r, float scale_log2,
                                  bool given_largest, float largest) {
    int const lane = threadIdx.x % 32;
    float const own = cosine[r];
    RowSums sums{-INFINITY, 0, 0, 0, true};
    bool counts = false;
    for (std::int64_t c = lane; c < N; c += 32) {
        float const x = cosine[c];
        if (c != r && x != -INFINITY) {  // also where x is not a number
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

// Softmax of one row against its own counterpart, which the sums leave out. excess: log of the sum's ratio to it.
struct RowLoss {
    double loss, largest, inverse, missed;

    __device__ RowLoss(double own, double largest_other, double total, bool alone, double scale) {
        if (alone) {  // 0, or not a number where own is none
            loss = largest = inverse = missed = 0 * own;
            return;
        }
        double const lead = scale * (own - largest_other), excess = log(total) - lead;
        loss = excess > 40 ? excess : log1p(exp(excess));
        largest = largest_other;
        inverse = 1 / (total + exp(lead));
        missed = 1 / (1 + exp(-excess));
    }
};

__device__ inline void find_statistics(ContrastiveSmall const& p, ContrastiveSmallArrays const& w, double scale) {
    std::int64_t const N = p.input.n_samples, P = contrastive_n_problems(p.input);
    std::int64_t const n_warps = std::int64_t{gridDim.x} * small_warps;
    int const lane = threadIdx.x % 32;
    float const scale_log2 = static_cast<float>(scale * 1.4426950408889634);
    for (std::int64_t task = std::int64_t{blockIdx.x} * small_warps + threadIdx.x / 32; task < 2 * P * N + P;
         task += n_warps) {
        if (task >= 2 * P * N) {  // a count of valid samples
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
        double* const state =
            p.state == nullptr ? nullptr : p.state + problem * CONTRASTIVE_STATE_ROWS * N + r;
        std::int64_t const at = is_column ? 4 : 1;  // of largest, inverse, missed in state
        if (p.given_state) {
            // of all samples: other rows' gradients need them
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

// Gradients of the similarities' operands, less the common factor.
template <int tile>
__device__ void multiply_gradients(ContrastiveSmall const& p, ContrastiveSmallArrays const& w, double scale,
                                   float* shared) {
    std::int64_t const N = p.input.n_samples, D = p.input.n_dim;
    std::int64_t const strips = (N + tile - 1) / tile, depth = (D + tile - 1) / tile;
    std::int64_t const n_tiles = 2 * contrastive_n_problems(p.input) * strips * depth;
    float const scale_log2 = static_cast<float>(scale * 1.4426950408889634);
    for (std::int64_t index = blockIdx.x; index < n_tiles; index += gridDim.x) {
        std::int64_t const q = index / (strips * depth), r0 = index / depth % strips * tile;
        std::int64_t const d0 = index % depth * tile;
        if (r0 >= p.end || r0 + tile <= p.begin) {
            continue;
        }
        SmallProblem const of(p.input, w, static_cast<int>(q / 2));
        float const* const other = q % 2 == 0 ? of.columns : of.rows;
        float const* const cosine = w.cosine + q * N * N;
        float const *const largest = w.largest + q * N, *const weight = w.weight + q * N;
        float const *const largest_c = w.largest + (q ^ 1) * N, *const weight_c = w.weight + (q ^ 1) * N;
        auto const a = [&](int i, std::int64_t c) {
            std::int64_t const r = r0 + i;
            if (r < p.begin || r >= p.end) {
                return 0.0f;
            }
            if (c == r) {
                return -(w.missed[q * N + r] + w.missed[(q ^ 1) * N + r]);
            }
            float const x = cosine[r * N + c];
            return x == -INFINITY ? 0.0f
                                  : ptx::ex2((x - largest[r]) * scale_log2) * weight[r] +
                                        ptx::ex2((x - largest_c[c]) * scale_log2) * weight_c[c];
        };
        auto const b = [&](std::int64_t c, int j) { return d0 + j < D ? other[c * D + d0 + j] : 0.0f; };
        multiply_tile<tile, true, false>(N, shared, a, b, [&](int i, int j, float value) {
            if (r0 + i < N && d0 + j < D) {
                w.gradient[(q * N + r0 + i) * D + d0 + j] = value;
            }
        });
    }
}

// Element d of the gradient of unit row (m, r): its own problems', and its part of the others' means.
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

// dx = (de - e <e, de>) / |x|, a warp per row.
__device__ inline void normalisation_backward(ContrastiveSmall const& p, ContrastiveSmallArrays const& w, double factor) {
    ContrastiveInput const& input = p.input;
    std::int64_t const N = input.n_samples, D = input.n_dim, M = input.n_modalities;
    int const lane = threadIdx.x % 32;
    for (std::int64_t task = std::int64_t{blockIdx.x} * small_warps + threadIdx.x / 32; task < M * N;
         task += std::int64_t{gridDim.x} * small_warps) {
        int const m = static_cast<int>(task / N);
        std::int64_t const r = task % N;
        if (w.shared[task] == 0 || r < p.begin || r >= p.end) {
            for (std::int64_t d = lane; d < D; d += 32) {
                store_element(p.gradient_x, input.dtype, task * D + d, 0.0f);
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
            store_element(p.gradient_x, input.dtype, task * D + d, static_cast<float>(gradient * multiplier));
        }
    }
}

// Losses and counts, or the temperature's gradient: sums over all rows in a fixed order, by one block.
__device__ inline void add_up(ContrastiveSmall const& p, ContrastiveSmallArrays const& w, double factor,
                              double n_terms, double* scratch) {
    std::int64_t const N = p.input.n_samples;
    int const n_rows = static_cast<int>(2 * contrastive_n_problems(p.input)), lane = threadIdx.x % 32;
    ptx::sync_threads();
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
            *p.loss = static_cast<float>(loss / n_terms);
        }
        if (p.gradient_x != nullptr) {
            *p.gradient_log_temperature = static_cast<float>(factor * slope);
        }
    }
}

template <int tile>
__global__ void __launch_bounds__(small_threads, 2) contrastive_small_kernel(ContrastiveSmall const p) {
    SLEEPFM_DYNAMIC_SHARED(float, shared);
    SLEEPFM_SHARED(double, scratch, [2 * small_modalities * small_modalities]);
    ContrastiveSmallArrays w;
    bool const gradient = p.gradient_x != nullptr;
    contrastive_small_arrays(p.input, gradient, w);
    std::int64_t const P = contrastive_n_problems(p.input);
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
    double const scale = exp(static_cast<double>(*static_cast<float const*>(p.input.log_temperature)));
    barrier();
    multiply_cosines<tile>(p, w, shared);
    barrier();
    find_statistics(p, w, scale);
    barrier();
    std::int64_t n_valid = 0;
    for (std::int64_t problem = 0; problem < P; ++problem) {
        n_valid += p.n_valid[problem];
    }
    n_valid *= p.input.both_directions ? 2 : 1;
    double const n_terms = static_cast<double>(n_valid > 0 ? n_valid : 1);
    double const upstream = p.gradient_loss == nullptr ? 1.0 : static_cast<double>(*p.gradient_loss);
    double const factor = scale * upstream / n_terms;
    if (gradient) {
        multiply_gradients<tile>(p, w, scale, shared);
        barrier();
        normalisation_backward(p, w, factor);
    }
    if (blockIdx.x == gridDim.x - 1) {
        add_up(p, w, factor, n_terms, scratch);
    }
}

}  // namespace sleepfm::cuda
