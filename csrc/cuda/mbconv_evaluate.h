// MBConv blocks in evaluation on a CUDA device, one launch a block; a source for each element type, compiled apart.
#pragma once

#include "params.h"

namespace sleepfm {

// stream is a cudaStream_t. Return before the kernel has run.
void mbconv_evaluate_cuda_bf16(MBConvPacked const& call, int device, void* stream);
void mbconv_evaluate_cuda_f16(MBConvPacked const& call, int device, void* stream);

}  // namespace sleepfm
