// How the compiled core reports errors: a refused argument throws std::invalid_argument (ValueError in Python), a
// failed CUDA call std::runtime_error (RuntimeError in Python). Nothing below Python ever ends the process.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace sleepfm {

template <typename... Args>
std::string concatenate(Args const&... args) {
    std::ostringstream out;
    (out << ... << args);
    return out.str();
}

}  // namespace sleepfm

// SLEEPFM_CHECK(condition, "sentence with ", values, ".")
#define SLEEPFM_CHECK(condition, ...)                                         \
    do {                                                                      \
        if (!(condition)) {                                                   \
            throw std::invalid_argument(::sleepfm::concatenate(__VA_ARGS__)); \
        }                                                                     \
    } while (false)

// cudaGetLastError() clears the runtime's record of the failure, which the check of this thread's next launch would
// report a second time.
#define SLEEPFM_CUDA_CHECK(call)                                                                         \
    do {                                                                                                 \
        cudaError_t const status_ = (call);                                                              \
        if (status_ != cudaSuccess) {                                                                    \
            static_cast<void>(cudaGetLastError());                                                       \
            throw std::runtime_error(::sleepfm::concatenate(                                             \
                #call, " failed: ", cudaGetErrorString(status_), " (", cudaGetErrorName(status_), ").",  \
                status_ == cudaErrorNoKernelImageForDevice                                               \
                    ? " This build has no kernels for this GPU: build again there, or with its compute " \
                      "capability in SLEEPFM_CUDA_ARCHITECTURES."                                        \
                : status_ == cudaErrorUnsupportedPtxVersion || status_ == cudaErrorJitCompilerNotFound   \
                    ? " This GPU is newer than the machine code of this build, and its driver cannot "   \
                      "compile the rest: update the driver, or build again with the GPU's compute "      \
                      "capability in SLEEPFM_CUDA_ARCHITECTURES."                                        \
                : status_ == cudaErrorInsufficientDriver                                                 \
                    ? " The CUDA toolkit of this build is newer than this machine's driver: update the " \
                      "driver, or build again with the toolkit that the driver supports (nvidia-smi)."   \
                    : ""));                                                                              \
        }                                                                                                \
    } while (false)
