// SLEEPFM_HOST_DEVICE marks functions that run on the CPU and, where nvcc compiles them, on the GPU as well.
#pragma once

#if defined(__CUDACC__)
#define SLEEPFM_HOST_DEVICE __host__ __device__
#else
#define SLEEPFM_HOST_DEVICE
#endif
