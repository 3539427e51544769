// The filter, on the CPU and on CUDA.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "bindings.h"
#include "cpu/filter_resample.h"
#include "cuda/filter_resample.h"
#include "launch.h"
#include "params.h"

namespace py = pybind11;

namespace sleepfm::bindings {

namespace {

// device: -1 for the CPU, which uses n_threads; else the index of a CUDA device, which uses stream.
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
    sleepfm::filter_resample_cuda(p, device, reinterpret_cast<void*>(stream));
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

}  // namespace

void bind_filter_resample(py::module_& module) {
    module.def("filter_resample", &filter_resample, py::arg("raw"), py::arg("n_raw"), py::arg("raw_bytes"),
               py::arg("table"), py::arg("calibration"), py::arg("n_clips"), py::arg("n_channels"), py::arg("filters"),
               py::arg("n_filters"), py::arg("taps"), py::arg("n_taps"), py::arg("out"), py::arg("out_dtype"),
               py::arg("n_out"), py::arg("normalise"), py::arg("n_threads"), py::arg("device"), py::arg("stream"),
               "Filter, resample and normalise windows; addresses and sizes as in csrc/params.h.");
    module.def("filter_resample_launch", &filter_resample_launch, py::arg("n_clips"), py::arg("n_channels"),
               py::arg("n_out"), py::arg("statistics"), py::arg("shared_limit_bytes"),
               "Launch geometry of the CUDA kernel; needs no GPU.");
}

}  // namespace sleepfm::bindings
