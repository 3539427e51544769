// The only file that knows Python. It unpacks addresses, sizes and the stream into params.h structs and calls the
// kernels without the GIL; it does no arithmetic.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

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

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled kernels of sleepfm_fast; call them through sleepfm_fast.ops.";
    module.def("build_info", &build_info, "What this build contains and what this processor offers.");
    // filter_resample
    // contrastive_loss
}
