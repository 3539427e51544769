// What forward and backward of the contrastive loss share: the shape and its tiles, the operands (unit embeddings e and
// means of the other modalities o, in the panels of contrastive_product.h), and how they are made from x. Compiled once
// for each instruction set, see contrastive_simd.h.
//
// Tiles of cosines are worked on in steps: in step t, row block i meets column block (i + t) mod n_blocks. The tiles of
// a step share neither rows nor columns, so that threads need no locks, and every row and column gathers its tiles in
// the order of t: sums are in the same order for every number of threads.
#pragma once

#include <cmath>
#include <cstring>

#include "cpu/carver.h"
#include "cpu/contrastive_product.h"
#if defined(SLEEPFM_TILES)
#include "cpu/contrastive_digits.h"
#endif
#include "cpu/element.h"
#include "cpu/threads.h"
#include "params.h"

namespace sleepfm::SLEEPFM_ISA {

constexpr Index SAMPLES = 16;  // N is padded to a multiple of this, hence of ROWS and of every vector's width
constexpr int MAX_MODALITIES = 8;
// The cosine of a pair that does not count: far below every cosine, and finite, so that 0 * EXCLUDED is 0 and not NaN.
constexpr double EXCLUDED = -1e30;
constexpr double NORM_FLOOR = 1e-12;  // torch.nn.functional.normalize's eps

// Sizes that follow from the shape of x alone and not from the number of threads, as does the order of every sum.
struct Shape {
    Index M, N, D, P;
    bool pairwise;
    Index n_padded;      // N, rounded up to a multiple of SAMPLES
    Index d_padded;      // D, rounded up to a multiple of ROWS
    Index panel_stride;  // elements of a panel
    Index matrix;        // elements of one modality's matrix, whole panels
    Index unit_stride;   // elements from one modality's unit rows to the next one's: a panel of them where they are
                         // kept as digits, else a matrix
    Index n_chunks = 0;  // of 64 dimensions, digits only
    Index block;         // samples on a side of a tile
    Index n_blocks;      // blocks on a side of a problem
    int row_of[28];      // modality of a problem's rows
    int column_of[28];   // pairwise: modality of its columns; leave-one-out: the problem's number, for `mean`

    Shape(Index n_modalities, Index n_samples, Index n_dim, bool pairs)
        : M(n_modalities), N(n_samples), D(n_dim), pairwise(pairs) {
        n_padded = round_up(N, SAMPLES);
#if defined(SLEEPFM_TILES)
        d_padded = round_up(D, GROUP);
#else
        d_padded = round_up(D, ROWS);
#endif
        panel_stride = d_padded * PANEL;
        matrix = round_up(n_padded, PANEL) * d_padded;
        // About eight blocks on a side, so that threads find work, but at most 192 samples in each, so that a tile and
        // its transpose stay in the second cache. 48 samples are whole panels of every instruction set. Where all
        // samples fit into one panel, blocks may be parts of it.
#if defined(SLEEPFM_TILES)
        // Larger tiles, since these products are faster than memory is for small ones: half or a quarter of the
        // samples.
        block = round_up(N <= 512 ? (N + 1) / 2 : (N + 3) / 4, PANEL);
        Index const least = N <= 512 ? 128 : 256;
        block = block > 512 ? 512 : block < least ? least : block;
        block = block > round_up(N, PANEL) && N > 0 ? round_up(N, PANEL) : block;
        n_chunks = (D + CHUNK - 1) / CHUNK;
        unit_stride = panel_stride;
#else
        block = n_padded <= PANEL ? SAMPLES : round_up((N + 7) / 8, 48);
        block = block > 192 ? 192 : block;
        unit_stride = matrix;
#endif
        n_blocks = (N + block - 1) / block;
        P = 0;
        for (int i = 0; i < M; ++i) {
            if (!pairwise) {
                row_of[P] = i;
                column_of[P++] = i;
                continue;
            }
            for (int j = i + 1; j < M; ++j) {
                row_of[P] = i;
                column_of[P++] = j;
            }
        }
    }
    // Where sample r's first dimension lies in a matrix.
    Index place(Index r) const { return r / PANEL * panel_stride + r % PANEL; }
    // The same in sums of gradients.
    Index place_of_sums(Index r) const { return r / SUMS_PANEL * SUMS_PANEL * d_padded + r % SUMS_PANEL; }
    Index place_of_unit(Index r) const { return unit_stride == matrix ? place(r) : r % PANEL; }
#if defined(SLEEPFM_TILES)
    Index whole_panels() const { return round_up(n_padded, PANEL); }  // samples
    // Bytes of the digits of one modality for the samples before r, as they are read for cosines; and for gradients,
    // where a block lies as [group of dimensions][panel].
    Index cosine_digits(Index r) const { return r / GROUP * n_chunks * STACK; }
    Index gradient_digits(Index r) const { return r / PANEL * (d_padded / GROUP) * STACK; }
    Index panels_of_block(Index r) const {
        Index const left = whole_panels() - r / block * block;
        return least(left, block) / PANEL;
    }
    Index right_step(Index modality) const { return (pairwise ? modality : M + modality) * whole_panels(); }
#endif
};

// As many threads as there is work for: with less than about 2^20 multiply-adds (10 to 20 us of a core), starting
// another one costs more than it saves. Results do not depend on it.
inline int useful_threads(Index n_multiply_adds, int n_threads) {
    Index const n_useful = 1 + (n_multiply_adds >> 20);
    return n_useful < n_threads ? static_cast<int>(n_useful) : n_threads;
}

// What forward makes of x and backward needs again. It lies in the workspace, and backward makes it anew; or in `kept`,
// if there is one, and backward uses it.
template <typename T>
struct Operands {
    T* unit;          // [M, matrix] e; zero where absent or alone
    T* mean;          // [M, matrix] o, leave-one-out only; zero likewise
    double* norm;     // [M, n_padded] |x|; 0 likewise
    Index* n_others;  // [n_padded] number of modalities that the sample has, less 1
    T* bias;          // [P, n_padded] added to cosines: 0 where the sample takes part in the problem, else EXCLUDED
    T* cosines;       // [P, tiles_of_problem] the tiles of cosines one after the other, in `kept` only
#if defined(SLEEPFM_TILES)
    // unit and mean are a panel of each modality for each thread instead, and everything reads their digits
    // (contrastive_digits.h): those of e as rows of cosines and those of the columns (o, or e where pairwise), and the
    // steps of e and o.
    std::int8_t *rows_digits, *columns_digits;
    T* step;
#endif

    Operands() = default;
#if defined(SLEEPFM_TILES)
    Operands(Carver& workspace, Carver& carver, Shape const& shape, bool with_cosines, int n_threads) {
        Index const n_sides = shape.pairwise ? 1 : 2, samples = shape.whole_panels();
        unit = workspace.take<T>(n_threads * n_sides * shape.M * shape.panel_stride);
        mean = nullptr;
        rows_digits = carver.take<std::int8_t>(shape.M * shape.cosine_digits(samples));
        columns_digits = carver.take<std::int8_t>(shape.M * shape.cosine_digits(samples));
        step = carver.take<T>(n_sides * shape.M * samples);
#else
    Operands(Carver& carver, Shape const& shape, bool with_cosines) {
        unit = carver.take<T>(shape.M * shape.matrix);
        mean = carver.take<T>(shape.pairwise ? 0 : shape.M * shape.matrix);
#endif
        norm = carver.take<double>(shape.M * shape.n_padded);
        n_others = carver.take<Index>(shape.n_padded);
        bias = carver.take<T>(shape.P * shape.n_padded);
        cosines = with_cosines ? carver.take<T>(shape.P * tiles_of_problem(shape)) : nullptr;
    }
    // Elements of the tiles of one row of blocks, for each of their rows; an incomplete panel takes the room of a whole
    // one.
#if defined(SLEEPFM_TILES)  // blocks are whole panels
    static Index row_of_tiles(Shape const& shape) { return shape.whole_panels(); }
#else
    static Index row_of_tiles(Shape const& shape) { return shape.n_blocks * round_up(shape.block, PANEL); }
#endif
    static Index tiles_of_problem(Shape const& shape) { return shape.n_padded * row_of_tiles(shape); }
#if defined(SLEEPFM_TILES)
    T const* row_step(Shape const& shape, Index p) const { return step + shape.row_of[p] * shape.whole_panels(); }
    T const* column_step(Shape const& shape, Index p) const { return step + shape.right_step(shape.column_of[p]); }
    // The same operands with unit and mean in the calling thread's memory.
    Operands of_thread(Shape const& shape) const {
        Index const n_sides = shape.pairwise ? 1 : 2, n_elements = shape.M * shape.unit_stride;
        Operands own = *this;
        own.unit = unit + thread_number() * n_sides * n_elements;
        own.mean = own.unit + n_elements;
        return own;
    }
#else
    T const* rows(Shape const& shape, Index p) const { return unit + shape.row_of[p] * shape.matrix; }
    T const* columns(Shape const& shape, Index p) const {
        return (shape.pairwise ? unit : mean) + shape.column_of[p] * shape.matrix;
    }
#endif
};

// The two buffers of a call. From null addresses they only count bytes. has_kept: operands and cosines lie in `kept`.
struct Memory {
    Carver workspace, kept;
    bool has_kept;
    int n_threads;
    explicit Memory(ContrastiveInput const& in)
        : workspace(in.workspace), kept(in.kept), has_kept(in.kept != nullptr), n_threads(in.n_threads) {}
    Memory(bool with_kept, int threads) : workspace(nullptr), kept(nullptr), has_kept(with_kept), n_threads(threads) {}
    template <typename T>
    Operands<T> operands(Shape const& shape) {
#if defined(SLEEPFM_TILES)
        return Operands<T>(workspace, has_kept ? kept : workspace, shape, has_kept, n_threads);
#else
        return Operands<T>(has_kept ? kept : workspace, shape, has_kept);
#endif
    }
};

// Whether sample r, which may lie beyond N, has modality m.
inline bool is_present(ContrastiveInput const& in, Index m, Index r) {
    return r < in.n_samples &&
           (in.mask == nullptr || in.mask[m * in.mask_stride_modality + r * in.mask_stride_sample] != 0);
}

// Sample r's row of modality m.
template <typename Element>
inline Element const* row_of(ContrastiveInput const& in, Index m, Index r) {
    return static_cast<Element const*>(in.x) + m * in.stride_modality + r * in.stride_sample;
}

// What a row of this length is divided by.
inline double divisor_of(double norm) {
    return norm < NORM_FLOOR ? NORM_FLOOR : norm;
}

// |x| of one row; squares are summed in double, in a fixed order.
template <typename Element>
inline double length_of(Element const* x, Index D) {
    double lane[16] = {};
    Index k = 0;
    for (; k + 16 <= D; k += 16) {
        for (int l = 0; l < 16; ++l) {
            double const value = static_cast<double>(widen(x[k + l]));
            lane[l] += value * value;
        }
    }
    for (int l = 0; k < D; ++k, ++l) {
        double const value = static_cast<double>(widen(x[k]));
        lane[l] += value * value;
    }
    for (int half = 8; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) {
            lane[l] += lane[l + half];
        }
    }
    return std::sqrt(lane[0]);
}

// An element of e = x / max(|x|, 1e-12); divisor = max(|x|, 1e-12), inverse = 1 / divisor. For float, the product with
// the reciprocal in double, rounded once, is right in all but rare cases; for double only the quotient is.
template <typename T, typename Element>
inline T unit_element(Element x, double divisor, double inverse) {
    double const value = static_cast<double>(widen(x));
    return static_cast<T>(sizeof(T) == 8 ? value / divisor : value * inverse);
}

// Writes the unit rows of one modality of WIDTH samples to their panel, in squares of WIDTH x WIDTH elements that are
// transposed. x[l]: sample l's row, null where it is absent; norm[l]: its length.
template <typename T, typename Element>
inline void pack_units(Element const* const* x, double const* norm, Shape const& shape, T* panel) {
    constexpr Index width = WIDTH<T>;
    double divisor[width], inverse[width];
    for (Index l = 0; l < width; ++l) {
        divisor[l] = divisor_of(norm[l]);
        inverse[l] = 1.0 / divisor[l];
    }
    alignas(64) T square[width * width];
    for (Index k = 0; k < shape.D; k += width) {
        Index const n = least(shape.D - k, width);
        for (Index l = 0; l < width; ++l) {
            T* const row = square + l * width;
            if (x[l] == nullptr || n < width) {
                std::memset(row, 0, sizeof(T) * width);
            }
            if (x[l] == nullptr) {
                continue;
            }
            if (n == width) {
                for (Index i = 0; i < width; ++i) {
                    row[i] = unit_element<T>(x[l][k + i], divisor[l], inverse[l]);
                }
            } else {
                for (Index i = 0; i < n; ++i) {
                    row[i] = unit_element<T>(x[l][k + i], divisor[l], inverse[l]);
                }
            }
        }
        if (n == width) {
            transpose<T>(square, width, panel + k * PANEL, PANEL);
        } else {
            for (Index i = 0; i < n; ++i) {
                for (Index l = 0; l < width; ++l) {
                    panel[(k + i) * PANEL + l] = square[l * width + i];
                }
            }
        }
    }
    for (Index k = shape.D; k < shape.d_padded; ++k) {
        store<T>(panel + k * PANEL, Vec<T>{});
    }
}

// Presence, unit rows and means of the others, of WIDTH samples from r on.
template <typename T, typename Element>
inline void prepare_samples(ContrastiveInput const& in, Shape const& shape, Operands<T> const& operands, Index r) {
    constexpr Index width = WIDTH<T>;
    bool present[MAX_MODALITIES][width];
    alignas(64) T n_others[width];
    for (Index l = 0; l < width; ++l) {
        Index n_present = 0;
        for (Index m = 0; m < shape.M; ++m) {
            present[m][l] = is_present(in, m, r + l);
            n_present += present[m][l];
        }
        for (Index m = 0; m < shape.M; ++m) {
            present[m][l] = present[m][l] && n_present > 1;  // alone, a modality has nothing to be compared with
        }
        operands.n_others[r + l] = n_present - 1;
        n_others[l] = n_present > 1 ? static_cast<T>(n_present - 1) : T{1};
    }
    Index const at = shape.place_of_unit(r);
    for (Index m = 0; m < shape.M; ++m) {
        double* const norm = operands.norm + m * shape.n_padded + r;
        Element const* x[width];
        for (Index l = 0; l < width; ++l) {
            x[l] = present[m][l] ? row_of<Element>(in, m, r + l) : nullptr;
            norm[l] = x[l] == nullptr ? 0.0 : length_of(x[l], shape.D);
        }
        pack_units<T, Element>(x, norm, shape, operands.unit + m * shape.unit_stride + at);
    }
    for (Index p = 0; p < shape.P; ++p) {
        for (Index l = 0; l < width; ++l) {
            bool const valid = present[shape.row_of[p]][l] && present[shape.column_of[p]][l];
            operands.bias[p * shape.n_padded + r + l] = valid ? T{0} : static_cast<T>(EXCLUDED);
        }
    }
    if (shape.pairwise) {
        return;
    }
    Vec<T> const share = load<T>(n_others);
    bool exact = true;  // all reciprocals are exact, so that multiplying with them equals dividing, which is slow
    for (Index l = 0; l < width; ++l) {
        exact = exact && (n_others[l] == T{1} || n_others[l] == T{2} || n_others[l] == T{4});
    }
    Vec<T> const inverse = T{1} / share;
    for (Index m = 0; m < shape.M; ++m) {
        T* const o = operands.mean + m * shape.unit_stride + at;
        alignas(64) T here[width];
        for (Index l = 0; l < width; ++l) {
            here[l] = present[m][l] ? T{1} : T{0};
        }
        auto const is_here = load<T>(here) != Vec<T>{};
        for (Index k = 0; k < shape.d_padded; ++k) {
            Vec<T> sum{};
            for (Index other = 0; other < shape.M; ++other) {
                if (other != m) {
                    sum += load<T>(operands.unit + other * shape.unit_stride + at + k * PANEL);
                }
            }
            Vec<T> const mean = exact ? sum * inverse : sum / share;
            store<T>(o + k * PANEL, is_here ? mean : Vec<T>{});
        }
    }
}

#if defined(SLEEPFM_TILES)
// The digits of the panel of samples that begins at r, whose unit rows and means are in the thread's memory.
template <typename T>
inline void digitise_panel(Shape const& shape, Operands<T> const& operands, Index r) {
    Index const n_sides = shape.pairwise ? 1 : 2;
    for (Index i = 0; i < n_sides * shape.M; ++i) {
        T* const panel = operands.unit + i * shape.unit_stride;
        for (Index c = shape.n_padded - r; c < PANEL; c += GROUP) {
            for (Index k = 0; k < shape.d_padded; ++k) {
                store<T>(panel + k * PANEL + c, Vec<T>{});
            }
        }
        bool const is_mean = i >= shape.M;
        Index const at = i % shape.M * shape.cosine_digits(shape.whole_panels()) + shape.cosine_digits(r);
        PanelDigits to{};
        to.rows = is_mean ? nullptr : operands.rows_digits + at;
        to.columns = is_mean || shape.pairwise ? operands.columns_digits + at : nullptr;
        to.step = operands.step + i * shape.whole_panels() + r;
        make_digits(panel, shape.d_padded, to);
    }
}
#endif

// Makes the operands of all samples; called by all threads of a parallel region, and ends with a barrier. Calls then(r)
// for every sample, padding included, when its operands are there.
template <typename T, typename Then>
inline void prepare(ContrastiveInput const& in, Shape const& shape, Operands<T> const& operands, Then const& then) {
    constexpr Index width = WIDTH<T>;
#if defined(SLEEPFM_TILES)
    Operands<T> const own = operands.of_thread(shape);
    SLEEPFM_OMP(omp for schedule(static))
    for (Index first = 0; first < shape.n_padded; first += PANEL) {
        for (Index r = first; r < first + PANEL && r < shape.n_padded; r += width) {
            with_element<T>(in.dtype, [&](auto element) { prepare_samples<T, decltype(element)>(in, shape, own, r); });
        }
        digitise_panel<T>(shape, own, first);
        for (Index r = first; r < first + PANEL && r < shape.n_padded; ++r) {
            then(r);
        }
    }
#else
    Index const n_groups = shape.n_padded / width;
    SLEEPFM_OMP(omp for schedule(static))
    for (Index group = 0; group < n_groups; ++group) {
        with_element<T>(
            in.dtype, [&](auto element) { prepare_samples<T, decltype(element)>(in, shape, operands, group * width); });
        for (Index r = group * width; r < (group + 1) * width; ++r) {
            then(r);
        }
    }
#endif
}

// s = exp(log_temperature).
template <typename T>
inline double scale_of(ContrastiveInput const& in) {
    return std::exp(static_cast<double>(*static_cast<T const*>(in.log_temperature)));
}

// The scale that exponentials use: s, but at least 1e-25. There every logit is 0 to T's precision anyway, and
// s * EXCLUDED is still far below 0.
template <typename T>
inline T exponent_scale(double s) {
    return static_cast<T>(s < 1e-25 ? 1e-25 : s);
}

// Whether exponentials may be taken relative to a cosine of 1 in place of the maxima. Cosines lie in [-1, 1], so that
// s (x - 1) >= -2 s, which must stay within the range of `exponential` in float, 64, with room for rounding. Row and
// column then share one exponential.
inline bool is_fixed_maximum(double s) {
    return s <= 31.5;
}

// The tile of row block i in one of the steps that the top of this file describes.
struct Tile {
    // Row block and column block; first row and number of rows; first column and number of columns.
    Index i, j, r0, n_rows, c0, n_columns;
    bool rows_count, columns_count;  // whether the block has samples in [in.begin, in.end)
    Tile(Shape const& shape, ContrastiveInput const& in, Index row_block, Index step) {
        i = row_block;
        j = (row_block + step) % shape.n_blocks;
        r0 = i * shape.block;
        c0 = j * shape.block;
        n_rows = least(shape.n_padded - r0, shape.block);
        n_columns = least(shape.n_padded - c0, shape.block);
        rows_count = r0 < in.end && r0 + n_rows > in.begin;
        columns_count = c0 < in.end && c0 + n_columns > in.begin;
    }
    // Where problem p's tile lies among the kept cosines of all problems.
    template <typename T>
    T* kept(Shape const& shape, T* kept_cosines, Index p) const {
        return kept_cosines + p * Operands<T>::tiles_of_problem(shape) + r0 * Operands<T>::row_of_tiles(shape) +
               n_rows * j * round_up(shape.block, PANEL);
    }
    template <typename T>
    void multiply(Shape const& shape, Operands<T> const& operands, Index p, T* tile) const {
#if defined(SLEEPFM_TILES)
        Index const whole = shape.cosine_digits(shape.whole_panels());
        multiply_cosines(n_rows, n_columns, shape.n_chunks,
                         operands.rows_digits + shape.row_of[p] * whole + shape.cosine_digits(r0),
                         operands.row_step(shape, p) + r0,
                         operands.columns_digits + shape.column_of[p] * whole + shape.cosine_digits(c0),
                         operands.column_step(shape, p) + c0, tile);
#else
        cosines<T>(n_rows, n_columns, shape.D, shape.panel_stride, operands.rows(shape, p) + shape.place(r0),
                   operands.columns(shape, p) + shape.place(c0), tile);
#endif
    }
};

}  // namespace sleepfm::SLEEPFM_ISA
