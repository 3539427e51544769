// The kernel of filter_resample. One block filters one (clip, channel), or, where no statistics are needed, a slice of
// its outputs:
//   find_reference: mean, least and largest sample                           (reads device memory)
//   low_branch, for a slice: samples -> shared memory -> decimated -> low-passed (reads again, from the caches)
//   filter_tile: samples -> shared memory -> minus the low branch -> outputs in registers -> shared memory
//   use_outputs: statistics of the outputs, or outputs -> device memory
// A z-score takes three passes over the outputs (mean, variance, writing), quartiles six. Outputs that fit stay in
// shared memory between passes; else each pass filters anew. Samples are taken relative to an integer near their mean,
// so that float32 loses nothing to a large offset. Atomics only count integers, so that the bits are the same in every
// run. The file compiles for the host as well (tests/cuda_on_cpu).
#pragma once

#include <math.h>

#include <type_traits>

#include "filter_geometry.h"
#include "launch.h"
#include "params.h"

#include "cuda/filter_resample_plan.h"
#include "cuda/filter_resample_product.cuh"
#include "cuda/filter_resample_statistics.cuh"
#include "cuda/ptx.h"

namespace sleepfm::cuda {

// What samples are measured from.
struct Reference {
    std::int64_t value;        // an integer near the mean of the samples in use
    double largest_deviation;  // of a sample in use from it, in digital steps
};

// Of the samples that the outputs depend on, `needed`, cut to the window (at least one of its samples).
template <typename Raw>
__device__ Reference find_reference(Window<Raw> const& window, Span needed) {
    std::int64_t const end = window.start + window.length;
    std::int64_t last = needed.end > end ? end : needed.end;
    last = last < window.start + 1 ? window.start + 1 : last;
    std::int64_t first = needed.begin < window.start ? window.start : needed.begin;
    first = first > last - 1 ? last - 1 : first;
    Raw const* const x = window.samples + (first - window.start);
    std::int64_t total = 0;
    Raw low = x[0], high = x[0];
    auto const see = [&](Raw sample) {
        low = sample < low ? sample : low;
        high = sample > high ? sample : high;
    };
    constexpr std::int64_t part = 1 << 30;  // for_each_sample counts in 32 bits
    for (std::int64_t from = 0; from < last - first; from += part) {
        std::int64_t const n = last - first - from;
        for_each_sample(
            x + from, 0, static_cast<int>(n < part ? n : part),
            [&](int, Raw sample) {
                total += sample;
                see(sample);
            },
            [&](int, Raw const(&samples)[16 / sizeof(Raw)], int) {
                std::conditional_t<sizeof(Raw) == 2, int, std::int64_t> sum = 0;
                for (Raw const sample : samples) {
                    sum += sample;
                    see(sample);
                }
                total += sum;
            });
    }
    total = sum_over_block(total);
    std::int64_t const lowest = least_of_block(static_cast<std::int64_t>(low));
    std::int64_t const highest = -least_of_block(-static_cast<std::int64_t>(high));
    std::int64_t const value = total / (last - first);
    std::int64_t const deviation = value - lowest > highest - value ? value - lowest : highest - value;
    return {value, static_cast<double>(deviation)};
}

// What is done with the outputs in one pass over them; `digit` and `neighbours` are Quartiles' passes.
enum class Pass : int { mean, variance, digit, neighbours, write };

// What the block knows of its row. In shared memory, since the inner loops need the registers. Thread 0 writes it (all
// threads write `phases`), and a barrier stands before the reading.
struct Row {
    WindowRow window;
    FilterRow filter;
    FilterPlan plan;
    Reference reference;
    double total, mean;  // of the outputs: the current pass's sum so far, and the result of the first pass
    double a, b;         // a y + b is written
    int begin, end;      // the block's outputs
    int n_passes;        // passes over them: statistics, and a last one that writes
    // Places in shared memory, in floats: scratch and tiles in [0, low), the low branch from `low`, outputs from `y`.
    int low, y;
    Phases phases;
    // Of the current slice's low branch: the decimated index of low[0], the first native sample for the decimator.
    std::int64_t low_begin, decimator_begin;
    int n_low, n_decimated;  // decimated samples after and before the low-pass
    // Of the current tile.
    std::int64_t tile_begin;  // number of its first output
    int tile_outputs;
    std::int64_t first;        // segment index of the sample at place 0
    int start_row;             // row of the main table for the first output
    int n_met;                 // number of samples that the outputs depend on
    int low_place, low_phase;  // `first` is low_phase samples after decimated sample low_begin + low_place + left
};

template <typename Raw>
__device__ Window<Raw> window_of(FilterResample const& p, Row const& row) {
    return {static_cast<Raw const*>(p.raw) + row.window.offset, row.window.start, row.window.length,
            row.reference.value};
}

// y0, y1 = sum over k of h[k] sample(at + k), from two places at once, so that a load of taps serves both. h is aligned
// to 16 bytes and continues with zeros to a multiple of 4 taps.
template <typename Sample>
__device__ void two_sums(float const* h, int n, Sample sample, int at0, int at1, float& y0, float& y1) {
    float a[4] = {}, b[4] = {};
    for (int k = 0; k < n; k += 4) {
        ptx::Words4 const words = ptx::load_16_read_only(h + k);
        Four four;
        memcpy(&four, &words, sizeof four);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            a[c] = fmaf(four.part[c], sample(at0 + k + c), a[c]);
            b[c] = fmaf(four.part[c], sample(at1 + k + c), b[c]);
        }
    }
    y0 = (a[0] + a[1]) + (a[2] + a[3]);
    y1 = (b[0] + b[1]) + (b[2] + b[3]);
}

// y[i] = sum over k < n of h[k] sample(i step + k) for i in [0, count), by all threads; a thread takes i and i + half.
template <typename Sample>
__device__ void convolve(float const* h, int n, Sample sample, int step, int count, float* y) {
    int const half = (count + 1) / 2;
    for (int i = ptx::thread_index(); i < half; i += static_cast<int>(blockDim.x)) {
        int const other = i + half < count ? i + half : i;
        float y0, y1;
        two_sums(h, n, sample, i * step, other * step, y0, y1);
        y[i] = y0;
        if (other != i) {
            y[other] = y1;
        }
    }
}

// Computes the low branch that outputs [begin, begin + n) need, at the decimated rate, to low[0 .. n_low). area:
// scratch of area_floats, for the decimated samples before the low-pass and, as far as they fit, samples. Begins and
// ends with a barrier.
template <typename Raw>
__device__ void low_branch(FilterResample const& p, Row& row, std::int64_t begin, int n, float* area, int area_floats,
                           float* low) {
    FilterRow const& f = row.filter;
    Window<Raw> const window = window_of<Raw>(p, row);
    float const* const taps = p.taps;
    if (ptx::thread_index() == 0) {  // divisions of 64 bits are slow: done once for the block
        Span const low_at = low_span(f, main_span(f, row.window, begin, begin + n)), at = decimated_span(f, low_at);
        row.low_begin = low_at.begin;
        row.decimator_begin = at.begin * f.decimation - f.decimator_half;
        row.n_low = static_cast<int>(low_at.end - low_at.begin);
        row.n_decimated = static_cast<int>(at.end - at.begin);
    }
    ptx::sync_threads();  // the description is written, and all have done with what was in `area`
    int const n_before = row.n_decimated;
    int const step = static_cast<int>(f.decimation), n_taps = static_cast<int>(2 * f.decimator_half + 1);
    float* const decimated = area;
    float* const samples = area + round_up(n_before + 4, 4);
    // A word of padding after every 32 samples: threads that are 32, 64, ... samples apart would meet in one bank.
    auto const place = [](int i) { return i + i / 32; };
    // Decimated samples whose native samples fit at a time; 0: not even one's do, and they are read from memory.
    int const fits = (area_floats - round_up(n_before + 4, 4)) / 33 * 32 - 4 - n_taps;
    int const at_once = fits < 0 ? 0 : fits / step + 1;
    for (int i = n_before + ptx::thread_index(); i < round_up(n_before + 4, 4); i += static_cast<int>(blockDim.x)) {
        decimated[i] = 0.0f;
    }
    for (int m = 0; m < n_before; m += at_once > 0 ? at_once : n_before) {
        int const count = at_once > 0 && at_once < n_before - m ? at_once : n_before - m;
        std::int64_t const from = row.decimator_begin + static_cast<std::int64_t>(m) * step;
        float const* const decimator = taps + f.decimator_offset;
        if (at_once > 0) {
            load_samples(window, from, (count - 1) * step + n_taps + 3, samples, place);
            ptx::sync_threads();
            convolve(decimator, n_taps, [&](int i) { return samples[place(i)]; }, step, count, decimated + m);
        } else {
            convolve(decimator, n_taps, [&](int i) { return window.at(from + i); }, step, count, decimated + m);
        }
        ptx::sync_threads();
    }
    convolve(
        taps + f.low_offset, static_cast<int>(2 * f.low_half + 1), [&](int i) { return decimated[i]; }, 1, row.n_low,
        low);
    ptx::sync_threads();
}

// Subtracts the interpolated low branch from each of the tile's n_met samples. No barrier: a thread changes samples of
// its own. Its place on the decimated grid, sample d after decimated sample m, is carried along without divisions.
template <typename Where>
__device__ void subtract_low(Row const& row, float const* taps, float const* low, float* samples, Where place) {
    FilterRow const& f = row.filter;
    int const step = static_cast<int>(f.decimation), n_threads = static_cast<int>(blockDim.x);
    int const thread = ptx::thread_index(), n_taps = static_cast<int>(f.interpolator_taps);
    int const stride = static_cast<int>(f.interpolator_stride), offset = row.low_phase + thread, n = row.n_met;
    int const rest = n_threads % step, whole = n_threads / step;
    int d = offset % step, m = row.low_place + offset / step;
    for (int i = thread; i < n; i += n_threads) {
        float const* const h = taps + f.interpolator_offset + d;
        float sum = 0.0f;
        for (int t = 0; t < n_taps; ++t) {
            sum = fmaf(low[m + t], h[t * stride], sum);
        }
        samples[place(i)] -= sum;
        d += rest;
        m += whole;
        if (d >= step) {
            d -= step;
            ++m;
        }
    }
}

// Computes outputs [begin, begin + n), to row.y: behind those of the tiles before where all are kept, else from the
// beginning. Ends with a barrier, after which the outputs can be read.
template <typename Raw>
__device__ void filter_tile(FilterResample const& p, Row& row, std::int64_t begin, int n, float* area) {
    FilterRow const& f = row.filter;
    FilterPlan const& plan = row.plan;
    if (ptx::thread_index() == 0) {  // divisions of 64 bits are slow: done once for the block
        sleepfm::Place const start = place_of(f, row.window.phase, begin);
        Span const met = main_span(f, row.window, begin, begin + n);
        row.tile_begin = begin;
        row.tile_outputs = n;
        row.first = met.begin;
        row.start_row = static_cast<int>(start.row);
        row.n_met = static_cast<int>(met.end - met.begin);
        if (f.decimation > 0) {
            std::int64_t const m = floor_divide(met.begin, f.decimation);
            row.low_place = static_cast<int>(m - f.interpolator_left - row.low_begin);
            row.low_phase = static_cast<int>(met.begin - m * f.decimation);
        }
    }
    ptx::sync_threads();  // the description is written, and all have done with the previous tile
    // Samples beyond n_met are multiplied by zeros; they must be finite, since 0 * NaN is NaN.
    int n_samples = row.n_met + static_cast<int>(f.main_stride - f.main_taps);
    if (plan.shape != 0) {
        int const up = static_cast<int>(f.up), down = static_cast<int>(f.down);
        for (int v = ptx::thread_index(); v < largest_period; v += static_cast<int>(blockDim.x)) {
            int const u = row.start_row + (v < plan.period ? v : plan.period - 1) * down;
            row.phases.start[v] = u / up;
            row.phases.row[v] = u % up * static_cast<int>(f.main_stride);
        }
        int const n_repeats = (row.tile_outputs + plan.period - 1) / plan.period;
        n_samples = (n_repeats - 1) * plan.advance + (plan.period - 1) * down / up + 1 + plan.taps + 4;
    }
    bool const padded = plan.padded != 0;
    auto const place = [padded](int i) { return place_of_sample(i, padded); };
    load_samples(window_of<Raw>(p, row), row.first, n_samples, area, place);
    ptx::sync_threads();
    if (f.decimation > 0) {
        subtract_low(row, p.taps, area + row.low, area, place);
        ptx::sync_threads();
    }
    if (plan.shape != 0) {
        int const before = plan.kept_floats > 0 ? static_cast<int>(row.tile_begin - row.begin) / plan.period : 0;
        multiply_tile(f, plan, row.phases, p.taps, area, area + plan.sample_floats,
                      area + row.y + before * plan.row_floats, row.tile_outputs);
    } else {
        int const before = plan.kept_floats > 0 ? static_cast<int>(row.tile_begin - row.begin) : 0;
        single_outputs(f, row.window.phase, row.tile_begin, row.tile_outputs, p.taps, area, area + row.y,
                       [&](int i) { return Cursor(plan, before + i).place(); });
    }
    ptx::sync_threads();
}

// Sets a and b to normalise by the outputs' center and deviation; a flat channel becomes 0. The sign of the calibration
// (gain * scale) stays; its size does not matter, except that NaN stays NaN and 0 counts as flat. By one thread.
__device__ inline void normalise_by(Row& row, double center, double deviation) {
    bool const flat = row.a == 0.0 || !(deviation > flat_below(row.reference.largest_deviation));
    row.a = flat ? 0.0 : (row.a > 0.0 ? 1.0 : row.a < 0.0 ? -1.0 : row.a) / deviation;
    row.b = -center * row.a;
}

// Takes the outputs [0, n) at y into account in a statistics pass. When all of the row's outputs have been seen,
// `finish` does what follows. digit: number of the pass.
__device__ inline void see_outputs(Pass pass, int digit, Row& row, Quartiles& quartiles, float const* y, int n) {
    if (pass == Pass::digit) {
        count_digits(quartiles, digit, row.plan, y, n);
    } else if (pass == Pass::neighbours) {
        count_neighbours(quartiles, row.plan, y, n);
    } else {
        bool const squares = pass == Pass::variance;
        float const middle = squares ? static_cast<float>(row.mean) : 0.0f;
        float sum = 0.0f;
        for_each_output(row.plan, y, n, [&](float value) {
            float const d = value - middle;
            sum = squares ? fmaf(d, d, sum) : sum + d;
        });
        double const total = sum_over_block(static_cast<double>(sum));
        if (ptx::thread_index() == 0) {
            row.total += total;
        }
    }
}

__device__ inline void finish(Pass pass, int digit, Row& row, Quartiles& quartiles, std::int64_t n) {
    if (pass == Pass::digit) {
        end_digit(quartiles, digit);
    } else if (ptx::thread_index() == 0) {
        if (pass == Pass::mean) {
            row.mean = row.total / static_cast<double>(n);
        } else if (pass == Pass::variance) {
            // The sum of squares is around the mean as rounded to float32, which is corrected here.
            double const rounding = static_cast<double>(static_cast<float>(row.mean)) - row.mean;
            double const variance = row.total / static_cast<double>(n) - rounding * rounding;
            normalise_by(row, row.mean, variance > 0.0 ? sqrt(variance) : 0.0);
        } else if (pass == Pass::neighbours) {
            double const low = quartile(quartiles, 0, n), high = quartile(quartiles, 2, n);
            normalise_by(row, quartile(quartiles, 1, n), (high - low) / 1.349);
        }
        row.total = 0.0;
    }
    ptx::sync_threads();
}

// Calls write(pointer to output `first`), the pointer being of the outputs' type.
template <typename Write>
__device__ void with_outputs(FilterResample const& p, std::int64_t first, Write write) {
    switch (p.out_dtype) {
        case DType::bf16: write(static_cast<Bf16*>(p.out) + first); break;
        case DType::f16: write(static_cast<F16*>(p.out) + first); break;
        default: write(static_cast<float*>(p.out) + first);
    }
}

// True if the tables that are loaded by 16 bytes begin at a multiple of that, as those of a FilterBank do. A misaligned
// load is an error of the device, after which the process cannot use the device any more.
__device__ inline bool taps_are_aligned(FilterRow const& f) {
    std::int64_t const low_branch = f.decimation > 0 ? f.decimator_offset | f.low_offset : 0;
    return ((f.main_offset | low_branch) & 3) == 0;
}

// Reads the row's description, makes the plan and finds the reference. False if there is nothing to filter: the channel
// is missing (outputs 0), or its description is impossible or does not fit (outputs NaN), and the outputs are written.
template <typename Raw>
__device__ bool prepare(FilterResample const& p, FilterResampleLaunch const& launch, Row& row) {
    std::int64_t const index = blockIdx.x;
    int const n_out = static_cast<int>(p.n_out), at_most = static_cast<int>(launch.outputs_per_slice);
    int const begin = static_cast<int>(blockIdx.y) * at_most, end = at_most < n_out - begin ? begin + at_most : n_out;
    if (ptx::thread_index() == 0) {
        WindowRow const w = p.table[index];
        bool const good = w.length != 0 && check_row(w, p.n_raw, p.n_filters, p.filters) == RowFault::none &&
                          check_filter(p.filters[w.filter], p.n_taps) && taps_are_aligned(p.filters[w.filter]);
        row.window = w;
        row.filter = good ? p.filters[w.filter] : FilterRow{};
        row.plan = FilterPlan{};
        bool const statistics = p.normalise != Normalise::none && row.filter.step == 0;
        int const workspace = static_cast<int>(launch.workspace_floats);
        if (good) {
            row.plan =
                filter_plan(row.filter, end - begin, workspace, statistics, static_cast<int>(launch.threads / 32));
        }
        FilterPlan const& plan = row.plan;
        row.begin = begin;
        row.end = end;
        row.n_passes = !statistics ? 1 : p.normalise == Normalise::zscore ? 3 : 6;
        row.low = workspace - plan.low_floats - plan.kept_floats;
        row.y = plan.kept_floats > 0 ? workspace - plan.kept_floats : plan.shape == 0 ? plan.sample_floats : 0;
    }
    ptx::sync_threads();
    if (row.plan.tile == 0) {
        bool const missing = row.window.length == 0;
        with_outputs(p, index * p.n_out + begin, [&](auto* out) { fill(out, end - begin, missing ? 0.0f : nanf("")); });
        return false;
    }
    Window<Raw> const window{static_cast<Raw const*>(p.raw) + row.window.offset, row.window.start, row.window.length,
                             0};
    Reference const reference = find_reference(window, needed_span(row.filter, row.window, begin, end));
    if (ptx::thread_index() == 0) {
        float const* const calibration = p.calibration + 4 * index;
        double const gain = calibration[0], offset = calibration[1], center = calibration[2], scale = calibration[3];
        // Filtering removes a constant if the main filter has no gain at 0 Hz, or if the low branch is subtracted; the
        // reference and the offset then have no part in the outputs.
        bool const constant = row.filter.dc != 0 && row.filter.decimation == 0;
        row.reference = reference;
        row.total = 0.0;
        row.a = gain * scale;
        row.b = ((constant ? gain * static_cast<double>(reference.value) + offset : 0.0) - center) * scale;
    }
    ptx::sync_threads();
    return true;
}

__device__ inline Pass pass_of(int i, int n_passes) {
    return i == n_passes - 1 ? Pass::write
           : n_passes == 3   ? (i == 0 ? Pass::mean : Pass::variance)
                             : (i < 4 ? Pass::digit : Pass::neighbours);
}

// What pass i does with outputs [from, from + n) of the row, which lie at y.
__device__ inline void use_outputs(FilterResample const& p, int i, Row& row, Quartiles& quartiles, float const* y,
                                   int from, int n) {
    Pass const pass = pass_of(i, row.n_passes);
    if (pass != Pass::write) {
        see_outputs(pass, i, row, quartiles, y, n);
    } else {
        with_outputs(p, static_cast<std::int64_t>(blockIdx.x) * p.n_out + from, [&](auto* out) {
            write_outputs(out, row.plan, y, n, static_cast<float>(row.a), static_cast<float>(row.b));
        });
    }
}

template <typename Raw>
__global__ void __launch_bounds__(filter_resample_threads, filter_resample_blocks)
    filter_resample_kernel(FilterResample const p, FilterResampleLaunch const launch) {
    SLEEPFM_DYNAMIC_SHARED(float, area);
    SLEEPFM_SHARED(Row, rows, [1]);
    SLEEPFM_SHARED(Quartiles, quartiles, [1]);
    Row& row = rows[0];
    if (!prepare<Raw>(p, launch, row)) {
        return;
    }
    FilterPlan const& plan = row.plan;
    for (int i = 0; i < row.n_passes; ++i) {
        if (row.n_passes == 6 && i < 5) {
            begin_pass(quartiles[0], i, row.end - row.begin);
        }
        bool const filters = i == 0 || plan.resident == 0;
        for (int slice = row.begin; slice < row.end; slice += plan.slice) {
            int const in_slice = row.end - slice < plan.slice ? row.end - slice : plan.slice;
            if (filters && row.filter.decimation > 0) {
                low_branch<Raw>(p, row, slice, in_slice, area, row.low, area + row.low);
            }
            for (int done = 0; done < in_slice; done += plan.tile) {
                int const n = in_slice - done < plan.tile ? in_slice - done : plan.tile;
                if (filters) {
                    filter_tile<Raw>(p, row, slice + done, n, area);
                }
                // Outputs that are resident are used all at once, after the last tile.
                if (plan.resident == 0 || slice + done + n == row.end) {
                    bool const all = plan.resident != 0;
                    use_outputs(p, i, row, quartiles[0], area + row.y, all ? row.begin : slice + done,
                                all ? row.end - row.begin : n);
                }
            }
        }
        if (i < row.n_passes - 1) {
            finish(pass_of(i, row.n_passes), i, row, quartiles[0], row.end - row.begin);
        }
    }
}

}  // namespace sleepfm::cuda
