#include "cpu/filter_resample.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/cpu_features.h"
#include "cpu/threads.h"

namespace sleepfm {

namespace {

struct RowFunctions {
    void (*filter_row)(cpu::FilterJob const&);
    void (*write_last)(cpu::Traffic&);
};

RowFunctions row_functions() {
    switch (best_isa()) {
#if defined(SLEEPFM_WITH_AVX)
        case Isa::amx:
        case Isa::avx512_bf16:
        case Isa::avx512: return {&cpu::avx512::filter_row, &cpu::avx512::write_last};
        case Isa::avx2: return {&cpu::avx2::filter_row, &cpu::avx2::write_last};
#else
        case Isa::amx:
        case Isa::avx512_bf16:
        case Isa::avx512:
        case Isa::avx2:
#endif
        case Isa::portable: break;
    }
    return {&cpu::portable::filter_row, &cpu::portable::write_last};
}

// The largest tile has 128 KiB of outputs, long enough that the samples which neighbouring tiles both load cost little.
constexpr std::int64_t most_tile_outputs = 32768, fewest_tile_outputs = 2048;
constexpr std::int64_t tile_floats_wanted = 3 * 65536;  // 768 KiB, within a second cache

// A result larger than this, which exceeds any third cache's share of a core, is written past the caches. That saves
// reading each line before it is written.
constexpr std::size_t streamed_above_bytes = std::size_t{64} << 20;

cpu::TilePlan plan_of(FilterRow const& f, std::int64_t n) {
    std::int64_t const margin = cpu::group_margin(f), padding = 2 * filter_group;
    std::int64_t const n_main = (n - 1) * f.down / f.up + 2 + f.main_taps;
    cpu::TilePlan plan{};
    plan.outputs = n;
    plan.samples = n_main;
    if (f.decimation != 0) {
        std::int64_t const n_low = n_main / f.decimation + 2 + f.interpolator_taps;
        std::int64_t const n_decimated = n_low + 2 * f.low_half;
        plan.samples = std::max(n_main, (n_decimated - 1) * f.decimation + 2 * f.decimator_half + 1);
        // Native samples are both the main filter's and the decimator's, which may begin up to a decimated sample
        // apart.
        plan.samples += f.decimation;
        plan.low = n_low + padding;
        plan.rows = 7 * padded_taps(f.decimation);  // at most seven parts: see decimate
        plan.decimated = n_decimated + padding;
        plan.clean = n_main + 2 * margin + padding;
    }
    plan.samples += 2 * margin + padding;
    if (f.block_offset != 0) {
        plan.block = cpu::BlockScratch(cpu::BlockShape(f)).floats;
    }
    plan.filtered = n + padding + 2 * f.block_repeats * f.up;
    for (std::int64_t* const part :
         {&plan.samples, &plan.decimated, &plan.low, &plan.rows, &plan.clean, &plan.block, &plan.filtered}) {
        *part = padded_taps(*part);
    }
    return plan;
}

cpu::TilePlan tile_plan(FilterRow const& f, std::int64_t n_out) {
    std::int64_t n = std::min(n_out, most_tile_outputs);
    cpu::TilePlan plan = plan_of(f, n);
    while (n > fewest_tile_outputs && plan.floats() > tile_floats_wanted) {
        n = std::max(n / 2, fewest_tile_outputs);
        plan = plan_of(f, n);
    }
    // Several tiles: each a whole number of strips of blocks. One period less, since the first and the last period of a
    // tile are parts of one.
    if (n < n_out && f.block_offset != 0) {
        cpu::BlockShape const shape(f);
        std::int64_t const strip = shape.strip * shape.periods * shape.outputs;
        plan = plan_of(f, std::max(n / strip, std::int64_t{1}) * strip - shape.outputs);
    }
    return plan;
}

// True if the tables for groups and for blocks lie inside taps[n_taps] and their sizes are possible.
bool check_groups(FilterRow const& f, std::int64_t n_taps) {
    constexpr std::int64_t largest = std::int64_t{1} << 31;
    bool good = true;
    if (f.group_repeats != 0) {
        good = f.group_repeats > 0 && f.group_repeats <= filter_group && f.phases == f.up &&
               std::gcd(f.up, f.down) == 1 && f.group_taps >= f.main_taps && f.group_taps < largest;
        std::int64_t const n_groups = (f.group_repeats * f.up + filter_group - 1) / filter_group;
        good = good && inside(f.group_offset, n_groups, f.group_taps * filter_group, n_taps);
        // The first and the last output of a group are at most this many samples apart.
        good = good && f.group_taps <= f.main_taps + (filter_group - 1) * f.down / f.up + 1;
    }
    if (f.block_repeats != 0 || f.block_offset != 0) {
        constexpr std::int64_t most_entries = std::int64_t{1} << 20;
        good = good && f.phases == f.up && f.block_repeats > 0 && f.block_repeats <= most_entries / f.up &&
               f.block_repeats <= most_entries / f.down && f.block_offset > 0 && f.block_reach >= 0 &&
               2 * f.block_reach < block_periods;
        if (good) {
            std::int64_t const outputs = f.block_repeats * f.up, samples = f.block_repeats * f.down;
            good = outputs % (2 * filter_group) == 0 && outputs * samples <= most_entries &&
                   inside(f.block_offset, cpu::frequencies * outputs, samples, n_taps);
        }
    }
    if (f.decimation != 0) {
        good = good && inside(f.low_group_offset, 2 * f.low_half + filter_group, filter_group, n_taps);
    }
    return good;
}

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
    std::vector<cpu::TilePlan> plans(static_cast<std::size_t>(p.n_filters));
    for (std::int64_t i = 0; i < p.n_filters; ++i) {
        SLEEPFM_CHECK(check_filter(p.filters[i], p.n_taps) && check_groups(p.filters[i], p.n_taps),
                      "filter_resample: row ", i, " of filters does not describe tables inside taps (", p.n_taps,
                      " values); pass the two tensors of FilterBank.tensors() together.");
        plans[i] = tile_plan(p.filters[i], p.n_out);
    }
    std::size_t const out_bytes = p.out_dtype == DType::f32 ? 4 : 2;
    std::int64_t n_scratch = 0, n_filtered = 0, n_whole = 0;
    for (std::int64_t i = 0; i < n_rows; ++i) {
        refuse(check_row(p.table[i], p.n_raw, p.n_filters, p.filters), p, i);
        if (p.table[i].length != 0) {
            cpu::TilePlan const& plan = plans[p.table[i].filter];
            n_scratch = std::max(n_scratch, plan.before_filtered());
            n_filtered = std::max(n_filtered, plan.filtered);
            if (p.normalise != Normalise::none && out_bytes != 4 && plan.outputs < p.n_out) {
                n_whole = p.n_out;
            }
        }
    }
    std::int64_t const n_candidates = p.normalise == Normalise::robust ? (p.n_out + 15) / 16 * 16 : 0;
    n_threads = static_cast<int>(std::clamp<std::int64_t>(n_threads, 1, n_rows));
#if !defined(_OPENMP)
    n_threads = 1;
#endif
    // All memory is taken before the threads start, since nothing may throw inside them.
    std::int64_t const per_thread = (n_scratch + 2 * n_filtered + n_whole + 15) / 16 * 16;
    constexpr std::size_t line = 64;
    std::unique_ptr<float[]> const memory(new float[static_cast<std::size_t>(per_thread * n_threads) + line / 4]);
    float* const scratch = memory.get() + (line - reinterpret_cast<std::uintptr_t>(memory.get()) % line) / 4;
    std::unique_ptr<std::uint32_t[]> const candidates(
        new std::uint32_t[static_cast<std::size_t>(n_candidates * n_threads)]);
    bool const streamed = static_cast<std::size_t>(n_rows * p.n_out) * out_bytes > streamed_above_bytes;
    RowFunctions const functions = row_functions();
    // Of a row that is longer, the processor sees the pattern.
    constexpr std::int64_t most_prefetched_bytes = 65536;

    SLEEPFM_OMP(omp parallel num_threads(n_threads)) {
        cpu::Traffic traffic{};
        SLEEPFM_OMP(omp for schedule(dynamic) nowait)
        for (std::int64_t i = 0; i < n_rows; ++i) {
            WindowRow const& w = p.table[i];
            char* const out = static_cast<char*>(p.out) + static_cast<std::size_t>(i * p.n_out) * out_bytes;
            if (w.length == 0) {
                std::memset(out, 0, static_cast<std::size_t>(p.n_out) * out_bytes);
                continue;
            }
            std::int64_t const thread = thread_number();
            cpu::FilterJob job{};
            job.window = static_cast<char const*>(p.raw) + w.offset * p.raw_bytes;
            job.raw_bytes = p.raw_bytes;
            job.row = w;
            job.filter = p.filters[w.filter];
            job.taps = p.taps;
            job.calibration = p.calibration + 4 * i;
            job.normalise = p.normalise;
            job.out = out;
            job.streamed = streamed;
            job.out_dtype = p.out_dtype;
            job.n_out = p.n_out;
            job.plan = plans[w.filter];
            job.scratch = scratch + thread * per_thread;
            job.filtered[0] = job.scratch + n_scratch;
            job.filtered[1] = job.filtered[0] + n_filtered;
            job.whole = n_whole != 0 ? job.filtered[1] + n_filtered : nullptr;
            job.candidates = candidates.get() + thread * n_candidates;
            if (i + n_threads < n_rows) {
                WindowRow const& next = p.table[i + n_threads];
                traffic.next = static_cast<char const*>(p.raw) + next.offset * p.raw_bytes;
                traffic.next_bytes = std::min(next.length * p.raw_bytes, most_prefetched_bytes);
            }
            job.traffic = &traffic;
            functions.filter_row(job);
        }
        functions.write_last(traffic);
    }
}

}  // namespace sleepfm
