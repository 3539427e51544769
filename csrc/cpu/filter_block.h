// Outputs by blocks of 32 periods: transforms of the samples over periods, two real matrix products at each of 16
// frequencies, transforms back. sleepfm_fast/filtering/period_blocks.py derives this and makes the tables. Part of
// filter_row.h, under the same rules: included once for each instruction set, in its namespace.
#pragma once

#include <string.h>

#include <cstdint>

#include "cpu/filter_product.h"
#include "cpu/filter_resample.h"
#include "cpu/filter_traffic.h"

namespace sleepfm::cpu::SLEEPFM_ISA {

namespace {

// ---- transforms of 32 real sequences values at the frequencies 2 pi (2 l + 1/2) / 32 --------------------------------

// These are the complex transform of the 16 values z_j = (x_j - i x_(j+16)) exp(-i pi j / 32): twist_* are cosine and
// sine of pi j / 32. half_step_* are those of half of frequency l, pi (2 l + 1/2) / 32.
constexpr float twist_cos[frequencies] = {
    1.000000000f, 0.995184727f, 0.980785280f, 0.956940336f, 0.923879533f, 0.881921264f, 0.831469612f, 0.773010453f,
    0.707106781f, 0.634393284f, 0.555570233f, 0.471396737f, 0.382683432f, 0.290284677f, 0.195090322f, 0.098017140f};
constexpr float twist_sin[frequencies] = {
    0.000000000f, 0.098017140f, 0.195090322f, 0.290284677f, 0.382683432f, 0.471396737f, 0.555570233f, 0.634393284f,
    0.707106781f, 0.773010453f, 0.831469612f, 0.881921264f, 0.923879533f, 0.956940336f, 0.980785280f, 0.995184727f};
constexpr float half_step_cos[frequencies] = {0.998795456f,  0.970031253f,  0.903989293f,  0.803207531f,
                                              0.671558955f,  0.514102744f,  0.336889853f,  0.146730474f,
                                              -0.049067674f, -0.242980180f, -0.427555093f, -0.595699304f,
                                              -0.740951125f, -0.857728610f, -0.941544065f, -0.989176510f};
constexpr float half_step_sin[frequencies] = {
    0.049067674f, 0.242980180f, 0.427555093f, 0.595699304f, 0.740951125f, 0.857728610f, 0.941544065f, 0.989176510f,
    0.998795456f, 0.970031253f, 0.903989293f, 0.803207531f, 0.671558955f, 0.514102744f, 0.336889853f, 0.146730474f};

struct Complex {
    Vector re, im;
};

// z times cosine + i sine.
SLEEPFM_INLINE Complex turned(Complex z, float cosine, float sine) {
    return {z.re * cosine - z.im * sine, z.re * sine + z.im * cosine};
}

// In place, with direction -1 or +1: z_k = sum over j < 4 of z_j exp(direction 2 pi i j k / 4).
template <int direction>
SLEEPFM_INLINE void transform4(Complex (&z)[4]) {
    Complex const even{z[0].re + z[2].re, z[0].im + z[2].im}, rest{z[0].re - z[2].re, z[0].im - z[2].im};
    Complex const odd{z[1].re + z[3].re, z[1].im + z[3].im};
    Vector const re = direction > 0 ? z[3].im - z[1].im : z[1].im - z[3].im;  // of direction i (z_1 - z_3)
    Vector const im = direction > 0 ? z[1].re - z[3].re : z[3].re - z[1].re;
    z[0] = {even.re + odd.re, even.im + odd.im};
    z[1] = {rest.re + re, rest.im + im};
    z[2] = {even.re - odd.re, even.im - odd.im};
    z[3] = {rest.re - re, rest.im - im};
}

// z times exp(direction 2 pi i n / 16), for n = b c with b and c below 4.
template <int direction>
SLEEPFM_INLINE Complex turned16(Complex z, int n) {
    constexpr float c1 = 0.923879533f, s1 = 0.382683432f, half = 0.707106781f;
    constexpr float cosines[10] = {1.0f, c1, half, s1, 0.0f, -s1, -half, -c1, -1.0f, -c1};
    constexpr float sines[10] = {0.0f, s1, half, c1, 1.0f, c1, half, s1, 0.0f, -s1};
    return n == 0 ? z : turned(z, cosines[n], static_cast<float>(direction) * sines[n]);
}

// Transforms the sequences in the lanes of a vector, whose values j are at x[j step]; calls put(l, value) for frequency
// l. 16 = 4 x 4.
template <typename Put>
SLEEPFM_INLINE void transform(float const* x, std::int64_t step, Put put) {
    Complex part[4][4];
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
        Complex z[4];
#pragma GCC unroll 4
        for (int a = 0; a < 4; ++a) {
            int const j = 4 * a + b;
            Vector const early = load(x + j * step), late = load(x + (j + 16) * step);
            z[a] = {early * twist_cos[j] - late * twist_sin[j], -(early * twist_sin[j] + late * twist_cos[j])};
        }
        transform4<-1>(z);
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
            part[c][b] = turned16<-1>(z[c], b * c);
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        transform4<-1>(part[c]);
#pragma GCC unroll 4
        for (int e = 0; e < 4; ++e) {
            put(c + 4 * e, part[c][e]);
        }
    }
}

// Transforms back from the values at re[l step] and im[l step]; calls put(j, z) with 16 times value j in the real part
// of z and -16 times value j + 16 in its imaginary part. (The tables have the factor 1 / 16.)
template <typename Put>
SLEEPFM_INLINE void transform_back(float const* re, float const* im, std::int64_t step, Put put) {
    Complex part[4][4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        Complex z[4];
#pragma GCC unroll 4
        for (int e = 0; e < 4; ++e) {
            z[e] = {load(re + (c + 4 * e) * step), load(im + (c + 4 * e) * step)};
        }
        transform4<1>(z);
#pragma GCC unroll 4
        for (int b = 0; b < 4; ++b) {
            part[b][c] = turned16<1>(z[b], b * c);
        }
    }
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
        transform4<1>(part[b]);
#pragma GCC unroll 4
        for (int a = 0; a < 4; ++a) {
            int const j = 4 * a + b;
            put(j, turned(part[b][a], twist_cos[j], twist_sin[j]));
        }
    }
}

// ---- sums and differences about the middle --------------------------------------------------------------------------

SLEEPFM_INLINE Vector reversed(Vector v) {
#if SLEEPFM_LANES == 16
    return __builtin_shufflevector(v, v, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#elif SLEEPFM_LANES == 8
    return __builtin_shufflevector(v, v, 7, 6, 5, 4, 3, 2, 1, 0);
#else
    return __builtin_shufflevector(v, v, 3, 2, 1, 0);
#endif
}

// The spectra of a block's samples to its two columns at every frequency: of the samples r before and r after the
// middle of a period, the sums s and differences d, as (Re s, Im d) and (Im s, -Re d). x: the middle of the first
// period. Reads up to a vector's length beyond the periods, and writes up to a vector's length beyond a column on
// either side.
inline void make_columns(BlockShape const& shape, float const* x, float* before, float* column) {
    std::int64_t const D = shape.samples, next_frequency = shape.columns_of_frequency(), next_column = shape.column();
    for (std::int64_t r = 0; r < shape.sums(); r += SLEEPFM_LANES) {
        transform(x - r - (SLEEPFM_LANES - 1), D, [before](int l, Complex z) SLEEPFM_INLINE_LAMBDA {
            store(before + (2 * l) * SLEEPFM_LANES, z.re);
            store(before + (2 * l + 1) * SLEEPFM_LANES, z.im);
        });
        // s_0 and d_0, which is 0, have the same place; sums are written last, and stay.
        float *const sums = column + (shape.sums() - SLEEPFM_LANES - r), *const differences =
                                                                             column + shape.sums() - 1 + r;
        transform(x + r, D, [&](int l, Complex after) SLEEPFM_INLINE_LAMBDA {
            Vector const re = load(before + (2 * l) * SLEEPFM_LANES), im = load(before + (2 * l + 1) * SLEEPFM_LANES);
            std::int64_t const at = l * next_frequency;
            store(differences + at, after.im - reversed(im));
            store(differences + at + next_column, reversed(re) - after.re);
            store(sums + at, re + reversed(after.re));
            store(sums + at + next_column, im + reversed(after.im));
        });
    }
    // For even D, the samples half a period before the middle and half a period after it are one sequence, which half a
    // step of phase makes its own mirror image.
    if (D % 2 == 0) {
        std::int64_t const lane = SLEEPFM_LANES - 1 - (shape.sums() - 1) % SLEEPFM_LANES;
        for (int l = 0; l < frequencies; ++l) {
            float const re = before[2 * l * SLEEPFM_LANES + lane], im = before[(2 * l + 1) * SLEEPFM_LANES + lane];
            float const c = half_step_cos[l], s = half_step_sin[l];
            column[l * next_frequency] = re * c - im * s;
            column[l * next_frequency + next_column] = im * c + re * s;
        }
    }
}

// From the products of a block's two columns, [16][U] each, to the outputs of n_periods periods, [n_periods][U]. U is
// outputs_known, which makes addresses constants, or, if that is 0, shape.outputs.
template <std::int64_t outputs_known>
inline void unfold(BlockShape const& shape, float const* re, float const* im, std::int64_t n_periods, float* halves,
                   float* y) {
    std::int64_t const U = outputs_known != 0 ? outputs_known : shape.outputs, half = U / 2;
    for (std::int64_t l = 0; l < half; l += SLEEPFM_LANES) {
        // Half differences are i times the products: real and imaginary part change places.
        transform_back(re + half + l, im + half + l, U, [halves](int j, Complex z) SLEEPFM_INLINE_LAMBDA {
            store(halves + j * SLEEPFM_LANES, -z.im);
            store(halves + (j + 16) * SLEEPFM_LANES, -z.re);
        });
        std::int64_t const first = -shape.reach * U;
        auto const put = [&](int j, Vector sum) SLEEPFM_INLINE_LAMBDA {
            if (static_cast<std::uint64_t>(j - shape.reach) < static_cast<std::uint64_t>(n_periods)) {
                float* const to = y + (first + j * U);
                Vector difference = load(halves + j * SLEEPFM_LANES);
                if (l == 0) {  // lane 0 is the output half a period away, not a difference
                    to[U - 1] = difference[0];
                    difference[0] = 0.0f;
                }
                store(to + half - SLEEPFM_LANES - l, reversed(sum - difference));
                store(to + half - 1 + l, sum + difference);
            }
        };
        transform_back(re + l, im + l, U, [&](int j, Complex z) SLEEPFM_INLINE_LAMBDA {
            put(j, z.re);
            put(j + 16, -z.im);
        });
    }
}

// ---- blocks ---------------------------------------------------------------------------------------------------------

// With enough registers, a number of a column is loaded once for two groups of outputs, each of them a vector.
#if SLEEPFM_LANES == 16
constexpr int groups_together = 2, most_columns = 12;
#else
constexpr int groups_together = 1, most_columns = most_groups;
#endif

// The i in [0, up) with i down = phase (mod up): the place in its period of the first output of a clip of this phase,
// where place 0 lies on a sample.
std::int64_t output_of_phase(FilterRow const& f, std::int64_t phase) {
    // Extended Euclid: inverse * down = 1 (mod up).
    std::int64_t a = f.up, b = f.down % f.up, inverse = 0, next = 1;
    while (b != 0) {
        std::int64_t const quotient = a / b, remainder = a % b, previous = inverse;
        a = b;
        b = remainder;
        inverse = next;
        next = previous - quotient * next;
    }
    inverse %= f.up;
    return phase * (inverse < 0 ? inverse + f.up : inverse) % f.up;
}

// What to add to an output's number in the row so that periods of blocks begin at multiples of U. Counted from an
// output that lies on a sample (output_of_phase), output k has place k + U / 2 - 1 in period 0, so that its mirror
// images lie around the period's middle.
inline std::int64_t grid_shift(FilterJob const& job, BlockShape const& shape) {
    return output_of_phase(job.filter, job.row.phase) + shape.outputs / 2 - 1;
}

// How many of the outputs, from the first on, are computed in blocks. A last block that would be less than half full is
// left to groups of outputs, which are then less work.
inline std::int64_t outputs_in_blocks(FilterJob const& job, Span outputs) {
    if (job.filter.block_offset == 0) {
        return 0;
    }
    BlockShape const shape(job.filter);
    std::int64_t const shift = grid_shift(job, shape), U = shape.outputs;
    std::int64_t const first = floor_divide(outputs.begin + shift, U);
    std::int64_t const n_periods = floor_divide(outputs.end - 1 + shift, U) + 1 - first;
    std::int64_t const rest = n_periods % shape.periods;
    if (2 * rest >= shape.periods || rest == 0) {
        return outputs.end - outputs.begin;
    }
    std::int64_t const end = (first + n_periods - rest) * U - shift;
    return n_periods > rest ? end - outputs.begin : 0;
}

// Computes outputs in blocks of shape.periods periods. x[0 .. n_samples), from segment sample x_index on, is all that
// the outputs use; where a block's window reaches beyond it, zeros are put there, so that an output's rounding does not
// depend on what lies there. y has a period's room on either side.
void resample_by_block(FilterJob const& job, Span outputs, float const* x, std::int64_t x_index, std::int64_t n_samples,
                       float* y) {
    FilterRow const& f = job.filter;
    BlockShape const shape(f);
    std::int64_t const U = shape.outputs, D = shape.samples;
    std::int64_t const shift = output_of_phase(f, job.row.phase);
    std::int64_t const begin = outputs.begin + grid_shift(job, shape), end = outputs.end + grid_shift(job, shape);
    std::int64_t const first_period = floor_divide(begin, U), last_period = floor_divide(end - 1, U);
    std::int64_t const middle = job.row.first - shift * f.down / f.up - x_index;  // sample of output 0, in x
    BlockScratch const at(shape);
    float* const scratch = job.scratch + job.plan.before_block();
    float *const staged = scratch + at.window + filter_group, *const before = scratch + at.before;
    float *const columns = scratch + at.columns + filter_group, *const spectra = scratch + at.spectra;
    float* const halves = scratch + at.halves;
    for (std::int64_t strip = first_period; strip <= last_period; strip += shape.strip * shape.periods) {
        std::int64_t const left = (last_period - strip) / shape.periods + 1;
        std::int64_t const n_blocks = left < shape.strip ? left : shape.strip;
        for (std::int64_t b = 0; b < n_blocks; ++b) {
            std::int64_t const from = middle + D * (strip + b * shape.periods - shape.reach) - D / 2;
            std::int64_t const n = block_periods * D;
            float const* window = x + from;
            if (from < filter_group || from + n + filter_group > n_samples) {
                std::int64_t const skip = from >= 0 ? 0 : -from < n ? -from : n;
                std::int64_t stop = n_samples - from;
                stop = stop > n ? n : stop < skip ? skip : stop;
                fill_zeros(staged, skip);
                memcpy(staged + skip, x + (from + skip), static_cast<std::size_t>(stop - skip) * sizeof(float));
                fill_zeros(staged + stop, n - stop);
                window = staged;
            }
            make_columns(shape, window + D / 2, before, columns + 2 * b * shape.column());
        }
        std::int64_t const strips_left = (left + shape.strip - 1) / shape.strip;
        for (int l = 0; l < frequencies; ++l) {
            move_some(*job.traffic, strips_left * frequencies - l);
            float const* const taps = job.taps + f.block_offset + l * U * D;
            float* const of_frequency = spectra + l * U;
            for (std::int64_t g = 0; g < U; g += groups_together * filter_group) {
                Operands a =
                    one_run(columns + l * shape.columns_of_frequency(), shape.column(), taps + g * D, filter_group, D);
                a.apart = groups_together > 1 ? D * filter_group : SLEEPFM_LANES;
                float* const to = of_frequency + g;
                products<most_columns, groups_together * vectors>(
                    2 * n_blocks, a,
                    [to, stride = shape.spectrum()](std::int64_t i, int v, Vector sums)
                        SLEEPFM_INLINE_LAMBDA { store(to + i * stride + v * SLEEPFM_LANES, sums); });
            }
            // The output half a period away is its own mirror image after half a step, and lies in the differences'
            // place: it becomes -i exp(i w / 2) times the product, since unfold multiplies differences by i.
            float const c = half_step_cos[l], s = half_step_sin[l];
            for (std::int64_t b = 0; b < n_blocks; ++b) {
                float *const re = of_frequency + 2 * b * shape.spectrum() + U / 2, *const im = re + shape.spectrum();
                float const turned_re = *re * s + *im * c, turned_im = *im * s - *re * c;
                *re = turned_re;
                *im = turned_im;
            }
        }
        for (std::int64_t b = 0; b < n_blocks; ++b) {
            std::int64_t const period = strip + b * shape.periods;
            std::int64_t const some = last_period - period + 1;
            float const* const re = spectra + 2 * b * shape.spectrum();
            std::int64_t const n_periods = some < shape.periods ? some : shape.periods;
            float const* const im = re + shape.spectrum();
            float* const to = y + (period * U - begin);
            if (U == 2 * filter_group) {
                unfold<2 * filter_group>(shape, re, im, n_periods, halves, to);
            } else {
                unfold<0>(shape, re, im, n_periods, halves, to);
            }
        }
    }
}

}  // namespace

}  // namespace sleepfm::cpu::SLEEPFM_ISA
