// How the kernels of mbconv_train.cuh and mbconv_train_finish.cuh are checked and launched, the same on a device and in
// the emulator. The queue is that of cuda/contrastive_launch.h.
#pragma once

#include <cstdint>

#include "check.h"
#include "cuda/contrastive_launch.h"
#include "cuda/mbconv_train.cuh"
#include "cuda/mbconv_train_finish.cuh"

namespace sleepfm::cuda {

// How the channels are cut into tiles, of `lanes` threads side by side: as few tiles as between_lanes allows, as equal
// in width as they can be while each begins at a multiple of 32 bytes, a sector of memory. blocks_for in
// sleepfm_fast/ops/mbconv_between.py computes the same to choose the number of blocks.
struct BetweenTiles {
    int lanes;
    unsigned tiles;

    explicit BetweenTiles(std::int64_t width) {
        std::int64_t const all = width / between_channels, n = (all + between_lanes - 1) / between_lanes;
        lanes = static_cast<int>((all + n - 1) / n);
        lanes = n > 1 ? (lanes + 3) / 4 * 4 : lanes;
        tiles = static_cast<unsigned>(n);
    }
};

inline void check_between(std::int64_t n_rows, std::int64_t width, std::int64_t n_blocks) {
    SLEEPFM_CHECK(width >= between_channels && width % between_channels == 0 && width <= 65536, "mbconv_train: ", width,
                  " channels inside a block; expected a multiple of ", between_channels, " up to 65536.");
    SLEEPFM_CHECK(n_rows >= 1 && n_rows <= (std::int64_t{1} << 40), "mbconv_train: ", n_rows,
                  " samples of all clips; expected 1 to 2^40.");
    SLEEPFM_CHECK(n_blocks >= 1 && n_blocks <= 65535, "mbconv_train: ", n_blocks,
                  " rows of partial sums; expected 1 to 65535.");
}

inline void check_between_clips(std::int64_t n_clips, std::int64_t n_samples, int stride) {
    SLEEPFM_CHECK(n_clips >= 1 && n_samples >= 1 && n_samples <= (std::int64_t{1} << 30), "mbconv_train: ", n_clips,
                  " clips of ", n_samples, " samples; expected at least one clip, and 1 to 2^30 samples.");
    SLEEPFM_CHECK(stride == 1 || stride == 2, "mbconv_train: stride is ", stride, "; choose 1 or 2.");
}

template <typename Queue>
void launch_mbconv_expansion_sums(Queue& queue, MBConvExpansionSums const& p) {
    check_between(p.n_rows, p.width, p.n_partials);
    BetweenTiles const tiles(p.width);
    queue(&mbconv_expansion_sums_kernel, Grid{static_cast<unsigned>(p.n_partials), tiles.tiles}, between_threads, 0, p,
          tiles.lanes);
}

template <typename Queue>
void launch_mbconv_depthwise(Queue& queue, MBConvDepthwise const& p) {
    check_between_clips(p.n_clips, p.n_samples, p.stride);
    check_between(p.n_clips * p.n_samples, p.width, p.n_partials);
    BetweenTiles const tiles(p.width);
    queue(p.stride == 1 ? &mbconv_depthwise_kernel<1> : &mbconv_depthwise_kernel<2>,
          Grid{static_cast<unsigned>(p.n_partials), tiles.tiles}, between_threads, 0, p, tiles.lanes);
}

template <typename Queue>
void launch_mbconv_activate(Queue& queue, MBConvActivate const& p, int n_blocks) {
    check_between(p.n_rows, p.width, n_blocks);
    BetweenTiles const tiles(p.width);
    queue(&mbconv_activate_kernel, Grid{static_cast<unsigned>(n_blocks), tiles.tiles}, between_threads, 0, p,
          tiles.lanes);
}

template <typename Queue>
void launch_mbconv_gradient_sums(Queue& queue, MBConvGradientSums const& p) {
    check_between(p.n_rows, p.width, p.n_partials);
    BetweenTiles const tiles(p.width);
    queue(&mbconv_gradient_sums_kernel, Grid{static_cast<unsigned>(p.n_partials), tiles.tiles}, between_threads, 0, p,
          tiles.lanes);
}

template <typename Queue>
void launch_mbconv_depthwise_backward(Queue& queue, MBConvDepthwiseBackward const& p) {
    check_between_clips(p.n_clips, p.n_samples, p.stride);
    check_between(p.n_clips * p.n_samples, p.width, p.n_partials);
    BetweenTiles const tiles(p.width);
    queue(p.stride == 1 ? &mbconv_depthwise_backward_kernel<1> : &mbconv_depthwise_backward_kernel<2>,
          Grid{static_cast<unsigned>(p.n_partials), tiles.tiles}, between_threads, 0, p, tiles.lanes);
}

// A kernel that finishes sums: a block for every finish_channels channels.
template <typename Queue, typename Finish>
void launch_mbconv_finish(Queue& queue, void (*kernel)(Finish const), Finish const& p) {
    check_between(p.n_rows, p.width, p.n_partials);
    queue(kernel, Grid{static_cast<unsigned>((p.width + finish_channels - 1) / finish_channels), 1}, between_threads, 0,
          p);
}

}  // namespace sleepfm::cuda
