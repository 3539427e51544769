// Backward pass of the contrastive loss, tile by tile: cosines, kept or multiplied again, become their gradients
// G = s dloss/dlogit, which are multiplied with both operands. The own pair's gradient is minus the probability missed,
// as forward left it; probability - 1 would cancel. Last, means go back to their members, and everything through the
// normalisation. The steps of tiles are those of contrastive_shape.h: a tile's products are added to the gradients of
// its row block and its column block, which no other tile of the step writes.
#pragma once

#include "cpu/contrastive_finish.h"
#include "cpu/contrastive_prepare.h"

namespace sleepfm::SLEEPFM_ISA {

// Turns a tile of cosines, `from`, into G, `gradient`, which may be the same memory. Adds to the rows' slopes. Not
// inlined: among the caller's values the loop's addresses would not stay in registers.
template <typename T, bool fixed_maximum>
__attribute__((noinline)) inline void differentiate_tile(Shape const& shape, BackwardWork<T> const& work, Index p,
                                                         Tile const& at, T s, T const* from, T* gradient) {
    constexpr Index width = WIDTH<T>;
    Index const first = p * shape.n_padded;
    T const* const bias = work.operands.bias + first;
    T const* const diagonal = work.diagonal + first;
    T const* const reference_of_rows = work.reference + 2 * first;
    T const* const reference_of_columns = reference_of_rows + shape.n_padded + at.c0;
    T const* const weight_of_rows = work.weight + 2 * first;
    T const* const weight_of_columns = weight_of_rows + shape.n_padded + at.c0;
    typename GradientProducts<T>::Observer observer(work.products, shape, work.operands, p, at);
    for (Index r = 0; r < at.n_rows; ++r) {
        Index const row = at.r0 + r;
        if (bias[row] != T{0}) {
            for (Index c = 0; c < at.n_columns; c += width) {
                store<T>(gradient + at.place(r, c), Vec<T>{});
            }
            continue;
        }
        T const own = diagonal[row];
        T const reference = reference_of_rows[row];
        T const weight = weight_of_rows[row];
        T const counted = work.counted[row];
        Index const excluded = at.i == at.j ? r / width * width : -1;
        Vec<T> slope{};
        observer.start_row();
        for (Index c = 0; c < at.n_columns; c += width) {
            Vec<T> x = load<T>(from + at.place(r, c)) + load<T>(bias + at.c0 + c);
            if (c == excluded) {
                x[r % width] = static_cast<T>(EXCLUDED);
            }
            Vec<T> by_row, by_column;
            if constexpr (fixed_maximum) {
                Vec<T> const e = exponential(s * (x - T{1}));
                by_row = e * weight;
                by_column = e * load<T>(weight_of_columns + c);
            } else {
                by_row = exponential(s * (x - reference)) * weight;
                by_column = exponential(s * (x - load<T>(reference_of_columns + c))) * load<T>(weight_of_columns + c);
            }
            // dloss/dlog_temperature is the sum of G x over all pairs. Each softmax's part of G sums to 0 over its row
            // (column), so that the own cosine may be subtracted from x, which leaves the own pair out and cancels
            // less.
            slope += counted * by_row * (x - own) +
                     load<T>(work.counted + at.c0 + c) * by_column * (x - load<T>(diagonal + at.c0 + c));
            Vec<T> const g = by_row + by_column;
            store<T>(gradient + at.place(r, c), g);
            observer.see(r, c, g);
        }
        observer.end_row(r);
        if (at.i == at.j && !GradientProducts<T>::OWN_PAIRS_APART) {
            gradient[at.place(r, r)] = work.pull[first + row];
        }
        work.slope[first + row] += static_cast<double>(sum_of_lanes<T>(slope));
    }
}

template <typename T>
inline void differentiate_any_tile(Shape const& shape, BackwardWork<T> const& work, Index p, Tile const& at, T s,
                                   T const* from, T* gradient) {
    if (is_fixed_maximum(static_cast<double>(s))) {
        differentiate_tile<T, true>(shape, work, p, at, s, from, gradient);
    } else {
        differentiate_tile<T, false>(shape, work, p, at, s, from, gradient);
    }
}

// One tile of problem p: G, and its products with the other side added to the gradients of rows and columns (or
// written, for the first tile of a block).
template <typename T>
inline void backward_tile(ContrastiveInput const& in, Shape const& shape, BackwardWork<T> const& work, Index p,
                          Tile const& at, bool first_of_rows, bool first_of_columns, T s, T* tile) {
    T const* cosines = tile;
    if (in.kept == nullptr) {
        work.operands.multiply(shape, p, at, tile);
    } else {
        cosines = at.kept(shape, work.operands.cosines, p);
    }
    differentiate_any_tile<T>(shape, work, p, at, s, cosines, tile);
    if (at.rows_count) {
        T* const d_row = work.d_row + shape.row_of[p] * shape.matrix + shape.place_of_sums(at.r0);
        work.products.rows(shape, work.operands, p, at, tile, d_row, !first_of_rows);
    }
    if (at.columns_count) {
        T* const d_column = (shape.pairwise ? work.d_row : work.d_column) + shape.column_of[p] * shape.matrix +
                            shape.place_of_sums(at.c0);
        work.products.columns(shape, work.operands, p, at, tile, d_column, !first_of_columns);
    }
}

// From forward's state to weights, for sample r of problem p. factor: s * gradient_loss / number of terms.
template <typename T>
inline void load_state(ContrastiveInput const& in, double const* all_states, Shape const& shape,
                       BackwardWork<T> const& work, double s, double factor, Index p, Index r) {
    Index const N = shape.N;
    Index const padded = shape.n_padded;
    bool const valid = r < N && work.operands.bias[p * padded + r] == T{0};
    double const* const state = all_states + p * CONTRASTIVE_STATE_ROWS * N + r;
    double pull = 0.0;
    work.diagonal[p * padded + r] = valid ? static_cast<T>(state[0]) : T{0};
    for (Index direction = 0; direction < 2; ++direction) {
        double reference = 0.0, weight = 0.0;
        if (valid) {
            double const* const kept = state + (1 + 3 * direction) * N;
            double const share = direction == 0 || in.both_directions ? factor : 0.0;
            reference = kept[0];
            weight = share * kept[N];
            pull -= share * kept[2 * N];
            if (is_fixed_maximum(s)) {
                weight *= std::exp(s * (1.0 - reference));
                reference = 1.0;
            }
        }
        work.reference[(2 * p + direction) * padded + r] = static_cast<T>(reference);
        work.weight[(2 * p + direction) * padded + r] = static_cast<T>(weight);
    }
    work.pull[p * padded + r] = static_cast<T>(pull);
    work.slope[p * padded + r] = 0.0;
}

template <typename T>
void backward(ContrastiveBackward const& call) {
    constexpr Index width = WIDTH<T>;
    ContrastiveInput const& in = call.input;
    Shape const shape(in);
    Memory memory(in, Pass::backward);
    BackwardWork<T> work(memory, shape);
    T const s = exponent_scale<T>(scale_of<T>(in));
    [[maybe_unused]] int const n_threads = useful_threads(shape.P * shape.N * shape.N * shape.D, in.n_threads);
    Index total_valid = 0;
    for (Index p = 0; p < shape.P; ++p) {
        total_valid += call.n_valid[p];
    }
    double const n_terms = static_cast<double>(total_valid) * (in.both_directions ? 2.0 : 1.0);
    double const upstream = static_cast<double>(*static_cast<T const*>(call.gradient_loss));
    double factor = total_valid > 0 ? scale_of<T>(in) * upstream / n_terms : 0.0;
    double const unscale = work.products.choose_scale(call, shape, factor);
    factor /= unscale;
    auto const load_sample = [&](Index r) {
        work.counted[r] = r >= in.begin && r < in.end ? T{1} : T{0};
        for (Index p = 0; p < shape.P; ++p) {
            load_state<T>(in, call.state, shape, work, static_cast<double>(s), factor, p, r);
        }
    };
    Index const n_groups = shape.n_padded / width;
    SLEEPFM_OMP(omp parallel num_threads(n_threads)) {
        if (in.kept == nullptr) {
            prepare<T>(in, shape, work.operands, load_sample);
        } else {
            SLEEPFM_OMP(omp for schedule(static))
            for (Index r = 0; r < shape.n_padded; ++r) {
                load_sample(r);
            }
        }
        T* const tile = work.tiles + thread_number() * shape.tile_size();
        // Leave-one-out, each problem writes a d_row and a d_column of its own, and all run together. Pairwise,
        // problems add to gradients that they share, and take turns.
        Index const n_turns = shape.pairwise ? shape.P : 1;
        Index const n_together = shape.pairwise ? 1 : shape.P;
        for (Index turn = 0; turn < n_turns; ++turn) {
            // Whether this problem is the first to write its rows' (columns') modality's gradient.
            bool first_of_rows = true, first_of_columns = true;
            for (Index before = 0; before < turn; ++before) {
                for (int const m : {shape.row_of[before], shape.column_of[before]}) {
                    first_of_rows = first_of_rows && m != shape.row_of[turn];
                    first_of_columns = first_of_columns && m != shape.column_of[turn];
                }
            }
            for (Index step = 0; step < shape.n_blocks; ++step) {
                SLEEPFM_OMP(omp for schedule(dynamic, 1))
                for (Index task = 0; task < n_together * shape.n_blocks; ++task) {
                    Tile const at(shape, in, task % shape.n_blocks, step);
                    if (at.rows_count || at.columns_count) {
                        backward_tile<T>(in, shape, work, turn + task / shape.n_blocks, at, first_of_rows && step == 0,
                                         first_of_columns && step == 0, s, tile);
                    }
                }
            }
        }
        BackwardWork<T> own = work;
        own.operands = work.operands.of_thread(shape);
        SLEEPFM_OMP(omp for schedule(static))
        for (Index group = 0; group < n_groups; ++group) {
            with_element<T>(in.dtype, [&](auto element) {
                finish_gradients<T, decltype(element)>(call, shape, own, group * width);
            });
        }
    }
    *static_cast<T*>(call.gradient_log_temperature) = static_cast<T>(work.total_slope(shape) * unscale);
}

}  // namespace sleepfm::SLEEPFM_ISA
