// The kernel of csrc/cuda/contrastive_small.cuh, run on the host for tests/test_contrastive_small.py.
#include "cuda/contrastive_small.cuh"

namespace {

sleepfm::ContrastiveInput sizes_of(std::int64_t M, std::int64_t N, std::int64_t D, std::int64_t pairwise) {
    sleepfm::ContrastiveInput input{};
    input.n_modalities = M;
    input.n_samples = N;
    input.n_dim = D;
    input.pairwise = pairwise != 0;
    return input;
}

}  // namespace

extern "C" std::int64_t workspace_bytes(std::int64_t M, std::int64_t N, std::int64_t D, std::int64_t pairwise,
                                        std::int64_t gradient) {
    return sleepfm::contrastive_small_workspace_bytes(sizes_of(M, N, D, pairwise), gradient != 0);
}

// The blocks of a launch that is refused while there are more than `fit` of them.
extern "C" std::int64_t blocks_launched(std::int64_t wanted, std::int64_t fit) {
    return sleepfm::launch_that_fits(wanted, [&](std::int64_t blocks) { return blocks <= fit; });
}

// blocks: 0 for as many as on a device that runs 264.
extern "C" int contrastive_small(cuda_on_cpu::Options* options, void const* x, std::int64_t dtype, std::int64_t M,
                                 std::int64_t N, std::int64_t D, std::int64_t stride_modality,
                                 std::int64_t stride_sample, float const* log_temperature, std::uint8_t const* mask,
                                 std::int64_t pairwise, std::int64_t both, void* workspace, std::int64_t begin,
                                 std::int64_t end, std::int64_t given_state, float* loss, float* losses,
                                 std::int64_t* correct, std::int32_t* ranks, std::int64_t* n_valid, double* state,
                                 float const* gradient_loss, void* gradient_x, std::int64_t gradient_dtype,
                                 float* gradient_log_temperature, unsigned* barrier, std::int64_t tile,
                                 std::int64_t blocks) {
    sleepfm::ContrastiveSmall p{};
    p.input = sizes_of(M, N, D, pairwise);
    p.input.x = x;
    p.input.dtype = static_cast<sleepfm::DType>(dtype);
    p.input.stride_modality = stride_modality;
    p.input.stride_sample = stride_sample;
    p.input.log_temperature = log_temperature;
    p.input.mask = mask;
    p.input.mask_stride_modality = N;
    p.input.mask_stride_sample = 1;
    p.input.both_directions = both != 0;
    p.input.workspace = workspace;
    p.begin = begin;
    p.end = end;
    p.given_state = given_state != 0;
    p.loss = loss;
    p.losses = losses;
    p.correct = correct;
    p.ranks = ranks;
    p.n_valid = n_valid;
    p.state = state;
    p.gradient_loss = gradient_loss;
    p.gradient_x = gradient_x;
    p.gradient_dtype = static_cast<sleepfm::DType>(gradient_dtype);
    p.gradient_log_temperature = gradient_log_temperature;
    p.barrier = barrier;
    sleepfm::ContrastiveSmallLaunch const geometry =
        sleepfm::contrastive_small_launch(p.input, gradient_x != nullptr, tile, 264);
    cuda_on_cpu::Launch launch;
    launch.grid = {static_cast<unsigned>(blocks > 0 ? blocks : geometry.blocks)};
    launch.block = {static_cast<unsigned>(sleepfm::contrastive_small_threads)};
    launch.shared_bytes = static_cast<std::size_t>(geometry.shared_bytes);
    launch.cooperative = true;
    if (tile == 16) {
        return cuda_on_cpu::launch(*options, launch, [=] { sleepfm::cuda::contrastive_small_kernel<16>(p); });
    }
    return cuda_on_cpu::launch(*options, launch, [=] { sleepfm::cuda::contrastive_small_kernel<32>(p); });
}
