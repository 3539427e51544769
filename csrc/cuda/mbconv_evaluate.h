// MBConv blocks in evaluation on a CUDA device, one launch for each block. Each element type has a source file of its
// own, so that they compile in parallel.
#pragma once

#include "params.h"

namespace sleepfm {

// `stream` is a cudaStream_t. They return before the kernel has run.
void mbconv_evaluate_cuda_bf16(MBConvPacked const& call, int device, void* stream);
void mbconv_evaluate_cuda_f16(MBConvPacked const& call, int device, void* stream);

}  // namespace sleepfm
