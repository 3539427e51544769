// filter_resample on the CPU; the contract is that of params.h. Throws std::invalid_argument for a bad row.
#pragma once

#include "filter_geometry.h"

namespace sleepfm {

void filter_resample_cpu(FilterResample const& p, int n_threads);

namespace cpu {

// How many outputs of a row are computed at a time, so that everything between the integers and the outputs stays in
// the second cache, and the floats of scratch that they take.
struct TilePlan {
    std::int64_t outputs;
    std::int64_t samples, decimated, low, rows, clean, block, filtered;  // whole cache lines each
    std::int64_t before_clean() const { return samples + decimated + low + rows; }
    std::int64_t before_block() const { return before_clean() + clean; }
    std::int64_t floats() const { return before_block() + block + filtered; }
};

// Samples around `clean` that a group of outputs may meet without using them: they must be numbers.
static inline std::int64_t group_margin(FilterRow const& f) {
    return (2 * filter_group * f.down / f.up + 2) + (f.decimation + filter_group);
}

constexpr int frequencies = static_cast<int>(block_periods) / 2;

// Sizes of a block of periods: U outputs and D samples a period.
struct BlockShape {
    std::int64_t outputs, samples, reach;
    std::int64_t periods;  // of the 32 that are right after a cyclic convolution
    std::int64_t strip;    // blocks that share a reading of the table; few enough that they stay in the second cache

    explicit BlockShape(FilterRow const& f)
        : outputs(f.block_repeats * f.up),
          samples(f.block_repeats * f.down),
          reach(f.block_reach),
          periods(block_periods - 2 * f.block_reach),
          strip(outputs + samples <= 128 ? 12 : 6) {}

    // A column is .. s_1, s_0, d_1, d_2 .. of a period, with room for whole vectors before and after.
    std::int64_t sums() const { return samples / 2 + 1; }
    std::int64_t differences() const { return (samples - 1) / 2; }
    std::int64_t column() const {
        std::int64_t const before = padded_taps(sums()) - sums(), after = padded_taps(sums()) - 1 - differences();
        return samples + (before > after ? before : after);
    }
    std::int64_t columns_of_frequency() const { return 2 * strip * column(); }
    // Of a column at all frequencies; products of neighbouring columns must not share a set of the first cache.
    std::int64_t spectrum() const { return frequencies * outputs + filter_group; }
};

// Scratch of a strip of blocks, in floats from its beginning.
struct BlockScratch {
    std::int64_t window;   // [32 D] and a vector's length on either side
    std::int64_t before;   // [16][2][filter_group]
    std::int64_t columns;  // [16][2 strip][shape.column()] and a vector's length on either side
    std::int64_t spectra;  // [2 strip][shape.spectrum()]
    std::int64_t halves;   // [32][filter_group]
    std::int64_t floats;

    explicit BlockScratch(BlockShape const& s)
        : window(0),
          before(window + padded_taps(block_periods * s.samples) + 2 * filter_group),
          columns(before + block_periods * filter_group),
          spectra(columns + padded_taps(frequencies * s.columns_of_frequency()) + 2 * filter_group),
          halves(spectra + 2 * s.strip * s.spectrum()),
          floats(halves + block_periods * filter_group) {}
};

// One (clip, channel) after validation, with scratch that nobody else uses.
struct FilterJob {
    void const* window;  // first sample of the window
    int raw_bytes;
    WindowRow row;
    FilterRow filter;
    float const* taps;
    float const* calibration;  // gain, offset, center, scale
    Normalise normalise;
    void* out;
    bool streamed;  // write float32 past the caches
    DType out_dtype;
    std::int64_t n_out;
    TilePlan plan;
    float* scratch;  // [plan.floats()]
    float* whole;    // [n_out], where a normalised row takes several tiles and out does not hold float32; else null
    std::uint32_t* candidates;  // [n_out], for Normalise::robust; else null
};

// The same source, compiled once per instruction set.
namespace portable {
void filter_row(FilterJob const& job);
}
namespace avx2 {
void filter_row(FilterJob const& job);
}
namespace avx512 {
void filter_row(FilterJob const& job);
}

}  // namespace cpu
}  // namespace sleepfm
