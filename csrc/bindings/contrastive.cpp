// The contrastive loss on the CPU.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>

#include "addresses.h"
#include "bindings.h"
#include "contrastive_input.h"
#include "cpu/contrastive.h"
#include "params.h"

namespace py = pybind11;

namespace sleepfm::bindings {

namespace {

void contrastive_forward(Address x, int dtype, ContrastiveShape shape, Strides x_strides, Address log_temperature,
                         Address mask, Strides mask_strides, bool pairwise, bool both_directions, int n_threads,
                         Address workspace, Address loss, Address losses, Address correct, Address ranks,
                         Address n_valid, Address state, SampleRange range, Address kept) {
    auto input = contrastive_input(x, dtype, shape, x_strides, log_temperature, mask, mask_strides, pairwise,
                                   both_directions, n_threads, workspace);
    std::tie(input.begin, input.end) = range;
    input.kept = pointer<void>(kept);
    sleepfm::contrastive_forward({input, pointer<void>(loss), pointer<void>(losses), pointer<std::int64_t>(correct),
                                  pointer<std::int32_t>(ranks), pointer<std::int64_t>(n_valid),
                                  pointer<double>(state)});
}

void contrastive_backward(Address x, int dtype, ContrastiveShape shape, Strides x_strides, Address log_temperature,
                          Address mask, Strides mask_strides, bool pairwise, bool both_directions, int n_threads,
                          Address workspace, Address gradient_loss, Address n_valid, Address state, Address gradient_x,
                          Address gradient_log_temperature, SampleRange range, Address kept) {
    auto input = contrastive_input(x, dtype, shape, x_strides, log_temperature, mask, mask_strides, pairwise,
                                   both_directions, n_threads, workspace);
    std::tie(input.begin, input.end) = range;
    input.kept = pointer<void>(kept);
    sleepfm::contrastive_backward({input, pointer<void const>(gradient_loss), pointer<std::int64_t const>(n_valid),
                                   pointer<double const>(state), pointer<void>(gradient_x),
                                   pointer<void>(gradient_log_temperature)});
}

// results: addresses of loss, losses, correct, ranks, n_valid, and of state or 0.
void contrastive_joint(Address x, int dtype, ContrastiveShape shape, Strides x_strides, Address log_temperature,
                       Address mask, Strides mask_strides, bool pairwise, bool both_directions, int n_threads,
                       std::tuple<Address, Address, Address, Address, Address, Address> results, double upstream,
                       Address gradient_x, Address gradient_log_temperature) {
    auto const input = contrastive_input(x, dtype, shape, x_strides, log_temperature, mask, mask_strides, pairwise,
                                         both_directions, n_threads, 0);
    auto const [loss, losses, correct, ranks, n_valid, state] = results;
    sleepfm::contrastive_joint({{input, pointer<void>(loss), pointer<void>(losses), pointer<std::int64_t>(correct),
                                 pointer<std::int32_t>(ranks), pointer<std::int64_t>(n_valid), pointer<double>(state)},
                                upstream,
                                pointer<void>(gradient_x),
                                pointer<void>(gradient_log_temperature)});
}

std::tuple<std::int64_t, std::int64_t> contrastive_bytes(std::int64_t n_modalities, std::int64_t n_samples,
                                                         std::int64_t n_dim, bool pairwise, bool is_double,
                                                         bool backward, bool kept, int n_threads) {
    auto const bytes =
        sleepfm::contrastive_bytes(n_modalities, n_samples, n_dim, pairwise, is_double, backward, kept, n_threads);
    return {bytes.workspace, bytes.kept};
}

void contrastive_exponential(Address x, Address y, std::int64_t n, bool is_double) {
    sleepfm::contrastive_exponential(pointer<void const>(x), pointer<void>(y), n, is_double);
}

}  // namespace

void bind_contrastive(py::module_& module) {
    using NoGil = py::call_guard<py::gil_scoped_release>;
    module.def("contrastive_forward", &contrastive_forward, NoGil());
    module.def("contrastive_backward", &contrastive_backward, NoGil());
    module.def("contrastive_joint", &contrastive_joint, NoGil());
    module.def("contrastive_bytes", &contrastive_bytes);
    module.def("contrastive_exponential", &contrastive_exponential, NoGil());
}

}  // namespace sleepfm::bindings
