// Statistics of a filtered row for its normalisation: mean and deviation, median and quartiles. Part of filter_row.h,
// under the same rules: included once for each instruction set, in its namespace.
#pragma once

#include <math.h>
#include <string.h>

#include <cstdint>

#include "cpu/filter_product.h"

namespace sleepfm::cpu::SLEEPFM_ISA {

namespace {

struct Location {
    double center, deviation;
};

// Sums of y - shift and of its square: in float32 over at most `run` values in a lane, in float64 beyond.
struct Moments {
    double sum = 0, squares = 0;

    void add(float const* y, std::int64_t n, float shift) {
        constexpr std::int64_t run = 32, chains = 4, wide = chains * SLEEPFM_LANES;
        std::int64_t const whole = n / wide * wide;
        Doubles sums = {}, sums_of_squares = {};
        for (std::int64_t begin = 0; begin < whole; begin += run * wide) {
            std::int64_t const end = whole - begin < run * wide ? whole : begin + run * wide;
            Vector s[chains] = {}, q[chains] = {};
            for (std::int64_t i = begin; i < end; i += wide) {
                for (std::int64_t c = 0; c < chains; ++c) {
                    Vector const d = load(y + i + c * SLEEPFM_LANES) - shift;
                    s[c] += d;
                    q[c] += d * d;
                }
            }
            for (std::int64_t c = 0; c < chains; ++c) {
                sums += folded(s[c]);
                sums_of_squares += folded(q[c]);
            }
        }
        for (int l = 0; l < SLEEPFM_LANES / 2; ++l) {
            sum += sums[l];
            squares += sums_of_squares[l];
        }
        for (std::int64_t i = whole; i < n; ++i) {
            double const d = static_cast<double>(y[i]) - static_cast<double>(shift);
            sum += d;
            squares += d * d;
        }
    }

  private:
    using Half = float __attribute__((vector_size(SLEEPFM_LANES / 2 * sizeof(float))));
    using Doubles = double __attribute__((vector_size(SLEEPFM_LANES / 2 * sizeof(double))));

    // The two halves of v, added in float64.
    static Doubles folded(Vector v) {
        Half halves[2];
        memcpy(halves, &v, sizeof halves);
        return __builtin_convertvector(halves[0], Doubles) + __builtin_convertvector(halves[1], Doubles);
    }
};

// Mean and deviation of the n values y, whose moments about 0 are known. Where the mean is no larger than the
// deviation, as it mostly is in a filtered channel, these suffice: at most one bit of the variance is lost to
// cancellation. Else a second pass takes the moments about the mean.
Location mean_and_deviation(Moments const& about_zero, float const* y, std::int64_t n) {
    double const count = static_cast<double>(n);
    double const mean = about_zero.sum / count, mean_square = about_zero.squares / count;
    if (mean_square >= 2 * mean * mean) {
        return {mean, sqrt(mean_square - mean * mean)};
    }
    float const shift = static_cast<float>(mean);
    Moments about_mean;
    about_mean.add(y, n, shift);
    double const rest = about_mean.sum / count;
    double const variance = about_mean.squares / count - rest * rest;
    return {static_cast<double>(shift) + rest, variance > 0 ? sqrt(variance) : 0.0};
}

// An unsigned integer for each float, in the same order.
inline std::uint32_t order_key(float value) {
    std::uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits ^ (static_cast<std::uint32_t>(-static_cast<std::int32_t>(bits >> 31)) | 0x80000000u);
}

// Order statistics of a row by radix selection on order_key. The first digit of the key (sign, exponent and two bits of
// the fraction) is counted once for all ranks; among the few values that share the digit of the wanted one, the
// remaining bits are decided one by one.
struct OrderStatistics {
    static constexpr int bins = 2048, shift = 21;

    float const* y;
    std::int64_t n;
    std::uint32_t* candidates;  // [n]
    std::int64_t up_to[bins];   // values whose digit is at most this

    OrderStatistics(float const* row, std::int64_t size, std::uint32_t* scratch)
        : y(row), n(size), candidates(scratch) {
        // Neighbouring values often share a digit. They count in different tables, so as not to wait for each other.
        std::uint32_t count[4][bins] = {};
        std::int64_t i = 0;
        for (; i + 4 <= n; i += 4) {
            for (int c = 0; c < 4; ++c) {
                ++count[c][order_key(y[i + c]) >> shift];
            }
        }
        for (; i < n; ++i) {
            ++count[0][order_key(y[i]) >> shift];
        }
        std::int64_t total = 0;
        for (int bin = 0; bin < bins; ++bin) {
            total += static_cast<std::int64_t>(count[0][bin]) + count[1][bin] + count[2][bin] + count[3][bin];
            up_to[bin] = total;
        }
    }

    std::uint32_t digit_of(std::int64_t rank) const {
        std::uint32_t below = 0, above = bins;  // the digit lies in [below, above)
        while (above - below > 1) {
            std::uint32_t const middle = (below + above) / 2;
            (up_to[middle - 1] <= rank ? below : above) = middle;
        }
        return below;
    }

    // The values of rank `rank` and rank + 1 (from 0) in the sorted row; where the first one is the last, both are the
    // same.
    void neighbours(std::int64_t rank, double& first, double& second) {
        std::uint32_t const digit = digit_of(rank);
        std::int64_t m = 0, i = 0;
#if SLEEPFM_LANES == 16
        for (; i + 16 <= n; i += 16) {
            __m512i const bits = _mm512_loadu_si512(y + i);
            __m512i const key =
                _mm512_xor_si512(bits, _mm512_or_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(INT32_MIN)));
            __mmask16 const same =
                _mm512_cmpeq_epi32_mask(_mm512_srli_epi32(key, shift), _mm512_set1_epi32(static_cast<int>(digit)));
            // m <= i: the whole register fits.
            _mm512_storeu_si512(candidates + m, _mm512_maskz_compress_epi32(same, key));
            m += __builtin_popcount(same);
        }
#endif
        for (; i < n; ++i) {
            std::uint32_t const key = order_key(y[i]);
            candidates[m] = key;
            m += (key >> shift) == digit;
        }
        std::uint32_t next = 0xffffffffu;  // the smallest key of a higher digit, needed if `rank` is its digit's last
        if (rank + 1 == up_to[digit]) {
            for (i = 0; i < n; ++i) {
                std::uint32_t const key = order_key(y[i]);
                std::uint32_t const higher = (key >> shift) > digit ? key : 0xffffffffu;
                next = higher < next ? higher : next;
            }
        }
        std::uint32_t const key = select(rank - (digit > 0 ? up_to[digit - 1] : 0), m, next);
        first = value_of(key);
        second = rank + 1 < n ? value_of(next) : first;
    }

    // The key of rank `rank` among the m candidates, which are permuted; `next` becomes the key after it, if it is
    // here.
    std::uint32_t select(std::int64_t rank, std::int64_t m, std::uint32_t& next) {
        for (int bit = shift - 1; bit >= 0 && m > 1; --bit) {
            // Candidates without the bit go to the front, those with it to the back.
            std::int64_t zeros = 0, end = m;
            for (std::int64_t i = 0; i < end;) {
                std::uint32_t const key = candidates[i];
                if ((key >> bit & 1u) == 0) {
                    ++i;
                    ++zeros;
                } else {
                    --end;
                    candidates[i] = candidates[end];
                    candidates[end] = key;
                }
            }
            if (rank < zeros) {
                for (std::int64_t i = zeros; i < m; ++i) {
                    next = candidates[i] < next ? candidates[i] : next;
                }
                m = zeros;
            } else {
                candidates += zeros;
                rank -= zeros;
                m -= zeros;
            }
        }
        // All candidates that are left are equal.
        std::uint32_t const key = candidates[0];
        next = rank + 1 < m ? key : next;
        return key;
    }

    static double value_of(std::uint32_t key) {
        std::uint32_t const bits = (key & 0x80000000u) != 0 ? key ^ 0x80000000u : ~key;
        float value;
        memcpy(&value, &bits, sizeof value);
        return static_cast<double>(value);
    }

    // As numpy.quantile: linear between the two neighbours.
    double quantile(double q) {
        std::uint32_t* const scratch = candidates;
        double const place = q * static_cast<double>(n - 1);
        std::int64_t const rank = static_cast<std::int64_t>(place);
        double low, high;
        neighbours(rank, low, high);
        candidates = scratch;
        return low + (place - static_cast<double>(rank)) * (high - low);
    }
};

// The median, and the interquartile range in units of that of a standard normal distribution, 1.349. scratch: [n].
Location median_and_deviation(float const* y, std::int64_t n, std::uint32_t* scratch) {
    OrderStatistics row(y, n, scratch);
    double const low = row.quantile(0.25), median = row.quantile(0.5), high = row.quantile(0.75);
    return {median, (high - low) / 1.349};
}

}  // namespace

}  // namespace sleepfm::cpu::SLEEPFM_ISA
