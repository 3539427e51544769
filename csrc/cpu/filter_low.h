// The low branch of a high-pass: decimation, a low-pass at the low rate, interpolation; the result is subtracted from
// the samples. Part of filter_row.h, under the same rules: included once for each instruction set, in its namespace.
#pragma once

#include <string.h>

#include <cstdint>

#include "cpu/filter_product.h"
#include "cpu/filter_resample.h"

namespace sleepfm::cpu::SLEEPFM_ISA {

namespace {

// y[m] = sum over t of x[m step + t] taps[t]. Samples are taken in parts of `step`; a part is loaded once and
// multiplied by all rows of taps, each for another of n_parts outputs that overlap there, whose sums move on by one
// after each part. rows [n_parts][padded_taps(step)]: the taps cut to parts, each filled up with zeros. n_vectors:
// vectors of a part, few enough that the taps stay in registers; 0: any step.
template <int n_parts, int n_vectors>
void decimate_by_parts(std::int64_t n, float const* x, std::int64_t step, float const* rows, float* y) {
    std::int64_t const stride = padded_taps(step);
    constexpr int kept = n_vectors > 0 ? n_vectors : 1;
    Vector taps[kept][n_parts];
    for (int v = 0; v < n_vectors; ++v) {
        for (int p = 0; p < n_parts; ++p) {
            taps[v][p] = load(rows + p * stride + v * SLEEPFM_LANES);
        }
    }
    Vector sums[n_parts] = {};  // sums[p]: the output that began p parts ago
    auto const add_part = [&](std::int64_t part) SLEEPFM_INLINE_LAMBDA {
#pragma GCC unroll 8
        for (int p = n_parts - 1; p > 0; --p) {
            sums[p] = sums[p - 1];
        }
        sums[0] = Vector{};
        float const* samples = x + part * step;
        if constexpr (n_vectors > 0) {
#pragma GCC unroll 2
            for (int v = 0; v < n_vectors; ++v) {
                Vector const some = load(samples + v * SLEEPFM_LANES);
#pragma GCC unroll 8
                for (int p = 0; p < n_parts; ++p) {
                    sums[p] += some * taps[v][p];
                }
            }
        } else {
            float const* row = rows;
            std::int64_t left = (step + SLEEPFM_LANES - 1) / SLEEPFM_LANES;
            do {  // at least once: see multiply_add
                Vector const some = load(samples);
#pragma GCC unroll 8
                for (int p = 0; p < n_parts; ++p) {
                    sums[p] += some * load(row + p * stride);
                }
                samples += SLEEPFM_LANES;
                row += SLEEPFM_LANES;
            } while (--left > 0);
        }
        return sums[n_parts - 1];
    };
    for (std::int64_t part = 0; part < n_parts - 1; ++part) {
        add_part(part);
    }
    std::int64_t const last = n + n_parts - 2;
    auto const inside = [last](std::int64_t part) { return part < last ? part : last; };
    for (std::int64_t m = 0; m < n; m += 4) {
        std::int64_t const part = m + n_parts - 1;
        Vector const a = add_part(part), b = add_part(inside(part + 1));
        Vector const c = add_part(inside(part + 2)), d = add_part(inside(part + 3));
        if (n - m >= 4) {
            sum4(a, b, c, d, y + m);
        } else {
            float four[4];
            sum4(a, b, c, d, four);
            memcpy(y + m, four, static_cast<std::size_t>(n - m) * sizeof(float));
        }
    }
}

template <int n_parts>
void decimate_by_parts(std::int64_t n, float const* x, std::int64_t step, float const* rows, float* y) {
#if SLEEPFM_LANES == 16
    if (step <= SLEEPFM_LANES) {
        decimate_by_parts<n_parts, 1>(n, x, step, rows, y);
        return;
    }
    if (step <= 2 * SLEEPFM_LANES) {
        decimate_by_parts<n_parts, 2>(n, x, step, rows, y);
        return;
    }
#endif
    decimate_by_parts<n_parts, 0>(n, x, step, rows, y);
}

// Decimated samples [0, n) to y. x: the sample for the first tap of the first one; rows: scratch (TilePlan::rows).
void decimate(FilterJob const& job, std::int64_t n, float const* x, float* rows, float* y) {
    FilterRow const& f = job.filter;
    float const* const taps = job.taps + f.decimator_offset;
    std::int64_t const n_taps = 2 * f.decimator_half + 1, step = f.decimation;
    std::int64_t const n_parts = (n_taps + step - 1) / step;
    if (n_parts == 6 || n_parts == 7) {  // as all designs with a low branch have
        std::int64_t const stride = padded_taps(step);
        fill_zeros(rows, n_parts * stride);
        for (std::int64_t p = 0; p < n_parts; ++p) {
            std::int64_t const some = n_taps - p * step < step ? n_taps - p * step : step;
            memcpy(rows + p * stride, taps + p * step, static_cast<std::size_t>(some) * sizeof(float));
        }
        if (n_parts == 6) {
            decimate_by_parts<6>(n, x, step, rows, y);
        } else {
            decimate_by_parts<7>(n, x, step, rows, y);
        }
        return;
    }
    for (std::int64_t m = 0; m < n; m += 4) {
        dot4(n - m < 4 ? n - m : 4, x + m * step, step, taps, padded_taps(n_taps), y + m);
    }
}

// A "period" is the `step` native samples from one decimated sample to the next. to = from - interpolated for n_columns
// vectors of n_periods periods, whose first one begins at `from`, `to` and at its first tap in `low`.
template <int n_periods, int n_columns, int n_taps>
SLEEPFM_INLINE void subtract_columns(std::int64_t step, Vector const (&taps)[n_columns][n_taps], float const* low,
                                     float const* from, float* to) {
    Vector sums[n_columns][n_periods] = {};
    // A decimated sample is loaded once for all sums that it is in.
#pragma GCC unroll 16
    for (int k = 0; k < n_periods + n_taps - 1; ++k) {
        float const value = low[k];
#pragma GCC unroll 4
        for (int i = 0; i < n_periods; ++i) {
            if (k - i >= 0 && k - i < n_taps) {
#pragma GCC unroll 2
                for (int c = 0; c < n_columns; ++c) {
                    sums[c][i] += taps[c][k - i] * value;
                }
            }
        }
    }
    // From the last column to the first: what a last one has beyond its period lies where the next period begins, and
    // is overwritten by that period's first column.
#pragma GCC unroll 2
    for (int c = n_columns - 1; c >= 0; --c) {
#pragma GCC unroll 4
        for (int i = 0; i < n_periods; ++i) {
            std::int64_t const at = i * step + c * SLEEPFM_LANES;
            store(to + at, load(from + at) - sums[c][i]);
        }
    }
}

template <int n_columns, int n_taps>
void subtract_columns(std::int64_t n, std::int64_t step, float const* low, float const* taps, std::int64_t stride,
                      float const* from, float* to) {
    Vector column[n_columns][n_taps];
#pragma GCC unroll 2
    for (int c = 0; c < n_columns; ++c) {
#pragma GCC unroll 8
        for (int t = 0; t < n_taps; ++t) {
            column[c][t] = load(taps + t * stride + c * SLEEPFM_LANES);
        }
    }
    constexpr int together = 4;
    std::int64_t m = 0;
    for (; m + together <= n; m += together) {
        subtract_columns<together>(step, column, low + m, from + m * step, to + m * step);
    }
    for (; m < n; ++m) {
        subtract_columns<1>(step, column, low + m, from + m * step, to + m * step);
    }
}

// to = from - interpolated over n periods of `step` samples. low [n + n_taps - 1]: decimated samples; taps
// [n_taps][stride]: stride is `step` rounded up, and the results beyond a period are overwritten by the next one's.
template <int n_taps>
void subtract_interpolated(std::int64_t n, std::int64_t step, float const* low, float const* taps, std::int64_t stride,
                           float const* from, float* to) {
#if SLEEPFM_LANES == 16
    if (stride == 2 * SLEEPFM_LANES) {
        subtract_columns<2, n_taps>(n, step, low, taps, stride, from, to);
        return;
    }
#endif
    // From the last columns to the first, as above.
    for (std::int64_t c = stride - SLEEPFM_LANES; c >= 0; c -= SLEEPFM_LANES) {
        subtract_columns<1, n_taps>(n, step, low, taps + c, stride, from + c, to + c);
    }
}

// clean = x - low branch over the samples `main`. x[0] is segment sample native.begin, clean[0] segment sample
// main.begin; clean has group_margin(f) floats of room on either side, of which whole periods take some.
void subtract_low(FilterJob const& job, Span main, Span native, float const* x, float* clean) {
    FilterRow const& f = job.filter;
    float* const decimated = job.scratch + job.plan.samples;
    float* const low = decimated + job.plan.decimated;
    Span const kept = low_span(f, main);
    Span const before = decimated_span(f, kept);
    std::int64_t const n_decimated = before.end - before.begin, n_low = kept.end - kept.begin;
    decimate(job, n_decimated, x + (before.begin * f.decimation - f.decimator_half - native.begin), low + job.plan.low,
             decimated);
    fill_zeros(decimated + n_decimated, 2 * filter_group);
    products(
        (n_low + filter_group - 1) / filter_group,
        one_run(decimated, filter_group, job.taps + f.low_group_offset, filter_group, 2 * f.low_half + filter_group),
        [low](std::int64_t i, int v, Vector sums)
            SLEEPFM_INLINE_LAMBDA { store(low + i * filter_group + v * SLEEPFM_LANES, sums); });
    std::int64_t const m0 = floor_divide(main.begin, f.decimation), m1 = floor_divide(main.end - 1, f.decimation);
    std::int64_t const n = m1 - m0 + 1, at = m0 * f.decimation;
    float const* const v0 = low + (m0 - f.interpolator_left - kept.begin);
    float const *const taps = job.taps + f.interpolator_offset, *const from = x + (at - native.begin);
    float* const to = clean + (at - main.begin);
    switch (f.interpolator_taps) {
        case 6: subtract_interpolated<6>(n, f.decimation, v0, taps, f.interpolator_stride, from, to); return;
        case 7: subtract_interpolated<7>(n, f.decimation, v0, taps, f.interpolator_stride, from, to); return;
        default: break;
    }
    for (std::int64_t g = f.interpolator_stride - filter_group; g >= 0; g -= filter_group) {
        products(n, one_run(v0, 1, taps + g, f.interpolator_stride, f.interpolator_taps),
                 [from, to, g, &f](std::int64_t i, int v, Vector sums) SLEEPFM_INLINE_LAMBDA {
                     std::int64_t const k = i * f.decimation + g + v * SLEEPFM_LANES;
                     store(to + k, load(from + k) - sums);
                 });
    }
}

}  // namespace

}  // namespace sleepfm::cpu::SLEEPFM_ISA
