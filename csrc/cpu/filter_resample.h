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
    std::int64_t samples, decimated, low, clean, paired, filtered;
    std::int64_t floats() const { return samples + decimated + low + clean + paired + filtered; }
};

// Rows of the table for pairs of periods: the first of every three runs of taps, and the third.
static inline std::int64_t pair_taps(FilterRow const& f) {
    std::int64_t const run = f.group_repeats * f.down, cycle = 3 * run;
    std::int64_t const rest = f.group_taps % (cycle > 0 ? cycle : 1);
    return cycle > 0 ? f.group_taps / cycle * run + (rest < run ? rest : run) : 0;
}
static inline std::int64_t last_pair_taps(FilterRow const& f) {
    std::int64_t const run = f.group_repeats * f.down, cycle = 3 * run;
    std::int64_t const rest = f.group_taps % (cycle > 0 ? cycle : 1);
    return cycle > 0 ? f.group_taps / cycle * run + (rest > 2 * run ? rest - 2 * run : 0) : 0;
}

// Samples around `clean` that a group of outputs may meet without using them: they must be numbers.
static inline std::int64_t group_margin(FilterRow const& f) {
    std::int64_t const pairs = f.pair_offset != 0 ? 4 * f.group_repeats * f.down : 0;
    return (2 * filter_group * f.down / f.up + 2) + (f.decimation + filter_group) + pairs;
}

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
