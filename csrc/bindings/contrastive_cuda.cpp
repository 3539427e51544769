// The contrastive loss on CUDA.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <tuple>
#include <vector>

#include "addresses.h"
#include "bindings.h"
#include "check.h"
#include "contrastive_input.h"
#include "cuda/contrastive.h"
#include "cuda/contrastive_epilogue.h"
#include "cuda/contrastive_small.h"
#include "params.h"

namespace py = pybind11;

namespace sleepfm::bindings {

namespace {

// The members of ContrastiveCudaOptions: split, begin, end, device, stream.
using ContrastiveDevice = std::tuple<bool, std::int64_t, std::int64_t, int, Address>;

sleepfm::ContrastiveCudaOptions contrastive_options(ContrastiveDevice const& where) {
    auto const& [split, begin, end, device, stream] = where;
    return {split, begin, end, device, pointer<void>(stream)};
}

std::int64_t contrastive_cuda_workspace_bytes(ContrastiveShape shape, bool pairwise, bool backward,
                                              ContrastiveDevice const& where) {
    sleepfm::ContrastiveInput const sizes = contrastive_input(0, 0, shape, {0, 0}, 0, 0, {0, 0}, pairwise, true, 0, 0);
    return backward ? sleepfm::contrastive_backward_cuda_bytes(sizes, contrastive_options(where))
                    : sleepfm::contrastive_forward_cuda_bytes(sizes, contrastive_options(where));
}

void contrastive_cuda_forward(Address x, int dtype, ContrastiveShape shape, Strides x_strides, Address log_temperature,
                              Address mask, Strides mask_strides, bool pairwise, bool both_directions,
                              ContrastiveDevice const& where, Address workspace, Address loss, Address losses,
                              Address correct, Address ranks, Address n_valid, Address state) {
    sleepfm::ContrastiveForward const call{contrastive_input(x, dtype, shape, x_strides, log_temperature, mask,
                                                             mask_strides, pairwise, both_directions, 0, workspace),
                                           pointer<void>(loss),
                                           pointer<void>(losses),
                                           pointer<std::int64_t>(correct),
                                           pointer<std::int32_t>(ranks),
                                           pointer<std::int64_t>(n_valid),
                                           pointer<double>(state)};
    sleepfm::contrastive_forward_cuda(call, contrastive_options(where));
}

void contrastive_cuda_backward(Address x, int dtype, ContrastiveShape shape, Strides x_strides, Address log_temperature,
                               Address mask, Strides mask_strides, bool pairwise, bool both_directions,
                               ContrastiveDevice const& where, Address workspace, Address gradient_loss,
                               Address n_valid, Address state, Address gradient_x, Address gradient_log_temperature) {
    sleepfm::ContrastiveBackward const call{contrastive_input(x, dtype, shape, x_strides, log_temperature, mask,
                                                              mask_strides, pairwise, both_directions, 0, workspace),
                                            pointer<void const>(gradient_loss),
                                            pointer<std::int64_t const>(n_valid),
                                            pointer<double const>(state),
                                            pointer<void>(gradient_x),
                                            pointer<void>(gradient_log_temperature)};
    sleepfm::contrastive_backward_cuda(call, contrastive_options(where));
}

std::int64_t contrastive_small_workspace_bytes(std::int64_t n_modalities, std::int64_t n_samples, std::int64_t n_dim,
                                               bool pairwise, bool gradient) {
    sleepfm::ContrastiveInput input{};
    input.n_modalities = n_modalities;
    input.n_samples = n_samples;
    input.n_dim = n_dim;
    input.pairwise = pairwise;
    return sleepfm::contrastive_small_workspace_bytes(input, gradient);
}

// results: addresses of loss, losses, correct, ranks, n_valid, state.
void contrastive_small(Address x, int dtype, ContrastiveShape shape, Strides x_strides, Address log_temperature,
                       Address mask, Strides mask_strides, bool pairwise, bool both_directions, Address workspace,
                       std::tuple<std::int64_t, std::int64_t> range, bool given_state,
                       std::tuple<Address, Address, Address, Address, Address, Address> results, Address gradient_loss,
                       Address gradient_x, int gradient_dtype, Address gradient_log_temperature, Address barrier,
                       int device, Address stream) {
    sleepfm::ContrastiveSmall p{};
    p.input = contrastive_input(x, dtype, shape, x_strides, log_temperature, mask, mask_strides, pairwise,
                                both_directions, 1, workspace);
    std::tie(p.begin, p.end) = range;
    p.given_state = given_state;
    p.loss = pointer<float>(std::get<0>(results));
    p.losses = pointer<float>(std::get<1>(results));
    p.correct = pointer<std::int64_t>(std::get<2>(results));
    p.ranks = pointer<std::int32_t>(std::get<3>(results));
    p.n_valid = pointer<std::int64_t>(std::get<4>(results));
    p.state = pointer<double>(std::get<5>(results));
    p.gradient_loss = pointer<float const>(gradient_loss);
    p.gradient_x = pointer<void>(gradient_x);
    p.gradient_dtype = static_cast<sleepfm::DType>(gradient_dtype);
    p.gradient_log_temperature = pointer<float>(gradient_log_temperature);
    p.barrier = pointer<unsigned>(barrier);
    sleepfm::contrastive_small_cuda(p, device, pointer<void>(stream));
}

// members: all members of ContrastiveGemm in their order, addresses among them.
void contrastive_gemm(std::int64_t step, std::vector<std::int64_t> const& members, int device, Address stream) {
    sleepfm::ContrastiveGemm g{};
    SLEEPFM_CHECK(members.size() * sizeof(std::int64_t) == sizeof g, "contrastive_gemm: ", members.size(),
                  " members are given; the structure has ", sizeof g / sizeof(std::int64_t), ".");
    std::memcpy(&g, members.data(), sizeof g);
    sleepfm::contrastive_gemm_cuda(static_cast<sleepfm::GemmStep>(step), g, device, pointer<void>(stream));
}

}  // namespace

void bind_contrastive_cuda(py::module_& module) {
    using NoGil = py::call_guard<py::gil_scoped_release>;
    module.def("contrastive_cuda_workspace_bytes", &contrastive_cuda_workspace_bytes);
    module.def("contrastive_cuda_forward", &contrastive_cuda_forward, NoGil());
    module.def("contrastive_cuda_backward", &contrastive_cuda_backward, NoGil());
    module.def("contrastive_small_workspace_bytes", &contrastive_small_workspace_bytes);
    module.def("contrastive_small", &contrastive_small, NoGil());
    module.def("contrastive_gemm", &contrastive_gemm, NoGil());
}

}  // namespace sleepfm::bindings
