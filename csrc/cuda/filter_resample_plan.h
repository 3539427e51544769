// How a block of filter_resample's CUDA kernel computes the outputs of one row: integer arithmetic, done by one thread
// of the block.
//
// Outputs `period` apart have the same taps and lie `advance` samples apart. With phase v = n mod period and repeat
// j = n div period, y[v, j] = sum_k taps[v][k] x[start[v] + j advance + k]: a product of a table [period, taps] with a
// matrix of samples [taps, repeats] that is never written down. A thread has P phases x J repeats of y; its warp shares
// the P rows of taps, which shared memory broadcasts, and its lanes take neighbouring repeats. For 4 taps, a warp
// issues 4 P J multiply-adds and loads 4 J words (or J vectors of 16 bytes) of samples and P vectors of taps.
//
// The block's shared memory holds, in this order: the tile's samples, a chunk of the table (both also used as scratch
// for the low branch, and the samples' place by the outputs of a tile), the slice's low branch, and, where outputs are
// read again, all of them. A slice is several tiles that share one computation of the low branch.
#pragma once

#include "filter_geometry.h"
#include "host_device.h"
#include "params.h"

namespace sleepfm {

struct FilterPlan {
    int shape;            // number of a filter_shape; 0: one output for each thread, taps from device memory
    int period, advance;  // in outputs, and in samples
    int row_floats;       // floats that `period` outputs take in shared memory: see place_in_row
    int groups;           // groups of P phases that make a period
    int repeats;          // repeats (periods) of a tile
    int taps;             // length of the table's rows, with zeros since they begin at a common sample; a multiple of 4
    int chunk;            // how many of these are in shared memory at a time
    int tile;             // outputs of a tile; 0: the workspace is too small
    int slice;            // outputs for which the low branch is computed at once, a multiple of the tile
    int sample_floats;    // floats of a tile's samples
    int low_floats;       // floats of a slice's low branch
    int padded;           // 1: four words of padding after every 32 samples, and samples are loaded four at a time
    int resident;         // 1: all outputs of the block stay in shared memory
    int kept_floats;      // floats of all outputs beside the tile; 0: a tile's outputs take its samples' place
};

struct FilterShape {
    int phases, repeats;  // a thread's P and J
    // Cycles of a multiprocessor for one tap of 8 warps: the larger of 2 P J for the multiply-adds and 8 J + 2 P for
    // shared memory.
    int cycles;
};
constexpr int n_filter_shapes = 6;
constexpr int filter_slice_outputs = 8192;  // 8 warps x 32 lanes x 32 outputs
constexpr int largest_period = 256, largest_advance = 1 << 16;

// A switch and not an array: device code cannot read a host's constexpr array.
SLEEPFM_HOST_DEVICE static inline FilterShape filter_shape(int shape) {
    switch (shape) {
        case 1: return {8, 4, 64};
        case 2: return {16, 2, 64};
        case 3: return {8, 2, 32};
        case 4: return {32, 1, 72};
        case 5: return {8, 1, 24};
        default: return {1, 1, 0};
    }
}

SLEEPFM_HOST_DEVICE static inline int round_up(int n, int to) {
    return (n + to - 1) / to * to;
}

// Where outputs lie in shared memory, [repeats, row_floats]. A word of padding after every 32 phases and an odd number
// of floats for each repeat keep a warp's lanes in different banks, both when they write one phase of 32 repeats and
// when they read neighbouring outputs.
SLEEPFM_HOST_DEVICE static inline int place_in_row(int phase) {
    return phase + phase / 32;
}
SLEEPFM_HOST_DEVICE static inline int output_row_floats(int period) {
    return (period + period / 32) | 1;
}

// Where samples lie in shared memory. padded: lanes that are 4, 8, 16, ... samples apart then load their vectors of 16
// bytes from different banks.
SLEEPFM_HOST_DEVICE static inline int place_of_sample(int i, bool padded) {
    return padded ? i + i / 32 * 4 : i;
}

// An upper bound of the decimated samples, after the low-pass, that n outputs need.
SLEEPFM_HOST_DEVICE static inline std::int64_t low_samples(FilterRow const& f, std::int64_t n) {
    return f.decimation == 0 ? 0 : ((n - 1) * f.down / f.up + 2 + f.main_taps) / f.decimation + 2 + f.interpolator_taps;
}

// Fills in the largest tile of `shape` that fits into `room` floats and returns the cycles that all outputs then take
// (to compare shapes with), or 0 if none fits. over_samples: the tile's outputs will be written over its samples.
SLEEPFM_HOST_DEVICE static inline std::int64_t try_shape(FilterRow const& f, int n_outputs, int room, bool over_samples,
                                                         int n_warps, int shape, FilterPlan& plan) {
    FilterShape const s = filter_shape(shape);
    int const up = static_cast<int>(f.up), down = static_cast<int>(f.down);
    int const groups = (plan.period + s.phases - 1) / s.phases;
    if (groups > n_warps) {
        return 0;
    }
    plan.shape = shape;
    plan.groups = groups;
    plan.padded = plan.advance % 4 == 0;
    // The P rows of a group begin at a common sample (padded: rounded down to a multiple of 4); its last phase begins
    // up to `shifts` samples later.
    int const shifts = (s.phases - 1) * down / up + 1 + (plan.padded != 0 ? 3 : 0);
    plan.taps = round_up(static_cast<int>(f.main_taps) + shifts, 4);
    int const starts = (plan.period - 1) * down / up + 1;
    int const all_repeats = (n_outputs + plan.period - 1) / plan.period, rows = groups * s.phases;
    for (int lane_groups = n_warps / groups; lane_groups > 0; lane_groups /= 2) {
        plan.repeats = lane_groups * 32 * s.repeats;
        plan.repeats = plan.repeats < all_repeats ? plan.repeats : all_repeats;
        std::int64_t const samples =
            static_cast<std::int64_t>(plan.repeats - 1) * plan.advance + starts + plan.taps + 8;
        if (samples >= room) {
            continue;
        }
        plan.sample_floats = round_up(place_of_sample(static_cast<int>(samples), plan.padded != 0), 4);
        int const fits = (room - plan.sample_floats) / rows / 4 * 4;
        plan.chunk = fits < plan.taps ? fits : plan.taps;
        bool const enough = plan.chunk == plan.taps || plan.chunk >= 16;  // shorter chunks would mean too many barriers
        if (enough && (!over_samples || plan.repeats * plan.row_floats <= room)) {
            plan.tile = plan.repeats * plan.period;
            return static_cast<std::int64_t>((n_outputs + plan.tile - 1) / plan.tile) * s.cycles * plan.taps;
        }
    }
    return 0;
}

// The largest tile for one output for each thread (shape 0): its samples and, unless all outputs are kept elsewhere
// (over_samples), its outputs behind them.
SLEEPFM_HOST_DEVICE static inline void plan_single_outputs(FilterRow const& f, int n_outputs, int room,
                                                           bool over_samples, FilterPlan& plan) {
    plan.shape = 0;
    plan.period = 32;
    plan.row_floats = output_row_floats(32);
    plan.padded = 0;
    int const most = n_outputs < filter_slice_outputs ? n_outputs : filter_slice_outputs;
    int fits = 0, above = most + 1;
    while (above - fits > 1) {
        int const middle = fits + (above - fits) / 2;
        std::int64_t const samples = (middle - 1) * f.down / f.up + 4 + f.main_stride;
        std::int64_t const outputs = over_samples ? (middle + 31) / 32 * plan.row_floats : 0;
        (samples + outputs <= room ? fits : above) = middle;
    }
    plan.tile = fits;
    plan.sample_floats = plan.tile == 0 ? 0 : static_cast<int>((plan.tile - 1) * f.down / f.up + 4 + f.main_stride);
}

// The plan with the fewest cycles; keeps: with room for all outputs beside the tile. A tile of 0 outputs if none fits.
SLEEPFM_HOST_DEVICE static inline FilterPlan best_tile(FilterRow const& f, int n_outputs, int workspace, bool keeps,
                                                       int n_warps) {
    FilterPlan plan{};
    std::int64_t const slice = n_outputs < filter_slice_outputs ? n_outputs : filter_slice_outputs;
    std::int64_t const low = (low_samples(f, slice) + 3) / 4 * 4;
    std::int64_t const decimated = f.decimation == 0 ? 0 : low + 2 * f.low_half + 8;  // before the low-pass, in scratch
    if (low + decimated > workspace) {
        return plan;
    }
    plan.low_floats = static_cast<int>(low);
    int const room = workspace - plan.low_floats, room_to_keep = room - static_cast<int>(decimated);
    FilterPlan best = plan;
    if (f.phases == f.up && f.up <= largest_period && f.down <= largest_advance / 8) {
        int const up = static_cast<int>(f.up);
        // A period of at least 8 outputs. Its lanes must be an odd number of samples apart (words of 32 lanes in
        // different banks) or a multiple of 4 (vectors).
        int multiple = up >= 8 ? 1 : up % 2 == 0 ? 4 : 8;
        if (multiple * f.down % 4 == 2) {
            multiple *= 2;
        }
        plan.period = multiple * up;
        plan.advance = multiple * static_cast<int>(f.down);
        plan.row_floats = output_row_floats(plan.period);
        std::int64_t const kept =
            static_cast<std::int64_t>((n_outputs + plan.period - 1) / plan.period) * plan.row_floats;
        plan.kept_floats = keeps && kept + 4 < room_to_keep ? static_cast<int>((kept + 3) / 4 * 4) : 0;
        std::int64_t least = 0;
        for (int shape = 1;
             shape < n_filter_shapes && plan.period <= largest_period && (!keeps || kept + 4 < room_to_keep); ++shape) {
            FilterPlan tried = plan;
            std::int64_t const cycles = try_shape(f, n_outputs, room - plan.kept_floats, !keeps, n_warps, shape, tried);
            if (cycles > 0 && (least == 0 || cycles < least)) {
                least = cycles;
                best = tried;
            }
        }
    }
    if (best.tile == 0) {
        std::int64_t const kept = (static_cast<std::int64_t>(n_outputs) + 31) / 32 * output_row_floats(32);
        best.kept_floats = keeps && kept + 4 < room_to_keep ? static_cast<int>((kept + 3) / 4 * 4) : 0;
        if (!keeps || kept + 4 < room_to_keep) {
            plan_single_outputs(f, n_outputs, room - best.kept_floats, !keeps, best);
        }
    }
    if (best.tile > 0) {
        best.slice = filter_slice_outputs / best.tile * best.tile;
    }
    return best;
}

// The plan of a block that computes n_outputs of a row with `workspace` floats of shared memory. statistics: the
// outputs are read several times, so that they are kept if they fit (unless that would give up the shapes for shape 0).
SLEEPFM_HOST_DEVICE static inline FilterPlan filter_plan(FilterRow const& f, std::int64_t n_outputs, int workspace,
                                                         bool statistics, int n_warps) {
    constexpr std::int64_t many = 1 << 30;  // never fits, so that 32 bits suffice
    int const n = static_cast<int>(n_outputs < many ? n_outputs : many);
    FilterPlan plan = best_tile(f, n, workspace, false, n_warps);
    plan.resident = plan.tile >= n_outputs;
    if (statistics && plan.resident == 0) {
        FilterPlan const keeping = best_tile(f, n, workspace, true, n_warps);
        if (keeping.tile > 0 && (keeping.shape > 0 || plan.shape == 0)) {
            plan = keeping;
            plan.resident = 1;
        }
    }
    return plan;
}

}  // namespace sleepfm
