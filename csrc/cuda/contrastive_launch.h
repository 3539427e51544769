// How the contrastive loss launches its kernels, the same on a device and in the emulator: a queue is called as
// queue(kernel, Grid, threads, dynamic shared bytes, arguments...) and runs kernels one after the other.
#pragma once

#include <cstdint>
#include <type_traits>

#include "check.h"
#include "params.h"

namespace sleepfm::cuda {

struct Grid {
    unsigned x, y;
};

template <DType type, typename Launch>
void for_modalities(std::int64_t n_modalities, Launch launch) {
    std::integral_constant<DType, type> const element;
    if (n_modalities <= 2) {
        launch(element, std::integral_constant<int, 2>{});
    } else if (n_modalities == 3) {
        launch(element, std::integral_constant<int, 3>{});
    } else if (n_modalities == 4) {
        launch(element, std::integral_constant<int, 4>{});
    } else {
        launch(element, std::integral_constant<int, 8>{});
    }
}

// launch(element type, most modalities), both as types.
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
