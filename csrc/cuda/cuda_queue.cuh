// The queue of contrastive_launch.h on a device: a CUDA stream. For .cu files.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "check.h"
#include "cuda/contrastive_launch.h"
#include "cuda/device.h"

namespace sleepfm::cuda {

struct CudaQueue {
    cudaStream_t stream;

    template <typename... Parameters, typename... Arguments>
    void operator()(void (*kernel)(Parameters...), Grid grid, int threads, std::int64_t shared_bytes,
                    Arguments const&... arguments) {
        if (shared_bytes > 48 * 1024) {                // what a block gets without asking
            allow_shared_bytes(kernel, shared_bytes);  // the same for all launches of a kernel
        }
        kernel<<<dim3(grid.x, grid.y), static_cast<unsigned>(threads), static_cast<std::size_t>(shared_bytes),
                 stream>>>(arguments...);
        SLEEPFM_CUDA_CHECK(cudaGetLastError());
    }
};

inline DeviceLimits device_limits(int device) {
    return {device_attribute(cudaDevAttrMultiProcessorCount, device),
            device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)};
}

}  // namespace sleepfm::cuda
