// Each adds a family of functions to the Python module, and is defined in the file of its name.
#pragma once

#include <pybind11/pybind11.h>

namespace sleepfm::bindings {

void bind_filter_resample(pybind11::module_& module);
void bind_contrastive(pybind11::module_& module);
void bind_contrastive_cuda(pybind11::module_& module);
void bind_ranks(pybind11::module_& module);
void bind_mbconv(pybind11::module_& module);
void bind_mbconv_train(pybind11::module_& module);
void bind_encoder(pybind11::module_& module);
void bind_narrow(pybind11::module_& module);
void bind_pages(pybind11::module_& module);

}  // namespace sleepfm::bindings
