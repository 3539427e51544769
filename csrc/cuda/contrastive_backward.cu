#include "cuda/contrastive_backward_launch.cuh"
#include "cuda/cuda_queue.cuh"

namespace sleepfm {

void contrastive_backward_cuda(ContrastiveBackward const& call, ContrastiveCudaOptions const& options) {
    cuda::DeviceGuard const guard(options.device);
    cuda::CudaQueue queue{static_cast<cudaStream_t>(options.stream)};
    cuda::launch_backward(queue, call, options, cuda::device_limits(options.device));
}

std::int64_t contrastive_backward_cuda_bytes(ContrastiveInput const& sizes, ContrastiveCudaOptions const& options) {
    return cuda::backward_workspace(sizes, options).bytes;
}

}  // namespace sleepfm
