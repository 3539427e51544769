// The contrastive loss on the CPU: normalisation, similarity softmax and its backward, tile by tile.
#pragma once

#include <cstdint>

#include "params.h"

namespace sleepfm {

// Refuse (std::invalid_argument) what the kernels do not cover; otherwise run on input.n_threads threads. The results
// are the same bits for every number of threads.
void contrastive_forward(ContrastiveForward const& call);
void contrastive_backward(ContrastiveBackward const& call);

// As both in turn, of all samples, to rounding; quick where there are few. The workspace is its own.
void contrastive_joint(ContrastiveJoint const& call);

struct ContrastiveBytes {
    std::int64_t workspace, kept;
};

// Sizes of the buffers. The workspace is linear in N: a few matrices of M x N x D elements, and two tiles a thread.
// With `kept`, forward leaves the operands and all cosines, P x N x N, to backward, which then saves a third of its
// products.
ContrastiveBytes contrastive_bytes(std::int64_t n_modalities, std::int64_t n_samples, std::int64_t n_dim, bool pairwise,
                                   bool is_double, bool backward, bool kept, int n_threads);

// The kernels' own exp for x <= 0, for tests. `n` elements; double where is_double.
void contrastive_exponential(void const* x, void* y, std::int64_t n, bool is_double);

// Retrieval ranks: counts of the clips that come before each one's own.
void pair_ranks(PairRanks const& call);
std::int64_t pair_ranks_bytes(std::int64_t n_rows, std::int64_t n_columns, std::int64_t n_dim, int n_threads);
void measure_rank_rows(RankRows const& call);
// own[r] = <a_r, b_r> in double, summed as pair_ranks sums; a and b [n_rows, n_dim].
void own_inner_products(float const* a, float const* b, double* own, std::int64_t n_rows, std::int64_t n_dim);

// One instruction set's code.
struct ContrastiveKernels {
    void (*forward_f32)(ContrastiveForward const&);
    void (*forward_f64)(ContrastiveForward const&);
    void (*backward_f32)(ContrastiveBackward const&);
    void (*backward_f64)(ContrastiveBackward const&);
    ContrastiveBytes (*bytes)(std::int64_t, std::int64_t, std::int64_t, bool, bool, bool, bool, int);
    void (*joint)(ContrastiveJoint const&);
    std::int64_t (*joint_bytes)(ContrastiveInput const&);
    void (*exponential)(void const*, void*, std::int64_t, bool);
    void (*pair_ranks)(PairRanks const&);
    std::int64_t (*pair_ranks_bytes)(std::int64_t, std::int64_t, std::int64_t, int);
    void (*measure_rank_rows)(RankRows const&);
    void (*own_inner_products)(float const*, float const*, double*, std::int64_t, std::int64_t);
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
