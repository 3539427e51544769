// The only file that knows Python. It unpacks addresses, sizes and the stream into params.h structs and calls the
// kernels without the GIL; it does no arithmetic.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/contrastive.h"
#include "cpu/cpu_features.h"
#include "cpu/filter_resample.h"
#include "cpu/mbconv.h"
#include "cpu/narrow.h"
#include "cpu/pages.h"
#include "cuda/contrastive_epilogue.h"
#include "cuda/contrastive_small.h"
#include "cuda/mbconv_evaluate_policy.h"
#if defined(SLEEPFM_WITH_CUDA)
#include "cuda/contrastive.h"
#include "cuda/filter_resample.h"
#include "cuda/mbconv_evaluate.h"
#endif
#include "launch.h"
#include "params.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
    py::dict info;
    info["version"] = SLEEPFM_VERSION;
    info["compiler"] = SLEEPFM_COMPILER;
    info["cpu_instruction_sets"] = sleepfm::available_isas();
    info["cpu_instruction_set_in_use"] = sleepfm::isa_name(sleepfm::best_isa());
#if defined(_OPENMP)
    info["openmp"] = true;
#else
    info["openmp"] = false;
#endif
    info["cuda_architectures"] = SLEEPFM_CUDA_ARCHITECTURES;
    info["cuda_compiler"] = SLEEPFM_CUDA_COMPILER;
    return info;
}

// ---- filter_resample ------------------------------------------------------------------------------------------------

// device: -1 for the CPU (n_threads is used), else the index of a CUDA device (stream is used).
void filter_resample(std::uintptr_t raw, std::int64_t n_raw, int raw_bytes, std::uintptr_t table,
                     std::uintptr_t calibration, std::int64_t n_clips, std::int64_t n_channels, std::uintptr_t filters,
                     std::int64_t n_filters, std::uintptr_t taps, std::int64_t n_taps, std::uintptr_t out,
                     int out_dtype, std::int64_t n_out, int normalise, int n_threads, int device,
                     std::uintptr_t stream) {
    sleepfm::FilterResample p{};
    p.raw = reinterpret_cast<void const*>(raw);
    p.n_raw = n_raw;
    p.raw_bytes = raw_bytes;
    p.table = reinterpret_cast<sleepfm::WindowRow const*>(table);
    p.calibration = reinterpret_cast<float const*>(calibration);
    p.n_clips = n_clips;
    p.n_channels = n_channels;
    p.filters = reinterpret_cast<sleepfm::FilterRow const*>(filters);
    p.n_filters = n_filters;
    p.taps = reinterpret_cast<float const*>(taps);
    p.n_taps = n_taps;
    p.out = reinterpret_cast<void*>(out);
    p.out_dtype = static_cast<sleepfm::DType>(out_dtype);
    p.n_out = n_out;
    p.normalise = static_cast<sleepfm::Normalise>(normalise);
    py::gil_scoped_release const release;
    if (device < 0) {
        sleepfm::filter_resample_cpu(p, n_threads);
        return;
    }
#if defined(SLEEPFM_WITH_CUDA)
    sleepfm::filter_resample_cuda(p, device, reinterpret_cast<void*>(stream));
#else
    static_cast<void>(stream);
    SLEEPFM_CHECK(false,
                  "filter_resample: this build has no CUDA kernels. Install the CUDA toolkit (nvcc) and run "
                  "`pip install .` again, or move the tensors to the CPU.");
#endif
}

py::dict filter_resample_launch(std::int64_t n_clips, std::int64_t n_channels, std::int64_t n_out, bool statistics,
                                std::int64_t shared_limit_bytes) {
    sleepfm::FilterResampleLaunch const launch =
        sleepfm::filter_resample_launch(n_clips, n_channels, n_out, statistics, shared_limit_bytes);
    py::dict geometry;
    geometry["rows"] = launch.rows;
    geometry["slices"] = launch.slices;
    geometry["outputs_per_slice"] = launch.outputs_per_slice;
    geometry["threads"] = launch.threads;
    geometry["workspace_floats"] = launch.workspace_floats;
    geometry["shared_bytes"] = launch.shared_bytes;
    return geometry;
}

// ---- contrastive_loss -----------------------------------------------------------------------------------------------

using Address = std::uintptr_t;  // of a tensor's first element; 0 stands for none

template <typename T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

using ContrastiveShape = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
using Strides = std::tuple<std::int64_t, std::int64_t>;
using SampleRange = std::tuple<std::int64_t, std::int64_t>;

sleepfm::ContrastiveInput contrastive_input(Address x, int dtype, ContrastiveShape shape, Strides x_strides,
                                            Address log_temperature, Address mask, Strides mask_strides, bool pairwise,
                                            bool both_directions, int n_threads, Address workspace) {
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

// results: loss, losses, correct, ranks, n_valid, state or 0.
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

[[maybe_unused, noreturn]] void refuse_cuda() {
    throw std::invalid_argument(
        "contrastive_loss: this build has no CUDA kernels. Install the CUDA toolkit (nvcc) and run `pip install .` "
        "again, or move the tensors to the CPU.");
}

// Split operands, samples, device, stream.
using ContrastiveDevice = std::tuple<bool, std::int64_t, std::int64_t, int, Address>;

#if defined(SLEEPFM_WITH_CUDA)
sleepfm::ContrastiveCudaOptions contrastive_options(ContrastiveDevice const& where) {
    auto const& [split, begin, end, device, stream] = where;
    return {split, begin, end, device, pointer<void>(stream)};
}
#endif

std::int64_t contrastive_cuda_workspace_bytes(ContrastiveShape shape, bool pairwise, bool backward,
                                              [[maybe_unused]] ContrastiveDevice const& where) {
    [[maybe_unused]] sleepfm::ContrastiveInput const sizes =
        contrastive_input(0, 0, shape, {0, 0}, 0, 0, {0, 0}, pairwise, true, 0, 0);
    static_cast<void>(backward);
#if defined(SLEEPFM_WITH_CUDA)
    return backward ? sleepfm::contrastive_backward_cuda_bytes(sizes, contrastive_options(where))
                    : sleepfm::contrastive_forward_cuda_bytes(sizes, contrastive_options(where));
#else
    refuse_cuda();
#endif
}

void contrastive_cuda_forward(Address x, int dtype, ContrastiveShape shape, Strides x_strides, Address log_temperature,
                              Address mask, Strides mask_strides, bool pairwise, bool both_directions,
                              [[maybe_unused]] ContrastiveDevice const& where, Address workspace, Address loss,
                              Address losses, Address correct, Address ranks, Address n_valid, Address state) {
    [[maybe_unused]] sleepfm::ContrastiveForward const call{
        contrastive_input(x, dtype, shape, x_strides, log_temperature, mask, mask_strides, pairwise, both_directions, 0,
                          workspace),
        pointer<void>(loss),
        pointer<void>(losses),
        pointer<std::int64_t>(correct),
        pointer<std::int32_t>(ranks),
        pointer<std::int64_t>(n_valid),
        pointer<double>(state)};
#if defined(SLEEPFM_WITH_CUDA)
    sleepfm::contrastive_forward_cuda(call, contrastive_options(where));
#else
    refuse_cuda();
#endif
}

void contrastive_cuda_backward(Address x, int dtype, ContrastiveShape shape, Strides x_strides, Address log_temperature,
                               Address mask, Strides mask_strides, bool pairwise, bool both_directions,
                               [[maybe_unused]] ContrastiveDevice const& where, Address workspace,
                               Address gradient_loss, Address n_valid, Address state, Address gradient_x,
                               Address gradient_log_temperature) {
    [[maybe_unused]] sleepfm::ContrastiveBackward const call{
        contrastive_input(x, dtype, shape, x_strides, log_temperature, mask, mask_strides, pairwise, both_directions, 0,
                          workspace),
        pointer<void const>(gradient_loss),
        pointer<std::int64_t const>(n_valid),
        pointer<double const>(state),
        pointer<void>(gradient_x),
        pointer<void>(gradient_log_temperature)};
#if defined(SLEEPFM_WITH_CUDA)
    sleepfm::contrastive_backward_cuda(call, contrastive_options(where));
#else
    refuse_cuda();
#endif
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

std::int64_t contrastive_small_workspace_bytes(std::int64_t n_modalities, std::int64_t n_samples, std::int64_t n_dim,
                                               bool pairwise, bool gradient) {
    sleepfm::ContrastiveInput input{};
    input.n_modalities = n_modalities;
    input.n_samples = n_samples;
    input.n_dim = n_dim;
    input.pairwise = pairwise;
    return sleepfm::contrastive_small_workspace_bytes(input, gradient);
}

// results: loss, losses, correct, ranks, n_valid, state.
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
#if defined(SLEEPFM_WITH_CUDA)
    sleepfm::contrastive_small_cuda(p, device, pointer<void>(stream));
#else
    static_cast<void>(device);
    static_cast<void>(stream);
    refuse_cuda();
#endif
}

// members: of ContrastiveGemm, in its order.
void contrastive_gemm(std::int64_t step, std::vector<std::int64_t> const& members, int device, Address stream) {
    sleepfm::ContrastiveGemm g{};
    SLEEPFM_CHECK(members.size() * sizeof(std::int64_t) == sizeof g, "contrastive_gemm: ", members.size(),
                  " members are given; the structure has ", sizeof g / sizeof(std::int64_t), ".");
    std::memcpy(&g, members.data(), sizeof g);
#if defined(SLEEPFM_WITH_CUDA)
    sleepfm::contrastive_gemm_cuda(static_cast<sleepfm::GemmStep>(step), g, device, pointer<void>(stream));
#else
    static_cast<void>(step);
    static_cast<void>(device);
    static_cast<void>(stream);
    refuse_cuda();
#endif
}

// ---- retrieval ranks ------------------------------------------------------------------------------------------------

// x, mean, factor, step, length, loss, shift, low, high, own, ahead
using RankAddresses = std::array<Address, 11>;

sleepfm::RankOperand rank_operand(RankAddresses const& at, std::int64_t n, std::int64_t first) {
    sleepfm::RankOperand operand{};
    operand.n = n;
    operand.first = first;
    operand.x = pointer<float const>(at[0]);
    operand.mean = pointer<float const>(at[1]);
    operand.factor = pointer<float const>(at[2]);
    operand.step = pointer<float const>(at[3]);
    operand.length = pointer<float const>(at[4]);
    operand.loss = pointer<float const>(at[5]);
    operand.shift = pointer<float const>(at[6]);
    operand.low = pointer<float const>(at[7]);
    operand.high = pointer<float const>(at[8]);
    operand.own = pointer<double const>(at[9]);
    operand.ahead = pointer<std::int64_t>(at[10]);
    return operand;
}

void pair_ranks(RankAddresses const& rows, RankAddresses const& columns, ContrastiveShape shape, SampleRange first,
                bool new_rows, int n_threads, Address workspace) {
    auto const& [n_rows, n_columns, n_dim] = shape;
    sleepfm::pair_ranks({rank_operand(rows, n_rows, std::get<0>(first)),
                         rank_operand(columns, n_columns, std::get<1>(first)), n_dim, new_rows, n_threads,
                         pointer<void>(workspace)});
}

// shape: rows, dimensions. out: factor, step, length, residue, inner
void measure_rank_rows(Address x, std::tuple<Address, Address> means, std::tuple<std::int64_t, std::int64_t> shape,
                       std::array<Address, 5> const& out, int n_threads) {
    sleepfm::RankRows call{};
    call.x = pointer<float const>(x);
    call.mean = pointer<float const>(std::get<0>(means));
    call.other_mean = pointer<float const>(std::get<1>(means));
    std::tie(call.n_rows, call.n_dim) = shape;
    call.factor = pointer<float>(out[0]);
    call.step = pointer<double>(out[1]);
    call.length = pointer<double>(out[2]);
    call.residue = pointer<double>(out[3]);
    call.inner = pointer<double>(out[4]);
    call.n_threads = n_threads;
    sleepfm::measure_rank_rows(call);
}

void own_inner_products(Address a, Address b, Address own, std::int64_t n_rows, std::int64_t n_dim) {
    sleepfm::own_inner_products(pointer<float const>(a), pointer<float const>(b), pointer<double>(own), n_rows, n_dim);
}

// ---- mbconv ---------------------------------------------------------------------------------------------------------

using MBConvDims = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, int>;
using MBConvAddresses =
    std::tuple<Address, Address, Address, Address, Address, Address, Address, Address, Address, Address>;

sleepfm::MBConvShape mbconv_shape(MBConvDims dims, int n_threads, Address workspace) {
    sleepfm::MBConvShape shape{};
    std::tie(shape.n_clips, shape.n_in, shape.width, shape.n_out, shape.n_samples, shape.stride) = dims;
    shape.n_threads = n_threads;
    shape.workspace = pointer<void>(workspace);
    return shape;
}

sleepfm::MBConvWeights mbconv_weights(MBConvAddresses const& addresses) {
    return std::apply([](auto... address) { return sleepfm::MBConvWeights{pointer<float const>(address)...}; },
                      addresses);
}

std::int64_t mbconv_workspace_bytes(MBConvDims dims, int n_threads, bool backward) {
    return sleepfm::mbconv_workspace_bytes(mbconv_shape(dims, n_threads, 0), backward);
}

std::int64_t mbconv_evaluate_workspace_bytes(MBConvDims dims, int n_threads) {
    return sleepfm::mbconv_evaluate_workspace_bytes(mbconv_shape(dims, n_threads, 0));
}

using MBConvResidual = std::tuple<bool, double, std::uint64_t>;

sleepfm::MBConvResidual mbconv_residual(MBConvResidual const& r) {
    return {std::get<0>(r), std::get<1>(r), std::get<2>(r)};
}

void mbconv_forward(MBConvDims dims, int n_threads, Address workspace, MBConvAddresses const& weights,
                    MBConvResidual const& residual, double eps, Address x, Address c1, Address c2, Address statistics,
                    Address moments, Address y) {
    sleepfm::mbconv_forward({mbconv_shape(dims, n_threads, workspace), mbconv_weights(weights),
                             mbconv_residual(residual), eps, pointer<float const>(x), pointer<float>(c1),
                             pointer<float>(c2), pointer<double>(statistics), pointer<double>(moments),
                             pointer<float>(y)});
}

void mbconv_evaluate(MBConvDims dims, int n_threads, Address workspace, MBConvAddresses const& weights,
                     MBConvResidual const& residual, double eps, Address mean0, Address variance0, Address mean1,
                     Address variance1, Address x, Address y) {
    sleepfm::mbconv_evaluate({mbconv_shape(dims, n_threads, workspace), mbconv_weights(weights),
                              mbconv_residual(residual), eps, pointer<float const>(mean0),
                              pointer<float const>(variance0), pointer<float const>(mean1),
                              pointer<float const>(variance1), pointer<float const>(x), pointer<float>(y)});
}

void mbconv_backward(MBConvDims dims, int n_threads, Address workspace, MBConvAddresses const& weights,
                     MBConvResidual const& residual, double eps, Address x, Address c1, Address c2, Address statistics,
                     Address moments, Address dy, Address g1, Address dx,
                     std::tuple<Address, Address, Address, Address, Address, Address, Address, Address> d) {
    sleepfm::MBConvBackward call{};
    call.shape = mbconv_shape(dims, n_threads, workspace);
    call.weights = mbconv_weights(weights);
    call.residual = mbconv_residual(residual);
    call.eps = eps;
    call.x = pointer<float const>(x);
    call.c1 = pointer<float const>(c1);
    call.c2 = pointer<float const>(c2);
    call.statistics = pointer<double const>(statistics);
    call.moments = pointer<double const>(moments);
    call.dy = pointer<float const>(dy);
    call.g1 = pointer<float>(g1);
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

// clips, channels in, channels of the stem, samples. A block: width, channels out, stride, residual, maximum after it,
// eps of its batch norms, eps of the one after it. Addresses: x, y, the stem's weight, bias and batch norm, then for
// every block its ten weights, four running statistics and the batch norm after it (zeros: none); a batch norm is
// gamma, beta, mean, variance.
using EncoderDims = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
using EncoderBlockDims = std::tuple<std::int64_t, std::int64_t, int, bool, bool, double, double>;

class EncoderCall {
  public:
    EncoderCall(EncoderDims dims, int n_threads, Address workspace, double stem_eps,
                std::vector<EncoderBlockDims> const& layout, std::vector<Address> const& addresses) {
        SLEEPFM_CHECK(addresses.size() == 8 + 18 * layout.size(), "encoder: ", addresses.size(), " addresses for ",
                      layout.size(), " blocks.");
        auto next = addresses.begin();
        auto const take = [&next] { return pointer<float const>(*next++); };
        std::tie(call.n_clips, call.n_in, call.n_stem, call.n_samples) = dims;
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
            block.shape = mbconv_shape({call.n_clips, n_in, width, n_out, n_samples, stride}, n_threads, workspace);
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

std::int64_t encoder_workspace_bytes(EncoderDims dims, int n_threads, std::vector<EncoderBlockDims> const& layout) {
    EncoderCall const arguments(dims, n_threads, 0, 0.0, layout, std::vector<Address>(8 + 18 * layout.size(), 0));
    return sleepfm::encoder_workspace_bytes(arguments.call);
}

void encoder_evaluate(EncoderDims dims, int n_threads, Address workspace, double stem_eps,
                      std::vector<EncoderBlockDims> const& layout, std::vector<Address> const& addresses) {
    EncoderCall const arguments(dims, n_threads, workspace, stem_eps, layout, addresses);
    py::gil_scoped_release const no_gil;
    sleepfm::encoder_evaluate(arguments.call);
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
#if defined(SLEEPFM_WITH_CUDA)
    SLEEPFM_CHECK(p.dtype == sleepfm::DType::bf16 || p.dtype == sleepfm::DType::f16,
                  "mbconv_evaluate: x is neither bfloat16 nor float16.");
    auto const launch =
        p.dtype == sleepfm::DType::bf16 ? &sleepfm::mbconv_evaluate_cuda_bf16 : &sleepfm::mbconv_evaluate_cuda_f16;
    launch(p, device, pointer<void>(stream));
#else
    static_cast<void>(device);
    static_cast<void>(stream);
    SLEEPFM_CHECK(false,
                  "mbconv_evaluate: this build has no CUDA kernels. Install the CUDA toolkit (nvcc) and run "
                  "`pip install .` again, or leave the blocks to torch.");
#endif
}

// ---- narrow layers --------------------------------------------------------------------------------------------------

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

void max_pool_forward(std::int64_t n_rows, std::int64_t n_samples, int n_threads, Address x, Address y) {
    sleepfm::max_pool_forward({n_rows, n_samples, n_threads, pointer<float const>(x), nullptr, pointer<float>(y)});
}

void max_pool_backward(std::int64_t n_rows, std::int64_t n_samples, int n_threads, Address x, Address dy, Address dx) {
    sleepfm::max_pool_backward(
        {n_rows, n_samples, n_threads, pointer<float const>(x), pointer<float const>(dy), pointer<float>(dx)});
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled kernels of sleepfm_fast; call them through sleepfm_fast.ops.";
    module.def("build_info", &build_info, "What this build contains and what this processor offers.");
    module.def("filter_resample", &filter_resample, py::arg("raw"), py::arg("n_raw"), py::arg("raw_bytes"),
               py::arg("table"), py::arg("calibration"), py::arg("n_clips"), py::arg("n_channels"), py::arg("filters"),
               py::arg("n_filters"), py::arg("taps"), py::arg("n_taps"), py::arg("out"), py::arg("out_dtype"),
               py::arg("n_out"), py::arg("normalise"), py::arg("n_threads"), py::arg("device"), py::arg("stream"),
               "Filter, resample and normalise windows; addresses and sizes as in csrc/params.h.");
    module.def("filter_resample_launch", &filter_resample_launch, py::arg("n_clips"), py::arg("n_channels"),
               py::arg("n_out"), py::arg("statistics"), py::arg("shared_limit_bytes"),
               "Launch geometry of the CUDA kernel; needs no GPU.");
    using NoGil = py::call_guard<py::gil_scoped_release>;
    module.def("contrastive_forward", &contrastive_forward, NoGil());
    module.def("contrastive_backward", &contrastive_backward, NoGil());
    module.def("contrastive_joint", &contrastive_joint, NoGil());
    module.def("contrastive_bytes", &contrastive_bytes);
    module.def("contrastive_cuda_workspace_bytes", &contrastive_cuda_workspace_bytes);
    module.def("contrastive_cuda_forward", &contrastive_cuda_forward, NoGil());
    module.def("contrastive_cuda_backward", &contrastive_cuda_backward, NoGil());
    module.def("contrastive_small_workspace_bytes", &contrastive_small_workspace_bytes);
    module.def("contrastive_small", &contrastive_small, NoGil());
    module.def("contrastive_gemm", &contrastive_gemm, NoGil());
    module.def("contrastive_exponential", &contrastive_exponential, NoGil());
    module.def("pair_ranks", &pair_ranks, NoGil());
    module.def("pair_ranks_bytes", &sleepfm::pair_ranks_bytes);
    module.def("measure_rank_rows", &measure_rank_rows, NoGil());
    module.def("own_inner_products", &own_inner_products, NoGil());
    module.def("mbconv_forward", &mbconv_forward, NoGil());
    module.def("mbconv_evaluate", &mbconv_evaluate, NoGil());
    module.def("mbconv_backward", &mbconv_backward, NoGil());
    module.def("mbconv_workspace_bytes", &mbconv_workspace_bytes);
    module.def("mbconv_evaluate_workspace_bytes", &mbconv_evaluate_workspace_bytes);
    module.def("encoder_evaluate", &encoder_evaluate);
    module.def("encoder_workspace_bytes", &encoder_workspace_bytes);
    module.def("mbconv_evaluate_covers", &mbconv_evaluate_covers);
    module.def("mbconv_evaluate_cuda", &mbconv_evaluate_cuda, NoGil());
    module.def("stem_forward", &stem_forward, NoGil());
    module.def("stem_backward", &stem_backward, NoGil());
    module.def("stem_workspace_bytes", &stem_workspace_bytes);
    module.def("max_pool_forward", &max_pool_forward, NoGil());
    module.def("max_pool_backward", &max_pool_backward, NoGil());
    py::class_<sleepfm::Pages>(module, "Pages", py::buffer_protocol(), "Memory that a pool takes back and hands out.")
        .def(py::init<std::size_t>(), py::arg("n_bytes"))
        .def_buffer([](sleepfm::Pages& pages) {
            return py::buffer_info(static_cast<std::uint8_t*>(pages.data()), static_cast<py::ssize_t>(pages.size()));
        });
    module.def("release_pages", &sleepfm::release_pages, "Give idle pages back to the system; returns their bytes.");
}
