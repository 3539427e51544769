// Forward pass of the contrastive loss, tile by tile. With cosines x_rc, the own pair's d_r = x_rr, and over the other
// pairs only m = max x_rc and u = sum exp(s (x_rc - m)), the loss of a row is
//   loss_r = log(1 + u exp(s (m - d_r))),
// which keeps its relative accuracy where the own pair dominates (log(sum) - s d_r would cancel). Columns likewise.
// Exponentials are relative to a cosine of 1 where s allows it, one for row and column together; else to the running
// maximum of each row and of each column. The diagonal's tiles come in the first step, so that all later tiles find the
// own cosines, which ranks compare with.
#pragma once

#include "cpu/contrastive_prepare.h"

namespace sleepfm::SLEEPFM_ISA {

// Where a tile lies: below the diagonal (all columns have lower numbers than all rows), on it, or above it. It says
// which way ties go.
enum class Place { below, diagonal, above };

// Goes through a tile once: maxima and counts and, with fixed_maximum, sums of exponentials. Of two equal cosines, the
// one whose sample has the lower number is ahead. Rows' results go to the tile's edges or are added to the work at
// once; columns' are in column_max, column_sum and column_count, [block] each.
template <typename T, Place place, bool fixed_maximum>
inline void scan_tile(Shape const& shape, ForwardWork<T> const& work, Index p, Tile const& at, T s, T* tile, T* row_max,
                      T* column_max, T* column_sum, IntVec<T>* column_count, std::int32_t* row_ranks) {
    constexpr Index width = WIDTH<T>;
    T const* const bias = work.operands.bias + p * shape.n_padded;
    T* const diagonal = work.diagonal + p * shape.n_padded;
    double* const sum_of_rows = work.sum + 2 * p * shape.n_padded;
    if constexpr (place == Place::diagonal) {
        for (Index r = 0; r < at.n_rows; ++r) {
            T* const own = tile + at.place(r, r);
            diagonal[at.r0 + r] = bias[at.r0 + r] == T{0} ? *own : T{0};
            *own = static_cast<T>(EXCLUDED);
        }
    }
    for (Index c = 0; c < at.n_columns; c += width) {
        store<T>(column_max + c, splat<T>(static_cast<T>(EXCLUDED)));
        store<T>(column_sum + c, Vec<T>{});
        column_count[c / width] = IntVec<T>{};
    }
    IntVec<T> lane{};
    for (int l = 0; l < width; ++l) {
        lane[l] = l;
    }
    for (Index r = 0; r < at.n_rows; ++r) {
        row_max[r] = static_cast<T>(EXCLUDED);
        if (bias[at.r0 + r] != T{0}) {
            continue;
        }
        Vec<T> const own = splat<T>(diagonal[at.r0 + r]);
        Vec<T> largest = splat<T>(static_cast<T>(EXCLUDED));
        Vec<T> sum{};
        IntVec<T> count{};
        for (Index c = 0; c < at.n_columns; c += width) {
            Vec<T> const x = load<T>(tile + at.place(r, c)) + load<T>(bias + at.c0 + c);
            largest = x > largest ? x : largest;
            Vec<T> const so_far = load<T>(column_max + c);
            store<T>(column_max + c, x > so_far ? x : so_far);
            if constexpr (fixed_maximum) {
                Vec<T> const e = exponential(s * (x - T{1}));
                sum += e;
                store<T>(column_sum + c, load<T>(column_sum + c) + e);
            }
            Vec<T> const theirs = load<T>(diagonal + at.c0 + c);
            IntVec<T>& theirs_count = column_count[c / width];
            if constexpr (place == Place::below) {
                count -= x >= own;
                theirs_count -= x > theirs;
            } else if constexpr (place == Place::above) {
                count -= x > own;
                theirs_count -= x >= theirs;
            } else {
                using Integer = typename Simd<T>::Integer;
                IntVec<T> const column = lane + static_cast<Integer>(c);
                IntVec<T> const first = column < static_cast<Integer>(r);
                IntVec<T> const second = column > static_cast<Integer>(r);
                count -= (x > own) | ((x == own) & first);
                theirs_count -= (x > theirs) | ((x == theirs) & second);
            }
        }
        row_max[r] = max_of_lanes<T>(largest);
        row_ranks[at.r0 + r] += count_of_lanes<T>(count);
        if constexpr (fixed_maximum) {
            sum_of_rows[at.r0 + r] += static_cast<double>(sum_of_lanes<T>(sum));
        }
    }
}

template <typename T, bool fixed_maximum>
inline void scan_any_tile(Shape const& shape, ForwardWork<T> const& work, Index p, Tile const& at, T s, T* tile,
                          T* row_max, T* column_max, T* column_sum, IntVec<T>* column_count, std::int32_t* row_ranks) {
    auto* const scan = at.i == at.j  ? &scan_tile<T, Place::diagonal, fixed_maximum>
                       : at.j < at.i ? &scan_tile<T, Place::below, fixed_maximum>
                                     : &scan_tile<T, Place::above, fixed_maximum>;
    scan(shape, work, p, at, s, tile, row_max, column_max, column_sum, column_count, row_ranks);
}

// Raises the running maximum to a tile's, and rescales the sum. Returns what exponentials are to be relative to: the
// maximum, or 0 while there is none.
template <typename T>
inline T raise_maximum(T& largest, double& sum, T tile_max, double s) {
    if (tile_max > largest) {
        bool const none_before = largest <= static_cast<T>(EXCLUDED);
        sum = none_before ? 0.0 : sum * std::exp(s * (static_cast<double>(largest) - static_cast<double>(tile_max)));
        largest = tile_max;
    }
    return largest <= static_cast<T>(EXCLUDED) ? T{0} : largest;
}

// Without fixed_maximum, after scan_tile: a second pass for the sums of exponentials, relative to the running maxima.
template <typename T>
inline void sum_tile(Shape const& shape, ForwardWork<T> const& work, Index p, Tile const& at, T s, T const* tile,
                     T const* row_max, T* column_max, T* column_sum) {
    constexpr Index width = WIDTH<T>;
    T const* const bias = work.operands.bias + p * shape.n_padded;
    T* const largest_of_rows = work.largest + 2 * p * shape.n_padded;
    T* const largest_of_columns = largest_of_rows + shape.n_padded;
    double* const sum_of_rows = work.sum + 2 * p * shape.n_padded;
    double* const sum_of_columns = sum_of_rows + shape.n_padded;
    for (Index c = 0; c < at.n_columns; ++c) {
        column_max[c] = raise_maximum<T>(largest_of_columns[at.c0 + c], sum_of_columns[at.c0 + c], column_max[c],
                                         static_cast<double>(s));
    }
    for (Index r = 0; r < at.n_rows; ++r) {
        Index const row = at.r0 + r;
        if (bias[row] != T{0}) {
            continue;
        }
        T const reference =
            raise_maximum<T>(largest_of_rows[row], sum_of_rows[row], row_max[r], static_cast<double>(s));
        Vec<T> sum{};
        for (Index c = 0; c < at.n_columns; c += width) {
            Vec<T> const x = load<T>(tile + at.place(r, c)) + load<T>(bias + at.c0 + c);
            sum += exponential(s * (x - reference));
            T* const place_of_sum = column_sum + c;
            store<T>(place_of_sum, load<T>(place_of_sum) + exponential(s * (x - load<T>(column_max + c))));
        }
        sum_of_rows[row] += static_cast<double>(sum_of_lanes<T>(sum));
    }
}

// Adds a tile of cosines to the sums, maxima and ranks of its rows and columns. On the diagonal's tiles it reads the
// own cosines first. edges: [4, block], maxima of rows, maxima, sums and counts of columns.
template <typename T>
inline void gather_statistics(Shape const& shape, ForwardWork<T> const& work, Index p, Tile const& at, T s, T* tile,
                              T* edges, std::int32_t* ranks) {
    using Integer = typename Simd<T>::Integer;
    T* const row_max = edges;
    T* const column_max = edges + shape.block;
    T* const column_sum = edges + 2 * shape.block;
    auto* const column_count = reinterpret_cast<IntVec<T>*>(edges + 3 * shape.block);
    std::int32_t* const row_ranks = ranks + 2 * p * shape.N;
    std::int32_t* const column_ranks = row_ranks + shape.N;
    T const* const bias = work.operands.bias + p * shape.n_padded;
    T* const largest_of_rows = work.largest + 2 * p * shape.n_padded;
    T* const largest_of_columns = largest_of_rows + shape.n_padded;
    double* const sum_of_columns = work.sum + (2 * p + 1) * shape.n_padded;
    if (is_fixed_maximum(static_cast<double>(s))) {
        scan_any_tile<T, true>(shape, work, p, at, s, tile, row_max, column_max, column_sum, column_count, row_ranks);
        for (Index r = 0; r < at.n_rows; ++r) {
            T& largest = largest_of_rows[at.r0 + r];
            largest = row_max[r] > largest ? row_max[r] : largest;
        }
        for (Index c = 0; c < at.n_columns; ++c) {
            T& largest = largest_of_columns[at.c0 + c];
            largest = column_max[c] > largest ? column_max[c] : largest;
        }
    } else {
        scan_any_tile<T, false>(shape, work, p, at, s, tile, row_max, column_max, column_sum, column_count, row_ranks);
        sum_tile<T>(shape, work, p, at, s, tile, row_max, column_max, column_sum);
    }
    for (Index c = 0; c < at.n_columns; ++c) {
        sum_of_columns[at.c0 + c] += static_cast<double>(column_sum[c]);
        if (bias[at.c0 + c] == T{0}) {
            column_ranks[at.c0 + c] += static_cast<std::int32_t>(reinterpret_cast<Integer const*>(column_count)[c]);
        }
    }
}

// Returns the loss of one sample in one direction of a problem, and writes the three numbers of the state. d: the own
// cosine; `sum` is relative to `reference`.
inline double finish_sample(double d, double largest, double reference, double sum, double s, double* state_largest,
                            double* state_inverse, double* state_missed) {
    if (sum == 0.0) {  // no other sample to compare with: loss 0, or NaN where d is not finite
        *state_largest = *state_inverse = *state_missed = 0.0;
        return 0.0 * d;
    }
    sum *= std::exp(s * (reference - largest));
    double const lead = s * (d - largest);
    double const odds = sum * std::exp(-lead);  // of all other pairs against the own one; exp(loss) - 1
    *state_largest = largest;
    *state_inverse = 1.0 / (sum + std::exp(lead));
    *state_missed = odds > 1.0 ? 1.0 / (1.0 + 1.0 / odds) : odds / (1.0 + odds);
    if (lead < 0.0) {
        return -lead + std::log(sum + std::exp(lead));
    }
    return std::log1p(odds);
}

// The same for both directions of problem p's sample r, from the work's sums to the state; the sums become losses.
// Samples outside [begin, end) get rank -1 and a state of zeros.
template <typename T>
inline void finish_sample_of(ContrastiveForward const& call, Shape const& shape, ForwardWork<T> const& work, double s,
                             Index p, Index r) {
    ContrastiveInput const& in = call.input;
    Index const N = shape.N;
    bool const inside = r >= in.begin && r < in.end;
    double* const state = call.state + p * CONTRASTIVE_STATE_ROWS * N + r;
    if (!inside) {
        for (Index row = 0; row < CONTRASTIVE_STATE_ROWS; ++row) {
            state[row * N] = 0.0;
        }
    }
    double const d = static_cast<double>(work.diagonal[p * shape.n_padded + r]);
    if (inside) {
        state[0] = d;
    }
    for (Index direction = 0; direction < 2; ++direction) {
        Index const at = (2 * p + direction) * shape.n_padded + r;
        if (!inside) {
            call.ranks[(2 * p + direction) * N + r] = -1;
            work.sum[at] = 0.0;
            continue;
        }
        double* const kept = state + (1 + 3 * direction) * N;
        double const largest = static_cast<double>(work.largest[at]);
        double const reference = is_fixed_maximum(s) ? 1.0 : largest;
        work.sum[at] = finish_sample(d, largest, reference, work.sum[at], s, kept, kept + N, kept + 2 * N);
    }
}

// Sets sample r's sums and ranks to those of no pairs.
template <typename T>
inline void start_sample(ContrastiveForward const& call, Shape const& shape, ForwardWork<T> const& work, Index r) {
    for (Index p = 0; p < shape.P; ++p) {
        work.diagonal[p * shape.n_padded + r] = T{0};
        for (Index q = 2 * p; q < 2 * p + 2; ++q) {
            work.largest[q * shape.n_padded + r] = static_cast<T>(EXCLUDED);
            work.sum[q * shape.n_padded + r] = 0.0;
            if (r < shape.N) {
                call.ranks[q * shape.N + r] = work.operands.bias[p * shape.n_padded + r] == T{0} ? 0 : -1;
            }
        }
    }
}

// Means over valid samples, counts and the loss itself, from the losses of all samples, by one thread.
template <typename T>
inline void sum_losses(ContrastiveForward const& call, Shape const& shape, ForwardWork<T> const& work) {
    ContrastiveInput const& in = call.input;
    Index const N = shape.N;
    double total = 0.0;
    Index total_valid = 0;
    for (Index p = 0; p < shape.P; ++p) {
        Index n_valid = 0;
        for (Index r = 0; r < N; ++r) {
            n_valid += work.operands.bias[p * shape.n_padded + r] == T{0};
        }
        for (Index direction = 0; direction < 2; ++direction) {
            double sum = 0.0;
            Index n_correct = 0;
            for (Index r = in.begin; r < in.end; ++r) {
                if (work.operands.bias[p * shape.n_padded + r] == T{0}) {
                    sum += work.sum[(2 * p + direction) * shape.n_padded + r];
                    n_correct += call.ranks[(2 * p + direction) * N + r] == 0;
                }
            }
            static_cast<T*>(call.losses)[2 * p + direction] =
                static_cast<T>(n_valid > 0 ? sum / static_cast<double>(n_valid) : 0.0);
            call.correct[2 * p + direction] = n_correct;
            if (direction == 0 || in.both_directions) {
                total += sum;
            }
        }
        call.n_valid[p] = n_valid;
        total_valid += n_valid;
    }
    double const n_terms = static_cast<double>(total_valid) * (in.both_directions ? 2.0 : 1.0);
    *static_cast<T*>(call.loss) = static_cast<T>(total_valid > 0 ? total / n_terms : 0.0);
}

template <typename T>
void forward(ContrastiveForward const& call) {
    ContrastiveInput const& in = call.input;
    Shape const shape(in);
    Memory memory(in, Pass::forward);
    ForwardWork<T> const work(memory, shape);
    T const s = exponent_scale<T>(scale_of<T>(in));
    [[maybe_unused]] int const n_threads = useful_threads(shape.P * shape.N * shape.N * shape.D, in.n_threads);
    Index const N = shape.N;
    SLEEPFM_OMP(omp parallel num_threads(n_threads)) {
        prepare<T>(in, shape, work.operands, [&](Index r) { start_sample<T>(call, shape, work, r); });
        T* const own_tile = work.tiles + thread_number() * shape.tile_size();
        T* const edges = work.edges + thread_number() * 4 * shape.block;
        for (Index step = 0; step < shape.n_blocks; ++step) {
            SLEEPFM_OMP(omp for schedule(dynamic, 1))
            for (Index task = 0; task < shape.P * shape.n_blocks; ++task) {
                Index const p = task / shape.n_blocks;
                Tile const at(shape, in, task % shape.n_blocks, step);
                if (at.rows_count || at.columns_count) {
                    T* const tile = in.kept == nullptr ? own_tile : at.kept(shape, work.operands.cosines, p);
                    work.operands.multiply(shape, p, at, tile);
                    gather_statistics<T>(shape, work, p, at, s, tile, edges, call.ranks);
                }
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index r = 0; r < N; ++r) {
            for (Index p = 0; p < shape.P; ++p) {
                finish_sample_of<T>(call, shape, work, static_cast<double>(s), p, r);
            }
        }
    }
    sum_losses<T>(call, shape, work);
}

}  // namespace sleepfm::SLEEPFM_ISA
