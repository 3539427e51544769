// filter_resample on the CPU; the contract is that of params.h. Throws std::invalid_argument for a bad row.
#pragma once

#include "filter_geometry.h"

namespace sleepfm {

void filter_resample_cpu(FilterResample const& p, int n_threads);

namespace cpu {

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
    DType out_dtype;
    std::int64_t n_out;
    float* samples;    // [padded native span]
    float* decimated;  // [padded decimated span]
    float* low;        // [padded low span]
    float* lowpassed;  // [interpolator_stride]
    float* filtered;   // [n_out]
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
