// Workspace, presence and operands of the contrastive loss: unit embeddings e, means of the others o, and the column
// operands transposed into vectors. Compiled once for each instruction set, see contrastive_simd.h.
#pragma once

#include <cmath>
#include <cstring>

#if defined(_OPENMP)
#include <omp.h>
#define SLEEPFM_OMP(directive) _Pragma(#directive)
#else
#define SLEEPFM_OMP(directive)
#endif

#include "cpu/contrastive_simd.h"
#include "cpu/element.h"
#include "params.h"

namespace sleepfm::SLEEPFM_ISA {

using Index = std::int64_t;

constexpr Index GROUP = 16;  // samples are padded to a multiple: of ROWS and of every vector's width
constexpr int MAX_MODALITIES = 8;
// Stands for "no such pair": below every cosine, finite so that 0 * EXCLUDED is 0, not NaN.
constexpr double EXCLUDED = -1e30;
constexpr double NORM_FLOOR = 1e-12;  // torch.nn.functional.normalize's eps

inline Index round_up(Index value, Index multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

inline int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Sizes that follow from the shape alone, never from the number of threads: the order of every sum follows from them.
struct Shape {
    Index M, N, D, P;
    bool pairwise;
    Index n_padded;  // samples
    Index d_padded;  // elements between rows
    Index block;     // samples on a tile's side
    Index n_blocks;
    int row_of[28];     // modality of the problem's rows
    int column_of[28];  // pairwise: modality of its columns; leave-one-out: number of the mean

    Shape(Index n_modalities, Index n_samples, Index n_dim, bool pairs)
        : M(n_modalities), N(n_samples), D(n_dim), pairwise(pairs) {
        n_padded = round_up(N, GROUP);
        d_padded = round_up(D, 16);
        if (d_padded % 1024 == 0) {
            d_padded += 16;  // rows a multiple of 4 KiB apart would share the cache's sets
        }
        // About eight blocks a side, so that threads find work; whole panels of the product, which is 48 columns wide
        // with AVX-512; at most 192, so that a tile stays in the second cache.
        block = N <= 32 ? n_padded : round_up((N + 7) / 8, 48);
        block = block < GROUP ? GROUP : block > 192 ? 192 : block;
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
};

// Cuts one buffer into aligned pieces; from a null base it only counts.
class Carver {
  public:
    explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
    template <typename U>
    U* take(Index n) {
        char* const piece = base_ == nullptr ? nullptr : base_ + used_;
        used_ += round_up(n * static_cast<Index>(sizeof(U)), 64);
        return reinterpret_cast<U*>(piece);
    }
    Index used() const { return used_; }

  private:
    char* base_;
    Index used_ = 0;
};

// As many threads as there is work for: below about 2^22 multiply-adds each (20 to 40 us), starting one costs more than
// it saves. The results do not depend on it.
inline int threads_for(Shape const& shape, int n_threads) {
    Index const n_useful = 1 + ((shape.P * shape.N * shape.N * shape.D) >> 22);
    return n_useful < n_threads ? static_cast<int>(n_useful) : n_threads;
}

template <typename T>
struct Workspace {
    T* unit;          // [M, n_padded, d_padded] e; zero where absent
    T* mean;          // [M, n_padded, d_padded] o; leave-one-out only
    T* packed;        // [M, n_padded / WIDTH, D, WIDTH] the column operands, transposed
    double* norm;     // [M, n_padded]; 0 where absent
    Index* n_others;  // [n_padded]
    T* bias;          // [P, n_padded] 0 where the sample takes part, else EXCLUDED
    T* diagonal;      // [P, n_padded] cosine of the pair that belongs together
    T* largest;       // [P, 2, n_padded] largest cosine of the others, by row and by column
    double* sum;      // [P, 2, n_padded] forward: sum of exponentials relative to it, then the loss
    T* weight;        // [P, 2, n_padded] backward: factor of the exponential in s * dloss/dlogit
    T* pull;          // [P, n_padded] backward: s * dloss/dlogit of the pair that belongs together
    double* slope;    // [P, n_padded] backward: each row's part of dloss/dlog_temperature
    T* d_row;         // [M, n_padded, d_padded] backward: gradient of e (pairwise: all of it)
    T* d_column;      // [M, n_padded, d_padded] backward: gradient of o; leave-one-out only
    T* tiles;         // [n_threads, block, block]
    T* edges;         // [n_threads, 4, block]

    Index bytes;

    Workspace(void* base, Shape const& shape, bool backward, int n_threads) {
        Carver carver(base);
        Index const matrix = shape.M * shape.n_padded * shape.d_padded;
        Index const column = shape.P * shape.n_padded;
        unit = carver.take<T>(matrix);
        mean = carver.take<T>(shape.pairwise ? 0 : matrix);
        packed = carver.take<T>(shape.M * shape.n_padded * shape.D);
        norm = carver.take<double>(shape.M * shape.n_padded);
        n_others = carver.take<Index>(shape.n_padded);
        bias = carver.take<T>(column);
        diagonal = carver.take<T>(column);
        largest = carver.take<T>(2 * column);
        sum = carver.take<double>(backward ? 0 : 2 * column);
        weight = carver.take<T>(backward ? 2 * column : 0);
        pull = carver.take<T>(backward ? column : 0);
        slope = carver.take<double>(backward ? column : 0);
        d_row = carver.take<T>(backward ? matrix : 0);
        d_column = carver.take<T>(backward && !shape.pairwise ? matrix : 0);
        tiles = carver.take<T>(n_threads * shape.block * shape.block);
        edges = carver.take<T>(n_threads * 4 * shape.block);
        bytes = carver.used();
    }
};

// e = x / max(|x|, 1e-12) of one row; the squares are summed in double, in a fixed order. Returns |x|.
template <typename T, typename Element>
inline double normalise_row(Element const* x, Index D, Index d_padded, T* out) {
    double lane[16] = {};
    Index k = 0;
    for (; k + 16 <= D; k += 16) {
        for (int l = 0; l < 16; ++l) {
            T const value = static_cast<T>(widen(x[k + l]));
            out[k + l] = value;
            lane[l] += static_cast<double>(value) * static_cast<double>(value);
        }
    }
    for (int l = 0; k < D; ++k, ++l) {
        T const value = static_cast<T>(widen(x[k]));
        out[k] = value;
        lane[l] += static_cast<double>(value) * static_cast<double>(value);
    }
    for (int half = 8; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) {
            lane[l] += lane[l + half];
        }
    }
    double const norm = std::sqrt(lane[0]);
    double const divisor = norm < NORM_FLOOR ? NORM_FLOOR : norm;
    // A float times a double reciprocal is right to the last place once rounded; a double needs the quotient itself.
    double const inverse = 1.0 / divisor;
    for (k = 0; k < D; ++k) {
        double const value = static_cast<double>(out[k]);
        out[k] = static_cast<T>(sizeof(T) == 8 ? value / divisor : value * inverse);
    }
    for (; k < d_padded; ++k) {
        out[k] = T{0};
    }
    return norm;
}

// Presence, unit rows, means of the others and packed columns of one group of samples.
template <typename T, typename Element>
inline void prepare_group(ContrastiveInput const& in, Shape const& shape, Workspace<T> const& work, Index group) {
    Index const first = group * GROUP;
    Index const ld = shape.d_padded;
    Index const matrix = shape.n_padded * ld;
    auto const row_bytes = static_cast<std::size_t>(ld) * sizeof(T);
    for (Index r = first; r < first + GROUP; ++r) {
        bool present[MAX_MODALITIES];
        Index n_present = 0;
        for (Index m = 0; m < shape.M; ++m) {
            present[m] = r < shape.N &&
                         (in.mask == nullptr || in.mask[m * in.mask_stride_modality + r * in.mask_stride_sample] != 0);
            n_present += present[m];
        }
        work.n_others[r] = n_present - 1;
        for (Index m = 0; m < shape.M; ++m) {
            present[m] = present[m] && n_present > 1;  // alone, a modality has nothing to be compared with
            T* const e = work.unit + m * matrix + r * ld;
            if (present[m]) {
                auto const* x = static_cast<Element const*>(in.x) + m * in.stride_modality + r * in.stride_sample;
                work.norm[m * shape.n_padded + r] = normalise_row<T, Element>(x, shape.D, ld, e);
            } else {
                work.norm[m * shape.n_padded + r] = 0.0;
                std::memset(e, 0, row_bytes);
            }
        }
        for (Index p = 0; p < shape.P; ++p) {
            bool const valid = present[shape.row_of[p]] && present[shape.column_of[p]];
            work.bias[p * shape.n_padded + r] = valid ? T{0} : static_cast<T>(EXCLUDED);
            work.diagonal[p * shape.n_padded + r] = T{0};
        }
        if (shape.pairwise) {
            continue;
        }
        for (Index m = 0; m < shape.M; ++m) {
            T* const o = work.mean + m * matrix + r * ld;
            std::memset(o, 0, row_bytes);
            if (!present[m]) {
                continue;
            }
            for (Index other = 0; other < shape.M; ++other) {
                if (other == m || !present[other]) {
                    continue;
                }
                T const* const e = work.unit + other * matrix + r * ld;
                for (Index k = 0; k < ld; ++k) {
                    o[k] += e[k];
                }
            }
            T const share = static_cast<T>(n_present - 1);
            for (Index k = 0; k < ld; ++k) {
                o[k] /= share;
            }
        }
    }
    constexpr Index width = WIDTH<T>;
    for (Index m = shape.pairwise ? 1 : 0; m < shape.M; ++m) {
        T const* const source = (shape.pairwise ? work.unit : work.mean) + m * matrix;
        for (Index r = first; r < first + GROUP; r += width) {
            T* const panel = work.packed + (m * shape.n_padded + r) * shape.D;
            Index k = 0;
            for (; k + width <= shape.D; k += width) {
                transpose<T>(source + r * ld + k, ld, panel + k * width);
            }
            for (; k < shape.D; ++k) {
                for (Index l = 0; l < width; ++l) {
                    panel[k * width + l] = source[(r + l) * ld + k];
                }
            }
        }
    }
}

// Inside a parallel region; ends with a barrier.
template <typename T>
inline void prepare(ContrastiveInput const& in, Shape const& shape, Workspace<T> const& work) {
    Index const n_groups = shape.n_padded / GROUP;
    SLEEPFM_OMP(omp for schedule(static))
    for (Index group = 0; group < n_groups; ++group) {
        if constexpr (sizeof(T) == 8) {
            prepare_group<T, double>(in, shape, work, group);
        } else if (in.dtype == DType::bf16) {
            prepare_group<T, BFloat16>(in, shape, work, group);
        } else if (in.dtype == DType::f16) {
            prepare_group<T, Float16>(in, shape, work, group);
        } else {
            prepare_group<T, float>(in, shape, work, group);
        }
    }
}

// s = exp(log_temperature).
template <typename T>
inline double scale_of(ContrastiveInput const& in) {
    return std::exp(static_cast<double>(*static_cast<T const*>(in.log_temperature)));
}

// What the exponentials take for s: at least 1e-25, where every logit is 0 to T's precision and s * EXCLUDED still
// excludes.
template <typename T>
inline T exponent_scale(double s) {
    return static_cast<T>(s < 1e-25 ? 1e-25 : s);
}

// Cosines of rows [r0, r0+n_rows) with columns [c0, c0+n_columns) into tile[row * block + column]; multiples of GROUP.
// D is summed in pieces of 128, which keeps the operand in the first cache and the rounding error of long rows small.
template <typename T>
inline void cosine_tile(Shape const& shape, Workspace<T> const& work, Index p, Index r0, Index n_rows, Index c0,
                        Index n_columns, T* tile) {
    Index const ld = shape.d_padded;
    T const* const rows = work.unit + (shape.row_of[p] * shape.n_padded + r0) * ld;
    T const* const columns = work.packed + (shape.column_of[p] * shape.n_padded + c0) * shape.D;
    constexpr Index piece = 128;
    for (Index k = 0; k < shape.D; k += piece) {
        Index const n_k = shape.D - k < piece ? shape.D - k : piece;
        multiply<T, false>(n_rows, n_columns / WIDTH<T>, n_k, rows + k, ld, columns + k * WIDTH<T>, WIDTH<T>,
                           shape.D * WIDTH<T>, tile, shape.block, k > 0);
    }
}

// Step t of n_blocks takes the tiles (i, (i + t) mod n_blocks): no two share a row block or a column block, so tiles of
// one step run in parallel, and what a block gathers comes in the order of t, whatever the number of threads.
struct Tile {
    Index i, j, r0, n_rows, c0, n_columns;
    Tile(Shape const& shape, Index row_block, Index step) {
        i = row_block;
        j = (row_block + step) % shape.n_blocks;
        r0 = i * shape.block;
        c0 = j * shape.block;
        n_rows = shape.n_padded - r0 < shape.block ? shape.n_padded - r0 : shape.block;
        n_columns = shape.n_padded - c0 < shape.block ? shape.n_padded - c0 : shape.block;
    }
};

}  // namespace sleepfm::SLEEPFM_ISA
