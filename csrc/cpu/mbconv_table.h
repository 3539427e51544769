// One instruction set's tables of kernels; included with SLEEPFM_ISA (namespace) and SLEEPFM_LANES (floats in a
// register).
#include "cpu/mbconv_bf16_table.h"

namespace sleepfm::SLEEPFM_ISA {

MBConvKernels mbconv_kernels() {
    return kernels_of<float>();
}

}  // namespace sleepfm::SLEEPFM_ISA
