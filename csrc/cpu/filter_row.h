// The body of filter_row, included once per instruction set with SLEEPFM_ISA (namespace) and SLEEPFM_LANES (floats in a
// register) defined. Everything here is in that namespace or static and nothing of the standard library is
// instantiated: the linker must never pick a copy compiled for a newer processor for general use.
#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/filter_resample.h"
#include "cpu/filter_statistics.h"
#include "half_precision.h"

namespace sleepfm::cpu::SLEEPFM_ISA {

namespace {

using Vector = float __attribute__((vector_size(SLEEPFM_LANES * sizeof(float))));

inline Vector load(float const* from) {
    Vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

#if defined(__x86_64__)

// The lanes of v folded onto four.
inline __m128 fold(Vector v) {
#if SLEEPFM_LANES == 16
    __m512 const wide = (__m512)v;
    __m256 const half = _mm256_add_ps(_mm512_castps512_ps256(wide), _mm512_extractf32x8_ps(wide, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif SLEEPFM_LANES == 8
    __m256 const half = (__m256)v;
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#else
    return (__m128)v;
#endif
}

inline float sum(Vector v) {
    __m128 const q = fold(v);
    __m128 const pair = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}

// Four sums at once: a transposition with additions.
inline void sum4(Vector va, Vector vb, Vector vc, Vector vd, float* out, std::int64_t stride) {
    __m128 const a = fold(va), b = fold(vb), c = fold(vc), d = fold(vd);
    __m128 const ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
    __m128 const cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    float sums[4];
    _mm_storeu_ps(sums, _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
    for (int i = 0; i < 4; ++i) {
        out[i * stride] = sums[i];
    }
}

#else

inline float sum(Vector v) {
    float total = 0;
    for (int i = 0; i < SLEEPFM_LANES; ++i) {
        total += v[i];
    }
    return total;
}

inline void sum4(Vector a, Vector b, Vector c, Vector d, float* out, std::int64_t stride) {
    out[0] = sum(a);
    out[stride] = sum(b);
    out[2 * stride] = sum(c);
    out[3 * stride] = sum(d);
}

#endif

// n is a multiple of filter_tap_padding.
inline float dot(float const* x, float const* h, std::int64_t n) {
    Vector a{}, b{};
    std::int64_t i = 0;
    for (; i + 2 * SLEEPFM_LANES <= n; i += 2 * SLEEPFM_LANES) {
        a += load(x + i) * load(h + i);
        b += load(x + i + SLEEPFM_LANES) * load(h + i + SLEEPFM_LANES);
    }
    for (; i < n; i += SLEEPFM_LANES) {
        a += load(x + i) * load(h + i);
    }
    return sum(a + b);
}

// Eight outputs of one phase: the taps are loaded once. x advances by `step` from output to output.
inline void dot8(float const* x, std::int64_t step, float const* h, std::int64_t n, float* out, std::int64_t stride) {
    Vector a0{}, a1{}, a2{}, a3{}, a4{}, a5{}, a6{}, a7{};
    float const* x4 = x + 4 * step;
    for (std::int64_t i = 0; i < n; i += SLEEPFM_LANES) {
        Vector const tap = load(h + i);
        a0 += tap * load(x + i);
        a1 += tap * load(x + i + step);
        a2 += tap * load(x + i + 2 * step);
        a3 += tap * load(x + i + 3 * step);
        a4 += tap * load(x4 + i);
        a5 += tap * load(x4 + i + step);
        a6 += tap * load(x4 + i + 2 * step);
        a7 += tap * load(x4 + i + 3 * step);
    }
    sum4(a0, a1, a2, a3, out, stride);
    sum4(a4, a5, a6, a7, out + 4 * stride, stride);
}

struct Window {
    std::int64_t reference;    // integer near the mean: what the floats are relative to
    double largest_deviation;  // from the reference
};

// samples[i] = x[span.begin + i] - reference, with the window's edge samples repeated outside it.
template <typename Raw>
Window load_samples(FilterJob const& job, Span span, float* samples) {
    Raw const* x = static_cast<Raw const*>(job.window);
    std::int64_t const start = job.row.start, end = start + job.row.length;
    // The part of the window that is used; never empty, since an edge sample stands in for what lies outside.
    std::int64_t begin_in = span.begin < start ? start : span.begin;
    begin_in = begin_in > end - 1 ? end - 1 : begin_in;
    std::int64_t end_in = span.end > end ? end : span.end;
    end_in = end_in < start + 1 ? start + 1 : end_in;
    std::int64_t const n = end_in - begin_in;
    Raw const* used = x + (begin_in - start);
    // Short sums in 32 bits (65,536 int16 samples cannot overflow), separate loops: both are vectorised.
    std::int64_t total = 0;
    if constexpr (sizeof(Raw) == 2) {
        for (std::int64_t i = 0; i < n; i += 65536) {
            std::int64_t const stop = n - i < 65536 ? n : i + 65536;
            std::int32_t part = 0;
            for (std::int64_t j = i; j < stop; ++j) {
                part += used[j];
            }
            total += part;
        }
    } else {
        for (std::int64_t i = 0; i < n; ++i) {
            total += used[i];
        }
    }
    Raw low = used[0], high = used[0];
    for (std::int64_t i = 0; i < n; ++i) {
        low = used[i] < low ? used[i] : low;
        high = used[i] > high ? used[i] : high;
    }
    std::int64_t const reference = total / n;
    std::int64_t const before = begin_in - span.begin > 0 ? begin_in - span.begin : 0;
    std::int64_t const size = span.end - span.begin;
    float const left = static_cast<float>(static_cast<std::int64_t>(used[0]) - reference);
    float const right = static_cast<float>(static_cast<std::int64_t>(used[n - 1]) - reference);
    std::int64_t i = 0;
    for (; i < before && i < size; ++i) {
        samples[i] = left;
    }
    std::int64_t const inside_end = before + n < size ? before + n : size;
    if constexpr (sizeof(Raw) == 2) {
        std::int32_t const reference32 = static_cast<std::int32_t>(reference);
        for (; i < inside_end; ++i) {
            samples[i] = static_cast<float>(used[i - before] - reference32);
        }
    } else {
        for (; i < inside_end; ++i) {
            samples[i] = static_cast<float>(static_cast<std::int64_t>(used[i - before]) - reference);
        }
    }
    for (; i < size; ++i) {
        samples[i] = right;
    }
    memset(samples + size, 0, filter_tap_padding * sizeof(float));
    double const below = static_cast<double>(reference - low), above = static_cast<double>(high - reference);
    return {reference, below > above ? below : above};
}

// samples -= low branch, over `main` (segment indices); samples[0] is segment sample native.begin.
void subtract_low(FilterJob const& job, Span main, Span native, float* samples) {
    FilterRow const& f = job.filter;
    Span const low = low_span(f, main);
    Span const decimated = decimated_span(f, low);
    std::int64_t const n_decimated = decimated.end - decimated.begin, n_low = low.end - low.begin;
    std::int64_t const n_decimator = padded_taps(2 * f.decimator_half + 1), n_lowpass = padded_taps(2 * f.low_half + 1);
    float const* x = samples + (decimated.begin * f.decimation - f.decimator_half - native.begin);
    for (std::int64_t m = 0; m < n_decimated; ++m) {
        job.decimated[m] = dot(x + m * f.decimation, job.taps + f.decimator_offset, n_decimator);
    }
    memset(job.decimated + n_decimated, 0, filter_tap_padding * sizeof(float));
    for (std::int64_t m = 0; m < n_low; ++m) {
        job.low[m] = dot(job.decimated + m, job.taps + f.low_offset, n_lowpass);
    }
    float const* table = job.taps + f.interpolator_offset;
    for (std::int64_t m = floor_divide(main.begin, f.decimation); m * f.decimation < main.end; ++m) {
        float const* v = job.low + (m - f.interpolator_left - low.begin);
        float* between = job.lowpassed;
        for (std::int64_t d = 0; d < f.interpolator_stride; d += SLEEPFM_LANES) {
            Vector a{};
            for (std::int64_t t = 0; t < f.interpolator_taps; ++t) {
                a += v[t] * load(table + t * f.interpolator_stride + d);
            }
            memcpy(between + d, &a, sizeof a);
        }
        std::int64_t const at = m * f.decimation;
        std::int64_t const d0 = main.begin > at ? main.begin - at : 0;
        std::int64_t const d1 = main.end - at < f.decimation ? main.end - at : f.decimation;
        float* y = samples + (at - native.begin);
        for (std::int64_t d = d0; d < d1; ++d) {
            y[d] -= between[d];
        }
    }
}

// Outputs n, n + up, n + 2 up ... share a row of taps, `down` samples apart.
void resample(FilterJob const& job, Span native, float const* samples, float* y) {
    FilterRow const& f = job.filter;
    std::int64_t const n_first = f.up < job.n_out ? f.up : job.n_out;
    std::int64_t const base = job.row.first - f.main_left - native.begin;
    for (std::int64_t n = 0; n < n_first; ++n) {
        Place const place = place_of(f, job.row.phase, n);
        float const* h = job.taps + f.main_offset + place.row * f.main_stride;
        float const* x = samples + base + place.q;
        std::int64_t k = n;
        for (; k + 7 * f.up < job.n_out; k += 8 * f.up, x += 8 * f.down) {
            dot8(x, f.down, h, f.main_stride, y + k, f.up);
        }
        for (; k < job.n_out; k += f.up, x += f.down) {
            y[k] = dot(x, h, f.main_stride);
        }
    }
}

void write(FilterJob const& job, float const* y, float a, float b) {
    std::int64_t const n = job.n_out;
    if (job.out_dtype == DType::f32) {
        float* out = static_cast<float*>(job.out);
        for (std::int64_t i = 0; i < n; ++i) {
            out[i] = y[i] * a + b;
        }
    } else {
        std::uint16_t* out = static_cast<std::uint16_t*>(job.out);
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
    Span const main = main_span(f, job.row, 0, job.n_out);
    Span const native = needed_span(f, job.row, 0, job.n_out);
    Window const window = job.raw_bytes == 2 ? load_samples<std::int16_t>(job, native, job.samples)
                                             : load_samples<std::int32_t>(job, native, job.samples);
    if (f.decimation != 0) {
        subtract_low(job, main, native, job.samples);
    }
    resample(job, native, job.samples, job.filtered);

    double const gain = job.calibration[0], offset = job.calibration[1];
    double const center = job.calibration[2], scale = job.calibration[3];
    double a = gain * scale;
    double b = 0;
    if (job.normalise != Normalise::none && f.step == 0) {
        Location const y = job.normalise == Normalise::robust
                               ? median_and_deviation(job.filtered, job.n_out, job.samples)
                               : mean_and_deviation(job.filtered, job.n_out);
        bool const flat = a == 0 || y.deviation <= flat_below(window.largest_deviation);
        a = flat ? 0 : (a > 0 ? 1 : -1) / y.deviation;
        b = -y.center * a;
    } else {
        // The low branch takes the constant away exactly, as a main filter of dc = 0 does.
        double const constant =
            f.dc != 0 && f.decimation == 0 ? gain * static_cast<double>(window.reference) + offset : 0;
        b = (constant - center) * scale;
    }
    write(job, job.filtered, static_cast<float>(a), static_cast<float>(b));
}

}  // namespace sleepfm::cpu::SLEEPFM_ISA
