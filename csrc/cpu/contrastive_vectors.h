// Operands and products of the contrastive loss in vectors, by the micro-kernel of contrastive_product.h.
// contrastive_tiles.h has the same two types for tiles; the passes know nothing else of either.
#pragma once

#include "cpu/contrastive_memory.h"
#include "cpu/contrastive_product.h"
#include "cpu/threads.h"

namespace sleepfm::SLEEPFM_ISA {

// unit and mean are matrices, [M, matrix].
template <typename T>
struct Operands : CommonOperands<T> {
    // Whether backward finds the unit rows in memory.
    static constexpr bool KEEPS_UNITS = true;
    // Samples whose unit rows and means are made one after the other, before complete() is called for them.
    static constexpr Index TOGETHER = WIDTH<T>;

    Operands() = default;  // the joint pass cuts its own memory
    Operands(Memory& memory, Shape const& shape) {
        this->unit = memory.of_operands().template take<T>(shape.M * shape.matrix);
        this->mean = memory.of_operands().template take<T>(shape.pairwise ? 0 : shape.M * shape.matrix);
        this->take_common(memory, shape);
    }

    // The same operands as the calling thread makes them.
    Operands of_thread(Shape const&) const { return *this; }

    // What is made of the unit rows and means of TOGETHER samples from r on.
    void complete(Shape const&, Index /*r*/) const {}

    // Elements from a modality's unit rows (means) to the next one's, and where sample r's first dimension lies there.
    static Index unit_stride(Shape const& shape) { return shape.matrix; }
    static Index place_of_unit(Shape const& shape, Index r) { return shape.place(r); }

    T const* rows(Shape const& shape, Index p) const { return this->unit + shape.row_of[p] * shape.matrix; }
    T const* columns(Shape const& shape, Index p) const {
        return (shape.pairwise ? this->unit : this->mean) + shape.column_of[p] * shape.matrix;
    }

    // The cosines of problem p's tile `at`.
    void multiply(Shape const& shape, Index p, Tile const& at, T* tile) const {
        cosines<T>(at.n_rows, at.n_columns, shape.D, shape.panel_stride, rows(shape, p) + shape.place(at.r0),
                   columns(shape, p) + shape.place(at.c0), tile);
    }
};

// From [panel of columns][row][column of the panel] to [panel of rows][column][row of the panel].
template <typename T>
inline void transpose_tile(Index n_rows, Index n_columns, T const* tile, T* turned) {
    constexpr Index width = WIDTH<T>;
    for (Index c = 0; c < n_columns; c += width) {
        for (Index r = 0; r < n_rows; r += width) {
            transpose<T>(tile + place_in_tile(n_rows, r, c), PANEL, turned + place_in_tile(n_columns, c, r), PANEL);
        }
    }
}

// The products of a tile's G with the operands.
template <typename T>
struct GradientProducts {
    // Whether G of the own pairs is left out of the tiles, for the last step to add.
    static constexpr bool OWN_PAIRS_APART = false;
    // Whether gradients are `unscale`, which then is a member, away from what they are.
    static constexpr bool IS_SCALED = false;

    T* turned;  // [n_threads, tile_size] a tile transposed

    GradientProducts() = default;  // the joint pass has none
    GradientProducts(Memory& memory, Shape const& shape)
        : turned(memory.workspace.take<T>(memory.n_threads * shape.tile_size())) {}

    // Chooses `unscale` and returns it. factor: what probabilities are multiplied with to become gradients.
    double choose_scale(ContrastiveBackward const&, Shape const&, double /*factor*/) { return 1.0; }

    // Sees every vector of a tile's G while that is computed: row by row, and between start_row and end_row from
    // column c on.
    struct Observer {
        Observer(GradientProducts const&, Shape const&, Operands<T> const&, Index /*p*/, Tile const&) {}
        void start_row() {}
        void see(Index /*r*/, Index /*c*/, Vec<T>) {}
        void end_row(Index /*r*/) {}
    };

    // G times the columns' operand to the gradients of rows, and G transposed times the rows' operand to those of
    // columns; `to` is what the tile's first row (column) has. Added, or written.
    void rows(Shape const& shape, Operands<T> const& operands, Index p, Tile const& at, T const* gradient, T* to,
              bool add) const {
        T* const own = turned + thread_number() * shape.tile_size();
        transpose_tile<T>(at.n_rows, at.n_columns, gradient, own);
        gather<T>(at.n_columns, at.n_rows, shape.d_padded, shape.panel_stride,
                  operands.columns(shape, p) + shape.place(at.c0), own, to, add);
    }
    void columns(Shape const& shape, Operands<T> const& operands, Index p, Tile const& at, T const* gradient, T* to,
                 bool add) const {
        gather<T>(at.n_rows, at.n_columns, shape.d_padded, shape.panel_stride,
                  operands.rows(shape, p) + shape.place(at.r0), gradient, to, add);
    }
};

}  // namespace sleepfm::SLEEPFM_ISA
