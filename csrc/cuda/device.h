// The device as the launches see it: which one is current, and what a block may have there. For .cu files.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "check.h"

namespace sleepfm::cuda {

// Makes `device` current in this thread and gives the old one back. The runtime asks the driver for the current
// context's device, so that what torch's own runtime has set is seen here. Where it is current already nothing is set:
// setting a device creates its context, and a thread of a process that uses another device would make one on the first.
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

// Lets the kernel have up to `bytes` of dynamic shared memory on the current device. The permission belongs to the
// kernel and the device, not to a launch: give the same number every time, or a thread takes from another what that one
// is about to launch with.
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
