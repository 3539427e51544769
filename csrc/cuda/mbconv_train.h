// MBConv blocks in training on a CUDA device: the steps between the matrix products, which are torch's. Each function
// launches the kernel of a step and the one that finishes its sums. sleepfm_fast/ops/mbconv_between.py calls them.
#pragma once

#include "params.h"

namespace sleepfm {

// `stream` is a cudaStream_t. They return before the kernels have run.
void mbconv_expansion_sums_cuda(MBConvExpansionSums const& call, MBConvFinishExpansionSums const& finish, int device,
                                void* stream);
void mbconv_depthwise_cuda(MBConvDepthwise const& call, MBConvFinishDepthwise const& finish, int device, void* stream);
void mbconv_activate_cuda(MBConvActivate const& call, int n_blocks, int device, void* stream);
void mbconv_gradient_sums_cuda(MBConvGradientSums const& call, MBConvFinishGradientSums const& finish, int device,
                               void* stream);
void mbconv_depthwise_backward_cuda(MBConvDepthwiseBackward const& call, MBConvFinishDepthwiseBackward const& finish,
                                    int device, void* stream);

}  // namespace sleepfm
