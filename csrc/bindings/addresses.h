// How tensors come from Python: as the address of their first element, with sizes and strides as integers. The
// functions in sleepfm_fast/ops check types, shapes and devices; here addresses are believed.
#pragma once

#include <cstdint>
#include <tuple>

namespace sleepfm::bindings {

using Address = std::uintptr_t;  // of a tensor's first element; 0: there is no tensor

template <typename T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

using Strides = std::tuple<std::int64_t, std::int64_t>;                    // of modality and sample, in elements
using SampleRange = std::tuple<std::int64_t, std::int64_t>;                // begin, end
using MatrixShape = std::tuple<std::int64_t, std::int64_t, std::int64_t>;  // rows, columns, dimensions

}  // namespace sleepfm::bindings
