// filter_row: one (clip, channel) from integers to normalised outputs. Samples become floats relative to an integer
// near their mean (so that float32 loses nothing to a large offset), the low branch is subtracted, and the main filter
// gives the outputs in one of three ways: blocks of periods by their spectra (filter_block.h), groups of 16 outputs, or
// outputs one by one (both by filter_product.h). A row is filtered in tiles; one that is normalised is kept until the
// statistics of the whole are known.
//
// Included once for each instruction set, with SLEEPFM_ISA (the namespace) and SLEEPFM_LANES (floats in a register)
// defined. Everything is in that namespace or static, and no template of the standard library is instantiated: of equal
// functions the linker keeps one for all, perhaps one compiled for a newer processor.
#include <math.h>
#include <string.h>

#include "cpu/filter_block.h"
#include "cpu/filter_low.h"
#include "cpu/filter_product.h"
#include "cpu/filter_resample.h"
#include "cpu/filter_statistics.h"
#include "cpu/filter_traffic.h"
#include "half_precision.h"

namespace sleepfm::cpu::SLEEPFM_ISA {

namespace {

// What samples are measured from.
struct Reference {
    std::int64_t value;        // an integer near the mean of the samples in use
    double largest_deviation;  // of a sample in use from it, in digital steps
};

// Least, largest and sum of samples.
template <typename Raw>
struct Extent {
    Raw low, high;
    std::int64_t total;
};

template <typename Raw>
void extend(Extent<Raw>& all, Raw const* x, std::int64_t n) {
    // In pieces that stay in the first cache between the two loops; 32 bits hold the sum of 65,536 int16 samples.
    constexpr std::int64_t piece = 8192;
    for (std::int64_t i = 0; i < n; i += piece) {
        std::int64_t const last = n - i < piece ? n : i + piece;
        if constexpr (sizeof(Raw) == 2) {
            std::int32_t part = 0;
            for (std::int64_t j = i; j < last; ++j) {
                part += x[j];
            }
            all.total += part;
        } else {
            for (std::int64_t j = i; j < last; ++j) {
                all.total += x[j];
            }
        }
        for (std::int64_t j = i; j < last; ++j) {
            all.low = x[j] < all.low ? x[j] : all.low;
            all.high = x[j] > all.high ? x[j] : all.high;
        }
    }
}

#if SLEEPFM_LANES == 16
// In one pass. Of the above the compiler makes two, in one of which it widens every sample.
template <>
void extend(Extent<std::int16_t>& all, std::int16_t const* x, std::int64_t n) {
    constexpr std::int64_t together = 32, piece = 65536;  // a 32-bit lane holds the sum of 4,096 samples
    __m512i const ones = _mm512_set1_epi16(1);
    __m512i low = _mm512_set1_epi16(all.low), high = _mm512_set1_epi16(all.high);
    for (std::int64_t i = 0; i < n; i += piece) {
        std::int64_t const last = n - i < piece ? n : i + piece;
        __m512i sums = _mm512_setzero_si512();
        for (std::int64_t j = i; j < last; j += together) {
            // Lanes behind the last sample add 0, and repeat the lowest so far.
            __mmask32 const there = last - j < together ? (__mmask32{1} << (last - j)) - 1 : ~__mmask32{0};
            sums = _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_maskz_loadu_epi16(there, x + j), ones));
            __m512i const some = _mm512_mask_loadu_epi16(low, there, x + j);
            low = _mm512_min_epi16(low, some);
            high = _mm512_max_epi16(high, some);
        }
        all.total +=
            _mm512_reduce_add_epi64(_mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(sums)),
                                                     _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(sums, 1))));
    }
    std::int16_t lows[together], highs[together];
    memcpy(lows, &low, sizeof low);
    memcpy(highs, &high, sizeof high);
    for (int l = 0; l < together; ++l) {
        all.low = lows[l] < all.low ? lows[l] : all.low;
        all.high = highs[l] > all.high ? highs[l] : all.high;
    }
}
#endif

// Of the samples that the outputs depend on, `needed`, cut to the window (at least one of its samples, which repeats
// outside it).
template <typename Raw>
Reference find_reference(FilterJob const& job, Span needed) {
    std::int64_t const start = job.row.start, end = start + job.row.length;
    std::int64_t begin = needed.begin < start ? start : needed.begin;
    begin = begin > end - 1 ? end - 1 : begin;
    std::int64_t stop = needed.end > end ? end : needed.end;
    stop = stop < begin + 1 ? begin + 1 : stop;
    Raw const* const used = static_cast<Raw const*>(job.window) + (begin - start);
    Extent<Raw> all{used[0], used[0], 0};
    extend(all, used, stop - begin);
    std::int64_t const value = all.total / (stop - begin);
    double const below = static_cast<double>(value - all.low), above = static_cast<double>(all.high - value);
    return {value, below > above ? below : above};
}

// x[i] = sample span.begin + i less the reference; beyond the window its first or last sample repeats.
template <typename Raw>
void load_samples(FilterJob const& job, std::int64_t reference, Span span, float* x) {
    std::int64_t const start = job.row.start, end = start + job.row.length;
    Raw const* const window = static_cast<Raw const*>(job.window);
    std::int64_t const size = span.end - span.begin;
    auto const inside = [size](std::int64_t i) { return i < 0 ? 0 : i > size ? size : i; };
    std::int64_t const begin_in = inside(start - span.begin), end_in = inside(end - span.begin);
    float const left = static_cast<float>(static_cast<std::int64_t>(window[0]) - reference);
    float const right = static_cast<float>(static_cast<std::int64_t>(window[job.row.length - 1]) - reference);
    for (std::int64_t i = 0; i < begin_in; ++i) {
        x[i] = left;
    }
    Raw const* const used = window + (span.begin - start);
    if constexpr (sizeof(Raw) == 2) {
        std::int32_t const reference32 = static_cast<std::int32_t>(reference);
        for (std::int64_t i = begin_in; i < end_in; ++i) {
            x[i] = static_cast<float>(used[i] - reference32);
        }
    } else {
        for (std::int64_t i = begin_in; i < end_in; ++i) {
            x[i] = static_cast<float>(static_cast<std::int64_t>(used[i]) - reference);
        }
    }
    for (std::int64_t i = end_in; i < size; ++i) {
        x[i] = right;
    }
}

// Outputs one by one, four at a time. Outputs n, n + up, n + 2 up, ... share a row of taps and lie `down` samples
// apart. x[0] is segment sample x_index.
void resample_by_row(FilterJob const& job, Span outputs, float const* x, std::int64_t x_index, float* y) {
    FilterRow const& f = job.filter;
    std::int64_t const n = outputs.end - outputs.begin;
    for (std::int64_t k = 0; k < (f.up < n ? f.up : n); ++k) {
        Place const place = place_of(f, job.row.phase, outputs.begin + k);
        float const* const taps = job.taps + f.main_offset + place.row * f.main_stride;
        float const* from = x + (job.row.first + place.q - f.main_left - x_index);
        for (std::int64_t i = k; i < n; i += 4 * f.up, from += 4 * f.down) {
            std::int64_t const left = (n - i + f.up - 1) / f.up;
            float sums[4];
            dot4(left < 4 ? left : 4, from, f.down, taps, f.main_stride, sums);
            for (std::int64_t j = 0; j < 4 && j < left; ++j) {
                y[i + j * f.up] = sums[j];
            }
        }
    }
}

// Outputs in groups of filter_group, which lie side by side in vectors. The groups at the same place of all periods
// share their taps and are computed together. x[0] is segment sample x_index, and group_margin(f) zeros lie on either
// side.
void resample_by_group(FilterJob const& job, Span outputs, float const* x, std::int64_t x_index, float* y) {
    FilterRow const& f = job.filter;
    std::int64_t const shift = output_of_phase(f, job.row.phase);
    std::int64_t const begin = outputs.begin + shift, end = outputs.end + shift;
    std::int64_t const period = f.group_repeats * f.up, step = f.group_repeats * f.down;
    float const* const first = x + (job.row.first - shift * f.down / f.up - f.main_left - x_index);
    // The last group of a period may end in padding, whose results lie where the next period's first group belongs.
    // Groups are therefore computed from the last to the first.
    for (std::int64_t g = (period - 1) / filter_group; g >= 0; --g) {
        std::int64_t const at = g * filter_group;  // place of the group's first output in the period
        std::int64_t const n = period - at < filter_group ? period - at : filter_group;
        std::int64_t const q = at * f.down / f.up;
        float const* const taps = job.taps + f.group_offset + g * f.group_taps * filter_group;
        // The periods in which the group has any wanted output, and those in which it has only wanted ones.
        std::int64_t const some_begin = floor_divide(begin - at - n, period) + 1;
        std::int64_t const some_end = floor_divide(end - at - 1, period) + 1;
        std::int64_t all_begin = -floor_divide(at - begin, period), all_end = floor_divide(end - at - n, period) + 1;
        if (all_begin >= all_end) {
            all_begin = all_end = some_end;
        }
        products(all_end - all_begin, one_run(first + all_begin * step + q, step, taps, filter_group, f.group_taps),
                 [&](std::int64_t i, int v, Vector sums) SLEEPFM_INLINE_LAMBDA {
                     store(y + ((all_begin + i) * period + at - begin + v * SLEEPFM_LANES), sums);
                 });
        auto const compute_part = [&](std::int64_t p) {
            float sums[filter_group];
            product<1>(one_run(first + p * step + q, 0, taps, filter_group, f.group_taps),
                       [&sums](std::int64_t, int v, Vector part)
                           SLEEPFM_INLINE_LAMBDA { store(sums + v * SLEEPFM_LANES, part); });
            for (std::int64_t l = 0; l < n; ++l) {
                std::int64_t const k = p * period + at + l;
                if (k >= begin && k < end) {
                    y[k - begin] = sums[l];
                }
            }
        };
        for (std::int64_t p = some_begin; p < all_begin; ++p) {
            compute_part(p);
        }
        for (std::int64_t p = all_end; p < some_end; ++p) {
            compute_part(p);
        }
    }
}

// Filters outputs [outputs.begin, outputs.end) to y.
void filter_tile(FilterJob const& job, std::int64_t reference, Span outputs, float* y) {
    FilterRow const& f = job.filter;
    Span const main = main_span(f, job.row, outputs.begin, outputs.end);
    Span const native = needed_span(f, job.row, outputs.begin, outputs.end);
    std::int64_t const margin = group_margin(f), n_native = native.end - native.begin;
    float* const x = job.scratch + margin;
    if (job.raw_bytes == 2) {
        load_samples<std::int16_t>(job, reference, native, x);
    } else {
        load_samples<std::int32_t>(job, reference, native, x);
    }
    fill_zeros(job.scratch, margin);
    fill_zeros(x + n_native, margin);
    float* clean = x;
    if (f.decimation != 0) {
        clean = job.scratch + job.plan.before_clean() + margin;
        fill_zeros(clean - margin, margin);
        subtract_low(job, main, native, x, clean);
        fill_zeros(clean + (main.end - main.begin), margin);
    }
    std::int64_t const in_blocks = outputs_in_blocks(job, outputs);
    Span const rest{outputs.begin + in_blocks, outputs.end};
    if (in_blocks > 0) {
        resample_by_block(job, {outputs.begin, rest.begin}, clean, main.begin, main.end - main.begin, y);
    }
    if (rest.begin < rest.end) {
        if (f.group_repeats != 0) {
            resample_by_group(job, rest, clean, main.begin, y + in_blocks);
        } else {
            resample_by_row(job, rest, clean, main.begin, y + in_blocks);
        }
    }
}

// out[begin + i] = a y[i] + b for i < n, rounded to the outputs' type; y may be the same memory as out. If it is not,
// streaming is left to the next tile's blocks, and the next tile is put elsewhere.
void write(FilterJob const& job, std::int64_t begin, float const* y, std::int64_t n, float a, float b) {
    if (job.out_dtype == DType::f32) {
        float* const out = static_cast<float*>(job.out) + begin;
        Traffic& traffic = *job.traffic;
        if (job.streamed && job.filter.block_offset != 0 && y != out) {
            write_some(traffic, traffic.n);
            traffic.y = y;
            traffic.out = out;
            traffic.n = n;
            traffic.a = a;
            traffic.b = b;
            traffic.turn = 1 - traffic.turn;
        } else if (job.streamed) {
            stream(out, y, n, a, b);
        } else {
            for (std::int64_t i = 0; i < n; ++i) {
                out[i] = y[i] * a + b;
            }
        }
    } else {
        std::uint16_t* const out = static_cast<std::uint16_t*>(job.out) + begin;
        if (job.out_dtype == DType::bf16) {
            for (std::int64_t i = 0; i < n; ++i) {
                out[i] = to_bf16(y[i] * a + b);
            }
        } else {
            for (std::int64_t i = 0; i < n; ++i) {
                out[i] = to_f16(y[i] * a + b);
            }
        }
    }
}

}  // namespace

void filter_row(FilterJob const& job) {
    FilterRow const& f = job.filter;
    Span const needed = needed_span(f, job.row, 0, job.n_out);
    Reference const reference =
        job.raw_bytes == 2 ? find_reference<std::int16_t>(job, needed) : find_reference<std::int32_t>(job, needed);
    double const gain = job.calibration[0], offset = job.calibration[1];
    double const center = job.calibration[2], scale = job.calibration[3];
    bool const normalised = job.normalise != Normalise::none && f.step == 0;
    bool const one_tile = job.n_out <= job.plan.outputs;
    // Where a normalised row of several tiles is kept until its statistics are known.
    float* kept = job.out_dtype == DType::f32 ? static_cast<float*>(job.out) : job.whole;
    double a = gain * scale;
    // Filtering removes a constant if the main filter has no gain at 0 Hz, or if the low branch is subtracted; the
    // reference and the offset then have no part in the outputs.
    double const constant = f.dc != 0 && f.decimation == 0 ? gain * static_cast<double>(reference.value) + offset : 0;
    double b = (constant - center) * scale;
    Moments moments;  // about 0, summed up tile by tile while each is in the cache
    for (std::int64_t n = 0; n < job.n_out; n += job.plan.outputs) {
        std::int64_t const end = job.n_out - n < job.plan.outputs ? job.n_out : n + job.plan.outputs;
        // Blocks of periods write whole periods, and thus up to a period beyond the outputs on either side.
        float* const filtered = job.filtered[job.traffic->turn] + f.block_repeats * f.up;
        filter_tile(job, reference.value, {n, end}, filtered);
        if (!normalised) {
            write(job, n, filtered, end - n, static_cast<float>(a), static_cast<float>(b));
            continue;
        }
        if (job.normalise == Normalise::zscore) {
            moments.add(filtered, end - n, 0.0f);
        }
        if (one_tile) {
            kept = filtered;
        } else {
            memcpy(kept + n, filtered, static_cast<std::size_t>(end - n) * sizeof(float));
        }
    }
    if (normalised) {
        Location const y = job.normalise == Normalise::robust ? median_and_deviation(kept, job.n_out, job.candidates)
                                                              : mean_and_deviation(moments, kept, job.n_out);
        bool const flat = a == 0 || y.deviation <= flat_below(reference.largest_deviation);
        a = flat ? 0 : (a > 0 ? 1 : a < 0 ? -1 : a) / y.deviation;  // NaN stays NaN
        b = -y.center * a;
        write(job, 0, kept, job.n_out, static_cast<float>(a), static_cast<float>(b));
    }
}

void write_last(Traffic& traffic) {
    write_some(traffic, traffic.n);
#if SLEEPFM_LANES >= 8
    _mm_sfence();  // streamed stores are not ordered with later ones; another thread will read the result
#endif
}

}  // namespace sleepfm::cpu::SLEEPFM_ISA
