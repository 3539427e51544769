// The contrastive loss and the retrieval ranks on the CPU. The contracts are those of params.h; these functions check
// the arguments and call the kernels of the best instruction set (cpu_features.h).
#pragma once

#include <cstdint>

#include "params.h"

namespace sleepfm {

// Throw std::invalid_argument for what the kernels do not cover; otherwise run on at most input.n_threads threads. The
// results are the same bits for every number of threads.
void contrastive_forward(ContrastiveForward const& call);
void contrastive_backward(ContrastiveBackward const& call);

// Forward and backward of all samples in one call, which is quicker where samples are few. Results equal those of the
// two calls up to rounding. It takes its own workspace.
void contrastive_joint(ContrastiveJoint const& call);

struct ContrastiveBytes {
    std::int64_t workspace, kept;
};

// Sizes of the buffers. The workspace is linear in N: a few matrices of M x N x D elements, and up to two tiles for
// each thread. With `kept`, forward leaves the operands and all P x N x N cosines to backward, which then computes two
// products in place of three.
ContrastiveBytes contrastive_bytes(std::int64_t n_modalities, std::int64_t n_samples, std::int64_t n_dim, bool pairwise,
                                   bool is_double, bool backward, bool kept, int n_threads);

// y = exp(x), x <= 0, of n elements as the kernels compute it; for tests.
void contrastive_exponential(void const* x, void* y, std::int64_t n, bool is_double);

// Retrieval ranks: counts, for each clip, the candidates that are ahead of its own counterpart.
void pair_ranks(PairRanks const& call);
std::int64_t pair_ranks_bytes(std::int64_t n_rows, std::int64_t n_columns, std::int64_t n_dim, int n_threads);
void measure_rank_rows(RankRows const& call);
// own[r] = <a_r, b_r> in double, of the rows of a and b [n_rows, n_dim]; added in the order of pair_ranks, so that
// equal rows tie.
void own_inner_products(float const* a, float const* b, double* own, std::int64_t n_rows, std::int64_t n_dim);

// The kernels of one instruction set.
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
namespace amx {
ContrastiveKernels contrastive_kernels();
}
#endif

}  // namespace sleepfm
