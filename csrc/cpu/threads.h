// OpenMP, or one thread where the compiler is not asked for it.
#pragma once

#if defined(_OPENMP)
#define SLEEPFM_OMP(directive) _Pragma(#directive)
extern "C" int omp_get_thread_num(void);  // declared here: Apple's Clang knows OpenMP but comes without omp.h
#else
#define SLEEPFM_OMP(directive)
#endif

namespace sleepfm {

// Static: each instruction set has its own, so that none runs another's instructions.
static inline int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

}  // namespace sleepfm
