// Collects the kernels of one instruction set; included once by each of contrastive_{portable,avx2,avx512}.cpp (see
// contrastive_simd.h).
#pragma once

#include "cpu/contrastive.h"
#include "cpu/contrastive_backward.h"
#include "cpu/contrastive_forward.h"
#include "cpu/contrastive_joint.h"
#include "cpu/contrastive_ranks.h"

namespace sleepfm::SLEEPFM_ISA {

inline ContrastiveBytes bytes(std::int64_t M, std::int64_t N, std::int64_t D, bool pairwise, bool is_double,
                              bool backward, bool kept, int n_threads) {
    Shape const shape(M, N, D, pairwise);
    return is_double ? bytes_of<double>(shape, backward, kept, n_threads)
                     : bytes_of<float>(shape, backward, kept, n_threads);
}

template <typename T>
inline void exponential_of(T const* x, T* y, std::int64_t n) {
    for (std::int64_t i = 0; i < n; i += WIDTH<T>) {
        alignas(64) T lane[WIDTH<T>] = {};
        std::int64_t const left = n - i < WIDTH<T> ? n - i : WIDTH<T>;
        std::memcpy(lane, x + i, static_cast<std::size_t>(left) * sizeof(T));
        store<T>(lane, exponential(load<T>(lane)));
        std::memcpy(y + i, lane, static_cast<std::size_t>(left) * sizeof(T));
    }
}

inline void exponential_any(void const* x, void* y, std::int64_t n, bool is_double) {
    if (is_double) {
        exponential_of(static_cast<double const*>(x), static_cast<double*>(y), n);
    } else {
        exponential_of(static_cast<float const*>(x), static_cast<float*>(y), n);
    }
}

ContrastiveKernels contrastive_kernels() {
    return {&forward<float>, &forward<double>, &backward<float>, &backward<double>, &bytes,        &joint,
            &joint_bytes,    &exponential_any, &pair_ranks,      &pair_ranks_bytes, &measure_rows, &own_inner_products};
}

}  // namespace sleepfm::SLEEPFM_ISA
