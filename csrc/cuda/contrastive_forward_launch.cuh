// Forward of the tensor-core path on the host's side: the choice of tiles, how they are cut among blocks, the
// workspace, and the launches in order: prepare, own, forward, finish, total.
#pragma once

#include <algorithm>

#include "cuda/contrastive_finish.cuh"
#include "cuda/contrastive_own.cuh"
#include "cuda/contrastive_prepare.cuh"

namespace sleepfm::cuda {

// Calls use(Policy{}) with the tiles that fit the device's shared memory.
template <typename Use>
void for_forward_policy(bool split, DeviceLimits limits, Use use) {
    if (!split && limits.shared_bytes >= shared_bytes_of_90) {
        use(ForwardPolicy<128, 128, 2, 4, 3, false, 2>{});
    } else if (!split) {
        use(ForwardPolicy<128, 128, 2, 4, 2, false, 2>{});
    } else if (limits.shared_bytes >= shared_bytes_of_80) {
        use(ForwardPolicy<128, 128, 2, 4, 2, true, 1>{});
    } else {
        use(ForwardPolicy<64, 64, 2, 4, 2, true, 1>{});
    }
}

// How many blocks of `shared_bytes`, at most `most`, share a multiprocessor. It has the most that one block may have
// and the 1 KiB that CUDA reserves in every block.
inline int blocks_side_by_side(int most, std::int64_t shared_bytes, DeviceLimits limits) {
    std::int64_t const fit = (limits.shared_bytes + 1024) / (shared_bytes + 1024);
    return static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(most, fit)));
}

struct ForwardGroups {
    int row_groups, column_groups;
};

// Cuts a problem's tiles into row_groups x column_groups, one for each block, so that the busiest multiprocessor has
// the fewest tiles, and among such cuts the fewest groups. A group costs a Share of 16 bytes for each sample, hence at
// most 32 of either kind. capacity: blocks that the device runs at a time.
inline ForwardGroups forward_groups(int row_blocks, int column_blocks, int n_oriented, int capacity) {
    ForwardGroups best{1, 1};
    std::int64_t best_cost = INT64_MAX;
    auto const over = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
    for (int columns = 1; columns <= std::min(column_blocks, 32); ++columns) {
        int const rows = std::max(1, std::min({capacity / (n_oriented * columns), row_blocks, 32}));
        std::int64_t const waves = over(static_cast<std::int64_t>(n_oriented) * rows * columns, capacity);
        std::int64_t const cost = waves * over(row_blocks, rows) * over(column_blocks, columns);
        if (cost < best_cost || (cost == best_cost && rows + columns < best.row_groups + best.column_groups)) {
            best_cost = cost;
            best = {rows, columns};
        }
    }
    return best;
}

struct ForwardWorkspace {
    ContrastiveOperands operands;
    float* own;
    ForwardTiles tiles;
    BlockTotals totals;
    int n_oriented, n_blocks;  // n_blocks: of contrastive_finish_kernel, for a problem
    bool whole;                // all samples are computed: columns are summed with rows, no problem is exchanged
    std::int64_t bytes;
};

inline Shares take_shares(DeviceArena& arena, std::int64_t n) {
    double* const sum = arena.take<double>(n);
    float* const largest = arena.take<float>(n);
    return {sum, largest, arena.take<int>(n)};
}

// With in.workspace null, sizes only.
template <typename Policy>
ForwardWorkspace forward_workspace(ContrastiveInput const& in, ContrastiveCudaOptions const& options,
                                   DeviceLimits limits) {
    DeviceArena arena(in.workspace);
    ForwardWorkspace w{};
    w.operands = contrastive_operands(arena, in.n_modalities, in.n_samples, in.n_dim, in.pairwise, options.split);
    w.whole = options.begin == 0 && options.end == in.n_samples;
    int const P = static_cast<int>(w.operands.n_problems);
    w.n_oriented = w.whole ? P : 2 * P;
    w.own = arena.take<float>(w.n_oriented * w.operands.n_padded);
    ForwardTiles& t = w.tiles;
    t.operands = w.operands;
    t.log_temperature = in.log_temperature;
    t.own = w.own;
    t.begin = static_cast<int>(options.begin);
    t.end = static_cast<int>(options.end);
    t.row_blocks = (t.end - t.begin + Policy::ROWS - 1) / Policy::ROWS;
    t.column_blocks = (static_cast<int>(in.n_samples) + Policy::COLUMNS - 1) / Policy::COLUMNS;
    int const side_by_side = blocks_side_by_side(Policy::BLOCKS, Policy::SHARED_BYTES, limits);
    ForwardGroups const groups =
        forward_groups(t.row_blocks, t.column_blocks, w.n_oriented, limits.n_multiprocessors * side_by_side);
    t.row_groups = groups.row_groups;
    t.column_groups = groups.column_groups;
    t.rows = take_shares(arena, w.n_oriented * t.column_groups * w.operands.n_padded);
    if (w.whole) {
        t.columns = take_shares(arena, w.n_oriented * t.row_groups * w.operands.n_padded);
    }
    w.n_blocks = (static_cast<int>(in.n_samples) + finish_threads - 1) / finish_threads;
    double* const losses = arena.take<double>(2 * P * w.n_blocks);
    int* const correct = arena.take<int>(2 * P * w.n_blocks);
    w.totals = {losses, correct, arena.take<int>(P * w.n_blocks)};
    w.bytes = arena.used();
    return w;
}

template <typename Queue>
void launch_forward(Queue& queue, ContrastiveForward const& call, ContrastiveCudaOptions const& options,
                    DeviceLimits limits) {
    ContrastiveInput const& in = call.input;
    check_contrastive(in, options);
    for_forward_policy(options.split, limits, [&](auto policy) {
        using Policy = decltype(policy);
        ForwardWorkspace const w = forward_workspace<Policy>(in, options, limits);
        launch_prepare(queue, in, w.operands);
        unsigned const own_blocks = static_cast<unsigned>(w.operands.n_padded / (16 * own_warps));
        if (options.begin < options.end) {
            queue(&contrastive_own_kernel<Policy::SPLIT>, Grid{own_blocks, static_cast<unsigned>(w.n_oriented)},
                  32 * own_warps, 0, w.operands, w.own);
            queue(&contrastive_forward_kernel<Policy>,
                  Grid{static_cast<unsigned>(w.tiles.row_groups * w.tiles.column_groups),
                       static_cast<unsigned>(w.n_oriented)},
                  Policy::THREADS, Policy::SHARED_BYTES, w.tiles);
        }
        Finish const finish{
            w.operands,   in.log_temperature, options.begin, options.end, w.tiles.row_groups, w.tiles.column_groups,
            w.tiles.rows, w.tiles.columns,    call.state,    call.ranks,  w.totals,           w.n_blocks};
        queue(&contrastive_finish_kernel,
              Grid{static_cast<unsigned>(w.n_blocks), static_cast<unsigned>(w.operands.n_problems)}, finish_threads, 0,
              finish);
        queue(&contrastive_total_kernel, Grid{1, 1}, finish_threads, 0, w.totals, w.n_blocks,
              static_cast<int>(w.operands.n_problems), in.both_directions, static_cast<float*>(call.loss),
              static_cast<float*>(call.losses), call.correct, call.n_valid);
    });
}

}  // namespace sleepfm::cuda
