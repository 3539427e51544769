#include "cuda/cuda_queue.cuh"
#include "cuda/mbconv_evaluate.h"
#include "cuda/mbconv_evaluate_launch.cuh"

namespace sleepfm {

void mbconv_evaluate_cuda_bf16(MBConvPacked const& call, int device, void* stream) {
    cuda::DeviceGuard const guard(device);
    cuda::CudaQueue queue{static_cast<cudaStream_t>(stream)};
    cuda::launch_mbconv_evaluate<DType::bf16>(queue, call);
}

}  // namespace sleepfm
