// The tensor-core path of the contrastive loss (csrc/cuda/contrastive_*.cuh), run on the host for
// tests/test_contrastive_cuda_kernels.py.
#include "cuda/contrastive_backward_launch.cuh"
#include "cuda/contrastive_forward_launch.cuh"

namespace {

using sleepfm::DType;

// Runs one launch after the other until one goes wrong. Faults are planted in launch number `planted` only.
struct EmulatedQueue {
    cuda_on_cpu::Options& options;
    std::int64_t planted;
    std::int64_t most_shared_bytes;  // of a block on the device
    std::int64_t n_launches = 0;
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
        launch.more_shared = shared_bytes > 48 * 1024;  // as cuda_queue.cuh asks for it
        launch.most_shared_bytes = static_cast<std::size_t>(most_shared_bytes);
        cuda_on_cpu::Options const given = options;
        if (n_launches++ != planted) {
            options.skipped_barrier = options.skipped_wait = -1;
        } else {
            options.barriers = options.waits = 0;
        }
        status = cuda_on_cpu::launch(options, launch, [=] { kernel(arguments...); });
        options.skipped_barrier = given.skipped_barrier;
        options.skipped_wait = given.skipped_wait;
        if (n_launches - 1 != planted && planted >= 0) {  // the counts are those of the launch in question
            options.barriers = given.barriers;
            options.waits = given.waits;
        }
    }
};

}  // namespace

// As tests/emulated_contrastive.py fills it; every member takes 8 bytes.
struct Problem {
    void const* x;
    std::int64_t dtype, stride_modality, stride_sample, n_modalities, n_samples, n_dim;
    void const* log_temperature;
    std::uint8_t const* mask;
    std::int64_t mask_stride_modality, mask_stride_sample, pairwise, both_directions;
    void* workspace;
    std::int64_t split, begin, end, n_multiprocessors, shared_bytes, chunk_bytes, planted;

    sleepfm::ContrastiveInput input() const {
        sleepfm::ContrastiveInput in{};
        in.x = x;
        in.dtype = static_cast<DType>(dtype);
        in.stride_modality = stride_modality;
        in.stride_sample = stride_sample;
        in.n_modalities = n_modalities;
        in.n_samples = n_samples;
        in.n_dim = n_dim;
        in.log_temperature = log_temperature;
        in.mask = mask;
        in.mask_stride_modality = mask_stride_modality;
        in.mask_stride_sample = mask_stride_sample;
        in.pairwise = pairwise != 0;
        in.both_directions = both_directions != 0;
        in.workspace = workspace;
        return in;
    }
    sleepfm::ContrastiveCudaOptions options() const { return {split != 0, begin, end, 0, nullptr}; }
    sleepfm::cuda::DeviceLimits limits() const { return {static_cast<int>(n_multiprocessors), shared_bytes}; }
};

extern "C" std::int64_t forward_bytes(Problem const* problem) {
    std::int64_t bytes = 0;
    sleepfm::ContrastiveInput const sizes = problem->input();
    sleepfm::cuda::for_forward_policy(problem->split != 0, problem->limits(), [&](auto policy) {
        bytes = sleepfm::cuda::forward_workspace<decltype(policy)>(sizes, problem->options(), problem->limits()).bytes;
    });
    return bytes;
}

extern "C" int forward(cuda_on_cpu::Options* options, Problem const* problem, float* loss, float* losses,
                       std::int64_t* correct, std::int32_t* ranks, std::int64_t* n_valid, double* state) {
    EmulatedQueue queue{*options, problem->planted, problem->shared_bytes};
    sleepfm::cuda::launch_forward(queue, {problem->input(), loss, losses, correct, ranks, n_valid, state},
                                  problem->options(), problem->limits());
    return queue.status;
}

extern "C" std::int64_t backward_bytes(Problem const* problem) {
    sleepfm::ContrastiveInput const sizes = problem->input();
    return sleepfm::cuda::backward_workspace(sizes, problem->options(), problem->chunk_bytes).bytes;
}

extern "C" int backward(cuda_on_cpu::Options* options, Problem const* problem, float const* gradient_loss,
                        std::int64_t const* n_valid, double const* state, void* gradient_x,
                        float* gradient_log_temperature) {
    EmulatedQueue queue{*options, problem->planted, problem->shared_bytes};
    sleepfm::cuda::launch_backward(
        queue, {problem->input(), gradient_loss, n_valid, state, gradient_x, gradient_log_temperature},
        problem->options(), problem->limits(), problem->chunk_bytes);
    return queue.status;
}
