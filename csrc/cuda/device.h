// What the launches of all kernels ask the CUDA runtime for: the current device, its limits, and shared memory beyond
// the default. For .cu files.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "check.h"

namespace sleepfm::cuda {

// Makes `device` current in this thread for the guard's lifetime, then the previous one again. The module links a CUDA
// runtime of its own beside torch's; both ask the driver for the current context's device, so that torch's choice is
// seen here. If `device` is current already, nothing is set, since cudaSetDevice creates a context on a device that has
// none yet.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        SLEEPFM_CUDA_CHECK(cudaGetDevice(&before_));
        changed_ = device != before_;
        if (changed_) {
            SLEEPFM_CUDA_CHECK(cudaSetDevice(device));
        }
    }
    ~DeviceGuard() {
        if (changed_ && cudaSetDevice(before_) != cudaSuccess) {
            static_cast<void>(cudaGetLastError());
        }
    }
    DeviceGuard(DeviceGuard const&) = delete;
    DeviceGuard& operator=(DeviceGuard const&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

// Lets the kernel have up to `bytes` of dynamic shared memory on the current device. The limit belongs to the kernel
// and the device, not to a launch. Pass the same number every time: a smaller one, set by another thread in between,
// would make a launch fail.
template <typename Kernel>
void allow_shared_bytes(Kernel* kernel, std::int64_t bytes) {
    SLEEPFM_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

inline int device_attribute(cudaDeviceAttr attribute, int device) {
    int value = 0;
    SLEEPFM_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
    return value;
}

}  // namespace sleepfm::cuda
