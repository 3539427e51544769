// How kernels are launched, the same on a device and in the emulator. A queue is called as
// queue(kernel, Grid, threads, dynamic shared bytes, arguments...) and runs kernels one after the other, each seeing
// what those before it wrote. The arguments of the contrastive loss are checked here.
#pragma once

#include <cstdint>
#include <type_traits>

#include "check.h"
#include "cuda/contrastive.h"
#include "params.h"

namespace sleepfm::cuda {

struct Grid {
    unsigned x, y;
};

struct DeviceLimits {
    int n_multiprocessors;
    std::int64_t shared_bytes;  // the most shared memory that a block may have
};

// Thresholds between the three sizes of a block's shared memory: 99 KB on compute capability 8.6 and 8.9, 163 KB on 8.0
// and 227 KB on 9.0.
constexpr std::int64_t shared_bytes_of_80 = 160 * 1024, shared_bytes_of_90 = 224 * 1024;

inline void check_contrastive(ContrastiveInput const& in, ContrastiveCudaOptions const& options) {
    SLEEPFM_CHECK(in.n_dim >= 1 && in.n_dim <= contrastive_largest_dim, "contrastive_loss: x has ", in.n_dim,
                  " dimensions; the tensor-core kernels take 1 to ", contrastive_largest_dim, ".");
    SLEEPFM_CHECK(in.n_samples >= 1 && in.n_samples <= (std::int64_t{1} << 30), "contrastive_loss: x has ",
                  in.n_samples, " samples; the tensor-core kernels take 1 to 2^30.");
    SLEEPFM_CHECK(options.begin >= 0 && options.begin <= options.end && options.end <= in.n_samples,
                  "contrastive_loss: samples ", options.begin, " to ", options.end, " of ", in.n_samples,
                  " were asked for; expected 0 <= begin <= end <= N.");
}

template <DType type, typename Launch>
void for_modalities(std::int64_t n_modalities, Launch launch) {
    std::integral_constant<DType, type> const element;
    if (n_modalities <= 3) {
        launch(element, std::integral_constant<int, 3>{});
    } else if (n_modalities == 4) {
        launch(element, std::integral_constant<int, 4>{});
    } else {
        launch(element, std::integral_constant<int, 8>{});
    }
}

// Calls launch(type, limit) with x's element type and an upper bound of the number of modalities, both as
// std::integral_constant, for which a kernel is compiled.
template <typename Launch>
void for_element_and_modalities(ContrastiveInput const& in, Launch launch) {
    SLEEPFM_CHECK(in.n_modalities >= 2 && in.n_modalities <= 8, "contrastive_loss: x has ", in.n_modalities,
                  " modalities; expected 2 to 8.");
    switch (in.dtype) {
        case DType::f32: for_modalities<DType::f32>(in.n_modalities, launch); return;
        case DType::bf16: for_modalities<DType::bf16>(in.n_modalities, launch); return;
        case DType::f16: for_modalities<DType::f16>(in.n_modalities, launch); return;
        case DType::f64: break;
    }
    SLEEPFM_CHECK(false, "contrastive_loss: the tensor-core kernels take float32, bfloat16 or float16.");
}

}  // namespace sleepfm::cuda
