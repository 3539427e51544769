// Collects the kernels of one instruction set whose products have bfloat16 factors; included once for each, with
// SLEEPFM_ISA (the namespace) and SLEEPFM_LANES (floats in a register) defined.
#include "cpu/encoder_evaluate.h"
#include "cpu/mbconv.h"
#include "cpu/mbconv_backward.h"
#include "cpu/mbconv_evaluate.h"
#include "cpu/mbconv_forward.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

template <typename Factor>
MBConvKernels kernels_of() {
    return {
        &forward<Factor>,
        &evaluate<Factor>,
        &backward<Factor>,
        &encode<Factor>,
        [](MBConvShape const& shape, bool is_backward) { return MBConvWorkspace<Factor>(shape, is_backward).bytes; },
        [](MBConvShape const& shape) { return EvaluateWorkspace<Factor>(shape).bytes; },
        [](EncoderEvaluate const& call) { return EncoderWorkspace<Factor>(call).bytes; }};
}

}  // namespace

MBConvKernels mbconv_bf16_kernels() {
    return kernels_of<Pair>();
}

}  // namespace sleepfm::SLEEPFM_ISA
