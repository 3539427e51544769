// How tensors cross from Python: by the address of their first element, sizes and strides as integers.
#pragma once

#include <cstdint>
#include <tuple>

namespace sleepfm::bindings {

using Address = std::uintptr_t;  // of a tensor's first element; 0 stands for none

template <typename T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

using Strides = std::tuple<std::int64_t, std::int64_t>;
using SampleRange = std::tuple<std::int64_t, std::int64_t>;
using MatrixShape = std::tuple<std::int64_t, std::int64_t, std::int64_t>;

}  // namespace sleepfm::bindings
