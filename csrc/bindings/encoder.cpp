// A whole encoder in evaluation as one call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "addresses.h"
#include "bindings.h"
#include "check.h"
#include "cpu/mbconv.h"
#include "mbconv_shape.h"
#include "params.h"

namespace py = pybind11;

namespace sleepfm::bindings {

namespace {

// Clips, channels in, channels of the stem, samples in.
using EncoderDims = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
// Of a block: width, channels out, stride, residual, pooling after it, eps of its batch norms, eps of the one after it.
using EncoderBlockDims = std::tuple<std::int64_t, std::int64_t, int, bool, bool, double, double>;

// EncoderEvaluate from a flat list of addresses: x, y, the stem's weight, bias and batch norm; then for every block its
// ten weights, its four running statistics and the batch norm after it (zeros: none). A batch norm is gamma, beta, mean
// and variance, so that the stem has 8 addresses (with x and y) and a block 18.
class EncoderCall {
  public:
    EncoderCall(EncoderDims dims, bool bf16, int n_threads, Address workspace, double stem_eps,
                std::vector<EncoderBlockDims> const& layout, std::vector<Address> const& addresses) {
        SLEEPFM_CHECK(addresses.size() == 8 + 18 * layout.size(), "encoder: ", addresses.size(), " addresses for ",
                      layout.size(), " blocks.");
        auto next = addresses.begin();
        auto const take = [&next] { return pointer<float const>(*next++); };
        std::tie(call.n_clips, call.n_in, call.n_stem, call.n_samples) = dims;
        call.bf16 = bf16;
        call.n_threads = n_threads;
        call.workspace = pointer<void>(workspace);
        call.x = take();
        call.y = pointer<float>(*next++);
        call.stem_w = take();
        call.stem_bias = take();
        auto const batch_norm = [&](double eps) {
            sleepfm::BatchNorm norm{};
            for (float const** field : {&norm.gamma, &norm.beta, &norm.mean, &norm.variance}) {
                *field = take();
            }
            norm.eps = eps;
            return norm;
        };
        call.stem_norm = batch_norm(stem_eps);
        std::int64_t n_in = call.n_stem, n_samples = (call.n_samples - 1) / 2 + 1;
        for (auto const& [width, n_out, stride, residual, pool, eps, after_eps] : layout) {
            sleepfm::EncoderBlock layer{};
            sleepfm::MBConvEvaluate& block = layer.block;
            block.shape =
                mbconv_shape({call.n_clips, n_in, width, n_out, n_samples, stride}, bf16, n_threads, workspace);
            block.residual = {residual, 0.0, 0};
            block.eps = eps;
            sleepfm::MBConvWeights& w = block.weights;
            for (float const** field : {&w.w1, &w.b1, &w.gamma0, &w.beta0, &w.wd, &w.bd, &w.gamma1, &w.beta1, &w.w3,
                                        &w.b3, &block.mean0, &block.variance0, &block.mean1, &block.variance1}) {
                *field = take();
            }
            layer.after = batch_norm(after_eps);
            layer.pool = pool;
            blocks.push_back(layer);
            n_in = n_out;
            n_samples = (n_samples - 1) / stride + 1;
        }
        call.blocks = blocks.data();
        call.n_blocks = static_cast<std::int64_t>(blocks.size());
    }

    sleepfm::EncoderEvaluate call{};

  private:
    std::vector<sleepfm::EncoderBlock> blocks;
};

std::int64_t encoder_workspace_bytes(EncoderDims dims, bool bf16, int n_threads,
                                     std::vector<EncoderBlockDims> const& layout) {
    EncoderCall const arguments(dims, bf16, n_threads, 0, 0.0, layout, std::vector<Address>(8 + 18 * layout.size(), 0));
    return sleepfm::encoder_workspace_bytes(arguments.call);
}

void encoder_evaluate(EncoderDims dims, bool bf16, int n_threads, Address workspace, double stem_eps,
                      std::vector<EncoderBlockDims> const& layout, std::vector<Address> const& addresses) {
    EncoderCall const arguments(dims, bf16, n_threads, workspace, stem_eps, layout, addresses);
    py::gil_scoped_release const no_gil;
    sleepfm::encoder_evaluate(arguments.call);
}

}  // namespace

void bind_encoder(py::module_& module) {
    module.def("encoder_evaluate", &encoder_evaluate);
    module.def("encoder_workspace_bytes", &encoder_workspace_bytes);
}

}  // namespace sleepfm::bindings
