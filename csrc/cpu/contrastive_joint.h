// Loss, statistics and gradients of a small batch in one call. The cosines G_ij [N, N] of every pair of modalities i, j
// are multiplied once (0 where a row is absent). A leave-one-out problem's cosines are then
//   S_i = sum over j != i of G_ij / n_others(column),
// and with W_ij = dloss/dG_ij = dS_i / n_others(column) + (dS_j)^T / n_others(row) the gradients of unit rows are
//   de_i = sum over j != i of W_ij e_j,   <e_i, de_i> = sum over j and columns of W_ij G_ij,
// so that means, their gradients and unprojected gradients are never written. Pairwise, S is G and W is dS or (dS)^T.
//
// Five steps, each a parallel loop that ends with a barrier: unit rows; G; each problem's S, statistics, dS and its
// transpose; W in place of G; gradients of x. Statistics and derivatives are those of contrastive_forward.h and
// contrastive_backward.h, with all samples in one tile.
#pragma once

#include "cpu/contrastive_backward.h"
#include "cpu/contrastive_forward.h"
#include "cpu/contrastive_joint_product.h"

namespace sleepfm::SLEEPFM_ISA {

// The shape with one tile for each problem, whatever N is.
inline Shape whole_shape(ContrastiveInput const& in) {
    Shape shape(in);
    shape.block = shape.n_padded;
    shape.n_blocks = 1;
    return shape;
}

template <typename T>
struct JointWork {
    ForwardWork<T> forward;
    BackwardWork<T> backward;
    Index stride;    // elements from one row of `unit` to the next
    Index n_all;     // M n_padded, the rows of all modalities
    T* unit;         // [M, n_padded, stride] e, row after row as x has it; zero where absent
    T* share;        // [n_padded] 1 / (number of other modalities that the sample has); 0 where there is none
    T* inverse;      // [M, n_padded] 1 / max(|x|, NORM_FLOOR)
    bool* present;   // [M, n_padded] the sample has the modality and at least one other
    bool* is_short;  // [M, n_padded] |x| < NORM_FLOOR: e is x times a constant, and its gradient is not projected
    T* projection;   // [M, n_padded] <e, de>
    T* cosines;      // [n_all, n_all] G of all pairs of modalities; in the end W
    T* tiles;        // [P, tile_size] S, then dS
    T* turned;       // [P, tile_size] dS transposed
    double* state;   // [P, CONTRASTIVE_STATE_ROWS, N], where the caller wants none
    Index bytes;

    JointWork(void* memory, Shape const& shape) {
        // An odd number of cache lines from row to row, so that consecutive rows lie in different sets of the first
        // cache.
        constexpr Index line = 64 / static_cast<Index>(sizeof(T));
        Index const lines = (shape.D + line - 1) / line;
        stride = (lines + (lines % 2 == 0 ? 1 : 0)) * line;
        n_all = shape.M * shape.n_padded;
        Carver carver(memory);
        Index const samples = shape.P * shape.n_padded;
        unit = carver.take<T>(n_all * stride);
        share = carver.take<T>(shape.n_padded);
        inverse = carver.take<T>(n_all);
        present = carver.take<bool>(n_all);
        is_short = carver.take<bool>(n_all);
        projection = carver.take<T>(n_all);
        cosines = carver.take<T>(n_all * n_all);
        tiles = carver.take<T>(shape.P * shape.tile_size());
        turned = carver.take<T>(shape.P * shape.tile_size());
        state = carver.take<double>(shape.P * CONTRASTIVE_STATE_ROWS * shape.N);
        forward = {};
        forward.operands.bias = carver.take<T>(samples);
        forward.take_statistics(carver, shape);
        forward.edges = carver.take<T>(4 * samples);
        backward = {};
        backward.operands = forward.operands;
        backward.take_weights(carver, shape);
        bytes = carver.used();
    }
    T* row(Shape const& shape, Index m, Index r) const { return unit + (m * shape.n_padded + r) * stride; }
    T* cosines_of(Shape const& shape, Index i, Index r, Index j) const {
        return cosines + (i * shape.n_padded + r) * n_all + j * shape.n_padded;
    }
};

inline Index joint_bytes(ContrastiveInput const& in) {
    Shape const shape = whole_shape(in);
    return in.dtype == DType::f64 ? JointWork<double>(nullptr, shape).bytes : JointWork<float>(nullptr, shape).bytes;
}

// Presence, norms and unit rows of sample r, which may lie beyond N. inner_products goes through blocks of rows and so
// reads a few rows beyond N, which are set to zero; vectors read cosines beyond those, which are set to zero too.
template <typename T, typename Element>
inline void start_joint_sample(ContrastiveJoint const& call, Shape const& shape, JointWork<T> const& work, Index r) {
    ContrastiveInput const& in = call.forward.input;
    bool present[MAX_MODALITIES];
    Index n_present = 0;
    for (Index m = 0; m < shape.M; ++m) {
        present[m] = is_present(in, m, r);
        n_present += present[m];
    }
    bool const alone = n_present < 2;
    work.share[r] = alone ? T{0} : T{1} / static_cast<T>(n_present - 1);
    work.backward.counted[r] = r < shape.N ? T{1} : T{0};
    for (Index p = 0; p < shape.P; ++p) {
        bool const valid = !alone && present[shape.row_of[p]] && present[shape.column_of[p]];
        work.forward.operands.bias[p * shape.n_padded + r] = valid ? T{0} : static_cast<T>(EXCLUDED);
    }
    for (Index m = 0; m < shape.M; ++m) {
        T* const e = work.row(shape, m, r);
        Index const at = m * shape.n_padded + r;
        work.present[at] = present[m] && !alone;
        work.is_short[at] = false;
        if (work.present[at]) {
            auto const* const x = row_of<Element>(in, m, r);
            double const norm = length_of(x, shape.D);
            write_unit<T>(x, shape.D, norm, e);
            for (Index k = shape.D; k < round_up(shape.D, WIDTH<T>); ++k) {
                e[k] = T{0};
            }
            work.inverse[at] = static_cast<T>(1.0 / divisor_of(norm));
            work.is_short[at] = norm < NORM_FLOOR;
        } else if (r < round_up(shape.N, INNER_COLUMNS)) {
            std::memset(e, 0, static_cast<std::size_t>(work.stride) * sizeof(T));
        }
        if (shape.N % SAMPLES != 0) {
            std::memset(work.cosines_of(shape, m, r, 0), 0, static_cast<std::size_t>(work.n_all) * sizeof(T));
        }
    }
    start_sample<T>(call.forward, shape, work.forward, r);
}

// Cosines of all rows of modality i with NEAR_COLUMNS rows of modality j, written to G_ij and transposed to G_ji.
template <typename T>
inline void multiply_pair(Shape const& shape, JointWork<T> const& work, Index i, Index j, Index first_column) {
    Index const n_k = round_up(shape.D, WIDTH<T>);
    Index const last = least(shape.N, first_column + NEAR_COLUMNS);
    for (Index r = 0; r < shape.N; r += INNER_ROWS) {
        for (Index c = first_column; c < last; c += INNER_COLUMNS) {
            T product[INNER_ROWS * INNER_COLUMNS];
            inner_products<T>(n_k, work.stride, work.row(shape, i, r), work.row(shape, j, c), product);
            for (Index m = 0; m < INNER_ROWS; ++m) {
                for (Index n = 0; n < INNER_COLUMNS; ++n) {
                    T const value = product[m * INNER_COLUMNS + n];
                    work.cosines_of(shape, i, r + m, j)[c + n] = value;
                    work.cosines_of(shape, j, c + n, i)[r + m] = value;
                }
            }
        }
    }
}

// Problem p: its cosines S, their statistics and, if gradients are wanted, dS and its transpose. factor: s * upstream /
// number of terms.
template <typename T>
inline void solve_problem(ContrastiveJoint const& call, ContrastiveForward const& results, Shape const& shape,
                          JointWork<T> const& work, T s, double factor, Index p) {
    constexpr Index width = WIDTH<T>;
    ContrastiveInput const& in = results.input;
    Tile const at(shape, in, 0, 0);
    Index const i = shape.row_of[p];
    T* const tile = work.tiles + p * shape.tile_size();
    for (Index r = 0; r < shape.N; ++r) {
        for (Index c = 0; c < shape.n_padded; c += width) {
            Vec<T> x{};
            if (shape.pairwise) {
                x = load<T>(work.cosines_of(shape, i, r, shape.column_of[p]) + c);
            } else {
                for (Index j = 0; j < shape.M; ++j) {
                    if (j != i) {
                        x += load<T>(work.cosines_of(shape, i, r, j) + c);
                    }
                }
                x *= load<T>(work.share + c);
            }
            store<T>(tile + at.place(r, c), x);
        }
    }
    gather_statistics<T>(shape, work.forward, p, at, s, tile, work.forward.edges + p * 4 * shape.block, results.ranks);
    for (Index r = 0; r < shape.N; ++r) {
        finish_sample_of<T>(results, shape, work.forward, static_cast<double>(s), p, r);
    }
    if (call.gradient_log_temperature == nullptr) {
        return;
    }
    for (Index r = 0; r < shape.n_padded; ++r) {
        load_state<T>(in, results.state, shape, work.backward, static_cast<double>(s), factor, p, r);
    }
    differentiate_any_tile<T>(shape, work.backward, p, at, s, tile, tile);
    transpose_tile<T>(at.n_rows, at.n_columns, tile, work.turned + p * shape.tile_size());
}

// Row r of modality i: from the problems' dS to W, in place of G, and to <e, de> and the projection.
template <typename T>
inline void weigh_row(Shape const& shape, JointWork<T> const& work, Index i, Index r) {
    constexpr Index width = WIDTH<T>;
    Index const size = shape.tile_size();
    Vec<T> const share = splat<T>(work.share[r]);
    double along = 0.0;
    for (Index j = 0; j < shape.M; ++j) {
        if (j == i) {
            continue;
        }
        // Pairwise, the one problem of both modalities: dS as it is, or transposed where i is the columns' modality.
        Index const low = least(i, j), high = i < j ? j : i;
        Index const pair = low * (2 * shape.M - low - 1) / 2 + high - low - 1;
        T const* const own = work.tiles + (shape.pairwise ? pair : i) * size;
        T const* const theirs = work.turned + (shape.pairwise ? pair : j) * size;
        T* const cosines = work.cosines_of(shape, i, r, j);
        Vec<T> sum{};
        for (Index c = 0; c < shape.n_padded; c += width) {
            Index const at = place_in_tile(shape.n_padded, r, c);
            Vec<T> weight;
            if (shape.pairwise) {
                weight = load<T>((i < j ? own : theirs) + at);
            } else {
                weight = load<T>(own + at) * load<T>(work.share + c) + load<T>(theirs + at) * share;
            }
            sum += weight * load<T>(cosines + c);
            store<T>(cosines + c, weight);
        }
        along += static_cast<double>(sum_of_lanes<T>(sum));
    }
    Index const at = i * shape.n_padded + r;
    work.projection[at] = work.is_short[at] ? T{0} : static_cast<T>(along);
}

// dx = (de - e <e, de>) / |x| for all rows of modality i, VECTORS vectors of dimensions from d on; times `outside`.
template <typename T, typename Element, int VECTORS>
inline void write_gradients(ContrastiveJoint const& call, Shape const& shape, JointWork<T> const& work, T outside,
                            Index i, Index d) {
    constexpr Index width = WIDTH<T>;
    Index const n_left = least(shape.D - d, VECTORS * width);
    for (Index r = 0; r < shape.N; r += ROWS) {
        Run<T> run[MAX_MODALITIES];
        Index n_runs = 0;
        for (Index j = 0; j < shape.M; ++j) {
            if (j != i) {
                run[n_runs++] = {work.cosines_of(shape, i, r, j), work.row(shape, j, 0) + d};
            }
        }
        Vec<T> sums[ROWS][VECTORS];
        sum_rows<T, VECTORS>(run, n_runs, shape.N, work.n_all, work.stride, sums);
        for (Index m = 0; m < ROWS && r + m < shape.N; ++m) {
            Index const at = i * shape.n_padded + r + m;
            auto* const out = static_cast<Element*>(call.gradient_x) + (i * shape.N + r + m) * shape.D + d;
            if (!work.present[at]) {
                std::memset(out, 0, static_cast<std::size_t>(n_left) * sizeof(Element));
                continue;
            }
            T const* const e = work.row(shape, i, r + m) + d;
            Vec<T> dx[VECTORS];
            for (int w = 0; w < VECTORS; ++w) {
                dx[w] = (sums[m][w] - load<T>(e + w * width) * work.projection[at]) * work.inverse[at] * outside;
            }
            write_elements<T>(dx, VECTORS, out, n_left);
        }
    }
}

template <typename T, typename Element>
inline void run_joint(ContrastiveJoint const& call) {
    constexpr Index width = WIDTH<T>;
    ContrastiveInput const& in = call.forward.input;
    Shape const shape = whole_shape(in);
    JointWork<T> const work(in.workspace, shape);
    ContrastiveForward results = call.forward;
    results.state = results.state == nullptr ? work.state : results.state;
    T const s = exponent_scale<T>(scale_of<T>(in));
    // A moderate upstream gradient multiplies the gradients as computed for 1 (JOINT_UPSTREAM promises it: the caller
    // may have kept those). A huge one would magnify what was lost below the smallest normal number; it goes into the
    // weights.
    bool const is_moderate = std::abs(call.upstream) <= JOINT_UPSTREAM;
    double const inside = is_moderate ? 1.0 : call.upstream;
    T const outside = static_cast<T>(is_moderate ? call.upstream : 1.0);
    Index const n_pairs = shape.M * (shape.M - 1) / 2;
    Index const n_near = (shape.N + NEAR_COLUMNS - 1) / NEAR_COLUMNS;
    Index const n_vectors = (shape.D + width - 1) / width;
    Index const n_strips = (n_vectors + COLUMN_VECTORS - 1) / COLUMN_VECTORS;
    [[maybe_unused]] int const n_threads = useful_threads(n_pairs * shape.N * shape.N * shape.D, in.n_threads);
    SLEEPFM_OMP(omp parallel num_threads(n_threads)) {
        SLEEPFM_OMP(omp for schedule(static))
        for (Index r = 0; r < shape.n_padded; ++r) {
            start_joint_sample<T, Element>(call, shape, work, r);
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index task = 0; task < n_pairs * n_near; ++task) {
            Index i = 0, pair = task / n_near;
            for (; pair >= shape.M - 1 - i; ++i) {
                pair -= shape.M - 1 - i;
            }
            multiply_pair<T>(shape, work, i, i + 1 + pair, task % n_near * NEAR_COLUMNS);
        }
        Index n_valid = 0;
        for (Index sample = 0; sample < shape.P * shape.n_padded; ++sample) {
            n_valid += work.forward.operands.bias[sample] == T{0};
        }
        double const n_terms = static_cast<double>(n_valid) * (in.both_directions ? 2.0 : 1.0);
        double const factor = n_valid > 0 ? scale_of<T>(in) * inside / n_terms : 0.0;
        SLEEPFM_OMP(omp for schedule(static))
        for (Index p = 0; p < shape.P; ++p) {
            solve_problem<T>(call, results, shape, work, s, factor, p);
        }
        if (call.gradient_x != nullptr) {
            SLEEPFM_OMP(omp for schedule(static))
            for (Index row = 0; row < shape.M * shape.N; ++row) {
                weigh_row<T>(shape, work, row / shape.N, row % shape.N);
            }
            SLEEPFM_OMP(omp for schedule(static))
            for (Index task = 0; task < shape.M * n_strips; ++task) {
                Index const i = task / n_strips, vector = task % n_strips * COLUMN_VECTORS;
                switch (n_vectors - vector) {
                    case 1: write_gradients<T, Element, 1>(call, shape, work, outside, i, vector * width); break;
                    case 2: write_gradients<T, Element, 2>(call, shape, work, outside, i, vector * width); break;
                    default: write_gradients<T, Element, 3>(call, shape, work, outside, i, vector * width); break;
                }
            }
        }
    }
    sum_losses<T>(results, shape, work.forward);
    if (call.gradient_log_temperature != nullptr) {
        *static_cast<T*>(call.gradient_log_temperature) = static_cast<T>(work.backward.total_slope(shape)) * outside;
    }
}

inline void joint(ContrastiveJoint const& call) {
    DType const dtype = call.forward.input.dtype;
    if (dtype == DType::f64) {
        run_joint<double, double>(call);
    } else {
        with_element<float>(dtype, [&](auto element) { run_joint<float, decltype(element)>(call); });
    }
}

}  // namespace sleepfm::SLEEPFM_ISA
