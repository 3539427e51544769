// The two buffers of a pass of the contrastive loss, and what all operands have in common.
#pragma once

#include "cpu/carver.h"
#include "cpu/contrastive_shape.h"

namespace sleepfm::SLEEPFM_ISA {

enum class Pass { forward, backward };

// What a pass cuts its memory from; from null addresses it only counts bytes. With `kept`, forward leaves operands and
// cosines there, and backward finds them.
struct Memory {
    Carver workspace, kept;
    bool has_kept, finds_operands;
    int n_threads;

    Memory(ContrastiveInput const& in, Pass pass)
        : workspace(in.workspace),
          kept(in.kept),
          has_kept(in.kept != nullptr),
          finds_operands(has_kept && pass == Pass::backward),
          n_threads(in.n_threads) {}
    Memory(bool with_kept, Pass pass, int threads)
        : workspace(nullptr),
          kept(nullptr),
          has_kept(with_kept),
          finds_operands(has_kept && pass == Pass::backward),
          n_threads(threads) {}
    Carver& of_operands() { return has_kept ? kept : workspace; }
};

// What forward makes of x and backward needs again. It lies in the workspace, and backward makes it anew; or in `kept`.
template <typename T>
struct CommonOperands {
    T* unit;          // e, zero where absent or alone; how much of it is in memory depends on the products
    T* mean;          // o, leave-one-out only; zero likewise
    double* norm;     // [M, n_padded] |x|; 0 likewise
    Index* n_others;  // [n_padded] number of modalities that the sample has, less 1
    T* bias;          // [P, n_padded] added to cosines: 0 where the sample takes part in the problem, else EXCLUDED
    T* cosines;       // [P, tiles_of_problem] the tiles of cosines one after the other, in `kept` only

    void take_common(Memory& memory, Shape const& shape) {
        Carver& carver = memory.of_operands();
        norm = carver.take<double>(shape.M * shape.n_padded);
        n_others = carver.take<Index>(shape.n_padded);
        bias = carver.take<T>(shape.P * shape.n_padded);
        cosines = memory.has_kept ? carver.take<T>(shape.P * shape.tiles_of_problem()) : nullptr;
    }
};

}  // namespace sleepfm::SLEEPFM_ISA
