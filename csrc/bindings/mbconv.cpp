// Blocks of the encoder: on the CPU, and in evaluation on CUDA.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>

#include "addresses.h"
#include "bindings.h"
#include "check.h"
#include "cpu/mbconv.h"
#include "cuda/mbconv_evaluate.h"
#include "cuda/mbconv_evaluate_policy.h"
#include "mbconv_shape.h"
#include "params.h"

namespace py = pybind11;

namespace sleepfm::bindings {

namespace {

// The weights in the order of MBConvWeights.
using MBConvAddresses =
    std::tuple<Address, Address, Address, Address, Address, Address, Address, Address, Address, Address>;

sleepfm::MBConvWeights mbconv_weights(MBConvAddresses const& addresses) {
    return std::apply([](auto... address) { return sleepfm::MBConvWeights{pointer<float const>(address)...}; },
                      addresses);
}

std::int64_t mbconv_workspace_bytes(MBConvDims dims, bool bf16, int n_threads, bool backward) {
    return sleepfm::mbconv_workspace_bytes(mbconv_shape(dims, bf16, n_threads, 0), backward);
}

std::int64_t mbconv_evaluate_workspace_bytes(MBConvDims dims, bool bf16, int n_threads) {
    return sleepfm::mbconv_evaluate_workspace_bytes(mbconv_shape(dims, bf16, n_threads, 0));
}

using MBConvResidual = std::tuple<bool, double, std::uint64_t>;  // add, dropout, seed

sleepfm::MBConvResidual mbconv_residual(MBConvResidual const& r) {
    return {std::get<0>(r), std::get<1>(r), std::get<2>(r)};
}

void mbconv_forward(MBConvDims dims, bool bf16, int n_threads, Address workspace, MBConvAddresses const& weights,
                    MBConvResidual const& residual, double eps, Address x, Address c1, Address c2, Address statistics,
                    Address moments, Address y) {
    sleepfm::mbconv_forward({mbconv_shape(dims, bf16, n_threads, workspace), mbconv_weights(weights),
                             mbconv_residual(residual), eps, pointer<float const>(x), pointer<void>(c1),
                             pointer<void>(c2), pointer<double>(statistics), pointer<double>(moments),
                             pointer<float>(y)});
}

void mbconv_evaluate(MBConvDims dims, bool bf16, int n_threads, Address workspace, MBConvAddresses const& weights,
                     MBConvResidual const& residual, double eps, Address mean0, Address variance0, Address mean1,
                     Address variance1, Address x, Address y) {
    sleepfm::mbconv_evaluate({mbconv_shape(dims, bf16, n_threads, workspace), mbconv_weights(weights),
                              mbconv_residual(residual), eps, pointer<float const>(mean0),
                              pointer<float const>(variance0), pointer<float const>(mean1),
                              pointer<float const>(variance1), pointer<float const>(x), pointer<float>(y)});
}

void mbconv_backward(MBConvDims dims, bool bf16, int n_threads, Address workspace, MBConvAddresses const& weights,
                     MBConvResidual const& residual, double eps, Address x, Address c1, Address c2, Address statistics,
                     Address moments, Address dy, Address g1, Address dx,
                     std::tuple<Address, Address, Address, Address, Address, Address, Address, Address> d) {
    sleepfm::MBConvBackward call{};
    call.shape = mbconv_shape(dims, bf16, n_threads, workspace);
    call.weights = mbconv_weights(weights);
    call.residual = mbconv_residual(residual);
    call.eps = eps;
    call.x = pointer<float const>(x);
    call.c1 = pointer<void const>(c1);
    call.c2 = pointer<void const>(c2);
    call.statistics = pointer<double const>(statistics);
    call.moments = pointer<double const>(moments);
    call.dy = pointer<float const>(dy);
    call.g1 = pointer<void>(g1);
    call.dx = pointer<float>(dx);
    call.dw1 = pointer<float>(std::get<0>(d));
    call.dgamma0 = pointer<float>(std::get<1>(d));
    call.dbeta0 = pointer<float>(std::get<2>(d));
    call.dwd = pointer<float>(std::get<3>(d));
    call.dgamma1 = pointer<float>(std::get<4>(d));
    call.dbeta1 = pointer<float>(std::get<5>(d));
    call.dw3 = pointer<float>(std::get<6>(d));
    call.db3 = pointer<float>(std::get<7>(d));
    sleepfm::mbconv_backward(call);
}

bool mbconv_evaluate_covers(std::int64_t n_in, std::int64_t width, std::int64_t n_out, int stride) {
    return sleepfm::cuda::for_mbconv_policy(n_in, width, n_out, stride, [](auto) {});
}

void mbconv_evaluate_cuda(MBConvDims dims, int dtype, bool residual, Address x, Address packed, Address bias, Address y,
                          int device, Address stream) {
    sleepfm::MBConvPacked p{};
    std::tie(p.n_clips, p.n_in, p.width, p.n_out, p.n_samples, p.stride) = dims;
    p.x = pointer<void const>(x);
    p.packed = pointer<void const>(packed);
    p.bias = pointer<float const>(bias);
    p.y = pointer<void>(y);
    p.dtype = static_cast<sleepfm::DType>(dtype);
    p.residual = residual;
    SLEEPFM_CHECK(p.dtype == sleepfm::DType::bf16 || p.dtype == sleepfm::DType::f16,
                  "mbconv_evaluate: x is neither bfloat16 nor float16.");
    auto const launch =
        p.dtype == sleepfm::DType::bf16 ? &sleepfm::mbconv_evaluate_cuda_bf16 : &sleepfm::mbconv_evaluate_cuda_f16;
    launch(p, device, pointer<void>(stream));
}

}  // namespace

void bind_mbconv(py::module_& module) {
    using NoGil = py::call_guard<py::gil_scoped_release>;
    module.def("mbconv_forward", &mbconv_forward, NoGil());
    module.def("mbconv_evaluate", &mbconv_evaluate, NoGil());
    module.def("mbconv_backward", &mbconv_backward, NoGil());
    module.def("mbconv_workspace_bytes", &mbconv_workspace_bytes);
    module.def("mbconv_evaluate_workspace_bytes", &mbconv_evaluate_workspace_bytes);
    module.def("mbconv_evaluate_covers", &mbconv_evaluate_covers);
    module.def("mbconv_evaluate_cuda", &mbconv_evaluate_cuda, NoGil());
}

}  // namespace sleepfm::bindings
