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
    std::int64_t threads;           // blockDim.x, a power of two
    std::int64_t workspace_floats;  // of shared memory: one tile
    std::int64_t kept_floats;       // of shared memory: all outputs of the row, for the z-score; 0: filter twice
    std::int64_t shared_bytes;      // dynamic shared memory
};

constexpr std::int64_t filter_resample_threads = 256;
// 40 KiB: a tile of about 2,000 outputs of a 200 Hz channel, or one output of 6,000 taps (_MAX_TAPS_PER_OUTPUT in
// sleepfm_fast/filter_design.py).
constexpr std::int64_t filter_resample_workspace_floats = 10240;
constexpr std::int64_t filter_resample_outputs_per_slice = 2048;
constexpr std::int64_t largest_grid_x = 2147483647, largest_grid_y = 65535;

// shared_limit_bytes: the most dynamic shared memory that a block of this device may ask for.
inline FilterResampleLaunch filter_resample_launch(std::int64_t n_clips, std::int64_t n_channels, std::int64_t n_out,
                                                   bool zscore, std::int64_t shared_limit_bytes) {
    SLEEPFM_CHECK(n_clips >= 1 && n_channels >= 1 && n_out >= 1, "filter_resample_launch: a batch of ", n_clips,
                  " clips, ", n_channels, " channels and ", n_out, " outputs is empty; nothing is to be launched.");
    SLEEPFM_CHECK(n_channels <= largest_grid_x / n_clips, "filter_resample: ", n_clips, " clips of ", n_channels,
                  " channels are more blocks than a CUDA grid holds (2^31 - 1); split the batch.");
    FilterResampleLaunch launch{};
    launch.rows = n_clips * n_channels;
    launch.threads = filter_resample_threads;
    launch.workspace_floats = filter_resample_workspace_floats;
    std::int64_t const workspace_bytes = 4 * launch.workspace_floats;
    SLEEPFM_CHECK(workspace_bytes <= shared_limit_bytes, "filter_resample: this device gives a block ",
                  shared_limit_bytes, " bytes of shared memory; ", workspace_bytes, " are needed.");
    launch.outputs_per_slice = n_out;
    if (zscore) {
        std::int64_t const kept_bytes = 4 * n_out;
        launch.kept_floats = kept_bytes <= shared_limit_bytes - workspace_bytes ? n_out : 0;
    } else {
        std::int64_t const evenly = (n_out + largest_grid_y - 1) / largest_grid_y;
        launch.outputs_per_slice = std::min(n_out, std::max(evenly, filter_resample_outputs_per_slice));
    }
    launch.slices = (n_out + launch.outputs_per_slice - 1) / launch.outputs_per_slice;
    launch.shared_bytes = workspace_bytes + 4 * launch.kept_floats;
    return launch;
}

// ---- contrastive_loss -----------------------------------------------------------------------------------------------

}  // namespace sleepfm
