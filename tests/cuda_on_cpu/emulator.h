// Runs CUDA kernels on the host: csrc/cuda/ptx.h includes this header where SLEEPFM_ON_HOST is defined. README.md says
// how to put a kernel under test.
#pragma once

#include <cstdint>

// ---- the words of CUDA C++ that kernels use
// --------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};
inline Dim3 threadIdx, blockIdx, blockDim, gridDim;

#include "fenced_memory.h"
#include "instructions.h"
#include "launch.h"
#include "machine.h"
