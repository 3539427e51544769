// The Python module. Nothing outside this folder knows Python. Here addresses, sizes and streams are unpacked into the
// structs of params.h, and kernels are called without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "cpu/cpu_features.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
    py::dict info;
    info["version"] = SLEEPFM_VERSION;
    info["compiler"] = SLEEPFM_COMPILER;
    info["architecture"] = SLEEPFM_ARCHITECTURE;
    info["cpu_instruction_sets"] = sleepfm::available_isas();
    info["cpu_instruction_set_in_use"] = sleepfm::isa_name(sleepfm::best_isa());
    info["cpu_multiplies_bfloat16"] = sleepfm::best_isa() >= sleepfm::Isa::avx512_bf16;
#if defined(_OPENMP)
    info["openmp"] = true;
#else
    info["openmp"] = false;
#endif
    info["cuda_architectures"] = SLEEPFM_CUDA_ARCHITECTURES;
    info["cuda_compiler"] = SLEEPFM_CUDA_COMPILER;
    return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled kernels of sleepfm_fast; call them through sleepfm_fast.ops.";
    module.def("build_info", &build_info, "What this build contains and what this processor offers.");
    sleepfm::bindings::bind_filter_resample(module);
    sleepfm::bindings::bind_contrastive(module);
    sleepfm::bindings::bind_contrastive_cuda(module);
    sleepfm::bindings::bind_ranks(module);
    sleepfm::bindings::bind_mbconv(module);
    sleepfm::bindings::bind_mbconv_train(module);
    sleepfm::bindings::bind_encoder(module);
    sleepfm::bindings::bind_narrow(module);
    sleepfm::bindings::bind_pages(module);
}
