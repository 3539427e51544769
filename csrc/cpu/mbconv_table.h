// One instruction set's table of kernels; included with SLEEPFM_ISA (namespace) and SLEEPFM_LANES (floats in a
// register).
#include "cpu/encoder_evaluate.h"
#include "cpu/mbconv.h"
#include "cpu/mbconv_backward.h"
#include "cpu/mbconv_evaluate.h"
#include "cpu/mbconv_forward.h"

namespace sleepfm::SLEEPFM_ISA {

MBConvKernels mbconv_kernels() {
    return {&forward,
            &evaluate,
            &backward,
            &encode,
            [](MBConvShape const& shape, bool is_backward) { return MBConvWorkspace(shape, is_backward).bytes; },
            [](MBConvShape const& shape) { return EvaluateWorkspace(shape).bytes; },
            [](EncoderEvaluate const& call) { return EncoderWorkspace(call).bytes; }};
}

}  // namespace sleepfm::SLEEPFM_ISA
