// The contract of every op: one plain struct each. The shape stands after every pointer; strides count elements.
// Kernels see these structs and nothing else: no torch, no Python, no allocation of outputs.
#pragma once

#include <cstdint>

namespace sleepfm {

// Element types that cross the boundary; the numbers are shared with sleepfm_fast/ops.py.
enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };

// ---- filter_resample ------------------------------------------------------------------------------------------------

// ---- contrastive_loss -----------------------------------------------------------------------------------------------

}  // namespace sleepfm
