// The products of mbconv_product.h on tiles (tiles.h), for pairs: a tile is 16 rows of packed weights, or of a panel's
// channels, or 16 words of a strip's vector. Strips are what tiles want of the second factor as they are; packed
// weights are [rows][n_words] then. Sums go through memory, since nothing else leaves a tile.
#pragma once

#include "cpu/mbconv_strips.h"
#if defined(SLEEPFM_TILES)
#include "cpu/tiles.h"
#endif

namespace sleepfm::SLEEPFM_ISA {

namespace {

// How many words a tile has in products with n_words words of this factor: the most that divide n_words, at most 16. 0
// where there are no tiles, or where only small ones divide it.
template <typename Factor>
inline Index tile_words([[maybe_unused]] Index n_words) {
#if defined(SLEEPFM_TILES)
    if (FactorOf<Factor>::DEPTH == 2) {
        for (Index n_tiles = (n_words + 15) / 16; n_tiles == 1 || n_tiles * 8 <= n_words; ++n_tiles) {
            if (n_words % n_tiles == 0) {
                return n_words / n_tiles;
            }
        }
    }
#endif
    return 0;
}

#if defined(SLEEPFM_TILES)

thread_local std::uint32_t shapes_in_use = 0;  // height and words of the thread's tiles; 0: none

// Tiles 0 to 2 and 3 to 5 are two sets of sums, of height x 16; 6 is height x n_words of the first factor, 7 n_words x
// 16 of the second one. Shapes are loaded only if they change: that takes as long as twenty products.
inline void use_tiles(Index height, Index n_words) {
    auto const wanted = static_cast<std::uint32_t>(height << 16 | n_words);
    if (wanted == shapes_in_use) {
        return;
    }
    TileShapes shapes;
    for (int tile = 0; tile < 6; ++tile) {
        shapes.set(tile, height, 64);
    }
    shapes.set(6, height, 4 * n_words);
    shapes.set(7, n_words, 64);
    use_tiles(shapes);
    shapes_in_use = wanted;
}

// Lives in the parallel region of an op, in every thread, and gives the tiles back at its end: other code of the thread
// has shapes of its own.
struct Tiles {
    Tiles() = default;
    Tiles(Tiles const&) = delete;
    Tiles& operator=(Tiles const&) = delete;
    ~Tiles() {
        if (shapes_in_use != 0) {
            release_tiles();
            shapes_in_use = 0;
        }
    }
};

// Tiles FIRST to FIRST + C - 1 are sums of C vectors side by side. Strides are in bytes.
template <int FIRST, int C>
inline void clear_sums() {
    clear_tile<FIRST>();
    if constexpr (C > 1) {
        clear_sums<FIRST + 1, C - 1>();
    }
}

template <int FIRST, int C>
inline void load_sums(float const* from, Index stride) {
    load_tile<FIRST>(from, stride);
    if constexpr (C > 1) {
        load_sums<FIRST + 1, C - 1>(from + LANES, stride);
    }
}

template <int FIRST, int C>
inline void store_sums(float* to, Index stride) {
    store_tile<FIRST>(to, stride);
    if constexpr (C > 1) {
        store_sums<FIRST + 1, C - 1>(to + LANES, stride);
    }
}

template <int FIRST, int C>
inline void add_products(Pair const* b, Index stride) {
    load_tile<7>(b, stride);
    add_tile_product<FIRST, 6, 7>();
    if constexpr (C > 1) {
        add_products<FIRST + 1, C - 1>(b + LANES, stride);
    }
}

// Sums of `height` rows of w [rows][n_words] with a strip of C vectors.
template <int FIRST, int C>
inline void multiply_strip(Index n_words, Index in_tile, Pair const* w, Pair const* strip) {
    clear_sums<FIRST, C>();
    for (Index k = 0; k < n_words; k += in_tile) {
        load_tile<6>(w + k, n_words * static_cast<Index>(sizeof(Pair)));
        add_products<FIRST, C>(strip + k * C * LANES, C * LANES * static_cast<Index>(sizeof(Pair)));
    }
}

template <int FIRST>
inline void multiply_strip(Index n_vectors, Index n_words, Index in_tile, Pair const* w, Pair const* strip) {
    switch (n_vectors) {
        case 3: multiply_strip<FIRST, 3>(n_words, in_tile, w, strip); break;
        case 2: multiply_strip<FIRST, 2>(n_words, in_tile, w, strip); break;
        default: multiply_strip<FIRST, 1>(n_words, in_tile, w, strip);
    }
}

template <int C, typename Body>
inline void hand_over(float const* sums, Index row, Index n_rows, Index t, Index n, Body& body) {
    for (Index r = 0; r < n_rows; ++r) {
        Vector vectors[C];
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            vectors[c] = load(sums + (r * COLUMNS + c) * LANES);
        }
        body(row + r, t, vectors, n);
    }
}

// product_rows, of pairs. While the sums of one block of rows and strip are handed over, the tiles multiply the next
// one, in the other set.
template <typename Body>
inline void product_tiles(Strips const& strips, Index n_rows, Index n_words, Pair const* packed, Pair const* panel,
                          Body& body) {
    Index const in_tile = tile_words<Pair>(n_words), height = n_rows > ROWS ? TALL : ROWS;
    alignas(64) float sums[TALL * COLUMNS * LANES];
    constexpr Index STRIDE = COLUMNS * LANES * static_cast<Index>(sizeof(float));
    use_tiles(height, in_tile);
    Index row = 0, strip = -1;
    bool odd = false;
    auto const finish = [&] {
        if (strip < 0) {
            return;
        }
        if (odd) {
            store_sums<0, COLUMNS>(sums, STRIDE);
        } else {
            store_sums<COLUMNS, COLUMNS>(sums, STRIDE);
        }
        Index const t = strips.first(strip), n = least(n_rows - row, height);
        switch (strips.width(strip) / LANES) {
            case 3: hand_over<3>(sums, row, n, t, strips.n - t, body); break;
            case 2: hand_over<2>(sums, row, n, t, strips.n - t, body); break;
            default: hand_over<1>(sums, row, n, t, strips.n - t, body);
        }
    };
    for (Index i = 0; i < strips.n_strips; ++i) {
        Pair const* const columns = panel + strips.first(i) * n_words;
        Index const n_vectors = strips.width(i) / LANES;
        for (Index r = 0; r < n_rows; r += height) {
            Pair const* const w = packed + r * n_words;
            if (odd) {
                multiply_strip<COLUMNS>(n_vectors, n_words, in_tile, w, columns);
            } else {
                multiply_strip<0>(n_vectors, n_words, in_tile, w, columns);
            }
            finish();
            odd = !odd;
            row = r;
            strip = i;
        }
    }
    finish();
}

// accumulate for C vectors of b and the strips from `begin` to `end`, which are equally wide. The panels are zero where
// there is no sample.
template <int C>
inline void accumulate_tiles(Strips const& strips, Index begin, Index end, Index n_rows, BFloat16 const* a,
                             Pair const* b, Index ldo, bool fresh, float* out) {
    Index const width = strips.width(begin), in_tile = width == 3 * LANES ? 12 : width / 2;
    Index const height = n_rows % TALL == 0 ? TALL : ROWS;
    Index const stride = ldo * static_cast<Index>(sizeof(float));
    use_tiles(height, in_tile);
    for (Index row = 0; row < n_rows; row += height) {
        float* const to = out + row * ldo;
        if (fresh) {
            clear_sums<0, C>();
        } else {
            load_sums<0, C>(to, stride);
        }
        for (Index strip = begin; strip < end; ++strip) {
            Index const first = strips.first(strip);
            BFloat16 const* const rows = a + first * n_rows + row * width;
            for (Index t = 0; t < width; t += 2 * in_tile) {
                load_tile<6>(rows + t, width * static_cast<Index>(sizeof(BFloat16)));
                add_products<0, C>(b + (first + t) / 2 * ldo, stride);
            }
        }
        store_sums<0, C>(to, stride);
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
            Index const column = columns.first(i), width = columns.width(i) / LANES;
            auto const block = width == 3   ? &accumulate_tiles<3>
                               : width == 2 ? &accumulate_tiles<2>
                                            : &accumulate_tiles<1>;
            block(strips, begin, end, n_rows, a, b + column, ldo, fresh, out + column);
        }
        begin = end;
        fresh = false;
    }
}

#else

struct Tiles {
    ~Tiles() {}  // or the compiler says that it is not used
};

#endif

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
