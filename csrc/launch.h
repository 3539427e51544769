// Launch geometry of filter_resample on CUDA: grid, block and shared memory from the batch's shape and the device's
// limits. It is host arithmetic without any CUDA call, so that it is tested where there is no GPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "check.h"

namespace sleepfm {

// ---- filter_resample ------------------------------------------------------------------------------------------------

struct FilterResampleLaunch {
    std::int64_t rows;    // gridDim.x: one block, or one column of blocks, for each (clip, channel)
    std::int64_t slices;  // gridDim.y: parts that a row's outputs are cut into; 1 where a block needs the whole row
    std::int64_t outputs_per_slice;
    std::int64_t threads;           // blockDim.x, a multiple of 32
    std::int64_t workspace_floats;  // the block's dynamic shared memory in floats, a multiple of 4
    std::int64_t shared_bytes;      // the same in bytes
};

constexpr std::int64_t filter_resample_threads = 256;
constexpr int filter_resample_blocks = 2;                        // per multiprocessor; leaves a thread 128 registers
constexpr std::int64_t filter_resample_static_bytes = 6 * 1024;  // upper bound of the kernel's static shared memory
constexpr std::int64_t shared_system_bytes = 1024;               // that CUDA reserves for itself in every block
// The least workspace that can compute any accepted filter: one output of 6,000 taps (_MAX_TAPS_PER_OUTPUT in
// sleepfm_fast/filtering/filter_design.py) with its low branch. 40 KiB.
constexpr std::int64_t filter_resample_least_floats = 10240;
constexpr std::int64_t filter_resample_outputs_per_slice = 8192;
constexpr std::int64_t largest_grid_x = 2147483647, largest_grid_y = 65535;

// The most dynamic shared memory that the kernel may request on a device whose blocks may have `most_bytes` in all.
// CUDA's reserve is subtracted as a precaution: for compute capability 9.0 the compiler counts it as static memory of
// the kernel, and a runtime that did the same would refuse a request for that last KiB.
inline std::int64_t filter_resample_shared_limit(std::int64_t most_bytes) {
    return most_bytes - filter_resample_static_bytes - shared_system_bytes;
}

// shared_limit_bytes: from filter_resample_shared_limit. statistics: outputs are normalised by statistics of their
// whole row; one block then computes the row, and keeps it in shared memory if it fits, so as to filter it only once.
inline FilterResampleLaunch filter_resample_launch(std::int64_t n_clips, std::int64_t n_channels, std::int64_t n_out,
                                                   bool statistics, std::int64_t shared_limit_bytes) {
    SLEEPFM_CHECK(n_clips >= 1 && n_channels >= 1 && n_out >= 1, "filter_resample_launch: a batch of ", n_clips,
                  " clips, ", n_channels, " channels and ", n_out, " outputs is empty; nothing is to be launched.");
    SLEEPFM_CHECK(n_channels <= largest_grid_x / n_clips, "filter_resample: ", n_clips, " clips of ", n_channels,
                  " channels are more blocks than a CUDA grid holds (2^31 - 1); split the batch.");
    std::int64_t const least = 4 * filter_resample_least_floats;
    SLEEPFM_CHECK(least <= shared_limit_bytes, "filter_resample: this device gives a block ", shared_limit_bytes,
                  " bytes of shared memory; ", least, " are needed.");
    FilterResampleLaunch launch{};
    launch.rows = n_clips * n_channels;
    launch.threads = filter_resample_threads;
    launch.outputs_per_slice = n_out;
    // Two blocks share a multiprocessor (each with its static memory and CUDA's reserve) if that leaves each of them
    // 42 KiB, the tile of a 200 Hz clip; else one block takes all of it.
    constexpr std::int64_t beside = filter_resample_static_bytes + shared_system_bytes;
    std::int64_t const share = (shared_limit_bytes + beside) / filter_resample_blocks - beside;
    std::int64_t bytes = share >= 42 * 1024 ? share : shared_limit_bytes;
    if (statistics) {
        // A row longer than a slice is kept beside a small tile (32 KiB) if a block may have that much. Padding against
        // bank conflicts makes 9 floats of 8 outputs at most; 320 more are the last, incomplete repeat.
        std::int64_t const keeping = 4 * (n_out / 8 * 9 + 320) + 32 * 1024;
        if (n_out > filter_resample_outputs_per_slice && keeping > bytes && keeping <= shared_limit_bytes) {
            bytes = keeping;
        }
    } else {
        std::int64_t const evenly = (n_out + largest_grid_y - 1) / largest_grid_y;
        launch.outputs_per_slice = std::min(n_out, std::max(evenly, filter_resample_outputs_per_slice));
    }
    launch.slices = (n_out + launch.outputs_per_slice - 1) / launch.outputs_per_slice;
    launch.workspace_floats = std::max(bytes, least) / 16 * 4;
    launch.shared_bytes = 4 * launch.workspace_floats;
    return launch;
}

}  // namespace sleepfm
