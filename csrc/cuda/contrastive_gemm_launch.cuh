// The launch of each step of the contrastive loss's library path, on a device or in the emulator.
#pragma once

#include "cuda/contrastive_gemm_ends.cuh"
#include "cuda/contrastive_launch.h"

namespace sleepfm::cuda {

inline unsigned blocks_for(Index n, Index each) {
    return static_cast<unsigned>((n + each - 1) / each);
}

template <DType type, typename Launch>
void for_gemm_modalities(Index n_modalities, Launch launch) {
    std::integral_constant<DType, type> const element;
    if (n_modalities <= 4) {
        launch(element, std::integral_constant<int, 4>{});
    } else {
        launch(element, std::integral_constant<int, 8>{});
    }
}

// As for_element_and_modalities, with fewer upper bounds: kernels that go through x once are bound by memory, and need
// not be compiled for every number of modalities.
template <typename Launch>
void for_gemm_elements(ContrastiveGemm const& g, Launch launch) {
    SLEEPFM_CHECK(g.n_modalities >= 2 && g.n_modalities <= 8, "contrastive_gemm: x has ", g.n_modalities,
                  " modalities; expected 2 to 8.");
    switch (static_cast<DType>(g.dtype)) {
        case DType::f32: for_gemm_modalities<DType::f32>(g.n_modalities, launch); return;
        case DType::bf16: for_gemm_modalities<DType::bf16>(g.n_modalities, launch); return;
        case DType::f16: for_gemm_modalities<DType::f16>(g.n_modalities, launch); return;
        case DType::f64: break;
    }
    SLEEPFM_CHECK(false, "contrastive_gemm: x is of type ", g.dtype, "; expected float32, bfloat16 or float16.");
}

// queue: see contrastive_launch.h.
template <typename Queue>
void launch_gemm_step(Queue& queue, GemmStep step, ContrastiveGemm const& g) {
    Grid const of_tile{blocks_for(g.n_columns, gemm_strip), blocks_for(g.n_rows, gemm_segment)};
    switch (step) {
        case GemmStep::operands:
            for_gemm_elements(g, [&](auto type, auto limit) {
                queue(&gemm_operands_kernel<decltype(type)::value, decltype(limit)::value>,
                      Grid{blocks_for(g.n_samples, epilogue_warps), 1}, epilogue_threads, 0, g);
            });
            return;
        case GemmStep::statistics: queue(&gemm_statistics_kernel, of_tile, epilogue_threads, 0, g); return;
        case GemmStep::merge:
            queue(&gemm_merge_kernel, Grid{blocks_for(g.n_rows + g.n_columns, epilogue_threads), 1}, epilogue_threads,
                  0, g);
            return;
        case GemmStep::finish:
            queue(&gemm_finish_kernel, Grid{blocks_for(g.n_samples, gemm_finish_threads), 2},
                  static_cast<int>(gemm_finish_threads), 0, g);
            return;
        case GemmStep::total:
            queue(&gemm_total_kernel, Grid{1, 1}, static_cast<int>(gemm_finish_threads), 0, g);
            return;
        case GemmStep::weights: queue(&gemm_weights_kernel, Grid{1, 1}, weights_threads, 0, g); return;
        case GemmStep::gradient: queue(&gemm_gradient_kernel, of_tile, epilogue_threads, 0, g); return;
        case GemmStep::accumulate:
            for_gemm_elements(g, [&](auto type, auto limit) {
                queue(&gemm_accumulate_kernel<decltype(type)::value, decltype(limit)::value>,
                      Grid{blocks_for(g.end - g.begin, epilogue_warps), 1}, epilogue_threads, 0, g);
            });
            return;
        case GemmStep::finish_gradient:
            for_gemm_elements(g, [&](auto type, auto limit) {
                queue(&gemm_finish_gradient_kernel<decltype(type)::value, decltype(limit)::value>,
                      Grid{blocks_for(g.n_samples, epilogue_warps) + 1, 1}, epilogue_threads, 0, g);
            });
            return;
    }
    SLEEPFM_CHECK(false, "contrastive_gemm: step ", static_cast<std::int64_t>(step), " is none of 0 to 8.");
}

}  // namespace sleepfm::cuda
