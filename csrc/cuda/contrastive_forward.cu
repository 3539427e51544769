#include "cuda/contrastive_forward_launch.cuh"
#include "cuda/cuda_queue.cuh"

namespace sleepfm {

void contrastive_forward_cuda(ContrastiveForward const& call, ContrastiveCudaOptions const& options) {
    cuda::DeviceGuard const guard(options.device);
    cuda::CudaQueue queue{static_cast<cudaStream_t>(options.stream)};
    cuda::launch_forward(queue, call, options, cuda::device_limits(options.device));
}

std::int64_t contrastive_forward_cuda_bytes(ContrastiveInput const& sizes, ContrastiveCudaOptions const& options) {
    std::int64_t bytes = 0;
    cuda::DeviceLimits const limits = cuda::device_limits(options.device);
    cuda::for_forward_policy(options.split, limits, [&](auto policy) {
        bytes = cuda::forward_workspace<decltype(policy)>(sizes, options, limits).bytes;
    });
    return bytes;
}

}  // namespace sleepfm
