// Collects the kernels of one instruction set; included once for each, with SLEEPFM_ISA (the namespace) and
// SLEEPFM_LANES (floats in a register) defined.
#include "cpu/mbconv_bf16_table.h"

namespace sleepfm::SLEEPFM_ISA {

MBConvKernels mbconv_kernels() {
    return kernels_of<float>();
}

}  // namespace sleepfm::SLEEPFM_ISA
