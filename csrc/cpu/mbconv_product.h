// The small matrix products of an MBConv block, and the panels that they read. A panel is a matrix [channels, samples]
// of a tile, cut into strips (Strips); weights are packed as mbconv_pack.h says. product_rows and product multiply
// packed weights with a panel; accumulate multiplies two panels over their samples, for the weights' gradients.
// Compiled once for each instruction set.
#pragma once

#include "cpu/mbconv_tiles.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// Multiplies one block of packed weights, w [n_words][ROWS], with a strip [n_words][C vectors], and calls body as
// product_rows does for rows `row` and following, of which n_rows exist. Not inlined: within larger functions the
// compiler runs out of registers and keeps sums in memory, at two thirds of the speed.
template <int C, typename Factor, typename Body>
[[gnu::noinline]] void multiply(Index n_words, Factor const* w, Factor const* strip, Index row, Index n_rows, Index t,
                                Index n, Body& body) {
    Vector sum[ROWS][C] = {};
    for (Index k = 0; k < n_words; ++k) {
        decltype(spread(w)) x[C];
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            x[c] = load(strip + (k * C + c) * LANES);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            auto const a = spread(w + k * ROWS + r);
#pragma GCC unroll 3
            for (int c = 0; c < C; ++c) {
                sum[r][c] = add_product(sum[r][c], a, x[c]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        if (r < n_rows) {
            Vector vectors[C];  // a copy, so that the address of `sum` is not taken and it stays in registers
#pragma GCC unroll 3
            for (int c = 0; c < C; ++c) {
                vectors[c] = sum[r][c];
            }
            body(row + r, t, vectors, n);
        }
    }
}

// out [R][ldo] = a x b, summed over all columns of the panels, or added to it unless `fresh`: rows row to row + R - 1
// of the panel a of n_rows rows, and C vectors of b [words of columns][ldo].
template <int R, int C, typename Factor>
[[gnu::noinline]] void accumulate_block(Strips const& strips, Index n_rows, Index row, WideOf<Factor> const* a,
                                        Factor const* b, Index ldo, bool fresh, float* out) {
    constexpr Index DEPTH = FactorOf<Factor>::DEPTH;
    Vector sum[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            sum[r][c] = fresh ? Vector{} : load(out + r * ldo + c * LANES);
        }
    }
    for (Index strip = 0; strip < strips.n_strips; ++strip) {
        Index const width = strips.width(strip), first = strips.first(strip);
        WideOf<Factor> const* const rows = a + first * n_rows + row * width;
        Index const n_t = strips.n - first < width ? strips.n - first : width;
        for (Index t = 0; t < n_t; t += DEPTH) {
            decltype(spread(b)) y[C];
#pragma GCC unroll 3
            for (int c = 0; c < C; ++c) {
                y[c] = load(b + (first + t) / DEPTH * ldo + c * LANES);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                auto const x = spread(rows + r * width + t);
#pragma GCC unroll 3
                for (int c = 0; c < C; ++c) {
                    sum[r][c] = add_product(sum[r][c], x, y[c]);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            store(out + r * ldo + c * LANES, sum[r][c]);
        }
    }
}

template <int R, int C, typename Factor>
inline void accumulate_rows(Strips const& strips, Index n_rows, WideOf<Factor> const* a, Factor const* b, Index ldo,
                            bool fresh, float* out) {
    for (Index row = 0; row < n_rows; row += R) {
        if (!fresh && row + R < n_rows) {  // for late stages: few samples, and sums larger than the second cache
            for (Index r = 0; r < R; ++r) {
                prefetch_to_write(out + (row + R + r) * ldo, C * LANES);
            }
        }
        accumulate_block<R, C>(strips, n_rows, row, a, b, ldo, fresh, out + row * ldo);
    }
}

// out [n_rows][ldo] = a x b, summed over all columns (samples) of the panel a of n_rows rows, a multiple of ROWS; or
// added to it unless `fresh`. b [words of samples][ldo] is transposed, and n of its columns count.
template <typename Factor>
inline void accumulate(Strips const& strips, Index n_rows, WideOf<Factor> const* a, Factor const* b, Index n, Index ldo,
                       bool fresh, float* out) {
    constexpr int R = static_cast<int>(ROWS);
    Strips const columns(n);
    for (Index i = 0; i < columns.n_strips; ++i) {
        Index const column = columns.first(i);
        Factor const* const from = b + column;
        float* const to = out + column;
        switch (columns.width(i) / LANES) {
            case 3: accumulate_rows<R, 3>(strips, n_rows, a, from, ldo, fresh, to); break;
            case 2:
                if (ROWS == 4 && n_rows % 6 == 0) {  // 12 sums, enough to keep the multipliers busy; 8 are not
                    accumulate_rows<6, 2>(strips, n_rows, a, from, ldo, fresh, to);
                } else {
                    accumulate_rows<R, 2>(strips, n_rows, a, from, ldo, fresh, to);
                }
                break;
            default: accumulate_rows<R, 1>(strips, n_rows, a, from, ldo, fresh, to);
        }
    }
}

// Fills a panel of n_k factors: value(k, t, n) is a vector of factor k, columns from t on, of which n lanes count; zero
// beyond.
template <typename Factor, typename Value>
inline void fill_panel(Strips const& strips, Index n_k, Factor* panel, Value value) {
    constexpr Index DEPTH = FactorOf<Factor>::DEPTH;
    Index const n_words = words_of<Factor>(n_k);
    for (Index k = 0; k < n_k; k += DEPTH) {
        for (Index strip = 0; strip < strips.n_strips; ++strip) {
            Index const first = strips.first(strip), width = strips.width(strip);
            bool const whole = first + width <= strips.n;
            Factor* const row = panel + first * n_words + k / DEPTH * width;
            for (Index t = 0; t < width; t += LANES) {
                Index const n = strips.n - first - t;
                put(row + t, [&](Index i) {
                    if (i > 0 && k + i >= n_k) {
                        return Vector{};
                    }
                    return whole ? value(k + i, first + t, LANES) : first_lanes(value(k + i, first + t, n), n);
                });
            }
        }
    }
}

// Calls body(t, to) for every vector of row k of a panel of n_rows rows: its first column and its place.
template <typename Factor, typename Body>
inline void for_strips(Strips const& strips, Index n_rows, Index k, Factor* panel, Body body) {
    for (Index strip = 0; strip < strips.n_strips; ++strip) {
        Index const first = strips.first(strip), width = strips.width(strip);
        Factor* const to = panel + first * n_rows + k * width;
        body(first, to);
        if (width > LANES) {
            body(first + LANES, to + LANES);
        }
        if (width > 2 * LANES) {
            body(first + 2 * LANES, to + 2 * LANES);
        }
    }
}

// Copies `row`, which has whole vectors, to row k of a panel of n_k rows.
inline void place_row(Strips const& strips, Index n_k, Index k, float const* row, float* panel) {
    for_strips(strips, n_k, k, panel, [row](Index t, float* to) { store(to, load(row + t)); });
}

// product_rows for one strip of C vectors, which begins at column t.
template <int C, typename Factor, typename Body>
inline void product_strip(Index n_rows, Index n_words, Index t, Index n, Factor const* packed, Factor const* strip,
                          Body& body) {
    for (Index row = 0; row < n_rows; row += ROWS) {
        multiply<C>(n_words, packed + row * n_words, strip, row, n_rows - row, t, n, body);
    }
}

// Multiplies packed weights [n_rows / ROWS][words of n_k][ROWS] with a panel of n_k factors, and calls
// body(row, t, vectors, n) for every row and strip of the result: its vectors from column t on, of which n columns
// count.
template <typename Factor, typename Body>
inline void product_rows(Strips const& strips, Index n_rows, Index n_k, Factor const* packed, Factor const* panel,
                         Body body) {
    Index const n_words = words_of<Factor>(n_k);
#if defined(SLEEPFM_TILES)
    if constexpr (FactorOf<Factor>::DEPTH == 2) {
        if (tile_words<Factor>(n_words) != 0) {
            product_tiles(strips, n_rows, n_words, packed, panel, body);
            return;
        }
    }
#endif
    for (Index i = 0; i < strips.n_strips; ++i) {
        Index const t = strips.first(i);
        Factor const* const strip = panel + t * n_words;
        switch (strips.width(i) / LANES) {
            case 3: product_strip<3>(n_rows, n_words, t, strips.n - t, packed, strip, body); break;
            case 2: product_strip<2>(n_rows, n_words, t, strips.n - t, packed, strip, body); break;
            default: product_strip<1>(n_rows, n_words, t, strips.n - t, packed, strip, body);
        }
    }
}

// The same with body(row, t, vector, n) for every vector, of which n lanes count (if n is less than a vector's).
template <typename Factor, typename Body>
inline void product(Strips const& strips, Index n_rows, Index n_k, Factor const* packed, Factor const* panel,
                    Body body) {
    product_rows(strips, n_rows, n_k, packed, panel, [&](Index row, Index t, auto const& vectors, Index n) {
        constexpr int C = static_cast<int>(sizeof(vectors) / sizeof(Vector));
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            body(row, t + c * LANES, vectors[c], n - c * LANES);
        }
    });
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
