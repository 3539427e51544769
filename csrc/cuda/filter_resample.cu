#include "cuda/filter_resample.h"

#include <cuda_runtime.h>

#include "check.h"
#include "cuda/filter_resample.cuh"
#include "launch.h"

namespace sleepfm {

namespace {

// The kernel's two reduction arrays count against what a block may ask for.
constexpr std::int64_t static_shared_bytes = 2 * filter_resample_threads * 8;

// Makes `device` current and gives the old one back.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        SLEEPFM_CUDA_CHECK(cudaGetDevice(&before_));
        if (device != before_) {
            SLEEPFM_CUDA_CHECK(cudaSetDevice(device));
        }
    }
    ~DeviceGuard() { static_cast<void>(cudaSetDevice(before_)); }
    DeviceGuard(DeviceGuard const&) = delete;
    DeviceGuard& operator=(DeviceGuard const&) = delete;

  private:
    int before_ = 0;
};

template <typename Raw, typename Out>
void launch_kernel(FilterResample const& p, FilterResampleLaunch const& launch, cudaStream_t stream) {
    auto const kernel = &cuda::filter_resample_kernel<Raw, Out>;
    if (launch.shared_bytes + static_shared_bytes > 48 * 1024) {  // beyond what a block gets unasked
        SLEEPFM_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                static_cast<int>(launch.shared_bytes)));
    }
    dim3 const grid(static_cast<unsigned>(launch.rows), static_cast<unsigned>(launch.slices));
    kernel<<<grid, static_cast<unsigned>(launch.threads), static_cast<std::size_t>(launch.shared_bytes), stream>>>(
        p, launch);
    SLEEPFM_CUDA_CHECK(cudaGetLastError());
}

template <typename Raw>
void launch_for(FilterResample const& p, FilterResampleLaunch const& launch, cudaStream_t stream) {
    switch (p.out_dtype) {
        case DType::f32: launch_kernel<Raw, float>(p, launch, stream); return;
        case DType::bf16: launch_kernel<Raw, cuda::Bf16>(p, launch, stream); return;
        case DType::f16: launch_kernel<Raw, cuda::F16>(p, launch, stream); return;
        case DType::f64: break;
    }
    SLEEPFM_CHECK(false, "filter_resample: the output type is not float32, bfloat16 or float16.");
}

}  // namespace

void filter_resample_cuda(FilterResample const& p, int device, void* stream) {
    SLEEPFM_CHECK(p.raw_bytes == 2 || p.raw_bytes == 4, "filter_resample: raw has samples of ", p.raw_bytes,
                  " bytes; expected int16 or int32.");
    SLEEPFM_CHECK(p.n_out < (std::int64_t{1} << 31), "filter_resample: n_out is ", p.n_out, "; at most 2^31 - 1.");
    SLEEPFM_CHECK(p.normalise != Normalise::robust,
                  "filter_resample: normalise='robust' has no CUDA kernel yet; choose "
                  "'none' or 'zscore', or move the tensors to the CPU.");
    if (p.n_clips * p.n_channels == 0 || p.n_out == 0) {
        return;
    }
    DeviceGuard const guard(device);
    int shared_limit = 0;
    SLEEPFM_CUDA_CHECK(cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    FilterResampleLaunch const launch = filter_resample_launch(
        p.n_clips, p.n_channels, p.n_out, p.normalise != Normalise::none, shared_limit - static_shared_bytes);
    cudaStream_t const queue = static_cast<cudaStream_t>(stream);
    if (p.raw_bytes == 2) {
        launch_for<std::int16_t>(p, launch, queue);
    } else {
        launch_for<std::int32_t>(p, launch, queue);
    }
}

}  // namespace sleepfm
