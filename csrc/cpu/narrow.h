// The encoder's layers on narrow activations, on the CPU: the stem (convolution of 3 with stride 2, batch norm) and the
// batch norm that ends a stage, both in training, and the maximum of three samples.
#pragma once

#include <cstdint>

#include "params.h"

namespace sleepfm {

// Refuse (std::invalid_argument) what the kernels do not cover; otherwise run on n_threads threads. The results are the
// same bits for every number of threads.
void stem_forward(StemForward const& call);
void stem_backward(StemBackward const& call);
void batch_norm_forward(BatchNormForward const& call);
void batch_norm_backward(BatchNormBackward const& call);
void max_pool_forward(MaxPool const& call);
void max_pool_backward(MaxPool const& call);

std::int64_t stem_workspace_bytes(StemShape const& shape);
std::int64_t batch_norm_workspace_bytes(BatchNormShape const& shape);

// One instruction set's code.
struct NarrowKernels {
    void (*stem_forward)(StemForward const&);
    void (*stem_backward)(StemBackward const&);
    void (*batch_norm_forward)(BatchNormForward const&);
    void (*batch_norm_backward)(BatchNormBackward const&);
    void (*max_pool_forward)(MaxPool const&);
    void (*max_pool_backward)(MaxPool const&);
    std::int64_t (*stem_workspace_bytes)(StemShape const&);
    std::int64_t (*batch_norm_workspace_bytes)(BatchNormShape const&);
};

namespace portable {
NarrowKernels narrow_kernels();
}
#if defined(__x86_64__)
namespace avx2 {
NarrowKernels narrow_kernels();
}
namespace avx512 {
NarrowKernels narrow_kernels();
}
#endif

}  // namespace sleepfm
