#include "cuda/contrastive_gemm_launch.cuh"

#include "cuda/cuda_queue.cuh"

namespace sleepfm {

void contrastive_gemm_cuda(GemmStep step, ContrastiveGemm const& g, int device, void* stream) {
    cuda::DeviceGuard const guard(device);
    cuda::CudaQueue queue{static_cast<cudaStream_t>(stream)};
    cuda::launch_gemm_step(queue, step, g);
}

}  // namespace sleepfm
