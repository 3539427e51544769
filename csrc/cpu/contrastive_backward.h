// Backward pass of the contrastive loss, tile by tile: cosines, kept or multiplied again, become their gradients
// G = s dloss/dlogit, which are multiplied with both operands. The own pair's gradient is minus the probability missed,
// as forward left it; probability - 1 would cancel. Last, means go back to their members, and everything through the
// normalisation. The steps of tiles are those of contrastive_prepare.h: a tile's products are added to the gradients of
// its row block and its column block, which no other tile of the step writes.
#pragma once

#include "cpu/contrastive_backward_work.h"
#include "cpu/contrastive_finish.h"

namespace sleepfm::SLEEPFM_ISA {

// Turns a tile of cosines, `from`, into G, `gradient`, which may be the same memory. Adds to the rows' slopes.
template <typename T, bool fixed_maximum>
inline void differentiate_tile(Shape const& shape, BackwardWork<T> const& work, Index p, Tile const& at, T s,
                               T const* from, T* gradient) {
    constexpr Index width = WIDTH<T>;
    Index const first = p * shape.n_padded;
    T const* const bias = work.operands.bias + first;
    T const* const diagonal = work.diagonal + first;
    T const* const reference_of_rows = work.reference + 2 * first;
    T const* const reference_of_columns = reference_of_rows + shape.n_padded + at.c0;
    T const* const weight_of_rows = work.weight + 2 * first;
    T const* const weight_of_columns = weight_of_rows + shape.n_padded + at.c0;
#if defined(SLEEPFM_TILES)
    T const* const step_of_rows = work.operands.row_step(shape, p) + at.r0;
    T const* const step_of_columns = work.operands.column_step(shape, p) + at.c0;
    std::int32_t* const largest_of_rows = work.largest + thread_number() * 2 * shape.block;
    std::int32_t* const largest_of_columns = largest_of_rows + shape.block;
    std::memset(largest_of_rows, 0, 2 * static_cast<std::size_t>(shape.block) * sizeof(std::int32_t));
#endif
    for (Index r = 0; r < at.n_rows; ++r) {
        Index const row = at.r0 + r;
        auto const in_tile = [&](Index c) { return (c / PANEL * at.n_rows + r) * PANEL + c % PANEL; };
        if (bias[row] != T{0}) {
            for (Index c = 0; c < at.n_columns; c += width) {
                store<T>(gradient + in_tile(c), Vec<T>{});
            }
            continue;
        }
        T const own = diagonal[row];
        T const reference = reference_of_rows[row];
        T const weight = weight_of_rows[row];
        T const counted = work.counted[row];
        Index const excluded = at.i == at.j ? r / width * width : -1;
        Vec<T> slope{};
#if defined(SLEEPFM_TILES)
        Lanes largest{};
#endif
        for (Index c = 0; c < at.n_columns; c += width) {
            Vec<T> x = load<T>(from + in_tile(c)) + load<T>(bias + at.c0 + c);
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
            store<T>(gradient + in_tile(c), g);
#if defined(SLEEPFM_TILES)
            largest = larger(largest, magnitude(g * load<T>(step_of_columns + c)));
            auto* const theirs = reinterpret_cast<Lanes*>(largest_of_columns + c);
            *theirs = larger(*theirs, magnitude(g * step_of_rows[r]));
#endif
        }
#if defined(SLEEPFM_TILES)  // the own pair's part comes in finish_gradients
        std::int32_t most = 0;
        for (int l = 0; l < width; ++l) {
            most = most > largest[l] ? most : largest[l];
        }
        largest_of_rows[r] = most;
#else
        if (at.i == at.j) {
            gradient[in_tile(r)] = work.pull[first + row];
        }
#endif
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

// From [panel of columns][row][column of the panel] to [panel of rows][column][row of the panel].
template <typename T>
inline void transpose_tile(Index n_rows, Index n_columns, T const* tile, T* turned) {
    constexpr Index width = WIDTH<T>;
    for (Index c = 0; c < n_columns; c += width) {
        for (Index r = 0; r < n_rows; r += width) {
            transpose<T>(tile + (c / PANEL * n_rows + r) * PANEL + c % PANEL, PANEL,
                         turned + (r / PANEL * n_columns + c) * PANEL + r % PANEL, PANEL);
        }
    }
}

// One tile of problem p: G, and its products with the other side added to the gradients of rows and columns (or
// written, for the first tile of a block).
template <typename T>
inline void backward_tile(ContrastiveInput const& in, Shape const& shape, BackwardWork<T> const& work, Index p,
                          Tile const& at, bool first_of_rows, bool first_of_columns, T s, T* tile) {
    T const* from = tile;
    if (in.kept == nullptr) {
        at.multiply<T>(shape, work.operands, p, tile);
    } else {
        from = at.kept(shape, work.operands.cosines, p);
    }
    differentiate_any_tile<T>(shape, work, p, at, s, from, tile);
    T* const d_column = shape.pairwise ? work.d_row : work.d_column;
#if defined(SLEEPFM_TILES)
    Operands<T> const& operands = work.operands;
    std::int8_t* const turned = work.turned + thread_number() * shape.gradient_digits(shape.block);
    auto const turn = [&](std::int8_t const* all, Index modality, Index first, bool of_rows) {
        turn_block(shape.panels_of_block(first), shape.d_padded,
                   all + modality * shape.cosine_digits(shape.whole_panels()) + shape.cosine_digits(first), of_rows,
                   turned);
    };
    std::int32_t const* const largest = work.largest + thread_number() * 2 * shape.block;
    T* const step = work.step + thread_number() * shape.block;
    std::int8_t* const digits = work.digits + thread_number() * BackwardWork<T>::tile_size(shape) * DIGITS;
    if (at.rows_count) {
        make_row_digits(at.n_rows, at.n_columns, tile, operands.column_step(shape, p) + at.c0, largest, digits, step);
        turn(operands.columns_digits, shape.column_of[p], at.c0, false);
        multiply_gradients(at.n_rows, shape.d_padded, (at.n_columns + CHUNK - 1) / CHUNK, turned, digits, step,
                           work.d_row + shape.row_of[p] * shape.matrix + shape.place_of_sums(at.r0), !first_of_rows);
    }
    if (at.columns_count) {
        make_column_digits(at.n_rows, at.n_columns, tile, operands.row_step(shape, p) + at.r0, largest + shape.block,
                           digits, step);
        turn(operands.rows_digits, shape.row_of[p], at.r0, true);
        multiply_gradients(at.n_columns, shape.d_padded, (at.n_rows + CHUNK - 1) / CHUNK, turned, digits, step,
                           d_column + shape.column_of[p] * shape.matrix + shape.place_of_sums(at.c0),
                           !first_of_columns);
    }
#else
    if (at.rows_count) {
        T* const turned = tile + BackwardWork<T>::tile_size(shape);
        transpose_tile<T>(at.n_rows, at.n_columns, tile, turned);
        gather<T>(at.n_columns, at.n_rows, shape.d_padded, shape.panel_stride,
                  work.operands.columns(shape, p) + shape.place(at.c0), turned,
                  work.d_row + shape.row_of[p] * shape.matrix + shape.place(at.r0), !first_of_rows);
    }
    if (at.columns_count) {
        gather<T>(at.n_rows, at.n_columns, shape.d_padded, shape.panel_stride,
                  work.operands.rows(shape, p) + shape.place(at.r0), tile,
                  d_column + shape.column_of[p] * shape.matrix + shape.place(at.c0), !first_of_columns);
    }
#endif
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

#if defined(SLEEPFM_TILES)
// The power of two, with the factor's sign, by which the own pairs' gradients, factor * probability missed, are about 1
// or less: products of integers flush what is below 2^-104. 1 where there is none.
inline double scale_of_gradients(ContrastiveBackward const& call, Shape const& shape, double factor) {
    double largest = 0.0;
    for (Index p = 0; p < shape.P; ++p) {
        double const* const state = call.state + p * CONTRASTIVE_STATE_ROWS * shape.N;
        for (Index r = 0; r < shape.N; ++r) {
            double const missed = state[3 * shape.N + r], missed_of_column = state[6 * shape.N + r];
            largest = missed > largest ? missed : largest;
            largest = missed_of_column > largest ? missed_of_column : largest;
        }
    }
    double const bound = std::fabs(factor) * largest;
    if (!(bound > 1e-300 && bound < 1e300)) {
        return 1.0;
    }
    int const exponent = std::ilogb(bound);
    return std::ldexp(factor < 0.0 ? -1.0 : 1.0, exponent < -120 ? -120 : exponent > 120 ? 120 : exponent);
}
#endif

template <typename T>
void backward(ContrastiveBackward const& call) {
    constexpr Index width = WIDTH<T>;
    ContrastiveInput const& in = call.input;
    Shape const shape(in.n_modalities, in.n_samples, in.n_dim, in.pairwise);
    BackwardWork<T> work(Memory(in), shape);
    T const s = exponent_scale<T>(scale_of<T>(in));
    [[maybe_unused]] int const n_threads = useful_threads(shape.P * shape.N * shape.N * shape.D, in.n_threads);
    Index total_valid = 0;
    for (Index p = 0; p < shape.P; ++p) {
        total_valid += call.n_valid[p];
    }
    double const n_terms = static_cast<double>(total_valid) * (in.both_directions ? 2.0 : 1.0);
    double const upstream = static_cast<double>(*static_cast<T const*>(call.gradient_loss));
    double factor = total_valid > 0 ? scale_of<T>(in) * upstream / n_terms : 0.0;
#if defined(SLEEPFM_TILES)
    double const unscale = scale_of_gradients(call, shape, factor);
    factor /= unscale;
    work.unscale = static_cast<T>(unscale);
#endif
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
#if defined(SLEEPFM_TILES)
        T* const tile = work.tiles + thread_number() * BackwardWork<T>::tile_size(shape);
#else
        T* const tile = work.tiles + thread_number() * 2 * BackwardWork<T>::tile_size(shape);
#endif
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
#if defined(SLEEPFM_TILES)
        BackwardWork<T> own = work;
        own.operands = work.operands.of_thread(shape);
#else
        BackwardWork<T> const& own = work;
#endif
        SLEEPFM_OMP(omp for schedule(static))
        for (Index group = 0; group < n_groups; ++group) {
            with_element<T>(in.dtype, [&](auto element) {
                finish_gradients<T, decltype(element)>(call, shape, own, group * width);
            });
        }
    }
    double slope = 0.0;
    for (Index p = 0; p < shape.P; ++p) {
        for (Index r = 0; r < shape.N; ++r) {
            slope += work.slope[p * shape.n_padded + r];
        }
    }
#if defined(SLEEPFM_TILES)
    slope *= unscale;
#endif
    *static_cast<T*>(call.gradient_log_temperature) = static_cast<T>(slope);
}

}  // namespace sleepfm::SLEEPFM_ISA
