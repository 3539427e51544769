// Layers of few channels: the stem, the batch norm and the maximum.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>

#include "addresses.h"
#include "bindings.h"
#include "cpu/narrow.h"
#include "params.h"

namespace py = pybind11;

namespace sleepfm::bindings {

namespace {

using StemDims = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

sleepfm::StemShape stem_shape(StemDims dims, int n_threads, Address workspace) {
    auto const [n_clips, n_in, n_out, n_samples] = dims;
    return {n_clips, n_in, n_out, n_samples, n_threads, pointer<void>(workspace)};
}

std::int64_t stem_workspace_bytes(StemDims dims, int n_threads) {
    return sleepfm::stem_workspace_bytes(stem_shape(dims, n_threads, 0));
}

void stem_forward(StemDims dims, int n_threads, Address workspace, double eps, Address x, Address w, Address bias,
                  Address gamma, Address beta, Address c, Address statistics, Address y) {
    sleepfm::stem_forward({stem_shape(dims, n_threads, workspace), eps, pointer<float const>(x),
                           pointer<float const>(w), pointer<float const>(bias), pointer<float const>(gamma),
                           pointer<float const>(beta), pointer<float>(c), pointer<double>(statistics),
                           pointer<float>(y)});
}

void stem_backward(StemDims dims, int n_threads, Address workspace, double eps, Address x, Address c, Address gamma,
                   Address dy, Address statistics, Address dw, Address dgamma, Address dbeta) {
    sleepfm::stem_backward({stem_shape(dims, n_threads, workspace), eps, pointer<float const>(x),
                            pointer<float const>(c), pointer<float const>(gamma), pointer<float const>(dy),
                            pointer<double const>(statistics), pointer<float>(dw), pointer<float>(dgamma),
                            pointer<float>(dbeta)});
}

// n_clips, n_channels, n_samples.
using BatchNormDims = std::tuple<std::int64_t, std::int64_t, std::int64_t>;

sleepfm::BatchNormShape batch_norm_shape(BatchNormDims dims, int n_threads, Address workspace) {
    auto const [n_clips, n_channels, n_samples] = dims;
    return {n_clips, n_channels, n_samples, n_threads, pointer<void>(workspace)};
}

std::int64_t batch_norm_workspace_bytes(BatchNormDims dims, int n_threads) {
    return sleepfm::batch_norm_workspace_bytes(batch_norm_shape(dims, n_threads, 0));
}

void batch_norm_forward(BatchNormDims dims, int n_threads, Address workspace, double eps, Address x, Address gamma,
                        Address beta, Address statistics, Address y) {
    sleepfm::batch_norm_forward({batch_norm_shape(dims, n_threads, workspace), eps, pointer<float const>(x),
                                 pointer<float const>(gamma), pointer<float const>(beta), pointer<double>(statistics),
                                 pointer<float>(y)});
}

void batch_norm_backward(BatchNormDims dims, int n_threads, Address workspace, double eps, Address x, Address gamma,
                         Address dy, Address statistics, Address dx, Address dgamma, Address dbeta) {
    sleepfm::batch_norm_backward({batch_norm_shape(dims, n_threads, workspace), eps, pointer<float const>(x),
                                  pointer<float const>(gamma), pointer<float const>(dy),
                                  pointer<double const>(statistics), pointer<float>(dx), pointer<float>(dgamma),
                                  pointer<float>(dbeta)});
}

void max_pool_forward(std::int64_t n_rows, std::int64_t n_samples, int n_threads, Address x, Address y) {
    sleepfm::max_pool_forward({n_rows, n_samples, n_threads, pointer<float const>(x), nullptr, pointer<float>(y)});
}

void max_pool_backward(std::int64_t n_rows, std::int64_t n_samples, int n_threads, Address x, Address dy, Address dx) {
    sleepfm::max_pool_backward(
        {n_rows, n_samples, n_threads, pointer<float const>(x), pointer<float const>(dy), pointer<float>(dx)});
}

}  // namespace

void bind_narrow(py::module_& module) {
    using NoGil = py::call_guard<py::gil_scoped_release>;
    module.def("stem_forward", &stem_forward, NoGil());
    module.def("stem_backward", &stem_backward, NoGil());
    module.def("stem_workspace_bytes", &stem_workspace_bytes);
    module.def("batch_norm_forward", &batch_norm_forward, NoGil());
    module.def("batch_norm_backward", &batch_norm_backward, NoGil());
    module.def("batch_norm_workspace_bytes", &batch_norm_workspace_bytes);
    module.def("max_pool_forward", &max_pool_forward, NoGil());
    module.def("max_pool_backward", &max_pool_backward, NoGil());
}

}  // namespace sleepfm::bindings
