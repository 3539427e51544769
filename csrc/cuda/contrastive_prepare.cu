#include "cuda/contrastive_prepare.cuh"

#include "cuda/cuda_queue.cuh"

namespace sleepfm {

void contrastive_prepare_cuda(ContrastiveInput const& input, ContrastiveOperands const& operands, void* stream) {
    cuda::CudaQueue queue{static_cast<cudaStream_t>(stream)};
    cuda::launch_prepare(queue, input, operands);
}

}  // namespace sleepfm
