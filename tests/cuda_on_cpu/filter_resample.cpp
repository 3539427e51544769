// The kernel of csrc/cuda/filter_resample.cuh, run on the host for tests/test_cuda_on_cpu.py.
#include "shim.h"

#include "cuda/filter_resample.cuh"

namespace {

template <typename Raw, typename Out>
int run(sleepfm::FilterResample const& p, sleepfm::FilterResampleLaunch const& launch, int order, int skipped_barrier,
        int* n_barriers) {
    cuda_on_cpu::Machine m;
    m.skipped_barrier = skipped_barrier;
    m.kernel = [&] { sleepfm::cuda::filter_resample_kernel<Raw, Out>(p, launch); };
    std::mt19937 random(7);
    gridDim = {static_cast<unsigned>(launch.rows), static_cast<unsigned>(launch.slices), 1};
    for (unsigned x = 0; x < gridDim.x; ++x) {
        for (unsigned y = 0; y < gridDim.y; ++y) {
            blockIdx = {x, y, 0};
            cuda_on_cpu::Outcome const outcome =
                cuda_on_cpu::run_block(m, static_cast<unsigned>(launch.threads), static_cast<cuda_on_cpu::Order>(order),
                                       static_cast<std::size_t>(launch.shared_bytes / 4), random);
            if (outcome != cuda_on_cpu::Outcome::done) {
                return static_cast<int>(outcome);
            }
        }
    }
    *n_barriers = m.barriers;
    return 0;
}

template <typename Raw>
int run_for(sleepfm::FilterResample const& p, sleepfm::FilterResampleLaunch const& launch, int order,
            int skipped_barrier, int* n_barriers) {
    switch (p.out_dtype) {
        case sleepfm::DType::bf16: return run<Raw, sleepfm::cuda::Bf16>(p, launch, order, skipped_barrier, n_barriers);
        case sleepfm::DType::f16: return run<Raw, sleepfm::cuda::F16>(p, launch, order, skipped_barrier, n_barriers);
        default: return run<Raw, float>(p, launch, order, skipped_barrier, n_barriers);
    }
}

}  // namespace

// Returns 0, or why the run is void: 1 a barrier that not all threads reach, 2 a write beyond the shared memory.
extern "C" int filter_resample_on_cpu(void const* raw, std::int64_t n_raw, int raw_bytes, void const* table,
                                      float const* calibration, std::int64_t n_clips, std::int64_t n_channels,
                                      void const* filters, std::int64_t n_filters, float const* taps,
                                      std::int64_t n_taps, void* out, int out_dtype, std::int64_t n_out, int zscore,
                                      std::int64_t shared_limit_bytes, std::int64_t workspace_floats,
                                      std::int64_t threads, int order, int skipped_barrier, int* n_barriers) {
    sleepfm::FilterResample const p{raw,
                                    n_raw,
                                    raw_bytes,
                                    static_cast<sleepfm::WindowRow const*>(table),
                                    calibration,
                                    n_clips,
                                    n_channels,
                                    static_cast<sleepfm::FilterRow const*>(filters),
                                    n_filters,
                                    taps,
                                    n_taps,
                                    out,
                                    static_cast<sleepfm::DType>(out_dtype),
                                    n_out,
                                    static_cast<sleepfm::Normalise>(zscore)};
    sleepfm::FilterResampleLaunch launch =
        sleepfm::filter_resample_launch(n_clips, n_channels, n_out, p.normalise != sleepfm::Normalise::none, shared_limit_bytes);
    launch.workspace_floats = workspace_floats;
    launch.shared_bytes = 4 * (workspace_floats + launch.kept_floats);
    launch.threads = threads;
    return raw_bytes == 2 ? run_for<std::int16_t>(p, launch, order, skipped_barrier, n_barriers)
                          : run_for<std::int32_t>(p, launch, order, skipped_barrier, n_barriers);
}
