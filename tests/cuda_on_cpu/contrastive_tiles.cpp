// The tensor-core path of the contrastive loss (csrc/cuda/contrastive_*.cuh), run on the host for
// tests/test_contrastive_cuda_kernels.py.
#include "cuda/contrastive_backward_launch.cuh"
#include "cuda/contrastive_forward_launch.cuh"

namespace {

using sleepfm::DType;

// Runs one launch after the other until one goes wrong.
struct EmulatedQueue {
    cuda_on_cpu::Options& options;
    int status = 0;

    template <typename... Parameters, typename... Arguments>
    void operator()(void (*kernel)(Parameters...), sleepfm::cuda::Grid grid, int threads, std::int64_t shared_bytes,
                    Arguments const&... arguments) {
        if (status != 0) {
            return;
        }
        cuda_on_cpu::Launch launch;
        launch.grid = {grid.x, grid.y};
        launch.block = {static_cast<unsigned>(threads)};
        launch.shared_bytes = static_cast<std::size_t>(shared_bytes);
        status = cuda_on_cpu::launch(options, launch, [=] { kernel(arguments...); });
    }
};

}  // namespace

// As tests/test_contrastive_cuda_kernels.py fills them.
struct Problem {
    sleepfm::ContrastiveInput input;
    std::int64_t split, begin, end, n_multiprocessors, shared_bytes;

    sleepfm::ContrastiveCudaOptions options() const { return {split != 0, begin, end, 0, nullptr}; }
    sleepfm::cuda::DeviceLimits limits() const { return {static_cast<int>(n_multiprocessors), shared_bytes}; }
};

extern "C" std::int64_t forward_bytes(Problem const* problem) {
    std::int64_t bytes = 0;
    sleepfm::ContrastiveInput sizes = problem->input;
    sizes.workspace = nullptr;
    sleepfm::cuda::for_forward_policy(problem->split != 0, problem->limits(), [&](auto policy) {
        bytes = sleepfm::cuda::forward_workspace<decltype(policy)>(sizes, problem->options(), problem->limits()).bytes;
    });
    return bytes;
}

extern "C" int forward(cuda_on_cpu::Options* options, Problem const* problem, float* loss, float* losses,
                       std::int64_t* correct, std::int32_t* ranks, std::int64_t* n_valid, double* state) {
    EmulatedQueue queue{*options};
    sleepfm::cuda::launch_forward(queue, {problem->input, loss, losses, correct, ranks, n_valid, state},
                                  problem->options(), problem->limits());
    return queue.status;
}

extern "C" std::int64_t backward_bytes(Problem const* problem) {
    sleepfm::ContrastiveInput sizes = problem->input;
    sizes.workspace = nullptr;
    return sleepfm::cuda::backward_workspace(sizes, problem->options()).bytes;
}

extern "C" int backward(cuda_on_cpu::Options* options, Problem const* problem, float const* gradient_loss,
                        std::int64_t const* n_valid, double const* state, void* gradient_x,
                        float* gradient_log_temperature) {
    EmulatedQueue queue{*options};
    sleepfm::cuda::launch_backward(
        queue, {problem->input, gradient_loss, n_valid, state, gradient_x, gradient_log_temperature},
        problem->options(), problem->limits());
    return queue.status;
}
