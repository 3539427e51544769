// The kernel of filter_resample. One block filters one (clip, channel), or a slice of its outputs, tile by tile:
//   samples -> shared memory -> minus the low branch -> polyphase main filter -> shared memory -> device memory.
// A z-score keeps all filtered outputs of the row in shared memory, or filters twice where they do not fit.
// No atomics and no warp intrinsics: sums are trees over the block, the same bits at every run. The file compiles for
// the host as well (tests/cuda_on_cpu), where a block is a set of fibers.
#pragma once

#include <math.h>

#include "filter_geometry.h"
#include "half_precision.h"
#include "launch.h"
#include "params.h"

#if defined(__CUDACC__)
#define SLEEPFM_DYNAMIC_SHARED(name) extern __shared__ __align__(16) float name[]
#endif

namespace sleepfm::cuda {

struct Reference {
    std::int64_t value;        // integer near the mean of the samples in use
    double largest_deviation;  // from it
};

// Sum, minimum or maximum over the block; every thread gets the result. scratch: [blockDim.x].
template <typename T, typename Combine>
__device__ T reduce_block(T value, T* scratch, Combine combine) {
    scratch[threadIdx.x] = value;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            scratch[threadIdx.x] = combine(scratch[threadIdx.x], scratch[threadIdx.x + half]);
        }
        __syncthreads();
    }
    T const result = scratch[0];
    __syncthreads();  // scratch may be written again
    return result;
}

template <typename Raw>
struct Window {
    Raw const* samples;
    std::int64_t start, length;
    std::int64_t reference;

    // Sample at a segment index, relative to the reference; the edges repeat.
    __device__ float at(std::int64_t index) const {
        std::int64_t i = index - start;
        i = i < 0 ? 0 : i > length - 1 ? length - 1 : i;
        return static_cast<float>(static_cast<std::int64_t>(samples[i]) - reference);
    }
};

template <typename Raw>
__device__ Reference find_reference(Window<Raw> const& window, Span needed) {
    __shared__ std::int64_t scratch[filter_resample_threads];
    std::int64_t const end = window.start + window.length;
    std::int64_t const last = needed.end > end ? end : needed.end;
    std::int64_t first = needed.begin < window.start ? window.start : needed.begin;
    first = first > last - 1 ? last - 1 : first;
    Raw const* x = window.samples + (first - window.start);
    std::int64_t const n = last - first;
    std::int64_t total = 0, low = x[0], high = x[0];
    for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        std::int64_t const value = x[i];
        total += value;
        low = value < low ? value : low;
        high = value > high ? value : high;
    }
    total = reduce_block(total, scratch, [](std::int64_t a, std::int64_t b) { return a + b; });
    low = reduce_block(low, scratch, [](std::int64_t a, std::int64_t b) { return a < b ? a : b; });
    high = reduce_block(high, scratch, [](std::int64_t a, std::int64_t b) { return a > b ? a : b; });
    std::int64_t const value = total / n;
    std::int64_t const deviation = value - low > high - value ? value - low : high - value;
    return {value, static_cast<double>(deviation)};
}

// Outputs [begin, begin + n) to y[0 .. n), all in shared memory; samples: the rest of the tile.
template <typename Raw>
__device__ void filter_tile(FilterRow const& f, WindowRow const& w, Window<Raw> const& window, float const* taps,
                            std::int64_t begin, std::int64_t n, float* y, float* samples) {
    int const thread = static_cast<int>(threadIdx.x), n_threads = static_cast<int>(blockDim.x);
    Span const span = main_span(f, w, begin, begin + n);
    int const n_samples = static_cast<int>(span.end - span.begin);
    __syncthreads();  // the last tile has been read
    for (int i = thread; i < n_samples; i += n_threads) {
        samples[i] = window.at(span.begin + i);
    }
    // Rows of taps are padded: what the padding meets must be a number.
    for (int i = thread; i < filter_tap_padding; i += n_threads) {
        samples[n_samples + i] = 0.0f;
    }
    if (f.decimation > 0) {
        Span const low = low_span(f, span);
        Span const before = decimated_span(f, low);
        int const n_low = static_cast<int>(low.end - low.begin), n_before = static_cast<int>(before.end - before.begin);
        float* const decimated = samples + n_samples + filter_tap_padding;
        float* const lowpassed = decimated + n_before;
        float const* const decimator = taps + f.decimator_offset;
        for (int m = thread; m < n_before; m += n_threads) {
            std::int64_t const at = (before.begin + m) * f.decimation - f.decimator_half;
            float a = 0.0f, b = 0.0f;
            std::int64_t const middle = f.decimator_half;
            for (std::int64_t k = 0; k < middle; ++k) {
                a += decimator[k] * window.at(at + k);
                b += decimator[middle + 1 + k] * window.at(at + middle + 1 + k);
            }
            decimated[m] = a + b + decimator[middle] * window.at(at + middle);
        }
        __syncthreads();
        float const* const lowpass = taps + f.low_offset;
        for (int m = thread; m < n_low; m += n_threads) {
            float a = 0.0f;
            for (int k = 0; k <= 2 * f.low_half; ++k) {
                a += lowpass[k] * decimated[m + k];
            }
            lowpassed[m] = a;
        }
        __syncthreads();
        float const* const interpolator = taps + f.interpolator_offset;
        for (int i = thread; i < n_samples; i += n_threads) {
            std::int64_t const m = floor_divide(span.begin + i, f.decimation);
            std::int64_t const d = span.begin + i - m * f.decimation;
            float const* const v = lowpassed + (m - f.interpolator_left - low.begin);
            float a = 0.0f;
            for (int t = 0; t < f.interpolator_taps; ++t) {
                a += v[t] * interpolator[t * f.interpolator_stride + d];
            }
            samples[i] -= a;
        }
    }
    __syncthreads();
    // Outputs `up` apart share a row of taps. With enough of them in the tile a warp works on one row, so that the
    // taps are broadcast and the samples lie `down` apart.
    std::int64_t const together = f.up * 32 <= n ? f.up : 1;
    std::int64_t const groups = n / together;
    for (std::int64_t i = thread; i < n; i += n_threads) {
        std::int64_t const whole = groups * together;
        std::int64_t const k = i < whole ? i % groups * together + i / groups : i;
        Place const place = place_of(f, w.phase, begin + k);
        float const* const h = taps + f.main_offset + place.row * f.main_stride;
        float const* const x = samples + (w.first + place.q - f.main_left - span.begin);
        float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
        for (int t = 0; t < static_cast<int>(f.main_stride); t += 4) {
            a += h[t] * x[t];
            b += h[t + 1] * x[t + 1];
            c += h[t + 2] * x[t + 2];
            d += h[t + 3] * x[t + 3];
        }
        y[k] = (a + b) + (c + d);
    }
    __syncthreads();
}

__device__ inline void put(float* out, float value) {
    *out = value;
}

struct Bf16 {
    std::uint16_t bits;
};
struct F16 {
    std::uint16_t bits;
};

__device__ inline void put(Bf16* out, float value) {
    out->bits = to_bf16(value);
}
__device__ inline void put(F16* out, float value) {
    out->bits = to_f16(value);
}

template <typename Out>
struct alignas(4 * sizeof(Out)) Four {
    Out part[4];
};

// out[0 .. n) = a y + b; four at a time where the address allows.
template <typename Out>
__device__ void write_outputs(Out* out, float const* y, std::int64_t n, float a, float b) {
    std::int64_t const address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(out));
    std::int64_t const whole = address % (4 * static_cast<std::int64_t>(sizeof(Out))) == 0 ? n / 4 * 4 : 0;
    for (std::int64_t i = 4 * static_cast<std::int64_t>(threadIdx.x); i < whole; i += 4 * blockDim.x) {
        Four<Out> four;
        for (int j = 0; j < 4; ++j) {
            put(&four.part[j], y[i + j] * a + b);
        }
        *reinterpret_cast<Four<Out>*>(out + i) = four;
    }
    for (std::int64_t i = whole + threadIdx.x; i < n; i += blockDim.x) {
        put(out + i, y[i] * a + b);
    }
}

template <typename Out>
__device__ void fill(Out* out, std::int64_t n, float value) {
    for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        put(out + i, value);
    }
}

template <typename Raw, typename Out>
__global__ void __launch_bounds__(filter_resample_threads)
    filter_resample_kernel(FilterResample const p, FilterResampleLaunch const launch) {
    SLEEPFM_DYNAMIC_SHARED(shared);
    __shared__ double sums[filter_resample_threads];
    float* const workspace = shared;
    float* const kept = shared + launch.workspace_floats;

    std::int64_t const row = blockIdx.x;
    std::int64_t const begin = static_cast<std::int64_t>(blockIdx.y) * launch.outputs_per_slice;
    std::int64_t const end = begin + launch.outputs_per_slice < p.n_out ? begin + launch.outputs_per_slice : p.n_out;
    Out* const out = static_cast<Out*>(p.out) + row * p.n_out;
    WindowRow const w = p.table[row];
    if (w.length == 0) {
        fill(out + begin, end - begin, 0.0f);
        return;
    }
    bool good =
        check_row(w, p.n_raw, p.n_filters, p.filters) == RowFault::none && check_filter(p.filters[w.filter], p.n_taps);
    FilterRow const f = good ? p.filters[w.filter] : FilterRow{};
    std::int64_t const tile = good ? tile_outputs(f, launch.workspace_floats, end - begin) : 0;
    if (tile == 0) {
        fill(out + begin, end - begin, nanf(""));
        return;
    }
    Window<Raw> window{static_cast<Raw const*>(p.raw) + w.offset, w.start, w.length, 0};
    Reference const reference = find_reference(window, needed_span(f, w, begin, end));
    window.reference = reference.value;

    float const* const calibration = p.calibration + 4 * row;
    double const gain = calibration[0], offset = calibration[1], center = calibration[2], scale = calibration[3];
    double a = gain * scale;
    double b = 0.0;
    bool const zscore = p.normalise == Normalise::zscore && f.step == 0;
    if (zscore) {
        double total = 0.0, squares = 0.0;
        for (std::int64_t n = begin; n < end; n += tile) {
            std::int64_t const count = end - n < tile ? end - n : tile;
            float* const y = launch.kept_floats > 0 ? kept + (n - begin) : workspace;
            filter_tile(f, w, window, p.taps, n, count, y, workspace + count);
            for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) {
                total += static_cast<double>(y[i]);
                squares += static_cast<double>(y[i]) * static_cast<double>(y[i]);
            }
        }
        total = reduce_block(total, sums, [](double u, double v) { return u + v; });
        squares = reduce_block(squares, sums, [](double u, double v) { return u + v; });
        double const n = static_cast<double>(end - begin);
        double const mean = total / n;
        double const variance = squares / n - mean * mean;
        double const deviation = variance > 0.0 ? sqrt(variance) : 0.0;
        bool const flat = a == 0.0 || deviation <= flat_below(reference.largest_deviation);
        a = flat ? 0.0 : (a > 0.0 ? 1.0 : -1.0) / deviation;
        b = -mean * a;
    } else {
        double const constant =
            f.dc != 0 && f.decimation == 0 ? gain * static_cast<double>(reference.value) + offset : 0;
        b = (constant - center) * scale;
    }
    if (zscore && launch.kept_floats > 0) {
        write_outputs(out + begin, kept, end - begin, static_cast<float>(a), static_cast<float>(b));
        return;
    }
    for (std::int64_t n = begin; n < end; n += tile) {
        std::int64_t const count = end - n < tile ? end - n : tile;
        filter_tile(f, w, window, p.taps, n, count, workspace, workspace + count);
        write_outputs(out + n, workspace, count, static_cast<float>(a), static_cast<float>(b));
    }
}

}  // namespace sleepfm::cuda
