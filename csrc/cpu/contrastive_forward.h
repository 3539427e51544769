// Forward pass of the contrastive loss, tile by tile, with a running maximum for every row and every column. With
// x_rc the cosine, d_r = x_rr, m = max and u = sum exp(s (x - m)) over the others only:
//   loss_r = log(1 + u exp(s (m - d_r))),
// which keeps its relative accuracy where the pair that belongs together dominates (log(sum) - d would cancel).
#pragma once

#include "cpu/contrastive_prepare.h"

namespace sleepfm::SLEEPFM_ISA {

enum class Place { below, diagonal, above };  // columns before the rows, the same samples, columns after the rows

// Maxima and counts of one tile; leaves cosine + bias in the tile. A tie counts for the rank when the other comes
// first.
template <typename T, Place place>
inline void scan_tile(Shape const& shape, Workspace<T> const& work, Index p, Tile const& at, T* tile, T* row_max,
                      T* column_max, IntVec<T>* column_count, std::int32_t* row_ranks) {
    constexpr Index width = WIDTH<T>;
    Index const n_vectors = at.n_columns / width;
    T const* const bias = work.bias + p * shape.n_padded;
    T* const diagonal = work.diagonal + p * shape.n_padded;
    if constexpr (place == Place::diagonal) {
        for (Index r = 0; r < at.n_rows; ++r) {
            diagonal[at.r0 + r] = bias[at.r0 + r] == T{0} ? tile[r * shape.block + r] : T{0};
            tile[r * shape.block + r] = static_cast<T>(EXCLUDED);
        }
    }
    for (Index v = 0; v < n_vectors; ++v) {
        store<T>(column_max + v * width, splat<T>(static_cast<T>(EXCLUDED)));
        column_count[v] = IntVec<T>{};
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
        IntVec<T> count{};
        for (Index v = 0; v < n_vectors; ++v) {
            Index const c = at.c0 + v * width;
            T* const place_in_tile = tile + r * shape.block + v * width;
            Vec<T> const x = load<T>(place_in_tile) + load<T>(bias + c);
            store<T>(place_in_tile, x);
            largest = x > largest ? x : largest;
            Vec<T> const so_far = load<T>(column_max + v * width);
            store<T>(column_max + v * width, x > so_far ? x : so_far);
            Vec<T> const theirs = load<T>(diagonal + c);
            if constexpr (place == Place::below) {
                count -= x >= own;
                column_count[v] -= x > theirs;
            } else if constexpr (place == Place::above) {
                count -= x > own;
                column_count[v] -= x >= theirs;
            } else {
                using Integer = typename Simd<T>::Integer;
                IntVec<T> const column = lane + static_cast<Integer>(v * width);
                IntVec<T> const first = column < static_cast<Integer>(r);
                IntVec<T> const second = column > static_cast<Integer>(r);
                count -= (x > own) | ((x == own) & first);
                column_count[v] -= (x > theirs) | ((x == theirs) & second);
            }
        }
        row_max[r] = max_of_lanes<T>(largest);
        row_ranks[at.r0 + r] += count_of_lanes<T>(count);
    }
}

// The running maximum takes in a tile's; the sum follows. Returns the maximum to subtract (0 while there is none).
template <typename T>
inline T raise_maximum(T& largest, double& sum, T tile_max, double s) {
    if (tile_max > largest) {
        bool const none_before = largest <= static_cast<T>(EXCLUDED);
        sum = none_before ? 0.0 : sum * std::exp(s * (static_cast<double>(largest) - static_cast<double>(tile_max)));
        largest = tile_max;
    }
    return largest <= static_cast<T>(EXCLUDED) ? T{0} : largest;
}

template <typename T>
inline void forward_tile(Shape const& shape, Workspace<T> const& work, Index p, Tile const& at, T s, T* tile, T* edges,
                         std::int32_t* ranks) {
    constexpr Index width = WIDTH<T>;
    cosine_tile(shape, work, p, at.r0, at.n_rows, at.c0, at.n_columns, tile);
    T* const row_max = edges;
    T* const column_max = edges + shape.block;
    T* const column_sum = edges + 2 * shape.block;
    auto* const column_count = reinterpret_cast<IntVec<T>*>(edges + 3 * shape.block);
    std::int32_t* const row_ranks = ranks + 2 * p * shape.N;
    std::int32_t* const column_ranks = row_ranks + shape.N;
    if (at.i == at.j) {
        scan_tile<T, Place::diagonal>(shape, work, p, at, tile, row_max, column_max, column_count, row_ranks);
    } else if (at.j < at.i) {
        scan_tile<T, Place::below>(shape, work, p, at, tile, row_max, column_max, column_count, row_ranks);
    } else {
        scan_tile<T, Place::above>(shape, work, p, at, tile, row_max, column_max, column_count, row_ranks);
    }
    T const* const bias = work.bias + p * shape.n_padded;
    T* const largest_of_rows = work.largest + 2 * p * shape.n_padded;
    T* const largest_of_columns = largest_of_rows + shape.n_padded;
    double* const sum_of_rows = work.sum + 2 * p * shape.n_padded;
    double* const sum_of_columns = sum_of_rows + shape.n_padded;
    for (Index c = 0; c < at.n_columns; ++c) {
        Index const column = at.c0 + c;
        if (bias[column] == T{0}) {
            column_ranks[column] +=
                static_cast<std::int32_t>(reinterpret_cast<typename Simd<T>::Integer const*>(column_count)[c]);
        }
        column_max[c] =
            raise_maximum<T>(largest_of_columns[column], sum_of_columns[column], column_max[c], static_cast<double>(s));
        column_sum[c] = T{0};
    }
    Index const n_vectors = at.n_columns / width;
    for (Index r = 0; r < at.n_rows; ++r) {
        Index const row = at.r0 + r;
        if (bias[row] != T{0}) {
            continue;
        }
        T const reference =
            raise_maximum<T>(largest_of_rows[row], sum_of_rows[row], row_max[r], static_cast<double>(s));
        Vec<T> sum{};
        for (Index v = 0; v < n_vectors; ++v) {
            Vec<T> const x = load<T>(tile + r * shape.block + v * width);
            sum += exponential(s * (x - reference));
            T* const place_of_sum = column_sum + v * width;
            store<T>(place_of_sum, load<T>(place_of_sum) + exponential(s * (x - load<T>(column_max + v * width))));
        }
        sum_of_rows[row] += static_cast<double>(sum_of_lanes<T>(sum));
    }
    for (Index c = 0; c < at.n_columns; ++c) {
        sum_of_columns[at.c0 + c] += static_cast<double>(column_sum[c]);
    }
}

// Loss and what backward needs, of one problem, one direction and one sample.
template <typename T>
inline double finish_sample(double d, double largest, double sum, double s, double* state_largest,
                            double* state_inverse, double* state_missed) {
    if (sum == 0.0) {  // no other sample: nothing can be missed
        *state_largest = *state_inverse = *state_missed = 0.0;
        return 0.0 * d;
    }
    double const lead = s * (d - largest);
    double const odds = sum * std::exp(-lead);  // of a miss
    *state_largest = largest;
    *state_inverse = 1.0 / (sum + std::exp(lead));
    *state_missed = odds > 1.0 ? 1.0 / (1.0 + 1.0 / odds) : odds / (1.0 + odds);
    if (lead < 0.0) {
        return -lead + std::log(sum + std::exp(lead));
    }
    return std::log1p(odds);
}

template <typename T>
void forward(ContrastiveForward const& call) {
    ContrastiveInput const& in = call.input;
    Shape const shape(in.n_modalities, in.n_samples, in.n_dim, in.pairwise);
    Workspace<T> const work(in.workspace, shape, false, in.n_threads);
    T const s = exponent_scale<T>(scale_of<T>(in));
    [[maybe_unused]] int const n_threads = threads_for(shape, in.n_threads);
    Index const N = shape.N;
    SLEEPFM_OMP(omp parallel num_threads(n_threads)) {
        prepare<T>(in, shape, work);
        SLEEPFM_OMP(omp for schedule(static))
        for (Index p = 0; p < shape.P; ++p) {
            for (Index r = 0; r < shape.n_padded; ++r) {
                for (Index direction = 0; direction < 2; ++direction) {
                    Index const at = (2 * p + direction) * shape.n_padded + r;
                    work.largest[at] = static_cast<T>(EXCLUDED);
                    work.sum[at] = 0.0;
                    if (r < N) {
                        call.ranks[(2 * p + direction) * N + r] = work.bias[p * shape.n_padded + r] == T{0} ? 0 : -1;
                    }
                }
            }
        }
        T* const tile = work.tiles + thread_number() * shape.block * shape.block;
        T* const edges = work.edges + thread_number() * 4 * shape.block;
        for (Index step = 0; step < shape.n_blocks; ++step) {
            SLEEPFM_OMP(omp for schedule(dynamic, 1))
            for (Index task = 0; task < shape.P * shape.n_blocks; ++task) {
                Tile const at(shape, task % shape.n_blocks, step);
                forward_tile<T>(shape, work, task / shape.n_blocks, at, s, tile, edges, call.ranks);
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index r = 0; r < N; ++r) {
            for (Index p = 0; p < shape.P; ++p) {
                double* const state = call.state + p * CONTRASTIVE_STATE_ROWS * N + r;
                double const d = static_cast<double>(work.diagonal[p * shape.n_padded + r]);
                state[0] = d;
                for (Index direction = 0; direction < 2; ++direction) {
                    Index const at = (2 * p + direction) * shape.n_padded + r;
                    double* const kept = state + (1 + 3 * direction) * N;
                    work.sum[at] = finish_sample<T>(d, static_cast<double>(work.largest[at]), work.sum[at],
                                                    static_cast<double>(s), kept, kept + N, kept + 2 * N);
                }
            }
        }
    }
    double total = 0.0;
    Index total_valid = 0;
    for (Index p = 0; p < shape.P; ++p) {
        Index n_valid = 0;
        for (Index direction = 0; direction < 2; ++direction) {
            double sum = 0.0;
            Index n_correct = 0;
            n_valid = 0;
            for (Index r = 0; r < N; ++r) {
                if (work.bias[p * shape.n_padded + r] != T{0}) {
                    continue;
                }
                sum += work.sum[(2 * p + direction) * shape.n_padded + r];
                n_correct += call.ranks[(2 * p + direction) * N + r] == 0;
                ++n_valid;
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

}  // namespace sleepfm::SLEEPFM_ISA
