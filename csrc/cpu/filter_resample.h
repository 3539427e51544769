// filter_resample on the CPU; the contract is that of params.h. Throws std::invalid_argument for an impossible argument
// or row. The rows, one (clip, channel) each, are dealt out to threads; filter_row (filter_row.h) does one, tile by
// tile in a scratch memory of the thread's own.
#pragma once

#include "filter_geometry.h"

namespace sleepfm {

void filter_resample_cpu(FilterResample const& p, int n_threads);

namespace cpu {

// How many outputs of a row are computed at a time, so that everything between the integers and the outputs stays in
// the second cache, and how the scratch of a tile is cut.
struct TilePlan {
    std::int64_t outputs;
    // Floats of the parts of the scratch, in their order; whole cache lines each. samples: native samples as floats;
    // decimated, low: the low branch before and after its low-pass; rows: the decimator's taps, cut to parts; clean:
    // the samples less the low branch; block: BlockScratch; filtered: the outputs.
    std::int64_t samples, decimated, low, rows, clean, block, filtered;
    std::int64_t before_clean() const { return samples + decimated + low + rows; }
    std::int64_t before_block() const { return before_clean() + clean; }
    std::int64_t before_filtered() const { return before_block() + block; }
    std::int64_t floats() const { return before_filtered() + filtered; }
};

// Floats on either side of `samples` and `clean` that a group of outputs may multiply by zero taps. They must be
// finite, since 0 * NaN is NaN.
static inline std::int64_t group_margin(FilterRow const& f) {
    return (2 * filter_group * f.down / f.up + 2) + (f.decimation + filter_group);
}

constexpr int frequencies = static_cast<int>(block_periods) / 2;  // of a transform of block_periods real values

// Sizes of a block of 32 periods, each of U outputs and D samples: see sleepfm_fast/filtering/period_blocks.py.
struct BlockShape {
    std::int64_t outputs, samples, reach;  // U, D, and the periods that an output needs on either side
    std::int64_t periods;  // periods of a block whose outputs the cyclic convolution gives right: 32 - 2 reach
    std::int64_t strip;    // blocks that share a reading of the table, few enough to stay in the second cache

    explicit BlockShape(FilterRow const& f)
        : outputs(f.block_repeats * f.up),
          samples(f.block_repeats * f.down),
          reach(f.block_reach),
          periods(block_periods - 2 * f.block_reach),
          strip(outputs + samples <= 128 ? 12 : 6) {}

    // A column has a period's sums and differences about its middle, .. s_1, s_0, d_1, d_2 .., with room for whole
    // vectors before and after.
    std::int64_t sums() const { return samples / 2 + 1; }
    std::int64_t differences() const { return (samples - 1) / 2; }
    std::int64_t column() const {
        std::int64_t const before = padded_taps(sums()) - sums(), after = padded_taps(sums()) - 1 - differences();
        return samples + (before > after ? before : after);
    }
    std::int64_t columns_of_frequency() const { return 2 * strip * column(); }
    // Floats of a column's products at all frequencies. filter_group more than those, so that the products of
    // neighbouring columns do not share a set of the first cache.
    std::int64_t spectrum() const { return frequencies * outputs + filter_group; }
};

// Where the parts of a strip's scratch begin, in floats.
struct BlockScratch {
    std::int64_t window;   // [32 D] samples, and a vector's length on either side
    std::int64_t before;   // [16][2][filter_group] transforms of samples before the middle of a period
    std::int64_t columns;  // [16][2 strip][shape.column()], and a vector's length on either side
    std::int64_t spectra;  // [2 strip][shape.spectrum()] products of the columns with the table
    std::int64_t halves;   // [32][filter_group] half differences of outputs
    std::int64_t floats;   // of all

    explicit BlockScratch(BlockShape const& s)
        : window(0),
          before(window + padded_taps(block_periods * s.samples) + 2 * filter_group),
          columns(before + block_periods * filter_group),
          spectra(columns + padded_taps(frequencies * s.columns_of_frequency()) + 2 * filter_group),
          halves(spectra + 2 * s.strip * s.spectrum()),
          floats(halves + block_periods * filter_group) {}
};

// What a thread has yet to move between memory and the caches: see filter_traffic.h.
struct Traffic {
    char const* next;         // integers that the thread will probably want next
    std::int64_t next_bytes;  // of them, not yet asked for
    float const* y;           // outputs not yet written, out[i] = a y[i] + b for i < n
    float* out;
    std::int64_t n;
    float a, b;
    int turn;  // which of its two memories for outputs the thread uses now; y lies in the other
};

// One (clip, channel) after validation, with scratch that no other thread uses.
struct FilterJob {
    void const* window;  // the window's first sample, in raw
    int raw_bytes;
    WindowRow row;
    FilterRow filter;
    float const* taps;
    float const* calibration;  // gain, offset, center, scale
    Normalise normalise;
    void* out;
    bool streamed;  // float32 is written past the caches
    DType out_dtype;
    std::int64_t n_out;
    TilePlan plan;
    float* scratch;      // [plan.before_filtered()]
    float* filtered[2];  // [plan.filtered] each: see Traffic.turn
    Traffic* traffic;
    float* whole;  // [n_out], where a normalised row takes several tiles and `out` is not float32; else not used
    std::uint32_t* candidates;  // [n_out] scratch of Normalise::robust; else not used
};

// The same source, compiled once for each instruction set. filter_row may leave a row's last outputs to the next call
// with the same traffic, and to write_last.
namespace portable {
void filter_row(FilterJob const& job);
void write_last(Traffic& traffic);
}  // namespace portable
namespace avx2 {
void filter_row(FilterJob const& job);
void write_last(Traffic& traffic);
}  // namespace avx2
namespace avx512 {
void filter_row(FilterJob const& job);
void write_last(Traffic& traffic);
}  // namespace avx512

}  // namespace cpu
}  // namespace sleepfm
