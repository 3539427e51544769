#include "cuda/mbconv_train.h"

#include "cuda/cuda_queue.cuh"
#include "cuda/mbconv_train_launch.cuh"

namespace sleepfm {

void mbconv_expansion_sums_cuda(MBConvExpansionSums const& call, MBConvFinishExpansionSums const& finish, int device,
                                void* stream) {
    cuda::DeviceGuard const guard(device);
    cuda::CudaQueue queue{static_cast<cudaStream_t>(stream)};
    cuda::launch_mbconv_expansion_sums(queue, call);
    cuda::launch_mbconv_finish(queue, &cuda::mbconv_finish_expansion_sums_kernel, finish);
}

void mbconv_depthwise_cuda(MBConvDepthwise const& call, MBConvFinishDepthwise const& finish, int device, void* stream) {
    cuda::DeviceGuard const guard(device);
    cuda::CudaQueue queue{static_cast<cudaStream_t>(stream)};
    cuda::launch_mbconv_depthwise(queue, call);
    cuda::launch_mbconv_finish(queue, &cuda::mbconv_finish_depthwise_kernel, finish);
}

void mbconv_activate_cuda(MBConvActivate const& call, int n_blocks, int device, void* stream) {
    cuda::DeviceGuard const guard(device);
    cuda::CudaQueue queue{static_cast<cudaStream_t>(stream)};
    cuda::launch_mbconv_activate(queue, call, n_blocks);
}

void mbconv_gradient_sums_cuda(MBConvGradientSums const& call, MBConvFinishGradientSums const& finish, int device,
                               void* stream) {
    cuda::DeviceGuard const guard(device);
    cuda::CudaQueue queue{static_cast<cudaStream_t>(stream)};
    cuda::launch_mbconv_gradient_sums(queue, call);
    cuda::launch_mbconv_finish(queue, &cuda::mbconv_finish_gradient_sums_kernel, finish);
}

void mbconv_depthwise_backward_cuda(MBConvDepthwiseBackward const& call, MBConvFinishDepthwiseBackward const& finish,
                                    int device, void* stream) {
    cuda::DeviceGuard const guard(device);
    cuda::CudaQueue queue{static_cast<cudaStream_t>(stream)};
    cuda::launch_mbconv_depthwise_backward(queue, call);
    cuda::launch_mbconv_finish(queue, &cuda::mbconv_finish_depthwise_backward_kernel, finish);
}

}  // namespace sleepfm
