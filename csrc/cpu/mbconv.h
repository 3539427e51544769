// The MBConv block of the encoder on the CPU: 1x1 expansion, batch norm, ReLU6, depthwise convolution of 3, batch norm,
// ReLU6, 1x1 projection; forward, evaluation and backward. And the whole encoder in evaluation. Products have factors
// of float32 or of bfloat16, and sums of float32.
#pragma once

#include <cstdint>

#include "params.h"

namespace sleepfm {

// Refuse (std::invalid_argument) what the kernels do not cover; otherwise run on shape.n_threads threads. The results
// are the same bits for every number of threads.
void mbconv_forward(MBConvForward const& call);
void mbconv_evaluate(MBConvEvaluate const& call);
void mbconv_backward(MBConvBackward const& call);

void encoder_evaluate(EncoderEvaluate const& call);

// For forward or backward of a training; for evaluation.
std::int64_t mbconv_workspace_bytes(MBConvShape const& shape, bool backward);
std::int64_t mbconv_evaluate_workspace_bytes(MBConvShape const& shape);
std::int64_t encoder_workspace_bytes(EncoderEvaluate const& call);

// One instruction set's code.
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
namespace avx512_bf16 {  // with instructions for products of bfloat16
MBConvKernels mbconv_bf16_kernels();
}
#endif

}  // namespace sleepfm
