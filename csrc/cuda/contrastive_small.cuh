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

// Unit rows, means of the others and norms; a block per sample. scratch: a row of small_modalities for each warp.
__device__ inline void prepare_sample(ContrastiveInput const& p, ContrastiveSmallArrays const& w, std::int64_t r,
                                      double* scratch) {
    int const M = static_cast<int>(p.n_modalities), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    std::int64_t const N = p.n_samples, D = p.n_dim;
    int n_present = 0;
    for (int m = 0; m < M; ++m) {
        n_present += is_present(p, m, r) ? 1 : 0;
    }
    ptx::sync_threads();  // scratch has been read
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
    double inverse = 0;  // 0 where the modality does not take part
    if (m < M) {
        double squares = 0;
        for (int k = 0; k < small_warps; ++k) {
            squares += scratch[k * small_modalities + m];
        }
        bool const shared = n_present > 1 && is_present(p, m, r);
        double const norm = sqrt(squares);
        inverse = 1 / (norm < norm_floor ? norm_floor : norm);
        // Below the floor the normalisation is a division by a constant; backward is told by the sign.
        w.inverse_norm[m * N + r] = norm < norm_floor ? -inverse : inverse;
        w.shared[m * N + r] = shared ? 1 : 0;
        inverse = shared ? inverse : 0;
    }
    ptx::sync_threads();
    if (m < M) {
        scratch[m] = inverse;
    }
    ptx::sync_threads();
    auto const unit = [&](int k, std::int64_t d) {
        return scratch[k] == 0 ? 0.0f
                               : static_cast<float>(
                                     load_element(p.x, p.dtype, k * p.stride_modality + r * p.stride_sample + d) *
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
                w.mean[at] = scratch[i] == 0 ? 0.0f : others / n_others;
            }
        }
    }
}

template <int n>
struct alignas(4 * n) Consecutive {
    float value[n];
};

// store(row, column, sum over k < n_k of convert(row, k, a(row, k)) b(k, column)) for a tile x tile matrix. Threads are
// four groups, each with a quarter of every slab of k; a thread of a group has (tile / 8)^2 sums. by_row: neighbouring threads load
// neighbouring k of a (of b), else neighbouring rows (columns). Every sum has the same order wherever it lies.
template <int tile, bool a_by_row, bool b_by_row, typename A, typename Convert, typename B, typename Store>
__device__ void multiply_tile(int n_k, float* shared, A a, Convert convert, B b, Store store) {
    constexpr int slab = static_cast<int>(contrastive_small_slab(tile)), quarter = slab / 4;
    constexpr int pitch = tile + 4, edge = tile / 8;
    constexpr int n_loads = tile * slab / small_threads;
    float* const shared_a = shared;
    float* const shared_b = shared + slab * pitch;
    int const thread = static_cast<int>(threadIdx.x), group = thread / 64;
    int const row = thread % 64 / 8 * edge, column = thread % 8 * edge;
    auto const k_of = [&](bool by_row, int i) {
        int const index = thread + i * small_threads;
        return by_row ? index % slab : index / tile;
    };
    auto const line_of = [&](bool by_row, int i) {
        int const index = thread + i * small_threads;
        return by_row ? index / slab : index % tile;
    };
    float next_a[n_loads], next_b[n_loads];
    auto const load = [&](int k0) {
#pragma unroll
        for (int i = 0; i < n_loads; ++i) {
            int const ka = k0 + k_of(a_by_row, i), kb = k0 + k_of(b_by_row, i);
            next_a[i] = ka < n_k ? a(line_of(a_by_row, i), ka) : 0.0f;
            next_b[i] = kb < n_k ? b(kb, line_of(b_by_row, i)) : 0.0f;
        }
    };
    float sums[edge][edge] = {};
    load(0);
    for (int k0 = 0; k0 < n_k; k0 += slab) {
        ptx::sync_threads();  // the last slab, or the last tile's sums, have been read
#pragma unroll
        for (int i = 0; i < n_loads; ++i) {
            int const k = k_of(a_by_row, i), line = line_of(a_by_row, i);
            shared_a[k * pitch + line] = k0 + k < n_k ? convert(line, k0 + k, next_a[i]) : 0.0f;
            shared_b[k_of(b_by_row, i) * pitch + line_of(b_by_row, i)] = next_b[i];
        }
        ptx::sync_threads();
        if (k0 + slab < n_k) {
            load(k0 + slab);
        }
#pragma unroll 2
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

__device__ inline double temperature_scale(ContrastiveSmall const& p) {
    return exp(static_cast<double>(*static_cast<float const*>(p.input.log_temperature)));
}

// Number of terms that the loss is the mean of; n_valid is there.
__device__ inline double number_of_terms(ContrastiveSmall const& p) {
    std::int64_t n = 0;
    for (std::int64_t problem = 0; problem < contrastive_n_problems(p.input); ++problem) {
        n += p.n_valid[problem];
    }
    n *= p.input.both_directions ? 2 : 1;
    return static_cast<double>(n > 0 ? n : 1);
}

// Of all gradients.
__device__ inline double common_factor(ContrastiveSmall const& p) {
    double const upstream = p.gradient_loss == nullptr ? 1.0 : static_cast<double>(*p.gradient_loss);
    return temperature_scale(p) * upstream / number_of_terms(p);
}

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

// What the rows of softmax q are compared with.
__device__ inline float const* softmax_columns(ContrastiveInput const& p, ContrastiveSmallArrays const& w, int q) {
    SmallProblem const of(p, w, q / 2);
    return q % 2 == 0 ? of.columns : of.rows;
}

// Gradients of the similarities' operands, less the common factor.
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
        // of the row at q, of the column at q ^ 1
        int const of_row = q * N + r0, of_column = (q ^ 1) * N;
        // Rows before begin may hold anything; what becomes of them is not read.
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

// Losses and counts, or the temperature's gradient: sums over all rows in a fixed order, by one block.
__device__ inline void add_up(ContrastiveSmall const& p, ContrastiveSmallArrays const& w,
                              double* scratch) {
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
            *p.loss = static_cast<float>(loss / number_of_terms(p));
        }
        if (p.gradient_x != nullptr) {
            *p.gradient_log_temperature = static_cast<float>(common_factor(p) * slope);
        }
    }
}

// N and D below 2^15 and N D below 2^30, so that what lies within one matrix is counted in 32 bits.
template <int tile>
__global__ void __launch_bounds__(small_threads, 2) contrastive_small_kernel(ContrastiveSmall const p) {
    SLEEPFM_DYNAMIC_SHARED(float, shared);
    SLEEPFM_SHARED(double, scratch, [2 * small_modalities * small_modalities]);
    SLEEPFM_SHARED(ContrastiveSmallArrays, arrays, [1]);  // in registers they would crowd out the sums
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
    if (blockIdx.x == gridDim.x - 1) {
        add_up(p, w, scratch);
    }
}

}  // namespace sleepfm::cuda
