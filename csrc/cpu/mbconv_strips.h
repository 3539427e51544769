// The register block of an MBConv block's products, and how the panels that they read lie in memory: a panel is a
// matrix [channels, samples] of a tile, cut into strips.
#pragma once

#include "cpu/mbconv_factors.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// The micro-kernels hold ROWS x COLUMNS vector sums in registers: 8 x 3 of 32 with AVX-512 and on ARM, 4 x 3 of 16
// otherwise. The other registers hold operands.
#if SLEEPFM_LANES == 16 || defined(__aarch64__)
constexpr Index ROWS = 8;
#else
constexpr Index ROWS = 4;
#endif
#if defined(SLEEPFM_TILES)
constexpr Index TALL = 16;  // rows that a product of tiles computes at once; packed weights have room for a multiple
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

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
