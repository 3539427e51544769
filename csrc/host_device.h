// Functions that are compiled for the processor and, by nvcc, for the GPU as well.
#pragma once

#if defined(__CUDACC__)
#define SLEEPFM_HOST_DEVICE __host__ __device__
#else
#define SLEEPFM_HOST_DEVICE
#endif
