// Index arithmetic of filter_resample, shared by CPU and GPU: which samples an output needs, and which rows of the
// tables are acceptable. Output n of a clip lies at sample first + (phase + n down) / up of the recording's segment.
// Positions count from `first` unless a comment says "segment index", which keeps every product within 64 bits.
//
// All functions are static. The CPU kernels are compiled once for each instruction set; of inline functions with
// external linkage the linker would keep one copy, perhaps an AVX-512 one that other processors cannot run.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "params.h"

namespace sleepfm {

// A half-open range [begin, end) of native samples (as recorded) or of decimated samples.
struct Span {
    std::int64_t begin, end;
};

// Where an output lies: at sample q (from `first`) plus a fraction of a sample, which selects the main table's row.
struct Place {
    std::int64_t q, row;
};

// Rounded towards minus infinity, as Python's //.
SLEEPFM_HOST_DEVICE static inline std::int64_t floor_divide(std::int64_t a, std::int64_t b) {
    std::int64_t const quotient = a / b;
    return quotient - ((a % b != 0) && ((a < 0) != (b < 0)));
}

SLEEPFM_HOST_DEVICE static inline std::int64_t padded_taps(std::int64_t n) {
    return (n + filter_tap_padding - 1) / filter_tap_padding * filter_tap_padding;
}

SLEEPFM_HOST_DEVICE static inline Place place_of(FilterRow const& f, std::int64_t phase, std::int64_t n) {
    std::int64_t const u = phase + n * f.down;
    Place place{u / f.up, u % f.up};
    if (f.phases != f.up) {  // fewer rows than phases: the nearest row, which may be row 0 of the next sample
        place.row = (place.row * f.phases + f.up / 2) / f.up;
        if (place.row == f.phases) {
            place.row = 0;
            ++place.q;
        }
    }
    return place;
}

// The native samples (segment index) that the main filter multiplies for outputs [begin, end).
SLEEPFM_HOST_DEVICE static inline Span main_span(FilterRow const& f, WindowRow const& w, std::int64_t begin,
                                                 std::int64_t end) {
    std::int64_t const q0 = place_of(f, w.phase, begin).q;
    std::int64_t const q1 = place_of(f, w.phase, end - 1).q;
    return {w.first + q0 - f.main_left, w.first + q1 - f.main_left + f.main_taps};
}

// The decimated samples that the interpolator multiplies to give the low branch at the native samples `samples`.
// Decimated sample m lies on segment sample m * decimation, so that neighbouring clips share the grid.
SLEEPFM_HOST_DEVICE static inline Span low_span(FilterRow const& f, Span samples) {
    return {floor_divide(samples.begin, f.decimation) - f.interpolator_left,
            floor_divide(samples.end - 1, f.decimation) - f.interpolator_left + f.interpolator_taps};
}

// The decimated samples that the low-pass multiplies to give the decimated samples `low`.
SLEEPFM_HOST_DEVICE static inline Span decimated_span(FilterRow const& f, Span low) {
    return {low.begin - f.low_half, low.end + f.low_half};
}

// The native samples that the decimator multiplies to give `decimated`, together with `samples` itself.
SLEEPFM_HOST_DEVICE static inline Span native_span(FilterRow const& f, Span samples, Span decimated) {
    std::int64_t const begin = decimated.begin * f.decimation - f.decimator_half;
    std::int64_t const end = (decimated.end - 1) * f.decimation + f.decimator_half + 1;
    return {begin < samples.begin ? begin : samples.begin, end > samples.end ? end : samples.end};
}

// All native samples (segment index) that outputs [begin, end) depend on. The range may reach beyond the window, whose
// first and last sample are then repeated.
SLEEPFM_HOST_DEVICE static inline Span needed_span(FilterRow const& f, WindowRow const& w, std::int64_t begin,
                                                   std::int64_t end) {
    Span const samples = main_span(f, w, begin, end);
    return f.decimation == 0 ? samples : native_span(f, samples, decimated_span(f, low_span(f, samples)));
}

enum class RowFault : int { none, filter, offset, first, phase };

// No recording has indices beyond this: 2^40 samples are 17 years at 2,048 Hz.
constexpr std::int64_t largest_index = std::int64_t{1} << 40;

// What is wrong with a row of the table, if anything; a missing channel (length 0) is not looked at further.
SLEEPFM_HOST_DEVICE static inline RowFault check_row(WindowRow const& w, std::int64_t n_raw, std::int64_t n_filters,
                                                     FilterRow const* filters) {
    if (w.length == 0) {
        return RowFault::none;
    }
    if (w.length < 0 || w.offset < 0 || w.offset > n_raw || w.length > n_raw - w.offset) {
        return RowFault::offset;
    }
    if (w.filter < 0 || w.filter >= n_filters) {
        return RowFault::filter;
    }
    if (w.start < -largest_index || w.start > largest_index || w.first < w.start || w.first - w.start >= w.length) {
        return RowFault::first;
    }
    if (w.phase < 0 || w.phase >= filters[w.filter].up) {
        return RowFault::phase;
    }
    return RowFault::none;
}

// True if a table of `rows` rows of `stride` floats lies inside taps[n], without overflow in the test itself.
SLEEPFM_HOST_DEVICE static inline bool inside(std::int64_t offset, std::int64_t rows, std::int64_t stride,
                                              std::int64_t n) {
    return offset >= 0 && rows >= 0 && stride >= 0 && (stride == 0 || rows <= n / stride) &&
           offset <= n - rows * stride;
}

// True if every table of the filter lies inside taps[n_taps] and its factors are possible. The tables for the CPU alone
// (group_*, block_*) are not looked at.
SLEEPFM_HOST_DEVICE static inline bool check_filter(FilterRow const& f, std::int64_t n_taps) {
    constexpr std::int64_t largest = std::int64_t{1} << 31;
    bool good = f.up >= 1 && f.up < largest && f.down >= 1 && f.down < largest && f.phases >= 1 && f.phases <= f.up &&
                f.main_taps >= 1 && f.main_stride == padded_taps(f.main_taps) && f.main_left >= 0 &&
                f.main_left < f.main_taps && inside(f.main_offset, f.phases, f.main_stride, n_taps) &&
                f.decimation >= 0 && f.decimation < largest;
    if (good && f.decimation > 0) {
        good = f.decimator_half >= 0 && f.decimator_half < n_taps && f.low_half >= 0 && f.low_half < n_taps &&
               inside(f.decimator_offset, 1, padded_taps(2 * f.decimator_half + 1), n_taps) &&
               inside(f.low_offset, 1, padded_taps(2 * f.low_half + 1), n_taps) && f.interpolator_taps >= 1 &&
               f.interpolator_left >= 0 && f.interpolator_left < f.interpolator_taps &&
               f.interpolator_stride == padded_taps(f.decimation) &&
               inside(f.interpolator_offset, f.interpolator_taps, f.interpolator_stride, n_taps);
    }
    return good;
}

// Floats that a tile of n outputs needs: the outputs, the samples that the main filter multiplies, and, with a low
// branch, the decimated samples twice (before and after the low-pass).
SLEEPFM_HOST_DEVICE static inline std::int64_t tile_floats(FilterRow const& f, std::int64_t n) {
    std::int64_t const samples = (n - 1) * f.down / f.up + 2 + f.main_taps;
    std::int64_t floats = n + samples + filter_tap_padding;
    if (f.decimation > 0) {
        floats += 2 * (samples / f.decimation + 2 + f.interpolator_taps) + 2 * f.low_half;
    }
    return floats;
}

// Outputs of the largest tile that fits into `floats`, at most `limit`; 0 if not even one output fits. Bisection, as
// tile_floats grows with n.
SLEEPFM_HOST_DEVICE static inline std::int64_t tile_outputs(FilterRow const& f, std::int64_t floats,
                                                            std::int64_t limit) {
    std::int64_t fits = 0, above = limit + 1;
    while (above - fits > 1) {
        std::int64_t const middle = fits + (above - fits) / 2;
        (tile_floats(f, middle) <= floats ? fits : above) = middle;
    }
    return fits;
}

// A channel whose deviation (in digital steps) is not above this counts as flat, and its normalised output is 0: what
// varies less is float32's rounding noise (1e-6 of the largest deviation in the window) or under a thousandth of a
// step.
SLEEPFM_HOST_DEVICE static inline double flat_below(double largest_deviation) {
    double const rounding = 1e-6 * largest_deviation;
    return rounding > 1.0 / 1024.0 ? rounding : 1.0 / 1024.0;
}

}  // namespace sleepfm
