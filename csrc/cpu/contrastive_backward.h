// Backward pass of the contrastive loss: the tiles are computed again, turned into s * dloss/dlogit in place and
// multiplied with both operands. The gradient of the pair that belongs together is minus the probability missed, not
// probability - 1, which would cancel.
#pragma once

#include "cpu/contrastive_prepare.h"

namespace sleepfm::SLEEPFM_ISA {

template <typename T>
inline void backward_tile(Shape const& shape, Workspace<T> const& work, Index p, Tile const& at, T s, T* tile) {
    constexpr Index width = WIDTH<T>;
    Index const ld = shape.d_padded;
    cosine_tile(shape, work, p, at.r0, at.n_rows, at.c0, at.n_columns, tile);
    T const* const bias = work.bias + p * shape.n_padded;
    T const* const diagonal = work.diagonal + p * shape.n_padded;
    T const* const largest_of_rows = work.largest + 2 * p * shape.n_padded;
    T const* const largest_of_columns = largest_of_rows + shape.n_padded + at.c0;
    T const* const weight_of_rows = work.weight + 2 * p * shape.n_padded;
    T const* const weight_of_columns = weight_of_rows + shape.n_padded + at.c0;
    Index const n_vectors = at.n_columns / width;
    for (Index r = 0; r < at.n_rows; ++r) {
        Index const row = at.r0 + r;
        T* const gradient = tile + r * shape.block;
        if (bias[row] != T{0}) {
            std::memset(gradient, 0, static_cast<std::size_t>(at.n_columns) * sizeof(T));
            continue;
        }
        if (at.i == at.j) {
            gradient[r] = static_cast<T>(EXCLUDED);
        }
        T const own = diagonal[row];
        T const reference = largest_of_rows[row];
        T const weight = weight_of_rows[row];
        Vec<T> slope{};
        for (Index v = 0; v < n_vectors; ++v) {
            Vec<T> const x = load<T>(gradient + v * width) + load<T>(bias + at.c0 + v * width);
            Vec<T> const by_row = exponential(s * (x - reference)) * weight;
            Vec<T> const by_column =
                exponential(s * (x - load<T>(largest_of_columns + v * width))) * load<T>(weight_of_columns + v * width);
            // dloss/dlog_temperature = sum of G S; as the sum of each row's (column's) G is 0, its own d may be taken
            // off.
            slope += by_row * (x - own) + by_column * (x - load<T>(diagonal + at.c0 + v * width));
            store<T>(gradient + v * width, by_row + by_column);
        }
        if (at.i == at.j) {
            gradient[r] = work.pull[p * shape.n_padded + row];
        }
        work.slope[p * shape.n_padded + row] += static_cast<double>(sum_of_lanes<T>(slope));
    }
    T const* const rows = work.unit + (shape.row_of[p] * shape.n_padded + at.r0) * ld;
    T const* const columns =
        (shape.pairwise ? work.unit : work.mean) + (shape.column_of[p] * shape.n_padded + at.c0) * ld;
    T* const d_row = work.d_row + (shape.row_of[p] * shape.n_padded + at.r0) * ld;
    T* const d_column =
        (shape.pairwise ? work.d_row : work.d_column) + (shape.column_of[p] * shape.n_padded + at.c0) * ld;
    Index const n_dim_vectors = round_up(shape.D, width) / width;
    multiply<T, false>(at.n_rows, n_dim_vectors, at.n_columns, tile, shape.block, columns, ld, width, d_row, ld, true);
    multiply<T, true>(at.n_columns, n_dim_vectors, at.n_rows, tile, shape.block, rows, ld, width, d_column, ld, true);
}

// Means back to embeddings, then through the normalisation: dx = (de - e <e, de>) / |x|.
template <typename T, typename Element>
inline void finish_row(ContrastiveBackward const& call, Shape const& shape, Workspace<T> const& work, Index r) {
    Index const ld = shape.d_padded;
    Index const matrix = shape.n_padded * ld;
    for (Index m = 0; m < shape.M; ++m) {
        auto* const out = static_cast<Element*>(call.gradient_x) + (m * shape.N + r) * shape.D;
        ContrastiveInput const& in = call.input;
        bool const present =
            work.n_others[r] > 0 &&
            (in.mask == nullptr || in.mask[m * in.mask_stride_modality + r * in.mask_stride_sample] != 0);
        if (!present) {
            std::memset(out, 0, static_cast<std::size_t>(shape.D) * sizeof(Element));
            continue;
        }
        T const* const e = work.unit + m * matrix + r * ld;
        T* const de = work.d_row + m * matrix + r * ld;
        if (!shape.pairwise) {
            T const share = T{1} / static_cast<T>(work.n_others[r]);
            for (Index other = 0; other < shape.M; ++other) {
                if (other == m) {
                    continue;
                }
                T const* const from = work.d_column + other * matrix + r * ld;  // zero where absent
                for (Index k = 0; k < ld; ++k) {
                    de[k] += share * from[k];
                }
            }
        }
        double const norm = work.norm[m * shape.n_padded + r];
        double along = 0.0;
        if (!(norm < NORM_FLOOR)) {
            double lane[16] = {};
            for (Index k = 0; k < ld; k += 16) {
                for (int l = 0; l < 16; ++l) {
                    lane[l] += static_cast<double>(e[k + l]) * static_cast<double>(de[k + l]);
                }
            }
            for (int half = 8; half > 0; half /= 2) {
                for (int l = 0; l < half; ++l) {
                    lane[l] += lane[l + half];
                }
            }
            along = lane[0];
        }
        T const projection = static_cast<T>(along);
        double const inverse = 1.0 / (norm < NORM_FLOOR ? NORM_FLOOR : norm);
        for (Index k = 0; k < shape.D; ++k) {
            narrow(static_cast<T>(static_cast<double>(de[k] - e[k] * projection) * inverse), out[k]);
        }
    }
}

// From forward's state to the weights of this backward, one sample of one problem.
template <typename T>
inline void load_state(ContrastiveBackward const& call, Shape const& shape, Workspace<T> const& work, Index p, Index r,
                       double factor) {
    Index const N = shape.N;
    Index const padded = shape.n_padded;
    double pull = 0.0;
    if (r < N && work.bias[p * padded + r] == T{0}) {
        double const* const state = call.state + p * CONTRASTIVE_STATE_ROWS * N + r;
        work.diagonal[p * padded + r] = static_cast<T>(state[0]);
        for (Index direction = 0; direction < 2; ++direction) {
            double const share = direction == 0 || call.input.both_directions ? factor : 0.0;
            double const* const kept = state + (1 + 3 * direction) * N;
            work.largest[(2 * p + direction) * padded + r] = static_cast<T>(kept[0]);
            work.weight[(2 * p + direction) * padded + r] = static_cast<T>(share * kept[N]);
            pull -= share * kept[2 * N];
        }
    } else {
        for (Index direction = 0; direction < 2; ++direction) {
            work.largest[(2 * p + direction) * padded + r] = T{0};
            work.weight[(2 * p + direction) * padded + r] = T{0};
        }
    }
    work.pull[p * padded + r] = static_cast<T>(pull);
    work.slope[p * padded + r] = 0.0;
}

template <typename T>
void backward(ContrastiveBackward const& call) {
    ContrastiveInput const& in = call.input;
    Shape const shape(in.n_modalities, in.n_samples, in.n_dim, in.pairwise);
    Workspace<T> const work(in.workspace, shape, true, in.n_threads);
    T const s = exponent_scale<T>(scale_of<T>(in));
    [[maybe_unused]] int const n_threads = threads_for(shape, in.n_threads);
    Index total_valid = 0;
    for (Index p = 0; p < shape.P; ++p) {
        total_valid += call.n_valid[p];
    }
    double const n_terms = static_cast<double>(total_valid) * (in.both_directions ? 2.0 : 1.0);
    double const upstream = static_cast<double>(*static_cast<T const*>(call.gradient_loss));
    double const factor = total_valid > 0 ? scale_of<T>(in) * upstream / n_terms : 0.0;
    auto const block_bytes = static_cast<std::size_t>(GROUP * shape.d_padded) * sizeof(T);
    Index const n_groups = shape.n_padded / GROUP;
    SLEEPFM_OMP(omp parallel num_threads(n_threads)) {
        prepare<T>(in, shape, work);
        SLEEPFM_OMP(omp for schedule(static))
        for (Index group = 0; group < n_groups; ++group) {
            for (Index m = 0; m < shape.M; ++m) {
                Index const at = (m * shape.n_padded + group * GROUP) * shape.d_padded;
                std::memset(work.d_row + at, 0, block_bytes);
                if (!shape.pairwise) {
                    std::memset(work.d_column + at, 0, block_bytes);
                }
            }
            for (Index r = group * GROUP; r < (group + 1) * GROUP; ++r) {
                for (Index p = 0; p < shape.P; ++p) {
                    load_state<T>(call, shape, work, p, r, factor);
                }
            }
        }
        T* const tile = work.tiles + thread_number() * shape.block * shape.block;
        // Leave-one-out problems write apart from each other; pairs share embeddings and take turns.
        Index const n_turns = shape.pairwise ? shape.P : 1;
        Index const n_together = shape.pairwise ? 1 : shape.P;
        for (Index turn = 0; turn < n_turns; ++turn) {
            for (Index step = 0; step < shape.n_blocks; ++step) {
                SLEEPFM_OMP(omp for schedule(dynamic, 1))
                for (Index task = 0; task < n_together * shape.n_blocks; ++task) {
                    Tile const at(shape, task % shape.n_blocks, step);
                    backward_tile<T>(shape, work, turn + task / shape.n_blocks, at, s, tile);
                }
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index r = 0; r < shape.N; ++r) {
            if constexpr (sizeof(T) == 8) {
                finish_row<T, double>(call, shape, work, r);
            } else if (in.dtype == DType::bf16) {
                finish_row<T, BFloat16>(call, shape, work, r);
            } else if (in.dtype == DType::f16) {
                finish_row<T, Float16>(call, shape, work, r);
            } else {
                finish_row<T, float>(call, shape, work, r);
            }
        }
    }
    double slope = 0.0;
    for (Index p = 0; p < shape.P; ++p) {
        for (Index r = 0; r < shape.N; ++r) {
            slope += work.slope[p * shape.n_padded + r];
        }
    }
    *static_cast<T*>(call.gradient_log_temperature) = static_cast<T>(slope);
}

}  // namespace sleepfm::SLEEPFM_ISA
