// SLEEPFM_OMP(omp ...) is the OpenMP pragma, or nothing in a build without OpenMP, which then runs on one thread.
#pragma once

#include <cstdint>

#if defined(_OPENMP)
#define SLEEPFM_OMP(directive) _Pragma(#directive)
extern "C" int omp_get_thread_num(void);  // declared here: Apple's Clang knows OpenMP but comes without omp.h
#else
#define SLEEPFM_OMP(directive)
#endif

namespace sleepfm {

// The number of the calling thread in its team. Static: of an inline function the linker would keep one copy for all
// instruction sets.
static inline int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// As many threads as there is work for: with less than about 2^20 multiply-adds (10 to 20 us of a core), starting
// another one costs more than it saves. Results do not depend on it.
static inline int useful_threads(std::int64_t n_multiply_adds, int n_threads) {
    std::int64_t const n_useful = 1 + (n_multiply_adds >> 20);
    return n_useful < n_threads ? static_cast<int>(n_useful) : n_threads;
}

}  // namespace sleepfm
