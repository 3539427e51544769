// One instruction set's table of kernels; included with SLEEPFM_ISA (namespace) and SLEEPFM_LANES (floats in a
// register).
#include "cpu/narrow.h"
#include "cpu/narrow_batch_norm.h"
#include "cpu/narrow_pool.h"
#include "cpu/narrow_stem.h"

namespace sleepfm::SLEEPFM_ISA {

NarrowKernels narrow_kernels() {
    return {&stem_forward,
            &stem_backward,
            &batch_norm_forward,
            &batch_norm_backward,
            &max_pool_forward,
            &max_pool_backward,
            [](StemShape const& shape) { return StemWorkspace(shape).bytes; },
            [](BatchNormShape const& shape) { return BatchNormWorkspace(shape).bytes; }};
}

}  // namespace sleepfm::SLEEPFM_ISA
