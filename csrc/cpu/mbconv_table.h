// One instruction set's table of kernels; included with SLEEPFM_ISA (namespace) and SLEEPFM_LANES (floats in a
// register).
#include "cpu/mbconv.h"
#include "cpu/mbconv_backward.h"
#include "cpu/mbconv_evaluate.h"
#include "cpu/mbconv_forward.h"

namespace sleepfm::SLEEPFM_ISA {

MBConvKernels mbconv_kernels() {
    return {&forward, &evaluate, &backward,
            [](MBConvShape const& shape, bool is_backward) { return MBConvWorkspace(shape, is_backward).bytes; }};
}

}  // namespace sleepfm::SLEEPFM_ISA
