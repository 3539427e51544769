// Statistics of a filtered row for its normalisation. Part of filter_row.h, under the same rules: included once per
// instruction set, inside that namespace.
#include <math.h>
#include <string.h>

#include <cstdint>

namespace sleepfm::cpu::SLEEPFM_ISA {

namespace {

struct Location {
    double center, deviation;
};

Location mean_and_deviation(float const* y, std::int64_t n) {
    constexpr int lanes = 8;
    double part[lanes] = {};
    for (std::int64_t i = 0; i + lanes <= n; i += lanes) {
        for (int l = 0; l < lanes; ++l) {
            part[l] += static_cast<double>(y[i + l]);
        }
    }
    double total = 0;
    for (std::int64_t i = n / lanes * lanes; i < n; ++i) {
        total += static_cast<double>(y[i]);
    }
    for (double const value : part) {
        total += value;
    }
    double const mean = total / static_cast<double>(n);
    double square[lanes] = {};
    for (std::int64_t i = 0; i + lanes <= n; i += lanes) {
        for (int l = 0; l < lanes; ++l) {
            double const d = static_cast<double>(y[i + l]) - mean;
            square[l] += d * d;
        }
    }
    double squares = 0;
    for (std::int64_t i = n / lanes * lanes; i < n; ++i) {
        double const d = static_cast<double>(y[i]) - mean;
        squares += d * d;
    }
    for (double const value : square) {
        squares += value;
    }
    return {mean, sqrt(squares / static_cast<double>(n))};
}

// Unsigned integers in the order of the floats.
inline std::uint32_t order_key(float value) {
    std::uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits ^ (static_cast<std::uint32_t>(-static_cast<std::int32_t>(bits >> 31)) | 0x80000000u);
}

// Order statistics of a row by radix selection: bits 31..21 of the key (sign, exponent and two bits of the fraction)
// are counted once for all ranks; the few values that share them with the one looked for are copied and counted by
// bits 20..10 and 9..0.
struct OrderStatistics {
    static constexpr int bins = 2048;

    float const* y;
    std::int64_t n;
    float* candidates;  // [n]
    std::int64_t n_candidates = 0, below = 0;
    int bin = -1;                    // whose values `candidates` holds
    std::uint32_t count[bins] = {};  // by the first digit

    OrderStatistics(float const* row, std::int64_t size, float* scratch) : y(row), n(size), candidates(scratch) {
        for (std::int64_t i = 0; i < n; ++i) {
            ++count[order_key(y[i]) >> 21];
        }
    }

    // The value that `rank` others precede; 0 <= rank < n.
    float at(std::int64_t rank) {
        if (bin < 0 || rank < below || rank >= below + n_candidates) {
            bin = 0;
            for (below = 0; rank >= below + count[bin]; ++bin) {
                below += count[bin];
            }
            n_candidates = 0;
            for (std::int64_t i = 0; i < n; ++i) {
                candidates[n_candidates] = y[i];
                n_candidates += static_cast<int>(order_key(y[i]) >> 21) == bin;
            }
        }
        std::int64_t skipped = rank - below;
        std::uint32_t const middle = digit(10, 0, 0, skipped);
        std::uint32_t const last = digit(0, 0x1ffc00u, middle << 10, skipped);
        std::uint32_t const key = (static_cast<std::uint32_t>(bin) << 21) | (middle << 10) | last;
        std::uint32_t const bits = (key & 0x80000000u) != 0 ? key ^ 0x80000000u : ~key;
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }

    // Bits from `shift` of the candidate that `rank` others precede, among those whose bits under `mask` are `prefix`.
    std::uint32_t digit(int shift, std::uint32_t mask, std::uint32_t prefix, std::int64_t& rank) const {
        std::uint32_t const digit_mask = shift == 10 ? 0x7ffu : 0x3ffu;
        std::uint32_t part[bins] = {};
        for (std::int64_t i = 0; i < n_candidates; ++i) {
            std::uint32_t const key = order_key(candidates[i]);
            part[(key >> shift) & digit_mask] += (key & mask) == prefix;
        }
        std::uint32_t found = 0;
        for (; rank >= part[found]; ++found) {
            rank -= part[found];
        }
        return found;
    }

    // As numpy.quantile: linear between the two neighbours.
    double quantile(double q) {
        double const place = q * static_cast<double>(n - 1);
        std::int64_t const rank = static_cast<std::int64_t>(place);
        double const low = static_cast<double>(at(rank));
        double const share = place - static_cast<double>(rank);
        return share > 0 ? low + share * (static_cast<double>(at(rank + 1)) - low) : low;
    }
};

// Median, and the interquartile range over that of a standard normal distribution. scratch: [n].
Location median_and_deviation(float const* y, std::int64_t n, float* scratch) {
    OrderStatistics row(y, n, scratch);
    double const low = row.quantile(0.25), median = row.quantile(0.5), high = row.quantile(0.75);
    return {median, (high - low) / 1.349};
}

}  // namespace

}  // namespace sleepfm::cpu::SLEEPFM_ISA
