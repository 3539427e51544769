// What a CPU build of torch lacks to let tensors of a CUDA device through autograd: a device with one stream, whose
// events have always happened, and the word that there is one. Nothing can be computed with it: see device.py.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
    Device exchangeDevice(Device) const override { return device; }
    Device getDevice() const override { return device; }
    Stream getStream(Device) const noexcept override { return stream; }
    Stream getNewStream(Device, int) const override { return stream; }
    Stream exchangeStream(Stream) const noexcept override { return stream; }
    void record(void** event, Stream const&, DeviceIndex, c10::EventFlag) const override { *event = &happened; }
    void block(void*, Stream const&) const override {}
    bool queryEvent(void*) const override { return true; }

    inline static Device const device{DeviceType::CUDA, 0};
    inline static Stream const stream{Stream::DEFAULT, device};
    inline static char happened = 0;
};

c10::impl::DeviceGuardImplRegistrar const registered(DeviceType::CUDA, new Guard());

// torch asks for the class of this name.
struct CUDAHooks final : at::CUDAHooksInterface {
    explicit CUDAHooks(at::CUDAHooksArgs) {}
    void init() const override {}
    bool hasCUDA() const override { return true; }
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(DeviceIndex) const override { return true; }
    DeviceIndex deviceCount() const override { return 1; }
    int getNumGPUs() const override { return 1; }
    DeviceIndex current_device() const override { return 0; }
    DeviceIndex getCurrentDevice() const override { return 0; }
};

}  // namespace

namespace at {

REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at
