// Backward pass of the contrastive loss, tile by tile: cosines, kept or multiplied again, become their gradients
// G = s dloss/dlogit, which are multiplied with both operands. The own pair's gradient is minus the probability missed,
// as forward left it; probability - 1 would cancel. Last, means go back to their members, and everything through the
// normalisation. The steps of tiles are those of contrastive_prepare.h: a tile's products are added to the gradients of
// its row block and its column block, which no other tile of the step writes.
#pragma once

#include "cpu/contrastive_prepare.h"

namespace sleepfm::SLEEPFM_ISA {

template <typename T>
struct BackwardWork {
    Operands<T> operands;
    T* diagonal;   // [P, n_padded] cosine of the own pair
    T* reference;  // [P, 2, n_padded] what exponentials are relative to, by row and by column
    T* weight;     // [P, 2, n_padded] factor of the exponential in G
    T* counted;    // [n_padded] 1 for samples in [begin, end), whose terms count for the temperature's gradient, else 0
    T* pull;       // [P, n_padded] the own pair's G
    double* slope;  // [P, n_padded] each row's part of dloss/dlog_temperature
    T* d_row;       // [M, matrix] gradient of e (pairwise: all of it)
    T* d_column;    // [M, matrix] gradient of o; leave-one-out only
    T* tiles;       // [n_threads, 2, tile_size] a tile and its transpose for each thread
#if defined(SLEEPFM_TILES)
    // In place of the transpose. Gradients are a power of two, and the sign of the loss's gradient, away from what they
    // are: the largest own pair's is about 1, and all others are positive.
    std::int32_t* largest;  // [n_threads, 2, block] bits of the largest element of each row and each column of a tile
    T* step;                // [n_threads, block] of the digits' rows or columns
    std::int8_t* digits;    // [n_threads, tile_size * DIGITS]
    std::int8_t* turned;    // [n_threads, block * d_padded * DIGITS] an operand for the gradients, where none is kept
    T unscale = 1;          // what gradients are to be multiplied with in the end
#endif
    Index workspace_bytes, kept_bytes;

    BackwardWork() = default;  // the joint pass cuts its own memory
    BackwardWork(Memory memory, Shape const& shape) : operands(memory.operands<T>(shape, true)) {
        Carver& carver = memory.workspace;
        Index const samples = shape.P * shape.n_padded;
        diagonal = carver.take<T>(samples);
        reference = carver.take<T>(2 * samples);
        weight = carver.take<T>(2 * samples);
        counted = carver.take<T>(shape.n_padded);
        pull = carver.take<T>(samples);
        slope = carver.take<double>(samples);
        d_row = carver.take<T>(shape.M * shape.matrix);
        d_column = carver.take<T>(shape.pairwise ? 0 : shape.M * shape.matrix);
#if defined(SLEEPFM_TILES)
        tiles = carver.take<T>(memory.n_threads * tile_size(shape));
        largest = carver.take<std::int32_t>(memory.n_threads * 2 * shape.block);
        step = carver.take<T>(memory.n_threads * shape.block);
        digits = carver.take<std::int8_t>(memory.n_threads * tile_size(shape) * DIGITS);
        turned = carver.take<std::int8_t>(memory.has_kept ? 0 : memory.n_threads * shape.gradient_digits(shape.block));
#else
        tiles = carver.take<T>(memory.n_threads * 2 * tile_size(shape));
#endif
        workspace_bytes = carver.used();
        kept_bytes = memory.kept.used();
    }
    static Index tile_size(Shape const& shape) { return shape.block * round_up(shape.block, PANEL); }
};

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
    auto const operand = [&](std::int8_t const* kept, std::int8_t const* digits_of_cosines, Index modality, Index first,
                             bool of_rows) {
        if (kept != nullptr) {
            return kept + modality * shape.gradient_digits(shape.whole_panels()) + shape.gradient_digits(first);
        }
        std::int8_t* const turned = work.turned + thread_number() * shape.gradient_digits(shape.block);
        turn_block(
            shape.panels_of_block(first), shape.d_padded,
            digits_of_cosines + modality * shape.cosine_digits(shape.whole_panels()) + shape.cosine_digits(first),
            of_rows, turned);
        return static_cast<std::int8_t const*>(turned);
    };
    std::int32_t const* const largest = work.largest + thread_number() * 2 * shape.block;
    T* const step = work.step + thread_number() * shape.block;
    std::int8_t* const digits = work.digits + thread_number() * BackwardWork<T>::tile_size(shape) * DIGITS;
    if (at.rows_count) {
        make_row_digits(at.n_rows, at.n_columns, tile, operands.column_step(shape, p) + at.c0, largest, digits, step);
        multiply_gradients(at.n_rows, shape.d_padded, (at.n_columns + CHUNK - 1) / CHUNK,
                           operand(operands.turned_columns, operands.columns_digits, shape.column_of[p], at.c0, false),
                           digits, step, work.d_row + shape.row_of[p] * shape.matrix + shape.place_of_sums(at.r0),
                           !first_of_rows);
    }
    if (at.columns_count) {
        make_column_digits(at.n_rows, at.n_columns, tile, operands.row_step(shape, p) + at.r0, largest + shape.block,
                           digits, step);
        multiply_gradients(at.n_columns, shape.d_padded, (at.n_rows + CHUNK - 1) / CHUNK,
                           operand(operands.turned_rows, operands.rows_digits, shape.row_of[p], at.r0, true), digits,
                           step, d_column + shape.column_of[p] * shape.matrix + shape.place_of_sums(at.c0),
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

#if defined(SLEEPFM_TILES)
// What the own pairs of 16 samples from r on add to the gradient of e of modality m, dimension k; and to that of o.
inline Vec<float> pull_of_rows(Shape const& shape, BackwardWork<float> const& work, Index m, Index r, Index k) {
    Operands<float> const& own = work.operands;
    Index const at = shape.place_of_unit(r) + k * PANEL;
    if (!shape.pairwise) {
        return load(work.pull + m * shape.n_padded + r) * load(own.mean + m * shape.unit_stride + at);
    }
    Vec<float> sum{};
    for (Index p = 0; p < shape.P; ++p) {
        Index const row = shape.row_of[p], column = shape.column_of[p];
        if (row == m || column == m) {
            sum += load(work.pull + p * shape.n_padded + r) *
                   load(own.unit + (row == m ? column : row) * shape.unit_stride + at);
        }
    }
    return sum;
}

inline Vec<float> pull_of_columns(Shape const& shape, BackwardWork<float> const& work, Index m, Index r, Index k) {
    return load(work.pull + m * shape.n_padded + r) *
           load(work.operands.unit + m * shape.unit_stride + shape.place_of_unit(r) + k * PANEL);
}
#endif

// From the gradients of e and o to that of x, for WIDTH samples from r on: each modality's part of the other
// modalities' means is added to de; then dx = (de - e <e, de>) / |x|. What is absent or outside [begin, end) gets
// zeros.
template <typename T, typename Element>
inline void finish_gradients(ContrastiveBackward const& call, Shape const& shape, BackwardWork<T> const& work,
                             Index r) {
    constexpr Index width = WIDTH<T>;
    ContrastiveInput const& in = call.input;
    Index const at = shape.place_of_sums(r);
    alignas(64) T share_of[width];
    for (Index l = 0; l < width; ++l) {
        Index const n_others = work.operands.n_others[r + l];
        share_of[l] = n_others > 0 ? T{1} / static_cast<T>(n_others) : T{0};
    }
    Vec<T> const share = load<T>(share_of);
    for (Index m = 0; m < shape.M; ++m) {
        bool wanted[width];
        bool any = false;
        for (Index l = 0; l < width; ++l) {
            Index const sample = r + l;
            wanted[l] =
                sample >= in.begin && sample < in.end && work.operands.n_others[sample] > 0 &&
                (in.mask == nullptr || in.mask[m * in.mask_stride_modality + sample * in.mask_stride_sample] != 0);
            any = any || wanted[l];
            if (sample < shape.N && !wanted[l]) {
                std::memset(static_cast<Element*>(call.gradient_x) + (m * shape.N + sample) * shape.D, 0,
                            static_cast<std::size_t>(shape.D) * sizeof(Element));
            }
        }
        if (!any) {
            continue;
        }
        T const* const e = work.operands.unit + m * shape.unit_stride + shape.place_of_unit(r);
        T* const de = work.d_row + m * shape.matrix + at;
        Vec<T> along_of_piece{};  // <e, de> over 16 dimensions in T; these are summed in double
        double along[width] = {};
        for (Index k = 0; k < shape.D; ++k) {
            Vec<T> sum = load<T>(de + k * SUMS_PANEL);
#if defined(SLEEPFM_TILES)
            sum += pull_of_rows(shape, work, m, r, k);
#endif
            if (!shape.pairwise) {
                Vec<T> means{};
                for (Index other = 0; other < shape.M; ++other) {
                    // Where `other` is absent its gradient is zero: its rows and columns do not count.
                    if (other != m) {
                        means += load<T>(work.d_column + other * shape.matrix + at + k * SUMS_PANEL);
#if defined(SLEEPFM_TILES)
                        means += pull_of_columns(shape, work, other, r, k);
#endif
                    }
                }
                sum += share * means;
            }
            store<T>(de + k * SUMS_PANEL, sum);
            along_of_piece += load<T>(e + k * PANEL) * sum;
            if (k % 16 == 15 || k + 1 == shape.D) {
                alignas(64) T lane[width];
                store<T>(lane, along_of_piece);
                for (Index l = 0; l < width; ++l) {
                    along[l] += static_cast<double>(lane[l]);
                }
                along_of_piece = Vec<T>{};
            }
        }
        alignas(64) T projection_of[width];
        alignas(64) T inverse_of[width];
        for (Index l = 0; l < width; ++l) {
            double const norm = work.operands.norm[m * shape.n_padded + r + l];
            projection_of[l] = norm < NORM_FLOOR ? T{0} : static_cast<T>(along[l]);
            inverse_of[l] = static_cast<T>(1.0 / (norm < NORM_FLOOR ? NORM_FLOOR : norm));
        }
        Vec<T> const projection = load<T>(projection_of);
        Vec<T> const inverse = load<T>(inverse_of);
        alignas(64) T square[width * width];
        alignas(64) T turned[width * width];
        for (Index k = 0; k < shape.D; k += width) {
            Index const n = shape.D - k < width ? shape.D - k : width;
            for (Index i = 0; i < n; ++i) {
                Vec<T> dx = (load<T>(de + (k + i) * SUMS_PANEL) - load<T>(e + (k + i) * PANEL) * projection) * inverse;
#if defined(SLEEPFM_TILES)
                dx *= work.unscale;
#endif
                store<T>(square + i * width, dx);
            }
            transpose<T>(square, width, turned, width);
            for (Index l = 0; l < width; ++l) {
                if (!wanted[l]) {
                    continue;
                }
                auto* const out = static_cast<Element*>(call.gradient_x) + (m * shape.N + r + l) * shape.D + k;
                T const* const row = turned + l * width;
                if (n == width) {
                    Element whole[width];
                    for (Index i = 0; i < width; ++i) {
                        narrow(row[i], whole[i]);
                    }
                    std::memcpy(out, whole, sizeof whole);
                } else {
                    for (Index i = 0; i < n; ++i) {
                        narrow(row[i], out[i]);
                    }
                }
            }
        }
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
inline void finish_group(ContrastiveBackward const& call, Shape const& shape, BackwardWork<T> const& work, Index r) {
    ContrastiveInput const& in = call.input;
    if constexpr (sizeof(T) == 8) {
        finish_gradients<T, double>(call, shape, work, r);
    } else if (in.dtype == DType::bf16) {
        finish_gradients<T, BFloat16>(call, shape, work, r);
    } else if (in.dtype == DType::f16) {
        finish_gradients<T, Float16>(call, shape, work, r);
    } else {
        finish_gradients<T, float>(call, shape, work, r);
    }
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
#if defined(SLEEPFM_TILES)
            prepare_group<T>(in, shape, own.operands, group * width);
#endif
            finish_group<T>(call, shape, own, group * width);
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
