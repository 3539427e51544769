// The kernels of csrc/cuda/mbconv_train.cuh for tests/test_mbconv_train.py: the arguments of
// csrc/bindings/mbconv_train.cpp one by one.
#include "cuda/mbconv_train_launch.cuh"

using namespace sleepfm;

namespace {

struct EmulatedQueue {
    cuda_on_cpu::Options& options;
    int status = 0;

    template <typename... Parameters, typename... Arguments>
    void operator()(void (*kernel)(Parameters...), cuda::Grid grid, int threads, std::int64_t shared_bytes,
                    Arguments const&... arguments) {
        if (status != 0) {
            return;
        }
        cuda_on_cpu::Launch launch;
        launch.grid = {grid.x, grid.y};
        launch.block = {static_cast<unsigned>(threads)};
        launch.shared_bytes = static_cast<std::size_t>(shared_bytes);
        launch.more_shared = shared_bytes > 48 * 1024;  // as cuda_queue.cuh asks for it
        status = cuda_on_cpu::launch(options, launch, [=] { kernel(arguments...); });
    }
};

}  // namespace

extern "C" int expansion_sums(cuda_on_cpu::Options* options, std::int64_t n_rows, std::int64_t width,
                              std::int64_t n_partials, float eps, void const* c1, float* partial, void const* bias,
                              float const* b1, float const* gamma0, float const* beta0, float const* wd,
                              float const* bd, double* statistics, float* parameters) {
    EmulatedQueue queue{*options};
    int const n = static_cast<int>(n_partials);
    cuda::launch_mbconv_expansion_sums(queue, {c1, partial, n_rows, width, n});
    cuda::launch_mbconv_finish(queue, &cuda::mbconv_finish_expansion_sums_kernel,
                               MBConvFinishExpansionSums{partial, bias, b1, gamma0, beta0, wd, bd, eps, statistics,
                                                         parameters, n_rows, width, n});
    return queue.status;
}

extern "C" int depthwise(cuda_on_cpu::Options* options, std::int64_t n_clips, std::int64_t n_samples,
                         std::int64_t width, std::int64_t stride, std::int64_t n_partials, float eps, void const* c1,
                         float const* parameters0, void* c2, float* partial, float const* pivot, float const* gamma1,
                         float const* beta1, double* statistics, float* parameters) {
    EmulatedQueue queue{*options};
    std::int64_t const n_rows = n_clips * ((n_samples - 1) / stride + 1);
    int const n = static_cast<int>(n_partials);
    cuda::launch_mbconv_depthwise(
        queue, {c1, parameters0, c2, partial, n_clips, n_samples, width, static_cast<int>(stride), n});
    cuda::launch_mbconv_finish(
        queue, &cuda::mbconv_finish_depthwise_kernel,
        MBConvFinishDepthwise{partial, pivot, gamma1, beta1, eps, statistics, parameters, n_rows, width, n});
    return queue.status;
}

extern "C" int activate(cuda_on_cpu::Options* options, std::int64_t n_rows, std::int64_t width, std::int64_t n_blocks,
                        void const* c2, float const* parameters1, void* a2) {
    EmulatedQueue queue{*options};
    cuda::launch_mbconv_activate(queue, {c2, parameters1, a2, n_rows, width}, static_cast<int>(n_blocks));
    return queue.status;
}

extern "C" int gradient_sums(cuda_on_cpu::Options* options, std::int64_t n_rows, std::int64_t width,
                             std::int64_t n_partials, float eps, void const* c2, void const* da2,
                             float const* parameters1, float* partial, double const* statistics1,
                             float const* parameters0, float const* gamma1, float* dgamma1, float* dbeta1,
                             float* parameters) {
    EmulatedQueue queue{*options};
    int const n = static_cast<int>(n_partials);
    cuda::launch_mbconv_gradient_sums(queue, {c2, da2, parameters1, partial, n_rows, width, n});
    cuda::launch_mbconv_finish(queue, &cuda::mbconv_finish_gradient_sums_kernel,
                               MBConvFinishGradientSums{partial, statistics1, parameters0, parameters1, gamma1, eps,
                                                        dgamma1, dbeta1, parameters, n_rows, width, n});
    return queue.status;
}

extern "C" int depthwise_backward(cuda_on_cpu::Options* options, std::int64_t n_clips, std::int64_t n_samples,
                                  std::int64_t width, std::int64_t stride, std::int64_t n_partials, float eps,
                                  void const* c1, void const* c2, void const* da2, float const* parameters, void* g0,
                                  float* partial, double const* statistics0, float const* gamma0, float* dgamma0,
                                  float* dbeta0, float* dwd, float* vectors) {
    EmulatedQueue queue{*options};
    int const n = static_cast<int>(n_partials);
    cuda::launch_mbconv_depthwise_backward(
        queue, {c1, c2, da2, parameters, g0, partial, n_clips, n_samples, width, static_cast<int>(stride), n});
    cuda::launch_mbconv_finish(queue, &cuda::mbconv_finish_depthwise_backward_kernel,
                               MBConvFinishDepthwiseBackward{partial, statistics0, gamma0, eps, dgamma0, dbeta0, dwd,
                                                             vectors, n_clips * n_samples, width, n});
    return queue.status;
}
