#include "cuda/filter_resample.h"

#include <cuda_runtime.h>

#include "check.h"
#include "cuda/device.h"
#include "cuda/filter_resample.cuh"
#include "launch.h"

namespace sleepfm {

namespace {

template <typename Raw>
void launch_kernel(FilterResample const& p, FilterResampleLaunch const& launch, std::int64_t shared_limit,
                   cudaStream_t stream) {
    auto const kernel = &cuda::filter_resample_kernel<Raw>;
    cuda::allow_shared_bytes(kernel, shared_limit);
    dim3 const grid(static_cast<unsigned>(launch.rows), static_cast<unsigned>(launch.slices));
    kernel<<<grid, static_cast<unsigned>(launch.threads), static_cast<std::size_t>(launch.shared_bytes), stream>>>(
        p, launch);
    SLEEPFM_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void filter_resample_cuda(FilterResample const& p, int device, void* stream) {
    SLEEPFM_CHECK(p.raw_bytes == 2 || p.raw_bytes == 4, "filter_resample: raw has samples of ", p.raw_bytes,
                  " bytes; expected int16 or int32.");
    constexpr std::int64_t most_outputs = (std::int64_t{1} << 31) - (std::int64_t{1} << 16);
    SLEEPFM_CHECK(p.n_out <= most_outputs, "filter_resample: n_out is ", p.n_out, "; at most 2^31 - 2^16.");
    SLEEPFM_CHECK(
        p.normalise == Normalise::none || p.normalise == Normalise::zscore || p.normalise == Normalise::robust,
        "filter_resample: normalise is ", static_cast<int>(p.normalise), "; expected 0, 1 or 2.");
    SLEEPFM_CHECK(p.out_dtype == DType::f32 || p.out_dtype == DType::bf16 || p.out_dtype == DType::f16,
                  "filter_resample: the output type is not float32, bfloat16 or float16.");
    SLEEPFM_CHECK(reinterpret_cast<std::uintptr_t>(p.taps) % 16 == 0,
                  "filter_resample: taps are not aligned to 16 bytes; pass the tensors of FilterBank.tensors().");
    if (p.n_clips * p.n_channels == 0 || p.n_out == 0) {
        return;
    }
    cuda::DeviceGuard const guard(device);
    std::int64_t const shared_limit =
        filter_resample_shared_limit(cuda::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    FilterResampleLaunch const launch =
        filter_resample_launch(p.n_clips, p.n_channels, p.n_out, p.normalise != Normalise::none, shared_limit);
    cudaStream_t const queue = static_cast<cudaStream_t>(stream);
    if (p.raw_bytes == 2) {
        launch_kernel<std::int16_t>(p, launch, shared_limit, queue);
    } else {
        launch_kernel<std::int32_t>(p, launch, shared_limit, queue);
    }
}

}  // namespace sleepfm
