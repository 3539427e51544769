// SLEEPFM_OMP(omp ...) is the OpenMP pragma, or nothing in a build without OpenMP, which then runs on one thread.
#pragma once

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

}  // namespace sleepfm
