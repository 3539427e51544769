#include "cuda/contrastive_small.h"

#include <cuda_runtime.h>

#include <atomic>

#include "check.h"
#include "cuda/contrastive_small.cuh"
#include "cuda/cuda_queue.cuh"

namespace sleepfm {

namespace {

// How many blocks of the kernel the device runs at a time. Kept for each device, since the answer never changes and the
// runtime takes microseconds to give it. (Two threads that ask at once write the same number.)
template <int tile>
int resident_blocks(int device, int n_multiprocessors) {
    constexpr int n_devices = 64;
    static std::atomic<int> known[n_devices];
    int blocks = device < n_devices ? known[device].load() : 0;
    if (blocks > 0) {
        return blocks;
    }
    SLEEPFM_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &blocks, &cuda::contrastive_small_kernel<tile>, static_cast<int>(contrastive_small_threads),
        static_cast<std::size_t>(contrastive_small_shared_bytes(tile))));
    // More than two blocks on a multiprocessor would make the barriers dearer and the phases no shorter.
    blocks = std::min(blocks, 2) * n_multiprocessors;
    if (device < n_devices) {
        known[device] = blocks;
    }
    return blocks;
}

template <int tile>
void launch_kernel(ContrastiveSmall const& p, int device, int n_multiprocessors, cudaStream_t stream) {
    ContrastiveSmallLaunch const launch = contrastive_small_launch(p.input, p.gradient_x != nullptr, tile,
                                                                   resident_blocks<tile>(device, n_multiprocessors));
    SLEEPFM_CHECK(launch.blocks >= 1, "contrastive_loss: device ", device, " runs no block of this kernel.");
    void* arguments[] = {const_cast<ContrastiveSmall*>(&p)};
    dim3 const block(static_cast<unsigned>(contrastive_small_threads));
    cudaError_t cooperative_launch = cudaSuccess;
    launch_that_fits(launch.blocks, [&](std::int64_t blocks) {
        cooperative_launch = cudaLaunchCooperativeKernel(
            reinterpret_cast<void const*>(&cuda::contrastive_small_kernel<tile>), dim3(static_cast<unsigned>(blocks)),
            block, arguments, static_cast<std::size_t>(launch.shared_bytes), stream);
        if (cooperative_launch != cudaErrorCooperativeLaunchTooLarge) {
            return true;
        }
        static_cast<void>(cudaGetLastError());
        return false;
    });
    SLEEPFM_CUDA_CHECK(cooperative_launch);
}

}  // namespace

void contrastive_small_cuda(ContrastiveSmall const& p, int device, void* stream) {
    SLEEPFM_CHECK(p.input.dtype != DType::f64, "contrastive_loss: this kernel takes float32, bfloat16 or float16.");
    cuda::DeviceGuard const guard(device);
    int const n_multiprocessors = cuda::device_attribute(cudaDevAttrMultiProcessorCount, device);
    cudaStream_t const queue = static_cast<cudaStream_t>(stream);
    if (contrastive_small_tile(p.input, n_multiprocessors) == 16) {
        launch_kernel<16>(p, device, n_multiprocessors, queue);
    } else {
        launch_kernel<32>(p, device, n_multiprocessors, queue);
    }
}

}  // namespace sleepfm
