#include "cpu/filter_resample.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/cpu_features.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace sleepfm {

namespace {

using RowFunction = void (*)(cpu::FilterJob const&);

RowFunction row_function() {
    switch (best_isa()) {
#if defined(__x86_64__)
        case Isa::avx512: return &cpu::avx512::filter_row;
        case Isa::avx2: return &cpu::avx2::filter_row;
#else
        case Isa::avx512:
        case Isa::avx2:
#endif
        case Isa::portable: break;
    }
    return &cpu::portable::filter_row;
}

// Floats of each scratch array, padding included.
struct Scratch {
    std::int64_t samples = 0, decimated = 0, low = 0, lowpassed = 0;

    void cover(FilterRow const& f, WindowRow const& w, std::int64_t n_out) {
        Span const native = needed_span(f, w, 0, n_out);
        samples = std::max(samples, native.end - native.begin + filter_tap_padding);
        if (f.decimation != 0) {
            Span const grid = low_span(f, main_span(f, w, 0, n_out));
            Span const before = decimated_span(f, grid);
            low = std::max(low, grid.end - grid.begin + filter_tap_padding);
            decimated = std::max(decimated, before.end - before.begin + filter_tap_padding);
            lowpassed = std::max(lowpassed, f.interpolator_stride);
        }
    }
};

void refuse(RowFault fault, FilterResample const& p, std::int64_t index) {
    WindowRow const& w = p.table[index];
    std::string const where =
        concatenate("filter_resample: table[", index / p.n_channels, ", ", index % p.n_channels, "] ");
    switch (fault) {
        case RowFault::none: return;
        case RowFault::offset:
            SLEEPFM_CHECK(false, where, "is a window of ", w.length, " samples at offset ", w.offset,
                          ", which does not lie inside raw (", p.n_raw, " samples).");
            break;
        case RowFault::filter:
            SLEEPFM_CHECK(false, where, "names filter ", w.filter, "; the bank holds filters 0 to ", p.n_filters - 1,
                          ".");
            break;
        case RowFault::first:
            SLEEPFM_CHECK(false, where, "starts its clip at sample ", w.first,
                          ", which does not lie inside its window (", w.length, " samples from ", w.start, ").");
            break;
        case RowFault::phase:
            SLEEPFM_CHECK(false, where, "has phase ", w.phase, "; filter ", w.filter, " has phases 0 to ",
                          p.filters[w.filter].up - 1, ".");
            break;
    }
}

}  // namespace

void filter_resample_cpu(FilterResample const& p, int n_threads) {
    std::int64_t const n_rows = p.n_clips * p.n_channels;
    SLEEPFM_CHECK(p.raw_bytes == 2 || p.raw_bytes == 4, "filter_resample: raw has samples of ", p.raw_bytes,
                  " bytes; expected int16 or int32.");
    SLEEPFM_CHECK(p.n_out < (std::int64_t{1} << 31), "filter_resample: n_out is ", p.n_out, "; at most 2^31 - 1.");
    if (n_rows == 0 || p.n_out == 0) {
        return;
    }
    SLEEPFM_CHECK(
        p.normalise == Normalise::none || p.normalise == Normalise::zscore || p.normalise == Normalise::robust,
        "filter_resample: normalise is ", static_cast<int>(p.normalise), "; expected 0, 1 or 2.");
    for (std::int64_t i = 0; i < p.n_filters; ++i) {
        SLEEPFM_CHECK(check_filter(p.filters[i], p.n_taps), "filter_resample: row ", i,
                      " of filters does not describe tables inside taps (", p.n_taps,
                      " values); pass the two tensors of FilterBank.tensors() together.");
    }
    Scratch scratch;
    for (std::int64_t i = 0; i < n_rows; ++i) {
        refuse(check_row(p.table[i], p.n_raw, p.n_filters, p.filters), p, i);
        if (p.table[i].length != 0) {
            scratch.cover(p.filters[p.table[i].filter], p.table[i], p.n_out);
        }
    }
    if (p.normalise == Normalise::robust) {  // its order statistics reuse the samples' memory
        scratch.samples = std::max(scratch.samples, p.n_out);
    }
    n_threads = static_cast<int>(std::clamp<std::int64_t>(n_threads, 1, n_rows));
#if !defined(_OPENMP)
    n_threads = 1;
#endif
    // Memory is taken before the threads start: nothing inside them can throw.
    std::int64_t const per_thread = scratch.samples + scratch.decimated + scratch.low + scratch.lowpassed + p.n_out;
    std::vector<float> memory(static_cast<std::size_t>(per_thread) * static_cast<std::size_t>(n_threads));
    std::size_t const out_bytes = p.out_dtype == DType::f32 ? 4 : 2;
    RowFunction const filter_row = row_function();

#pragma omp parallel for schedule(dynamic) num_threads(n_threads)
    for (std::int64_t i = 0; i < n_rows; ++i) {
        WindowRow const& w = p.table[i];
        char* const out = static_cast<char*>(p.out) + static_cast<std::size_t>(i * p.n_out) * out_bytes;
        if (w.length == 0) {
            std::memset(out, 0, static_cast<std::size_t>(p.n_out) * out_bytes);
            continue;
        }
#if defined(_OPENMP)
        std::int64_t const thread = omp_get_thread_num();
#else
        std::int64_t const thread = 0;
#endif
        float* const samples = memory.data() + thread * per_thread;
        float* const decimated = samples + scratch.samples;
        float* const low = decimated + scratch.decimated;
        float* const lowpassed = low + scratch.low;
        cpu::FilterJob job{};
        job.window = static_cast<char const*>(p.raw) + w.offset * p.raw_bytes;
        job.raw_bytes = p.raw_bytes;
        job.row = w;
        job.filter = p.filters[w.filter];
        job.taps = p.taps;
        job.calibration = p.calibration + 4 * i;
        job.normalise = p.normalise;
        job.out = out;
        job.out_dtype = p.out_dtype;
        job.n_out = p.n_out;
        job.samples = samples;
        job.decimated = decimated;
        job.low = low;
        job.lowpassed = lowpassed;
        job.filtered = lowpassed + scratch.lowpassed;
        filter_row(job);
    }
}

}  // namespace sleepfm
