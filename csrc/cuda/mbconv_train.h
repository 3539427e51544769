// MBConv blocks in training on a CUDA device: what stands between the matrix products.
#pragma once

#include "params.h"

namespace sleepfm {

// stream is a cudaStream_t. Return before the kernels have run.
void mbconv_expansion_sums_cuda(MBConvExpansionSums const& call, MBConvFinishExpansionSums const& finish, int device,
                                void* stream);
void mbconv_depthwise_cuda(MBConvDepthwise const& call, MBConvFinishDepthwise const& finish, int device, void* stream);
void mbconv_activate_cuda(MBConvActivate const& call, int n_blocks, int device, void* stream);
void mbconv_gradient_sums_cuda(MBConvGradientSums const& call, MBConvFinishGradientSums const& finish, int device,
                               void* stream);
void mbconv_depthwise_backward_cuda(MBConvDepthwiseBackward const& call, MBConvFinishDepthwiseBackward const& finish,
                                    int device, void* stream);

}  // namespace sleepfm
