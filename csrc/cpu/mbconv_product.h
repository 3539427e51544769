// The small matrix products of an MBConv block, and the panels that they read. A panel is a matrix [channels, samples]
// of a tile, cut into strips (Strips); weights are packed as mbconv_pack.h says. product_rows and product multiply
// packed weights with a panel; accumulate multiplies two panels over their samples, for the weights' gradients.
// Compiled once for each instruction set.
#pragma once

#include "cpu/mbconv_factors.h"
#if defined(SLEEPFM_TILES)
#include "cpu/tiles.h"
#endif

namespace sleepfm::SLEEPFM_ISA {

namespace {

// The micro-kernels hold ROWS x COLUMNS vector sums in registers: 8 x 3 of 32 with AVX-512 and on ARM, 4 x 3 of 16
// otherwise. The other registers hold operands.
#if SLEEPFM_LANES == 16 || defined(__aarch64__)
constexpr Index ROWS = 8;
#else
constexpr Index ROWS = 4;
#endif
// Rows that a product of tiles computes at once; packed weights have room for a multiple of them.
#if defined(SLEEPFM_TILES)
constexpr Index TALL = 16;
#else
constexpr Index TALL = ROWS;
#endif
constexpr Index COLUMNS = 3;
constexpr Index TILE = COLUMNS * LANES;

// How a panel's columns lie in memory: in strips as wide as a register block (3 vectors), each [k][columns of the
// strip], so that a product reads memory in order. The last strips are narrower: 2 + 2 vectors rather than 3 + 1.
struct Strips {
    Index n, n_vectors, tail, n_strips;  // n: columns that count; tail: number of the first vector in narrower strips

    explicit Strips(Index n_columns) : n(n_columns), n_vectors((n_columns + LANES - 1) / LANES) {
        static_assert(COLUMNS == 3, "2 + 2 = 3 + 1");
        Index const over = n_vectors % 3;
        tail = n_vectors - (over == 1 && n_vectors > 1 ? 4 : over);
        n_strips = tail / 3 + (n_vectors - tail + 1) / 2;
    }

    // First column and number of columns of a strip.
    Index first(Index strip) const { return LANES * (strip < tail / 3 ? 3 * strip : tail + 2 * (strip - tail / 3)); }
    Index width(Index strip) const { return LANES * (strip < tail / 3 ? 3 : n_vectors == 1 ? 1 : 2); }

    // Where the vector at column t of row k is, in a panel of n_k rows.
    Index place(Index n_k, Index k, Index t) const {
        Index const v = t / LANES;
        bool const narrow = v >= tail;
        Index const start = LANES * (narrow ? v - (v - tail) % 2 : v - v % 3);
        return start * n_k + k * LANES * (narrow ? (n_vectors == 1 ? 1 : 2) : 3) + t - start;
    }
};

// Whether products with n_words words of this factor use tiles, and how many words a tile then has: the most that
// divide n_words, at most 16, and at least 8 of many, or 0.
template <typename Factor>
inline Index tile_words(Index n_words) {
#if defined(SLEEPFM_TILES)
    if (FactorOf<Factor>::DEPTH == 2) {
        for (Index n_tiles = (n_words + 15) / 16; n_tiles == 1 || n_tiles * 8 <= n_words; ++n_tiles) {
            if (n_words % n_tiles == 0) {
                return n_words / n_tiles;
            }
        }
    }
#endif
    return 0 * n_words;
}

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

// Lives in the parallel region of an op, in every thread, and gives the tiles back at its end: other code of the thread
// has shapes of its own.
struct Tiles {
    Tiles() = default;
    Tiles(Tiles const&) = delete;
    Tiles& operator=(Tiles const&) = delete;
    ~Tiles();
};

#if defined(SLEEPFM_TILES)

thread_local std::uint32_t shapes_in_use = 0;  // height and words of the thread's tiles; 0: none

// Tiles 0 to 2 are sums of height x 16, tile 3 is height x n_words of the first factor, 4 to 6 are n_words x 16 of the
// second one. Shapes are loaded only if they change, which takes as long as twenty products.
inline void use_tiles(Index height, Index n_words) {
    auto const wanted = static_cast<std::uint32_t>(height << 16 | n_words);
    if (wanted == shapes_in_use) {
        return;
    }
    TileShapes shapes;
    for (int tile = 0; tile < 3; ++tile) {
        shapes.set(tile, height, 64);
        shapes.set(4 + tile, n_words, 64);
    }
    shapes.set(3, height, 4 * n_words);
    use_tiles(shapes);
    shapes_in_use = wanted;
}

inline Tiles::~Tiles() {
    if (shapes_in_use != 0) {
        release_tiles();
        shapes_in_use = 0;
    }
}

template <int C>
inline void clear_sums() {
    clear_tile<0>();
    if constexpr (C > 1) {
        clear_tile<1>();
    }
    if constexpr (C > 2) {
        clear_tile<2>();
    }
}

// Adds the product of a, whose rows lie lda bytes apart, and b, C vectors whose rows lie ldb bytes apart.
template <int C>
inline void add_to_sums(void const* a, Index lda, void const* b, Index ldb) {
    auto const* const columns = static_cast<char const*>(b);
    load_tile<3>(a, lda);
    load_tile<4>(columns, ldb);
    add_tile_product<0, 3, 4>();
    if constexpr (C > 1) {
        load_tile<5>(columns + 64, ldb);
        add_tile_product<1, 3, 5>();
    }
    if constexpr (C > 2) {
        load_tile<6>(columns + 128, ldb);
        add_tile_product<2, 3, 6>();
    }
}

template <int C>
inline void store_sums(float* to, Index ld) {
    Index const bytes = ld * static_cast<Index>(sizeof(float));
    store_tile<0>(to, bytes);
    if constexpr (C > 1) {
        store_tile<1>(to + 16, bytes);
    }
    if constexpr (C > 2) {
        store_tile<2>(to + 32, bytes);
    }
}

template <int C>
inline void load_sums(float const* from, Index ld) {
    Index const bytes = ld * static_cast<Index>(sizeof(float));
    load_tile<0>(from, bytes);
    if constexpr (C > 1) {
        load_tile<1>(from + 16, bytes);
    }
    if constexpr (C > 2) {
        load_tile<2>(from + 32, bytes);
    }
}

// multiply for `height` rows of w [rows][n_words], of which n_rows count.
template <int C, typename Body>
inline void multiply_tiles(Index n_words, Index in_tile, Pair const* w, Pair const* strip, Index row, Index n_rows,
                           Index t, Index n, Body& body) {
    alignas(64) float sums[TALL * C * LANES];
    clear_sums<C>();
    for (Index k = 0; k < n_words; k += in_tile) {
        add_to_sums<C>(w + k, n_words * static_cast<Index>(sizeof(Pair)), strip + k * C * LANES, C * 64);
    }
    store_sums<C>(sums, C * LANES);
    for (Index r = 0; r < n_rows; ++r) {
        Vector vectors[C];
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            vectors[c] = load(sums + (r * C + c) * LANES);
        }
        body(row + r, t, vectors, n);
    }
}

#endif

#if !defined(SLEEPFM_TILES)
inline Tiles::~Tiles() {}
#endif

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

#if defined(SLEEPFM_TILES)

// accumulate for C vectors of b and the strips from `begin` to `end`, which are equally wide.
template <int C>
inline void accumulate_tiles(Strips const& strips, Index begin, Index end, Index n_rows, BFloat16 const* a,
                             Pair const* b, Index ldo, bool fresh, float* out) {
    Index const width = strips.width(begin), in_tile = width == 3 * LANES ? 12 : width / 2;
    Index const height = n_rows % TALL == 0 ? TALL : ROWS;
    use_tiles(height, in_tile);
    for (Index row = 0; row < n_rows; row += height) {
        float* const sums = out + row * ldo;
        if (fresh) {
            clear_sums<C>();
        } else {
            load_sums<C>(sums, ldo);
        }
        for (Index strip = begin; strip < end; ++strip) {
            Index const first = strips.first(strip);
            BFloat16 const* const rows = a + first * n_rows + row * width;
            for (Index t = 0; t < width; t += 2 * in_tile) {
                add_to_sums<C>(rows + t, width * static_cast<Index>(sizeof(BFloat16)), b + (first + t) / 2 * ldo,
                               ldo * static_cast<Index>(sizeof(Pair)));
            }
        }
        store_sums<C>(sums, ldo);
    }
}

// accumulate, of pairs: over the wide strips, then over those that are narrower.
inline void accumulate(Strips const& strips, Index n_rows, BFloat16 const* a, Pair const* b, Index n, Index ldo,
                       bool fresh, float* out) {
    Strips const columns(n);
    Index const n_wide = strips.tail / 3;
    for (Index begin = 0; begin < strips.n_strips;) {
        Index const end = begin < n_wide ? n_wide : strips.n_strips;
        for (Index i = 0; i < columns.n_strips; ++i) {
            Index const column = columns.first(i);
            Index const width = columns.width(i) / LANES;
            auto const block = width == 3   ? accumulate_tiles<3>
                               : width == 2 ? accumulate_tiles<2>
                                            : accumulate_tiles<1>;
            block(strips, begin, end, n_rows, a, b + column, ldo, fresh, out + column);
        }
        begin = end;
        fresh = false;
    }
}

#endif

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
#if defined(SLEEPFM_TILES)
    if constexpr (FactorOf<Factor>::DEPTH == 2) {
        if (Index const in_tile = tile_words<Factor>(n_words); in_tile != 0) {
            Index const height = n_rows > ROWS ? TALL : ROWS;
            use_tiles(height, in_tile);
            for (Index row = 0; row < n_rows; row += height) {
                multiply_tiles<C>(n_words, in_tile, packed + row * n_words, strip, row, least(n_rows - row, height), t,
                                  n, body);
            }
            return;
        }
    }
#endif
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
