// The memory of the contrastive loss's two passes.
#pragma once

#include "cpu/contrastive.h"
#include "cpu/contrastive_memory.h"
#if defined(SLEEPFM_TILES)
#include "cpu/contrastive_tiles.h"
#else
#include "cpu/contrastive_vectors.h"
#endif

namespace sleepfm::SLEEPFM_ISA {

template <typename T>
struct PassWork {
    Operands<T> operands;
    T* diagonal;  // [P, n_padded] cosine of the own pair
    T* tiles;     // [n_threads, tile_size] a tile for each thread

    PassWork() = default;  // the joint pass cuts its own memory
    PassWork(Memory& memory, Shape const& shape, bool with_tiles)
        : operands(memory, shape),
          tiles(memory.workspace.take<T>(with_tiles ? memory.n_threads * shape.tile_size() : 0)) {}
};

template <typename T>
struct ForwardWork : PassWork<T> {
    T* largest;   // [P, 2, n_padded] largest cosine of the other pairs so far, by row and by column
    double* sum;  // [P, 2, n_padded] sum of their exponentials so far; in the end the loss
    T* edges;     // [n_threads, 4, block] sums along the edges of a tile: see gather_statistics

    ForwardWork() = default;
    ForwardWork(Memory& memory, Shape const& shape) : PassWork<T>(memory, shape, !memory.has_kept) {
        take_statistics(memory.workspace, shape);
        edges = memory.workspace.take<T>(memory.n_threads * 4 * shape.block);
    }
    void take_statistics(Carver& carver, Shape const& shape) {
        Index const samples = shape.P * shape.n_padded;
        this->diagonal = carver.take<T>(samples);
        largest = carver.take<T>(2 * samples);
        sum = carver.take<double>(2 * samples);
    }
};

template <typename T>
struct BackwardWork : PassWork<T> {
    T* reference;  // [P, 2, n_padded] what exponentials are relative to, by row and by column
    T* weight;     // [P, 2, n_padded] factor of the exponential in G
    T* counted;    // [n_padded] 1 for samples in [begin, end), whose terms count for the temperature's gradient, else 0
    T* pull;       // [P, n_padded] the own pair's G
    double* slope;  // [P, n_padded] each row's part of dloss/dlog_temperature
    T* d_row;       // [M, matrix] gradient of e (pairwise: all of it)
    T* d_column;    // [M, matrix] gradient of o; leave-one-out only
    GradientProducts<T> products;

    BackwardWork() = default;
    BackwardWork(Memory& memory, Shape const& shape) : PassWork<T>(memory, shape, true), products(memory, shape) {
        take_weights(memory.workspace, shape);
        d_row = memory.workspace.take<T>(shape.M * shape.matrix);
        d_column = memory.workspace.take<T>(shape.pairwise ? 0 : shape.M * shape.matrix);
    }
    void take_weights(Carver& carver, Shape const& shape) {
        Index const samples = shape.P * shape.n_padded;
        this->diagonal = carver.take<T>(samples);
        reference = carver.take<T>(2 * samples);
        weight = carver.take<T>(2 * samples);
        counted = carver.take<T>(shape.n_padded);
        pull = carver.take<T>(samples);
        slope = carver.take<double>(samples);
    }
    // Each row's part, added in the order of samples.
    double total_slope(Shape const& shape) const {
        double total = 0.0;
        for (Index p = 0; p < shape.P; ++p) {
            for (Index r = 0; r < shape.N; ++r) {
                total += slope[p * shape.n_padded + r];
            }
        }
        return total;
    }
};

// Sizes of the buffers of one pass.
template <typename T>
inline ContrastiveBytes bytes_of(Shape const& shape, bool backward, bool kept, int n_threads) {
    Memory memory(kept, backward ? Pass::backward : Pass::forward, n_threads);
    if (backward) {
        BackwardWork<T> const work(memory, shape);
    } else {
        ForwardWork<T> const work(memory, shape);
    }
    return {memory.workspace.used(), memory.kept.used()};
}

}  // namespace sleepfm::SLEEPFM_ISA
