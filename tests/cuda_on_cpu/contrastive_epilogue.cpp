// The kernels of csrc/cuda/contrastive_epilogue.cuh and contrastive_gemm_ends.cuh, run on the host for
// tests/test_contrastive_gemm.py.
#include "cuda/contrastive_gemm_launch.cuh"

namespace {

struct EmulatedQueue {
    cuda_on_cpu::Options& options;
    int status = 0;

    template <typename... Parameters, typename... Arguments>
    void operator()(void (*kernel)(Parameters...), sleepfm::cuda::Grid grid, int threads, std::int64_t shared_bytes,
                    Arguments const&... arguments) {
        cuda_on_cpu::Launch launch;
        launch.grid = {grid.x, grid.y};
        launch.block = {static_cast<unsigned>(threads)};
        launch.shared_bytes = static_cast<std::size_t>(shared_bytes);
        launch.more_shared = shared_bytes > 48 * 1024;  // as cuda_queue.cuh asks for it
        status = cuda_on_cpu::launch(options, launch, [=] { kernel(arguments...); });
    }
};

}  // namespace

extern "C" std::int64_t contrastive_gemm_bytes() {
    return sizeof(sleepfm::ContrastiveGemm);
}

extern "C" int contrastive_gemm(cuda_on_cpu::Options* options, std::int64_t step, sleepfm::ContrastiveGemm const* g) {
    EmulatedQueue queue{*options};
    sleepfm::cuda::launch_gemm_step(queue, static_cast<sleepfm::GemmStep>(step), *g);
    return queue.status;
}
