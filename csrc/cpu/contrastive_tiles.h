// Operands and products of the contrastive loss, in float32, as integers of three digits on tiles
// (contrastive_digits.h). The two types are those of contrastive_vectors.h, which says what each member is for.
#pragma once

#include <cmath>
#include <cstring>

#include "cpu/contrastive_digits.h"
#include "cpu/contrastive_memory.h"
#include "cpu/threads.h"

namespace sleepfm::SLEEPFM_ISA {

// 64 dimensions after 64.
inline Index chunks_of(Shape const& shape) {
    return (shape.D + CHUNK - 1) / CHUNK;
}

// Bytes of the digits of one modality for the samples before r, as they are read for cosines; and for gradients, where
// a block lies as [group of dimensions][panel].
inline Index cosine_digits(Shape const& shape, Index r) {
    return r / GROUP * chunks_of(shape) * STACK;
}
inline Index gradient_digits(Shape const& shape, Index r) {
    return r / PANEL * (shape.d_padded / GROUP) * STACK;
}

// unit and mean are a panel of each modality for each thread, [n_threads, M, panel_stride], from which the digits are
// made; everything else reads those.
template <typename T>
struct Operands : CommonOperands<T> {
    static_assert(sizeof(T) == sizeof(float));
    static constexpr bool KEEPS_UNITS = false;
    static constexpr Index TOGETHER = PANEL;

    std::int8_t *rows_digits, *columns_digits;  // [M] of e as rows of cosines, and of the columns: o, or e if pairwise
    T* step;                                    // [1 or 2, M, n_in_panels] of e, and of o

    Operands(Memory& memory, Shape const& shape) {
        Index const panels = memory.n_threads * shape.M * shape.panel_stride;
        Index const n_sides = shape.pairwise ? 1 : 2;
        // Backward needs e once more, in its last step, but o only where it makes the digits itself.
        bool const has_means = !shape.pairwise && !memory.finds_operands;
        this->unit = memory.workspace.take<T>(panels);
        this->mean = memory.workspace.take<T>(has_means ? panels : 0);
        Carver& carver = memory.of_operands();
        rows_digits = carver.take<std::int8_t>(shape.M * digits_of_modality(shape));
        columns_digits = carver.take<std::int8_t>(shape.M * digits_of_modality(shape));
        step = carver.take<T>(n_sides * shape.M * shape.n_in_panels);
        this->take_common(memory, shape);
    }

    Operands of_thread(Shape const& shape) const {
        Operands own = *this;
        own.unit += thread_number() * shape.M * shape.panel_stride;
        own.mean += thread_number() * shape.M * shape.panel_stride;
        return own;
    }

    void complete(Shape const& shape, Index r) const {
        for (Index m = 0; m < shape.M; ++m) {
            Index const at = m * digits_of_modality(shape) + cosine_digits(shape, r);
            T* const steps = step + m * shape.n_in_panels + r;
            digitise(shape, r, this->unit + m * shape.panel_stride,
                     {rows_digits + at, shape.pairwise ? columns_digits + at : nullptr, steps});
            if (!shape.pairwise) {
                digitise(shape, r, this->mean + m * shape.panel_stride,
                         {nullptr, columns_digits + at, steps + shape.M * shape.n_in_panels});
            }
        }
    }

    static Index unit_stride(Shape const& shape) { return shape.panel_stride; }
    static Index place_of_unit(Shape const&, Index r) { return r % PANEL; }

    static Index digits_of_modality(Shape const& shape) { return cosine_digits(shape, shape.n_in_panels); }
    std::int8_t const* rows(Shape const& shape, Index p, Index r) const {
        return rows_digits + shape.row_of[p] * digits_of_modality(shape) + cosine_digits(shape, r);
    }
    std::int8_t const* columns(Shape const& shape, Index p, Index c) const {
        return columns_digits + shape.column_of[p] * digits_of_modality(shape) + cosine_digits(shape, c);
    }
    T const* row_step(Shape const& shape, Index p, Index r) const {
        return step + shape.row_of[p] * shape.n_in_panels + r;
    }
    T const* column_step(Shape const& shape, Index p, Index c) const {
        Index const side = shape.pairwise ? 0 : shape.M;
        return step + (side + shape.column_of[p]) * shape.n_in_panels + c;
    }

    void multiply(Shape const& shape, Index p, Tile const& at, T* tile) const {
        multiply_cosines(at.n_rows, at.n_columns, chunks_of(shape), rows(shape, p, at.r0), row_step(shape, p, at.r0),
                         columns(shape, p, at.c0), column_step(shape, p, at.c0), tile);
    }

  private:
    // The digits of the panel that begins at sample r. Beyond the last group of samples the panel becomes zero.
    static void digitise(Shape const& shape, Index r, T* panel, PanelDigits const& to) {
        for (Index c = shape.n_padded - r; c < PANEL; c += GROUP) {
            for (Index k = 0; k < shape.d_padded; ++k) {
                store<T>(panel + k * PANEL + c, Vec<T>{});
            }
        }
        make_digits(panel, shape.d_padded, to);
    }
};

template <typename T>
struct GradientProducts {
    static constexpr bool OWN_PAIRS_APART = true;
    static constexpr bool IS_SCALED = true;

    std::int32_t* largest;  // [n_threads, 2, block] bits of the largest element of each row and each column of a tile
    T* step;                // [n_threads, block] of the digits' rows or columns
    std::int8_t* digits;    // [n_threads, tile_size * DIGITS] of G
    std::int8_t* turned;    // [n_threads, block * d_padded * DIGITS] an operand, as it is read for the gradients
    // A power of two, and the sign of the loss's gradient: the largest own pair's gradient is about 1, and all others
    // are positive.
    T unscale = 1;

    GradientProducts(Memory& memory, Shape const& shape) {
        Carver& carver = memory.workspace;
        largest = carver.take<std::int32_t>(memory.n_threads * 2 * shape.block);
        step = carver.take<T>(memory.n_threads * shape.block);
        digits = carver.take<std::int8_t>(memory.n_threads * shape.tile_size() * DIGITS);
        turned = carver.take<std::int8_t>(memory.n_threads * gradient_digits(shape, shape.block));
    }

    // By `unscale` the own pairs' gradients, factor * probability missed, are about 1 or less: products of integers
    // flush what is below 2^-104. 1 where there is none.
    double choose_scale(ContrastiveBackward const& call, Shape const& shape, double factor) {
        double most_missed = 0.0;
        for (Index p = 0; p < shape.P; ++p) {
            double const* const state = call.state + p * CONTRASTIVE_STATE_ROWS * shape.N;
            for (Index r = 0; r < shape.N; ++r) {
                double const missed = state[3 * shape.N + r], missed_of_column = state[6 * shape.N + r];
                most_missed = missed > most_missed ? missed : most_missed;
                most_missed = missed_of_column > most_missed ? missed_of_column : most_missed;
            }
        }
        double const bound = std::fabs(factor) * most_missed;
        double scale = 1.0;
        if (bound > 1e-300 && bound < 1e300) {
            int const exponent = static_cast<int>(most(-120, least(std::ilogb(bound), 120)));
            scale = std::ldexp(factor < 0.0 ? -1.0 : 1.0, exponent);
        }
        unscale = static_cast<T>(scale);
        return scale;
    }

    // Finds the largest element of each row and column, times the step of what the column (row) is multiplied with.
    class Observer {
      public:
        Observer(GradientProducts const& products, Shape const& shape, Operands<T> const& operands, Index p,
                 Tile const& at)
            : row_step_(operands.row_step(shape, p, at.r0)),
              column_step_(operands.column_step(shape, p, at.c0)),
              of_rows_(products.largest_of_rows(shape)),
              of_columns_(products.largest_of_columns(shape)) {
            std::memset(of_rows_, 0, 2 * static_cast<std::size_t>(shape.block) * sizeof(std::int32_t));
        }
        void start_row() { of_row_ = Lanes{}; }
        void see(Index r, Index c, Vec<T> g) {
            of_row_ = larger(of_row_, magnitude(g * load<T>(column_step_ + c)));
            auto* const of_columns = reinterpret_cast<Lanes*>(of_columns_ + c);
            *of_columns = larger(*of_columns, magnitude(g * row_step_[r]));
        }
        void end_row(Index r) {
            std::int32_t found = 0;
            for (int l = 0; l < WIDTH<T>; ++l) {
                found = found > of_row_[l] ? found : of_row_[l];
            }
            of_rows_[r] = found;
        }

      private:
        T const *row_step_, *column_step_;
        std::int32_t *of_rows_, *of_columns_;
        Lanes of_row_{};
    };

    void rows(Shape const& shape, Operands<T> const& operands, Index p, Tile const& at, T const* gradient, T* to,
              bool add) const {
        make_row_digits(at.n_rows, at.n_columns, gradient, operands.column_step(shape, p, at.c0),
                        largest_of_rows(shape), digits_of_thread(shape), step_of_thread(shape));
        turn(shape, operands.columns(shape, p, at.c0), at.n_columns, false);
        add_product(shape, at.n_rows, at.n_columns, to, add);
    }
    void columns(Shape const& shape, Operands<T> const& operands, Index p, Tile const& at, T const* gradient, T* to,
                 bool add) const {
        make_column_digits(at.n_rows, at.n_columns, gradient, operands.row_step(shape, p, at.r0),
                           largest_of_columns(shape), digits_of_thread(shape), step_of_thread(shape));
        turn(shape, operands.rows(shape, p, at.r0), at.n_rows, true);
        add_product(shape, at.n_columns, at.n_rows, to, add);
    }

  private:
    std::int32_t* largest_of_rows(Shape const& shape) const { return largest + thread_number() * 2 * shape.block; }
    std::int32_t* largest_of_columns(Shape const& shape) const { return largest_of_rows(shape) + shape.block; }
    T* step_of_thread(Shape const& shape) const { return step + thread_number() * shape.block; }
    std::int8_t* digits_of_thread(Shape const& shape) const {
        return digits + thread_number() * shape.tile_size() * DIGITS;
    }
    std::int8_t* turned_of_thread(Shape const& shape) const {
        return turned + thread_number() * gradient_digits(shape, shape.block);
    }

    // A block of n samples from the form of cosines to that of gradients.
    void turn(Shape const& shape, std::int8_t const* from, Index n, bool first_factor) const {
        turn_block((n + PANEL - 1) / PANEL, shape.d_padded, from, first_factor, turned_of_thread(shape));
    }

    // Sums over n_summed samples for n of the other side.
    void add_product(Shape const& shape, Index n, Index n_summed, T* to, bool add) const {
        multiply_gradients(n, shape.d_padded, (n_summed + CHUNK - 1) / CHUNK, turned_of_thread(shape),
                           digits_of_thread(shape), step_of_thread(shape), to, add);
    }
};

}  // namespace sleepfm::SLEEPFM_ISA
