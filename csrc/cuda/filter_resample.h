// filter_resample on a CUDA device; the contract is that of params.h with all pointers on that device. The host does
// not see the table's rows, so that an impossible one is not refused: its outputs are NaN.
#pragma once

#include "params.h"

namespace sleepfm {

// `stream` is a cudaStream_t. Returns before the kernel has run.
void filter_resample_cuda(FilterResample const& p, int device, void* stream);

}  // namespace sleepfm
