// The pool of memory for large activations (cpu/pages.h), as Python buffers.
#include "cpu/pages.h"

#include <pybind11/pybind11.h>

#include <cstdint>

#include "bindings.h"

namespace py = pybind11;

namespace sleepfm::bindings {

void bind_pages(py::module_& module) {
    py::class_<sleepfm::Pages>(module, "Pages", py::buffer_protocol(), "Memory that a pool takes back and hands out.")
        .def(py::init<std::size_t>(), py::arg("n_bytes"))
        .def_buffer([](sleepfm::Pages& pages) {
            return py::buffer_info(static_cast<std::uint8_t*>(pages.data()), static_cast<py::ssize_t>(pages.size()));
        });
    module.def("release_pages", &sleepfm::release_pages, "Give idle pages back to the system; returns their bytes.");
}

}  // namespace sleepfm::bindings
