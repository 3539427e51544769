// Packs weights as the products of mbconv_product.h read them: blocks of ROWS rows of a matrix, each block
// [words of n_k][ROWS], zero beyond the matrix's last row. A word is a float32 or two bfloat16 (mbconv_factors.h).
#pragma once

#include "cpu/mbconv_columns.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// Where word k of row r lies in a packed block of n_words words: products of tiles want [ROWS][n_words].
template <typename Factor>
inline Index packed_place(Index n_words, Index k, Index r) {
    return tile_words<Factor>(n_words) == 0 ? k * ROWS + r : r * n_words + k;
}

#if defined(SLEEPFM_TILES)

// Packs one block for tiles. vector(r, k) has columns k, k + 1, ... of row r < n_rows in its lanes, zero beyond n_k.
template <typename Columns>
inline void pack_rows(Index n_rows, Index n_k, Pair* packed, Columns vector) {
    Index const n_words = words_of<Pair>(n_k);
    for (Index r = 0; r < ROWS; ++r) {
        auto* const row = reinterpret_cast<BFloat16*>(packed + r * n_words);
        for (Index k = 0; k < 2 * n_words; k += LANES) {
            store_first(row + k, r < n_rows ? vector(r, k) : Vector{}, 2 * n_words - k);
        }
    }
}

#endif

// Packs one block. vector(row, k) has rows row, row + 1, ... of column k in its lanes, zero beyond the matrix.
template <typename Factor, typename Columns>
inline void pack_vectors(Index n_k, Factor* packed, Columns vector) {
    constexpr Index DEPTH = FactorOf<Factor>::DEPTH;
    constexpr Index N = ROWS < LANES ? ROWS : LANES;  // ROWS, or half of them where a vector has fewer lanes
#if defined(SLEEPFM_TILES)
    if (Index const n_words = words_of<Factor>(n_k); tile_words<Factor>(n_words) != 0) {
        constexpr Index SPAN = 64;  // words at a time, turned as floats, for which there are shuffles
        alignas(64) float words[SPAN * ROWS];
        for (Index from = 0; from < n_words; from += SPAN) {
            Index const span = least(n_words - from, SPAN);
            for (Index k = 0; k < span; ++k) {
                put_first<N>(reinterpret_cast<Factor*>(words) + k * ROWS,
                             [&](Index i) { return vector(0, (from + k) * DEPTH + i); });
            }
            for (Index r = 0; r < ROWS; ++r) {
                for (Index k = 0; k < span; ++k) {
                    memcpy(packed + r * n_words + from + k, words + k * ROWS + r, sizeof(Factor));
                }
            }
        }
        return;
    }
#endif
    for (Index k = 0; k < n_k; k += DEPTH) {
        for (Index row = 0; row < ROWS; row += N) {
            put_first<N>(packed + k / DEPTH * ROWS + row, [&](Index i) { return vector(row, k + i); });
        }
    }
}

// Packs one block of the matrix whose elements are element(r, k).
template <typename Factor, typename Element>
inline void pack_elements(Index n_rows, Index n_k, Factor* packed, Element element) {
    pack_vectors(n_k, packed, [&](Index row, Index k) {
        Vector v{};
        for (Index r = 0; r < least(LANES, ROWS - row); ++r) {
            v[r] = row + r < n_rows && k < n_k ? element(row + r, k) : 0.0f;
        }
        return v;
    });
}

// Packs block `block` of the transpose of w [n_k][ld], whose n_rows columns become rows, times scale[k] if scale is not
// null; zero from n_k to n_padded.
template <typename Factor>
inline void pack_columns(float const* w, Index ld, float const* scale, Index n_rows, Index n_k, Index n_padded,
                         Index block, Factor* packed) {
    Index const first = block * ROWS;
    pack_vectors(n_padded, packed + first * words_of<Factor>(n_padded), [&](Index row, Index k) {
        if (k >= n_k) {
            return Vector{};
        }
        Vector const v = load_first(w + k * ld + first + row, n_rows - first - row);
        return scale == nullptr ? v : v * scale[k];
    });
}

// Packs block `block` of w [n_rows][n_k], which transposes ROWS rows of it.
inline void pack_block(float const* w, Index n_rows, Index n_k, Index block, float* packed) {
    Index const first = block * ROWS;
    transpose_rows(w + first * n_k, n_k, least(n_rows - first, ROWS), n_k, ROWS, packed + first * n_k);
}

inline void pack_block(float const* w, Index n_rows, Index n_k, Index block, Pair* packed) {
    constexpr Index SPAN = 8 * LANES;  // columns at a time
    Index const first = block * ROWS, n = least(n_rows - first, ROWS);
    alignas(64) float words[ROWS * SPAN / 2];
    Pair* const to = packed + first * words_of<Pair>(n_k);
#if defined(SLEEPFM_TILES)
    if (tile_words<Pair>(words_of<Pair>(n_k)) != 0) {
        pack_rows(n, n_k, to, [=](Index r, Index k) { return load_first(w + (first + r) * n_k + k, n_k - k); });
        return;
    }
#endif
    for (Index from = 0; from < n_k; from += SPAN) {
        Index const span = least(n_k - from, SPAN);
        for (Index r = 0; r < n; ++r) {
            auto* const row = reinterpret_cast<BFloat16*>(words + r * SPAN / 2);
            for (Index k = 0; k < span; k += LANES) {
                store(row + k, load_first(w + (first + r) * n_k + from + k, span - k));
            }
        }
        // As floats, for which there are shuffles; the bits only move.
        transpose_rows(words, SPAN / 2, n, words_of<Pair>(span), ROWS, reinterpret_cast<float*>(to + from / 2 * ROWS));
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
