// The arguments that every call of the contrastive loss has, on the CPU and on CUDA, as ContrastiveInput.
#pragma once

#include <cstdint>
#include <tuple>

#include "addresses.h"
#include "params.h"

namespace sleepfm::bindings {

using ContrastiveShape = std::tuple<std::int64_t, std::int64_t, std::int64_t>;  // modalities, samples, dimensions

inline sleepfm::ContrastiveInput contrastive_input(Address x, int dtype, ContrastiveShape shape, Strides x_strides,
                                                   Address log_temperature, Address mask, Strides mask_strides,
                                                   bool pairwise, bool both_directions, int n_threads,
                                                   Address workspace) {
    sleepfm::ContrastiveInput input{};
    input.x = pointer<void const>(x);
    input.dtype = static_cast<sleepfm::DType>(dtype);
    std::tie(input.n_modalities, input.n_samples, input.n_dim) = shape;
    std::tie(input.stride_modality, input.stride_sample) = x_strides;
    input.log_temperature = pointer<void const>(log_temperature);
    input.mask = pointer<std::uint8_t const>(mask);
    std::tie(input.mask_stride_modality, input.mask_stride_sample) = mask_strides;
    input.pairwise = pairwise;
    input.both_directions = both_directions;
    input.n_threads = n_threads;
    input.workspace = pointer<void>(workspace);
    return input;
}

}  // namespace sleepfm::bindings
