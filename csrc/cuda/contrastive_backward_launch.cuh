// Backward of the tensor-core path on the host's side: the choice of tiles, the workspace, and the launches in order:
// prepare, shift, weights, then backward and combine for a chunk of samples at a time, last the temperature's gradient.
#pragma once

#include <algorithm>

#include "cuda/contrastive_backward.cuh"
#include "cuda/contrastive_combine.cuh"
#include "cuda/contrastive_prepare.cuh"

namespace sleepfm::cuda {

// The float32 gradients of both sides' rows are in memory for a chunk of samples at a time, of at most this many bytes
// (but contrastive_row_padding samples at least).
constexpr std::int64_t backward_chunk_bytes = std::int64_t{256} << 20;

template <int DIM, typename Use>
void for_backward_policy_of(bool split, DeviceLimits limits, Use use) {
    bool const large = limits.shared_bytes >= shared_bytes_of_90, medium = limits.shared_bytes >= shared_bytes_of_80;
    if constexpr (DIM <= 128) {
        if (!split) {
            use(BackwardPolicy<DIM, 128, 64, 4, 2, 2, false>{});
        } else {
            use(BackwardPolicy<DIM, 64, DIM == 64 ? 64 : 32, 4, 2, 2, true>{});
        }
    } else if constexpr (DIM == 256) {
        if (medium) {
            split ? use(BackwardPolicy<DIM, 64, 32, 4, 2, 4, true>{})
                  : use(BackwardPolicy<DIM, 64, 64, 4, 2, 4, false>{});
        } else {
            split ? use(BackwardPolicy<DIM, 32, 16, 2, 2, 4, true>{})
                  : use(BackwardPolicy<DIM, 64, 32, 4, 2, 4, false>{});
        }
    } else if (large) {
        split ? use(BackwardPolicy<DIM, 32, 32, 2, 4, 8, true>{}) : use(BackwardPolicy<DIM, 64, 64, 4, 2, 8, false>{});
    } else if (medium) {
        split ? use(BackwardPolicy<DIM, 32, 16, 2, 2, 8, true>{}) : use(BackwardPolicy<DIM, 64, 32, 4, 2, 8, false>{});
    } else {
        split ? use(BackwardPolicy<DIM, 16, 16, 1, 2, 8, true>{}) : use(BackwardPolicy<DIM, 32, 32, 2, 4, 8, false>{});
    }
}

// Calls use(Policy{}) with the tiles that fit the device's shared memory.
template <typename Use>
void for_backward_policy(std::int64_t d_padded, bool split, DeviceLimits limits, Use use) {
    switch (d_padded) {
        case 64: for_backward_policy_of<64>(split, limits, use); return;
        case 128: for_backward_policy_of<128>(split, limits, use); return;
        case 256: for_backward_policy_of<256>(split, limits, use); return;
        default: for_backward_policy_of<512>(split, limits, use); return;
    }
}

struct BackwardWorkspace {
    ContrastiveOperands operands;
    GradientWeights weights;
    double* slope;
    float* gradient;
    std::int64_t chunk;  // samples at a time, a multiple of contrastive_row_padding
    std::int64_t bytes;
};

inline BackwardWorkspace backward_workspace(ContrastiveInput const& in, ContrastiveCudaOptions const& options,
                                            std::int64_t chunk_bytes = backward_chunk_bytes) {
    DeviceArena arena(in.workspace);
    BackwardWorkspace w{};
    w.operands = contrastive_operands(arena, in.n_modalities, in.n_samples, in.n_dim, in.pairwise, options.split);
    std::int64_t const P = w.operands.n_problems, n_padded = w.operands.n_padded;
    w.weights.reference = arena.take<float>(2 * P * n_padded);
    w.weights.weight = arena.take<float>(2 * P * n_padded);
    w.weights.own = arena.take<float>(P * n_padded);
    w.weights.shift = arena.take<int>(P);
    w.slope = arena.take<double>(2 * P * n_padded);
    std::int64_t const n_rows = options.end - options.begin, row_bytes = 2 * P * w.operands.d_padded * 4;
    std::int64_t const most = std::max<std::int64_t>(chunk_bytes / row_bytes, contrastive_row_padding);
    std::int64_t const n_chunks = std::max<std::int64_t>((n_rows + most - 1) / most, 1);
    std::int64_t const even = (n_rows + n_chunks - 1) / n_chunks;
    w.chunk = std::max<std::int64_t>(
        (even + contrastive_row_padding - 1) / contrastive_row_padding * contrastive_row_padding, 1);
    w.gradient = arena.take<float>(2 * P * std::min(w.chunk, n_rows) * w.operands.d_padded);
    w.bytes = arena.used();
    return w;
}

template <typename Queue>
void launch_backward(Queue& queue, ContrastiveBackward const& call, ContrastiveCudaOptions const& options,
                     DeviceLimits limits, std::int64_t chunk_bytes = backward_chunk_bytes) {
    ContrastiveInput const& in = call.input;
    check_contrastive(in, options);
    BackwardWorkspace const w = backward_workspace(in, options, chunk_bytes);
    unsigned const P = static_cast<unsigned>(w.operands.n_problems);
    launch_prepare(queue, in, w.operands);
    queue(&contrastive_shift_kernel, Grid{P, 1}, weight_threads, 0, w.operands, call.state, in.both_directions,
          w.weights.shift);
    unsigned const weight_blocks = static_cast<unsigned>((w.operands.n_padded + weight_threads - 1) / weight_threads);
    queue(&contrastive_weights_kernel, Grid{weight_blocks, 2 * P}, weight_threads, 0, w.operands, in.log_temperature,
          call.state, in.both_directions, w.weights);
    Combine combine{w.operands,    call.gradient_loss, call.n_valid, call.state,      in.both_directions,
                    options.begin, options.end,        w.gradient,   w.weights.shift, call.gradient_x};
    for (std::int64_t begin = options.begin; begin < options.end; begin += w.chunk) {
        combine.begin = begin;
        combine.end = std::min(begin + w.chunk, options.end);
        BackwardTiles const tiles{w.operands,
                                  in.log_temperature,
                                  w.weights,
                                  static_cast<int>(combine.begin),
                                  static_cast<int>(combine.end),
                                  w.gradient,
                                  w.slope};
        unsigned const n_rows = static_cast<unsigned>(combine.end - combine.begin);
        for_backward_policy(w.operands.d_padded, options.split, limits, [&](auto policy) {
            using Policy = decltype(policy);
            queue(&contrastive_backward_kernel<Policy>, Grid{(n_rows + Policy::ROWS - 1) / Policy::ROWS, 2 * P},
                  Policy::THREADS, Policy::SHARED_BYTES, tiles);
        });
        for_element_and_modalities(in, [&](auto type, auto limit) {
            queue(&contrastive_combine_kernel<decltype(type)::value, decltype(limit)::value>,
                  Grid{(n_rows + combine_warps - 1) / combine_warps, 1}, 32 * combine_warps, 0, in, combine);
        });
    }
    combine.begin = options.begin;
    combine.end = options.end;
    queue(&contrastive_slope_kernel, Grid{1, 1}, combine_total_threads, 0, combine, in.log_temperature, w.slope,
          static_cast<float*>(call.gradient_log_temperature));
}

}  // namespace sleepfm::cuda
