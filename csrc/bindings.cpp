// The only file that knows Python. It unpacks addresses, sizes and the stream into params.h structs and calls the
// kernels without the GIL; it does no arithmetic.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "cpu/contrastive.h"
#include "cpu/cpu_features.h"
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

// ---- contrastive_loss -----------------------------------------------------------------------------------------------

using Address = std::uintptr_t;  // of a tensor's first element; 0 stands for none

template <typename T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

using ContrastiveShape = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
using Strides = std::tuple<std::int64_t, std::int64_t>;

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
                         Address n_valid, Address state) {
    sleepfm::contrastive_forward({contrastive_input(x, dtype, shape, x_strides, log_temperature, mask, mask_strides,
                                                    pairwise, both_directions, n_threads, workspace),
                                  pointer<void>(loss), pointer<void>(losses), pointer<std::int64_t>(correct),
                                  pointer<std::int32_t>(ranks), pointer<std::int64_t>(n_valid),
                                  pointer<double>(state)});
}

void contrastive_backward(Address x, int dtype, ContrastiveShape shape, Strides x_strides, Address log_temperature,
                          Address mask, Strides mask_strides, bool pairwise, bool both_directions, int n_threads,
                          Address workspace, Address gradient_loss, Address n_valid, Address state, Address gradient_x,
                          Address gradient_log_temperature) {
    sleepfm::contrastive_backward({contrastive_input(x, dtype, shape, x_strides, log_temperature, mask, mask_strides,
                                                     pairwise, both_directions, n_threads, workspace),
                                   pointer<void const>(gradient_loss), pointer<std::int64_t const>(n_valid),
                                   pointer<double const>(state), pointer<void>(gradient_x),
                                   pointer<void>(gradient_log_temperature)});
}

void contrastive_exponential(Address x, Address y, std::int64_t n, bool is_double) {
    sleepfm::contrastive_exponential(pointer<void const>(x), pointer<void>(y), n, is_double);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled kernels of sleepfm_fast; call them through sleepfm_fast.ops.";
    module.def("build_info", &build_info, "What this build contains and what this processor offers.");
    // filter_resample
    // contrastive_loss
    using NoGil = py::call_guard<py::gil_scoped_release>;
    module.def("contrastive_forward", &contrastive_forward, NoGil());
    module.def("contrastive_backward", &contrastive_backward, NoGil());
    module.def("contrastive_workspace_bytes", &sleepfm::contrastive_workspace_bytes);
    module.def("contrastive_exponential", &contrastive_exponential, NoGil());
}
