// The sizes of the contrastive loss's matrices, and its tiles of cosines. Compiled once for each instruction set, see
// contrastive_simd.h.
//
// Tiles are worked on in steps: in step t, row block i meets column block (i + t) mod n_blocks. The tiles of a step
// share neither rows nor columns, so that threads need no locks, and every row and column gathers its tiles in the
// order of t: sums are in the same order for every number of threads.
#pragma once

#if defined(SLEEPFM_TILES)
#include "cpu/contrastive_digits.h"
#else
#include "cpu/contrastive_product.h"
#endif
#include "params.h"

namespace sleepfm::SLEEPFM_ISA {

constexpr int MAX_MODALITIES = 8;
constexpr int MAX_PROBLEMS = MAX_MODALITIES * (MAX_MODALITIES - 1) / 2;
// The cosine of a pair that does not count: far below every cosine, and finite, so that 0 * EXCLUDED is 0 and not NaN.
constexpr double EXCLUDED = -1e30;

// Where an element of a tile of n_rows rows lies, [panel of columns][row][column of the panel].
inline Index place_in_tile(Index n_rows, Index r, Index c) {
    return (c / PANEL * n_rows + r) * PANEL + c % PANEL;
}

// Sizes that follow from the shape of x alone and not from the number of threads, as does the order of every sum.
struct Shape {
    Index M, N, D, P;
    bool pairwise;
    Index n_padded;               // N, rounded up to a multiple of SAMPLES
    Index n_in_panels;            // N, rounded up to whole panels
    Index d_padded;               // D, rounded up to a multiple of DIMENSIONS
    Index panel_stride;           // elements of a panel
    Index matrix;                 // elements of one modality's matrix, whole panels
    Index block;                  // samples on a side of a tile
    Index n_blocks;               // blocks on a side of a problem
    int row_of[MAX_PROBLEMS];     // modality of a problem's rows
    int column_of[MAX_PROBLEMS];  // pairwise: modality of its columns; leave-one-out: the problem's number, for `mean`

    Shape(Index n_modalities, Index n_samples, Index n_dim, bool pairs)
        : M(n_modalities), N(n_samples), D(n_dim), P(0), pairwise(pairs) {
        n_padded = round_up(N, SAMPLES);
        n_in_panels = round_up(n_padded, PANEL);
        d_padded = round_up(D, DIMENSIONS);
        panel_stride = d_padded * PANEL;
        matrix = n_in_panels * d_padded;
        block = block_length(N);
        n_blocks = (N + block - 1) / block;
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
    explicit Shape(ContrastiveInput const& in) : Shape(in.n_modalities, in.n_samples, in.n_dim, in.pairwise) {}

    // Where sample r's first dimension lies in a matrix.
    Index place(Index r) const { return r / PANEL * panel_stride + r % PANEL; }
    // The same in sums of gradients.
    Index place_of_sums(Index r) const { return r / SUMS_PANEL * SUMS_PANEL * d_padded + r % SUMS_PANEL; }
    Index tile_size() const { return block * round_up(block, PANEL); }
    // Elements of the tiles of one row of blocks, for each of their rows; an incomplete panel takes the room of a whole
    // one.
    Index row_of_tiles() const {
        Index const before_last = n_blocks - 1;
        return before_last * round_up(block, PANEL) + round_up(n_padded - before_last * block, PANEL);
    }
    Index tiles_of_problem() const { return n_padded * row_of_tiles(); }
};

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
    Index place(Index r, Index c) const { return place_in_tile(n_rows, r, c); }
    // Where problem p's tile lies among the kept cosines of all problems.
    template <typename T>
    T* kept(Shape const& shape, T* kept_cosines, Index p) const {
        return kept_cosines + p * shape.tiles_of_problem() + r0 * shape.row_of_tiles() +
               n_rows * j * round_up(shape.block, PANEL);
    }
};

}  // namespace sleepfm::SLEEPFM_ISA
