// The sizes of an MBConv block as MBConvShape, for calls of the block and of a whole encoder.
#pragma once

#include <cstdint>
#include <tuple>

#include "addresses.h"
#include "params.h"

namespace sleepfm::bindings {

// Clips, channels in, channels inside, channels out, samples in, stride.
using MBConvDims = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, int>;

inline sleepfm::MBConvShape mbconv_shape(MBConvDims dims, bool bf16, int n_threads, Address workspace) {
    sleepfm::MBConvShape shape{};
    std::tie(shape.n_clips, shape.n_in, shape.width, shape.n_out, shape.n_samples, shape.stride) = dims;
    shape.bf16 = bf16;
    shape.n_threads = n_threads;
    shape.workspace = pointer<void>(workspace);
    return shape;
}

}  // namespace sleepfm::bindings
