// The kernel of filter_resample. One block filters one (clip, channel), or a slice of its outputs:
//   mean, least and largest sample                                            (device memory, first pass)
//   low branch: samples -> shared memory -> decimated -> low-pass             (second pass, from the caches)
//   tiles: samples -> shared memory -> minus the low branch -> outputs in registers -> shared memory
//   statistics of the outputs, outputs -> device memory
// Outputs that are read again for a normalisation stay in shared memory; where they do not fit, each pass filters anew.
// No atomics but counts of integers: the same bits at every run. The file compiles for the host as well
// (tests/cuda_on_cpu).
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

struct Reference {
    std::int64_t value;        // integer near the mean of the samples in use
    double largest_deviation;  // from it
};

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
    constexpr std::int64_t part = 1 << 30;
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

// Two sums over k of h[k] x[at + k], from different places; h has 16-byte rows and is zero up to a multiple of 4.
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

// y[i] = sum over k < n of h[k] sample(i step + k), i in [0, count): a thread takes two.
template <typename Sample>
__device__ void convolve(float const* h, int n, Sample sample, int step, int count, float* y) {
    int const half = (count + 1) / 2;
    for (int i = static_cast<int>(threadIdx.x); i < half; i += static_cast<int>(blockDim.x)) {
        int const other = i + half < count ? i + half : i;
        float y0, y1;
        two_sums(h, n, sample, i * step, other * step, y0, y1);
        y[i] = y0;
        if (other != i) {
            y[other] = y1;
        }
    }
}

// The low branch that outputs [begin, begin + n) need, at the decimated rate. area: scratch.
template <typename Raw>
__device__ void low_branch(FilterRow const& f, WindowRow const& w, Window<Raw> const& window, float const* taps,
                           std::int64_t begin, int n, float* area, int area_floats, float* low) {
    Span const low_at = low_span(f, main_span(f, w, begin, begin + n)), before = decimated_span(f, low_at);
    int const n_low = static_cast<int>(low_at.end - low_at.begin),
              n_before = static_cast<int>(before.end - before.begin);
    int const step = static_cast<int>(f.decimation), n_taps = static_cast<int>(2 * f.decimator_half + 1);
    float* const decimated = area;
    float* const samples = area + round_up(n_before + 4, 4);
    // A pad word after every 32 samples: 32, 64, ... samples apart would be in one bank.
    auto const place = [](int i) { return i + i / 32; };
    int const fits = (area_floats - round_up(n_before + 4, 4)) / 33 * 32 - 4 - n_taps;
    int const at_once = fits < 0 ? 0 : fits / step + 1;
    ptx::sync_threads();  // the area has been used
    for (int i = n_before + static_cast<int>(threadIdx.x); i < round_up(n_before + 4, 4);
         i += static_cast<int>(blockDim.x)) {
        decimated[i] = 0.0f;
    }
    std::int64_t const first = before.begin * f.decimation - f.decimator_half;
    for (int m = 0; m < n_before; m += at_once > 0 ? at_once : n_before) {
        int const count = at_once > 0 && at_once < n_before - m ? at_once : n_before - m;
        std::int64_t const from = first + static_cast<std::int64_t>(m) * step;
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
        taps + f.low_offset, static_cast<int>(2 * f.low_half + 1), [&](int i) { return decimated[i]; }, 1, n_low, low);
    ptx::sync_threads();
}

// samples[place(i)] -= the low branch at sample first + i, i in [0, n); low_begin: index of low[0].
template <typename Where>
__device__ void subtract_low(FilterRow const& f, float const* taps, std::int64_t first, int n, float const* low,
                             std::int64_t low_begin, float* samples, Where place) {
    int const step = static_cast<int>(f.decimation), n_threads = static_cast<int>(blockDim.x);
    int const thread = static_cast<int>(threadIdx.x), n_taps = static_cast<int>(f.interpolator_taps);
    int const stride = static_cast<int>(f.interpolator_stride);
    std::int64_t const first_low = floor_divide(first, f.decimation);
    int const offset = static_cast<int>(first - first_low * f.decimation) + thread;
    int d = offset % step, m = static_cast<int>(first_low - f.interpolator_left - low_begin) + offset / step;
    for (int i = thread; i < n; i += n_threads) {
        float const* const h = taps + f.interpolator_offset + d;
        float sum = 0.0f;
        for (int t = 0; t < n_taps; ++t) {
            sum = fmaf(low[m + t], h[t * stride], sum);
        }
        samples[place(i)] -= sum;
        d += n_threads % step;
        m += n_threads / step;
        if (d >= step) {
            d -= step;
            ++m;
        }
    }
}

// Outputs [begin, begin + n) of a tile to y.
template <typename Raw>
__device__ void filter_tile(FilterRow const& f, WindowRow const& w, Window<Raw> const& window, FilterPlan const& plan,
                            float const* taps, std::int64_t begin, int n, float* area, float const* low,
                            std::int64_t low_begin, float* y, int y_begin) {
    SLEEPFM_SHARED(Phases, phases, [1]);
    sleepfm::Place const start = place_of(f, w.phase, begin);
    std::int64_t const first = w.first + start.q - f.main_left;
    bool const padded = plan.padded != 0;
    int const n_repeats = (n + plan.period - 1) / plan.period;
    int n_samples;  // all that is multiplied, if only by zero
    if (plan.shape == 0) {
        n_samples = static_cast<int>(place_of(f, w.phase, begin + n - 1).q - start.q + f.main_stride);
    } else {
        int const up = static_cast<int>(f.up), down = static_cast<int>(f.down);
        for (int v = static_cast<int>(threadIdx.x); v < largest_period; v += static_cast<int>(blockDim.x)) {
            int const u = static_cast<int>(start.row) + (v < plan.period ? v : plan.period - 1) * down;
            phases[0].start[v] = u / up;
            phases[0].row[v] = u % up * static_cast<int>(f.main_stride);
        }
        n_samples = (n_repeats - 1) * plan.advance + (plan.period - 1) * down / up + 1 + plan.taps + 4;
    }
    auto const place = [padded](int i) { return place_of_sample(i, padded); };
    load_samples(window, first, n_samples, area, place);
    ptx::sync_threads();
    if (f.decimation > 0) {
        Span const used = main_span(f, w, begin, begin + n);
        subtract_low(f, taps, first, static_cast<int>(used.end - used.begin), low, low_begin, area, place);
        ptx::sync_threads();
    }
    float* const table = area + plan.sample_floats;
    float* const tile_y = y + y_begin / plan.period * plan.row_floats;
    switch (plan.shape) {
        case 1: product_of_shape<8, 4>(f, plan, phases[0], taps, area, table, tile_y, n_repeats); break;
        case 2: product_of_shape<16, 2>(f, plan, phases[0], taps, area, table, tile_y, n_repeats); break;
        case 3: product_of_shape<8, 2>(f, plan, phases[0], taps, area, table, tile_y, n_repeats); break;
        case 4: product_of_shape<32, 1>(f, plan, phases[0], taps, area, table, tile_y, n_repeats); break;
        case 5: product_of_shape<8, 1>(f, plan, phases[0], taps, area, table, tile_y, n_repeats); break;
        default:
            single_outputs(f, w.phase, begin, n, taps, area, y,
                           [&](int i) { return Cursor(plan, y_begin + i).place(); });
    }
    ptx::sync_threads();
}

// What is done with the outputs: one pass over them each.
enum class Pass : int { mean, variance, digit, neighbours, write };

struct Scale {
    double center, deviation;
};

template <typename Raw>
__global__ void __launch_bounds__(filter_resample_threads, 3)
    filter_resample_kernel(FilterResample const p, FilterResampleLaunch const launch) {
    SLEEPFM_DYNAMIC_SHARED(float, area);
    SLEEPFM_SHARED(FilterRow, filter, [1]);
    SLEEPFM_SHARED(FilterPlan, plans, [1]);
    SLEEPFM_SHARED(Quartiles, quartiles, [1]);

    std::int64_t const row = blockIdx.x;
    std::int64_t const begin = static_cast<std::int64_t>(blockIdx.y) * launch.outputs_per_slice;
    std::int64_t const end = begin + launch.outputs_per_slice < p.n_out ? begin + launch.outputs_per_slice : p.n_out;
    auto const with_out = [&](auto write) {
        std::int64_t const first = row * p.n_out;
        switch (p.out_dtype) {
            case DType::bf16: write(static_cast<Bf16*>(p.out) + first); break;
            case DType::f16: write(static_cast<F16*>(p.out) + first); break;
            default: write(static_cast<float*>(p.out) + first);
        }
    };
    WindowRow const w = p.table[row];
    if (w.length == 0) {
        with_out([&](auto* out) { fill(out + begin, end - begin, 0.0f); });
        return;
    }
    if (threadIdx.x == 0) {
        bool const good = check_row(w, p.n_raw, p.n_filters, p.filters) == RowFault::none &&
                          check_filter(p.filters[w.filter], p.n_taps);
        filter[0] = good ? p.filters[w.filter] : FilterRow{};
        bool const statistics = p.normalise != Normalise::none && filter[0].step == 0;
        plans[0] = good ? filter_plan(filter[0], end - begin, static_cast<int>(launch.workspace_floats), statistics,
                                      static_cast<int>(launch.threads / 32))
                        : FilterPlan{};
    }
    ptx::sync_threads();
    FilterRow const& f = filter[0];
    FilterPlan const& plan = plans[0];
    if (plan.tile == 0) {
        with_out([&](auto* out) { fill(out + begin, end - begin, nanf("")); });
        return;
    }
    Window<Raw> window{static_cast<Raw const*>(p.raw) + w.offset, w.start, w.length, 0};
    Reference const reference = find_reference(window, needed_span(f, w, begin, end));
    window.reference = reference.value;

    int const area_floats = static_cast<int>(launch.workspace_floats) - plan.low_floats - plan.kept_floats;
    float* const low = area + area_floats;
    float* const kept = low + plan.low_floats;
    float* const y = plan.kept_floats > 0 ? kept : plan.shape == 0 ? area + plan.sample_floats : area;

    float const* const calibration = p.calibration + 4 * row;
    double const gain = calibration[0], offset = calibration[1], center = calibration[2], scale = calibration[3];
    bool const normalises = p.normalise != Normalise::none && f.step == 0;
    double a = gain * scale;
    double const constant = f.dc != 0 && f.decimation == 0 ? gain * static_cast<double>(reference.value) + offset : 0;
    double b = (constant - center) * scale;
    auto const apply = [&](Scale s) {
        bool const flat = a == 0.0 || !(s.deviation > flat_below(reference.largest_deviation));
        a = flat ? 0.0 : (a > 0.0 ? 1.0 : -1.0) / s.deviation;
        b = -s.center * a;
    };
    double const n_all = static_cast<double>(end - begin);
    double mean = 0.0, total = 0.0;
    Neighbours neighbours;

    int const n_passes = !normalises ? 1 : p.normalise == Normalise::zscore ? 3 : 6;
    for (int pass_index = 0; pass_index < n_passes; ++pass_index) {
        Pass const pass = pass_index == n_passes - 1         ? Pass::write
                          : p.normalise == Normalise::zscore ? (pass_index == 0 ? Pass::mean : Pass::variance)
                                                             : (pass_index < 4 ? Pass::digit : Pass::neighbours);
        total = 0.0;
        if (pass == Pass::digit) {
            begin_digit(quartiles[0], pass_index, end - begin);
        }
        bool const filters = pass_index == 0 || plan.resident == 0;
        for (std::int64_t slice = begin; slice < end; slice += plan.slice) {
            int const in_slice = static_cast<int>(end - slice < plan.slice ? end - slice : plan.slice);
            std::int64_t low_begin = 0;
            if (filters && f.decimation > 0) {
                low_begin = low_span(f, main_span(f, w, slice, slice + in_slice)).begin;
                low_branch(f, w, window, p.taps, slice, in_slice, area, area_floats, low);
            }
            for (int done = 0; done < in_slice; done += plan.tile) {
                int const tile = in_slice - done < plan.tile ? in_slice - done : plan.tile;
                std::int64_t const n = slice + done;
                if (filters) {
                    ptx::sync_threads();  // the last tile has been read
                    filter_tile(f, w, window, plan, p.taps, n, tile, area, low, low_begin, y,
                                plan.kept_floats > 0 ? static_cast<int>(n - begin) : 0);
                }
                // With all outputs in shared memory, wait for the last tile and take them at once.
                bool const last = n + tile == end;
                if (plan.resident != 0 && !last) {
                    continue;
                }
                std::int64_t const from = plan.resident != 0 ? begin : n;
                int const count = static_cast<int>(n + tile - from);
                switch (pass) {
                    case Pass::mean: {
                        float sum = 0.0f;
                        for_each_output(plan, y, count, [&](float value) { sum += value; });
                        total += static_cast<double>(sum);
                        break;
                    }
                    case Pass::variance: {
                        float sum = 0.0f;
                        float const middle = static_cast<float>(mean);
                        for_each_output(plan, y, count, [&](float value) {
                            float const d = value - middle;
                            sum = fmaf(d, d, sum);
                        });
                        total += static_cast<double>(sum);
                        break;
                    }
                    case Pass::digit: count_digits(quartiles[0], pass_index, plan, y, count); break;
                    case Pass::neighbours: count_neighbours(quartiles[0], plan, y, count, neighbours); break;
                    case Pass::write:
                        with_out([&](auto* out) {
                            write_outputs(out + from, plan, y, count, static_cast<float>(a), static_cast<float>(b));
                        });
                        break;
                }
            }
        }
        if (pass == Pass::mean) {
            mean = sum_over_block(total) / n_all;
        } else if (pass == Pass::variance) {
            double const rounding = static_cast<double>(static_cast<float>(mean)) - mean;
            double const variance = sum_over_block(total) / n_all - rounding * rounding;
            apply({mean, variance > 0.0 ? sqrt(variance) : 0.0});
        } else if (pass == Pass::digit) {
            end_digit(quartiles[0], pass_index);
        } else if (pass == Pass::neighbours) {
            double const quarter = quartile(quartiles[0], neighbours, 0, end - begin);
            double const median = quartile(quartiles[0], neighbours, 1, end - begin);
            double const three_quarters = quartile(quartiles[0], neighbours, 2, end - begin);
            apply({median, (three_quarters - quarter) / 1.349});
        }
    }
}

}  // namespace sleepfm::cuda
