// The kernel of csrc/cuda/filter_resample.cuh for tests/test_cuda_on_cpu.py.
#include "cuda/filter_resample.cuh"

using namespace sleepfm;

// workspace_floats, threads: 0 for what filter_resample_launch chooses.
extern "C" int filter_resample(cuda_on_cpu::Options* options, void const* raw, std::int64_t n_raw,
                               std::int64_t raw_bytes, WindowRow const* table, float const* calibration,
                               std::int64_t n_clips, std::int64_t n_channels, FilterRow const* filters,
                               std::int64_t n_filters, float const* taps, std::int64_t n_taps, void* out,
                               std::int64_t out_dtype, std::int64_t n_out, std::int64_t normalise,
                               std::int64_t shared_limit_bytes, std::int64_t workspace_floats, std::int64_t threads) {
    FilterResample const p{raw,
                           n_raw,
                           static_cast<int>(raw_bytes),
                           table,
                           calibration,
                           n_clips,
                           n_channels,
                           filters,
                           n_filters,
                           taps,
                           n_taps,
                           out,
                           static_cast<DType>(out_dtype),
                           n_out,
                           static_cast<Normalise>(normalise)};
    FilterResampleLaunch geometry =
        filter_resample_launch(n_clips, n_channels, n_out, p.normalise != Normalise::none, shared_limit_bytes);
    if (workspace_floats > 0) {
        geometry.workspace_floats = workspace_floats;
        geometry.shared_bytes = 4 * workspace_floats;
    }
    if (threads > 0) {
        geometry.threads = threads;
    }
    cuda_on_cpu::Launch launch;
    launch.grid = {static_cast<unsigned>(geometry.rows), static_cast<unsigned>(geometry.slices)};
    launch.block = {static_cast<unsigned>(geometry.threads)};
    launch.shared_bytes = static_cast<std::size_t>(geometry.shared_bytes);
    launch.more_shared = true;  // filter_resample.cu asks for as much as the device has
    launch.most_shared_bytes =
        static_cast<std::size_t>(shared_limit_bytes + filter_resample_static_bytes + shared_system_bytes);
    return cuda_on_cpu::launch(*options, launch, [=] {
        raw_bytes == 2 ? cuda::filter_resample_kernel<std::int16_t>(p, geometry)
                       : cuda::filter_resample_kernel<std::int32_t>(p, geometry);
    });
}

// The plan of a filter, field by field.
extern "C" int filter_resample_plan(cuda_on_cpu::Options*, FilterRow const* filter, std::int64_t n_outputs,
                                    std::int64_t workspace_floats, std::int64_t statistics, std::int64_t threads,
                                    std::int32_t* fields) {
    FilterPlan const plan = filter_plan(*filter, n_outputs, static_cast<int>(workspace_floats), statistics != 0,
                                        static_cast<int>(threads / 32));
    static_assert(sizeof plan == 15 * sizeof(std::int32_t), "fifteen int fields");
    memcpy(fields, &plan, sizeof plan);
    return 0;
}
