// The contrastive loss on the CPU: normalisation, similarity softmax and its backward, without an N x N matrix.
#pragma once

#include <cstdint>

#include "params.h"

namespace sleepfm {

// Refuse (std::invalid_argument) what the kernels do not cover; otherwise run on input.n_threads threads. The results
// are the same bits for every number of threads.
void contrastive_forward(ContrastiveForward const& call);
void contrastive_backward(ContrastiveBackward const& call);

// Linear in N: a few matrices of M x N x D elements, and one tile a thread.
std::int64_t contrastive_workspace_bytes(std::int64_t n_modalities, std::int64_t n_samples, std::int64_t n_dim,
                                         bool pairwise, bool is_double, bool backward, int n_threads);

// The kernels' own exp for x <= 0, for tests. `n` elements; double where is_double.
void contrastive_exponential(void const* x, void* y, std::int64_t n, bool is_double);

// One instruction set's code.
struct ContrastiveKernels {
    void (*forward_f32)(ContrastiveForward const&);
    void (*forward_f64)(ContrastiveForward const&);
    void (*backward_f32)(ContrastiveBackward const&);
    void (*backward_f64)(ContrastiveBackward const&);
    std::int64_t (*workspace_bytes)(std::int64_t, std::int64_t, std::int64_t, bool, bool, bool, int);
    void (*exponential)(void const*, void*, std::int64_t, bool);
};

namespace portable {
ContrastiveKernels contrastive_kernels();
}
#if defined(__x86_64__)
namespace avx2 {
ContrastiveKernels contrastive_kernels();
}
namespace avx512 {
ContrastiveKernels contrastive_kernels();
}
#endif

}  // namespace sleepfm
