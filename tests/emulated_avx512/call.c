// A Python call that leaves no exception set: for a caller whose own interpreter is in the middle of something.
#include <Python.h>

PyObject* call(PyObject* function, PyObject* arguments, PyObject* keywords, PyObject** error) {
    PyObject* const result = PyObject_Call(function, arguments, keywords);
    PyErr_Fetch(&error[0], &error[1], &error[2]);
    return result;
}
