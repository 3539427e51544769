// Launch geometry of the CUDA kernels: pure host arithmetic, so that it is tested where there is no GPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "check.h"

namespace sleepfm {

// ---- filter_resample ------------------------------------------------------------------------------------------------

struct FilterResampleLaunch {
    std::int64_t rows;    // gridDim.x: one (clip, channel) each
    std::int64_t slices;  // gridDim.y: parts of a row's outputs; 1 where a block needs the whole row
    std::int64_t outputs_per_slice;
    std::int64_t threads;           // blockDim.x: whole warps
    std::int64_t workspace_floats;  // of shared memory, a multiple of 4
    std::int64_t shared_bytes;      // dynamic shared memory
};

constexpr std::int64_t filter_resample_threads = 256;
constexpr int filter_resample_blocks = 2;                        // on a multiprocessor: 128 registers a thread
constexpr std::int64_t filter_resample_static_bytes = 6 * 1024;  // of shared memory, at most
constexpr std::int64_t shared_system_bytes = 1024;               // that the system takes of each block's
// One output of 6,000 taps (_MAX_TAPS_PER_OUTPUT, sleepfm_fast/filtering/filter_design.py) and its low branch: 40 KiB.
constexpr std::int64_t filter_resample_least_floats = 10240;
constexpr std::int64_t filter_resample_outputs_per_slice = 8192;
constexpr std::int64_t largest_grid_x = 2147483647, largest_grid_y = 65535;

// Of the most shared memory that a device gives a block, what the kernel may ask for. Without the system's share, which
// the compiler counts among the kernel's own on compute capability 9.0: if the runtime did so too, it would refuse
// more.
inline std::int64_t filter_resample_shared_limit(std::int64_t most_bytes) {
    return most_bytes - filter_resample_static_bytes - shared_system_bytes;
}

// shared_limit_bytes: the most dynamic shared memory that a block of this device may ask for. statistics: outputs are
// normalised by statistics of the whole row, which wants them in shared memory.
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
    // Two blocks on a multiprocessor (with their static memory and the system's), if that leaves each of them the tile
    // of a 200 Hz clip.
    constexpr std::int64_t beside = filter_resample_static_bytes + shared_system_bytes;
    std::int64_t const share = (shared_limit_bytes + beside) / filter_resample_blocks - beside;
    std::int64_t bytes = share >= 42 * 1024 ? share : shared_limit_bytes;
    if (statistics) {
        // Rows longer than a tile: all outputs (9 floats for 8 at most, and a last repeat) beside a small tile, where a
        // block may have that much.
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

// ---- contrastive_loss -----------------------------------------------------------------------------------------------

}  // namespace sleepfm
