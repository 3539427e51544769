// The kernels of float32 on tiles of integers, beside those of AVX-512 for everything else; included by
// contrastive_amx.cpp.
#pragma once

#include "cpu/contrastive.h"
#include "cpu/contrastive_backward.h"
#include "cpu/contrastive_forward.h"
#include "cpu/contrastive_ranks.h"

namespace sleepfm::SLEEPFM_ISA {

inline ContrastiveKernels kernels_without_tiles() {
#if defined(SLEEPFM_TILES_IN_SOFTWARE)
    return portable::contrastive_kernels();
#else
    return avx512::contrastive_kernels();
#endif
}

inline ContrastiveBytes bytes(std::int64_t M, std::int64_t N, std::int64_t D, bool pairwise, bool is_double,
                              bool backward, bool kept, int n_threads) {
    if (is_double) {
        return kernels_without_tiles().bytes(M, N, D, pairwise, is_double, backward, kept, n_threads);
    }
    return bytes_of<float>(Shape(M, N, D, pairwise), backward, kept, n_threads);
}

ContrastiveKernels contrastive_kernels() {
    ContrastiveKernels table = kernels_without_tiles();
    table.forward_f32 = &forward<float>;
    table.backward_f32 = &backward<float>;
    table.bytes = &bytes;
    table.pair_ranks = &pair_ranks;
    table.pair_ranks_bytes = &pair_ranks_bytes;
    table.measure_rank_rows = &measure_rows;
    return table;
}

}  // namespace sleepfm::SLEEPFM_ISA
