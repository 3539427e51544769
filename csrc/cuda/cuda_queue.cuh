// A stream that kernels are launched on, as contrastive_launch.h calls it. For .cu files.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "check.h"
#include "cuda/contrastive_launch.h"

namespace sleepfm::cuda {

struct CudaQueue {
    cudaStream_t stream;

    template <typename... Parameters, typename... Arguments>
    void operator()(void (*kernel)(Parameters...), Grid grid, int threads, std::int64_t shared_bytes,
                    Arguments const&... arguments) {
        if (shared_bytes > 48 * 1024) {  // beyond what a block gets unasked
            SLEEPFM_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(shared_bytes)));
        }
        kernel<<<dim3(grid.x, grid.y), static_cast<unsigned>(threads), static_cast<std::size_t>(shared_bytes),
                 stream>>>(arguments...);
        SLEEPFM_CUDA_CHECK(cudaGetLastError());
    }
};

inline DeviceLimits device_limits(int device) {
    int n_multiprocessors = 0, shared_bytes = 0;
    SLEEPFM_CUDA_CHECK(cudaDeviceGetAttribute(&n_multiprocessors, cudaDevAttrMultiProcessorCount, device));
    SLEEPFM_CUDA_CHECK(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return {n_multiprocessors, shared_bytes};
}

// Makes `device` current and gives the old one back.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        SLEEPFM_CUDA_CHECK(cudaGetDevice(&before_));
        if (device != before_) {
            SLEEPFM_CUDA_CHECK(cudaSetDevice(device));
        }
    }
    ~DeviceGuard() { static_cast<void>(cudaSetDevice(before_)); }
    DeviceGuard(DeviceGuard const&) = delete;
    DeviceGuard& operator=(DeviceGuard const&) = delete;

  private:
    int before_ = 0;
};

}  // namespace sleepfm::cuda
