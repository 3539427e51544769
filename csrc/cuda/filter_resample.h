// filter_resample on a CUDA device; the contract is that of params.h, with all pointers on that device. Rows of the
// table are not read back: an impossible one gives NaN.
#pragma once

#include "params.h"

namespace sleepfm {

// stream is a cudaStream_t. Returns before the kernel has run.
void filter_resample_cuda(FilterResample const& p, int device, void* stream);

}  // namespace sleepfm
