// The kernel of csrc/cuda/mbconv_evaluate.cuh for tests/test_mbconv_evaluate.py; TYPE: bf16 or f16, compiled apart.
#include "cuda/mbconv_evaluate_launch.cuh"

using namespace sleepfm;

namespace {

struct EmulatedQueue {
    cuda_on_cpu::Options& options;
    int status = 0;

    template <typename... Parameters, typename... Arguments>
    void operator()(void (*kernel)(Parameters...), cuda::Grid grid, int threads, std::int64_t shared_bytes,
                    Arguments const&... arguments) {
        cuda_on_cpu::Launch launch;
        launch.grid = {grid.x, grid.y};
        launch.block = {static_cast<unsigned>(threads)};
        launch.shared_bytes = static_cast<std::size_t>(shared_bytes);
        launch.more_shared = shared_bytes > 48 * 1024;  // as cuda_queue.cuh asks for it
        launch.most_shared_bytes = 99 * 1024;           // of 8.6, 8.9 and 12.x, the least of all devices
        status = cuda_on_cpu::launch(options, launch, [=] { kernel(arguments...); });
    }
};

}  // namespace

extern "C" int mbconv_evaluate(cuda_on_cpu::Options* options, void const* x, void const* packed, float const* bias,
                               void* y, std::int64_t n_clips, std::int64_t n_samples, std::int64_t n_in,
                               std::int64_t width, std::int64_t n_out, std::int64_t stride, std::int64_t residual) {
    MBConvPacked const p{x,
                         packed,
                         bias,
                         y,
                         DType::TYPE,
                         n_clips,
                         n_samples,
                         n_in,
                         width,
                         n_out,
                         static_cast<int>(stride),
                         residual != 0};
    EmulatedQueue queue{*options};
    cuda::launch_mbconv_evaluate<DType::TYPE>(queue, p);
    return queue.status;
}
