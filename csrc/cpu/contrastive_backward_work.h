// The memory of the contrastive loss's backward pass.
#pragma once

#include "cpu/contrastive_prepare.h"

namespace sleepfm::SLEEPFM_ISA {

template <typename T>
struct BackwardWork {
    Operands<T> operands;
    T* diagonal;   // [P, n_padded] cosine of the own pair
    T* reference;  // [P, 2, n_padded] what exponentials are relative to, by row and by column
    T* weight;     // [P, 2, n_padded] factor of the exponential in G
    T* counted;    // [n_padded] 1 for samples in [begin, end), whose terms count for the temperature's gradient, else 0
    T* pull;       // [P, n_padded] the own pair's G
    double* slope;  // [P, n_padded] each row's part of dloss/dlog_temperature
    T* d_row;       // [M, matrix] gradient of e (pairwise: all of it)
    T* d_column;    // [M, matrix] gradient of o; leave-one-out only
    T* tiles;       // [n_threads, 2, tile_size] a tile and its transpose for each thread
#if defined(SLEEPFM_TILES)
    // In place of the transpose. Gradients are a power of two, and the sign of the loss's gradient, away from what they
    // are: the largest own pair's is about 1, and all others are positive.
    std::int32_t* largest;  // [n_threads, 2, block] bits of the largest element of each row and each column of a tile
    T* step;                // [n_threads, block] of the digits' rows or columns
    std::int8_t* digits;    // [n_threads, tile_size * DIGITS]
    std::int8_t* turned;    // [n_threads, block * d_padded * DIGITS] an operand, as it is read for the gradients
    T unscale = 1;          // what gradients are to be multiplied with in the end
#endif
    Index workspace_bytes, kept_bytes;

    BackwardWork() = default;  // the joint pass cuts its own memory
    BackwardWork(Memory memory, Shape const& shape) : operands(memory.operands<T>(shape)) {
        Carver& carver = memory.workspace;
        Index const samples = shape.P * shape.n_padded;
        diagonal = carver.take<T>(samples);
        reference = carver.take<T>(2 * samples);
        weight = carver.take<T>(2 * samples);
        counted = carver.take<T>(shape.n_padded);
        pull = carver.take<T>(samples);
        slope = carver.take<double>(samples);
        d_row = carver.take<T>(shape.M * shape.matrix);
        d_column = carver.take<T>(shape.pairwise ? 0 : shape.M * shape.matrix);
#if defined(SLEEPFM_TILES)
        tiles = carver.take<T>(memory.n_threads * tile_size(shape));
        largest = carver.take<std::int32_t>(memory.n_threads * 2 * shape.block);
        step = carver.take<T>(memory.n_threads * shape.block);
        digits = carver.take<std::int8_t>(memory.n_threads * tile_size(shape) * DIGITS);
        turned = carver.take<std::int8_t>(memory.n_threads * shape.gradient_digits(shape.block));
#else
        tiles = carver.take<T>(memory.n_threads * 2 * tile_size(shape));
#endif
        workspace_bytes = carver.used();
        kept_bytes = memory.kept.used();
    }
    static Index tile_size(Shape const& shape) { return shape.block * round_up(shape.block, PANEL); }
};

}  // namespace sleepfm::SLEEPFM_ISA
