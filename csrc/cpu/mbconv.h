// The MBConv block of the encoder on the CPU (forward and backward of training, evaluation), and the whole encoder in
// evaluation. The contracts are those of params.h; these functions check the arguments and call the kernels of the best
// instruction set. Matrix products have float32 or bfloat16 factors and float32 sums.
#pragma once

#include <cstdint>

#include "params.h"

namespace sleepfm {

// Throw std::invalid_argument for what the kernels do not cover; otherwise run on shape.n_threads threads. The results
// are the same bits for every number of threads.
void mbconv_forward(MBConvForward const& call);
void mbconv_evaluate(MBConvEvaluate const& call);
void mbconv_backward(MBConvBackward const& call);

void encoder_evaluate(EncoderEvaluate const& call);

// Bytes of workspace: for forward or backward in training, for a block's evaluation, for an encoder's.
std::int64_t mbconv_workspace_bytes(MBConvShape const& shape, bool backward);
std::int64_t mbconv_evaluate_workspace_bytes(MBConvShape const& shape);
std::int64_t encoder_workspace_bytes(EncoderEvaluate const& call);

// The kernels of one instruction set.
struct MBConvKernels {
    void (*forward)(MBConvForward const&);
    void (*evaluate)(MBConvEvaluate const&);
    void (*backward)(MBConvBackward const&);
    void (*encode)(EncoderEvaluate const&);
    std::int64_t (*workspace_bytes)(MBConvShape const&, bool);
    std::int64_t (*evaluate_workspace_bytes)(MBConvShape const&);
    std::int64_t (*encoder_workspace_bytes)(EncoderEvaluate const&);
};

namespace portable {
MBConvKernels mbconv_kernels();
MBConvKernels mbconv_bf16_kernels();
}  // namespace portable
#if defined(__x86_64__)
namespace avx2 {
MBConvKernels mbconv_kernels();
MBConvKernels mbconv_bf16_kernels();
}  // namespace avx2
namespace avx512 {
MBConvKernels mbconv_kernels();
MBConvKernels mbconv_bf16_kernels();
}  // namespace avx512
namespace avx512_bf16 {  // AVX-512 with instructions for products of bfloat16
MBConvKernels mbconv_bf16_kernels();
}
namespace amx {  // the same, with products of tiles
MBConvKernels mbconv_bf16_kernels();
}
#endif

}  // namespace sleepfm
