// MBConv blocks in training on CUDA: the steps between the library's products.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <tuple>

#include "addresses.h"
#include "bindings.h"
#include "cuda/mbconv_train.h"
#include "params.h"

namespace py = pybind11;

namespace sleepfm::bindings {

namespace {

// Clips, samples in, channels inside, stride, rows of partial sums.
using Wide = std::tuple<std::int64_t, std::int64_t, std::int64_t, int, int>;

// Hands out the addresses of a call one by one. sleepfm_fast/ops/mbconv_between.py lists them in the order in which the
// functions below take them.
template <std::size_t N>
class Pointers {
  public:
    explicit Pointers(std::array<Address, N> const& addresses) : addresses_(addresses) {}
    template <typename T>
    T* next() {
        return pointer<T>(addresses_.at(place_++));
    }

  private:
    std::array<Address, N> const& addresses_;
    std::size_t place_ = 0;
};

void expansion_sums(std::int64_t n_rows, std::int64_t width, int n_partials, double eps,
                    std::array<Address, 10> const& addresses, int device, Address stream) {
    Pointers of(addresses);
    MBConvExpansionSums call{};
    MBConvFinishExpansionSums finish{};
    call.c1 = of.next<void const>();
    call.partial = of.next<float>();
    call.n_rows = n_rows;
    call.width = width;
    call.n_partials = n_partials;
    finish.partial = call.partial;
    finish.bias = of.next<void const>();
    finish.b1 = of.next<float const>();
    finish.gamma0 = of.next<float const>();
    finish.beta0 = of.next<float const>();
    finish.wd = of.next<float const>();
    finish.bd = of.next<float const>();
    finish.statistics = of.next<double>();
    finish.parameters = of.next<float>();
    finish.eps = eps;
    finish.n_rows = n_rows;
    finish.width = width;
    finish.n_partials = n_partials;
    mbconv_expansion_sums_cuda(call, finish, device, pointer<void>(stream));
}

std::int64_t samples_out(Wide const& wide) {
    return (std::get<1>(wide) - 1) / std::get<3>(wide) + 1;
}

void depthwise(Wide wide, double eps, std::array<Address, 9> const& addresses, int device, Address stream) {
    Pointers of(addresses);
    MBConvDepthwise call{};
    MBConvFinishDepthwise finish{};
    std::tie(call.n_clips, call.n_samples, call.width, call.stride, call.n_partials) = wide;
    call.c1 = of.next<void const>();
    call.parameters = of.next<float const>();
    call.c2 = of.next<void>();
    call.partial = of.next<float>();
    finish.partial = call.partial;
    finish.pivot = of.next<float const>();
    finish.gamma1 = of.next<float const>();
    finish.beta1 = of.next<float const>();
    finish.statistics = of.next<double>();
    finish.parameters = of.next<float>();
    finish.eps = eps;
    finish.n_rows = call.n_clips * samples_out(wide);
    finish.width = call.width;
    finish.n_partials = call.n_partials;
    mbconv_depthwise_cuda(call, finish, device, pointer<void>(stream));
}

void activate(std::int64_t n_rows, std::int64_t width, int n_blocks, std::array<Address, 3> const& addresses,
              int device, Address stream) {
    Pointers of(addresses);
    MBConvActivate call{};
    call.c2 = of.next<void const>();
    call.parameters = of.next<float const>();
    call.a2 = of.next<void>();
    call.n_rows = n_rows;
    call.width = width;
    mbconv_activate_cuda(call, n_blocks, device, pointer<void>(stream));
}

void gradient_sums(std::int64_t n_rows, std::int64_t width, int n_partials, double eps,
                   std::array<Address, 10> const& addresses, int device, Address stream) {
    Pointers of(addresses);
    MBConvGradientSums call{};
    MBConvFinishGradientSums finish{};
    call.c2 = of.next<void const>();
    call.da2 = of.next<void const>();
    call.parameters = of.next<float const>();
    call.partial = of.next<float>();
    call.n_rows = n_rows;
    call.width = width;
    call.n_partials = n_partials;
    finish.partial = call.partial;
    finish.statistics1 = of.next<double const>();
    finish.parameters0 = of.next<float const>();
    finish.parameters1 = call.parameters;
    finish.gamma1 = of.next<float const>();
    finish.dgamma1 = of.next<float>();
    finish.dbeta1 = of.next<float>();
    finish.parameters = of.next<float>();
    finish.eps = eps;
    finish.n_rows = n_rows;
    finish.width = width;
    finish.n_partials = n_partials;
    mbconv_gradient_sums_cuda(call, finish, device, pointer<void>(stream));
}

void depthwise_backward(Wide wide, double eps, std::array<Address, 12> const& addresses, int device, Address stream) {
    Pointers of(addresses);
    MBConvDepthwiseBackward call{};
    MBConvFinishDepthwiseBackward finish{};
    std::tie(call.n_clips, call.n_samples, call.width, call.stride, call.n_partials) = wide;
    call.c1 = of.next<void const>();
    call.c2 = of.next<void const>();
    call.da2 = of.next<void const>();
    call.parameters = of.next<float const>();
    call.g0 = of.next<void>();
    call.partial = of.next<float>();
    finish.partial = call.partial;
    finish.statistics0 = of.next<double const>();
    finish.gamma0 = of.next<float const>();
    finish.dgamma0 = of.next<float>();
    finish.dbeta0 = of.next<float>();
    finish.dwd = of.next<float>();
    finish.vectors = of.next<float>();
    finish.eps = eps;
    finish.n_rows = call.n_clips * call.n_samples;
    finish.width = call.width;
    finish.n_partials = call.n_partials;
    mbconv_depthwise_backward_cuda(call, finish, device, pointer<void>(stream));
}

}  // namespace

void bind_mbconv_train(py::module_& module) {
    using NoGil = py::call_guard<py::gil_scoped_release>;
    module.def("mbconv_train_expansion_sums", &expansion_sums, NoGil());
    module.def("mbconv_train_depthwise", &depthwise, NoGil());
    module.def("mbconv_train_activate", &activate, NoGil());
    module.def("mbconv_train_gradient_sums", &gradient_sums, NoGil());
    module.def("mbconv_train_depthwise_backward", &depthwise_backward, NoGil());
}

}  // namespace sleepfm::bindings
