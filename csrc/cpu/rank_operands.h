// Operands of retrieval ranks: centred vectors as 16-bit integers, and the measures that bound the error of doing so
// (RankRows in params.h). Compiled once for each instruction set, see contrastive_simd.h.
#pragma once

#include <cmath>
#include <cstring>

#include "cpu/contrastive_simd.h"
#include "cpu/threads.h"
#include "params.h"
#if defined(SLEEPFM_TILES)
#include "cpu/rank_tiles.h"
#else
#include "cpu/rank_product.h"
#endif

namespace sleepfm::SLEEPFM_ISA {

constexpr Index RANK_CHUNK = 256;  // dimensions of one sample that are quantised at a time, on the stack

// q = the integers nearest to (x - mean) factor / 2. Halves are subtracted, since the difference of two finite numbers
// may overflow. Not inlined, so that measure_row and pack_integers get the same integers: inlined, the compiler might
// contract the arithmetic to multiply-adds in one place and not in the other.
__attribute__((noinline)) inline void quantise(float const* x, float const* mean, float factor, Index n,
                                               std::int16_t* q) {
    constexpr float round_to_integer = 12582912.0F;  // 1.5 * 2^23: adding it leaves the integer in the low bits
    for (Index k = 0; k < n; ++k) {
        float const shifted = (0.5F * x[k] - 0.5F * mean[k]) * factor + round_to_integer;
        std::int32_t bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        q[k] = static_cast<std::int16_t>(bits);
    }
}

// The factor for a centred vector of this length and largest element: twice the number of steps in a unit. It keeps the
// elements of q within 0x7F7F, the largest number of two digits of radix 256 from -128 to 127 (rank_tiles.h), and the
// length of q, which rounding makes at most sqrt(D) / 2 longer, within 46340, the root of 2^31.
inline float factor_of(double length, double largest, Index n_dim) {
    if (!(largest > 0.0)) {
        return 0.0F;
    }
    double const by_length = (46340.0 - 0.5 * std::sqrt(static_cast<double>(n_dim))) / length;
    double const by_element = 32639.0 / largest;
    double const factor = 2.0 * ((by_length < by_element ? by_length : by_element));
    return static_cast<float>(factor < 0x1p120 ? factor : 0x1p120);  // for tiny vectors, so that 1 / factor is normal
}

inline double sum_of(double const (&lane)[8]) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

// The measures of row r: see RankRows.
inline void measure_row(RankRows const& call, Index r) {
    float const* const x = call.x + r * call.n_dim;
    double squares[8] = {}, inner[8] = {}, largest[8] = {};
    auto const add = [&](Index k, int l) {
        double const value = static_cast<double>(x[k]) - static_cast<double>(call.mean[k]);
        double const size = std::fabs(value);
        squares[l] += value * value;
        inner[l] += value * static_cast<double>(call.other_mean[k]);
        largest[l] = size > largest[l] ? size : largest[l];
    };
    Index const whole = call.n_dim / 8 * 8;
    for (Index k = 0; k < whole; k += 8) {
        for (int l = 0; l < 8; ++l) {
            add(k + l, l);
        }
    }
    for (Index k = whole; k < call.n_dim; ++k) {
        add(k, static_cast<int>(k - whole));
    }
    double most = 0.0;
    for (double const each : largest) {
        most = each > most ? each : most;
    }
    double const length = std::sqrt(sum_of(squares));
    float const factor = factor_of(length, most, call.n_dim);
    float const step = factor > 0.0F ? 2.0F / factor : 0.0F;
    double residues[8] = {};
    std::int16_t q[RANK_CHUNK];
    for (Index first = 0; first < call.n_dim; first += RANK_CHUNK) {
        Index const n = least(call.n_dim - first, RANK_CHUNK);
        quantise(x + first, call.mean + first, factor, n, q);
        auto const add_residue = [&](Index k, int l) {
            Index const at = first + k;
            double const value = static_cast<double>(x[at]) - static_cast<double>(call.mean[at]);
            double const left = value - static_cast<double>(step) * static_cast<double>(q[k]);
            residues[l] += left * left;
        };
        Index k = 0;
        for (; k + 8 <= n; k += 8) {
            for (int l = 0; l < 8; ++l) {
                add_residue(k + l, l);
            }
        }
        for (int l = 0; k < n; ++k, ++l) {
            add_residue(k, l);
        }
    }
    call.factor[r] = factor;
    call.step[r] = static_cast<double>(step);
    call.length[r] = length;
    call.residue[r] = std::sqrt(sum_of(residues));
    call.inner[r] = sum_of(inner);
}

inline void measure_rows(RankRows const& call) {
    [[maybe_unused]] int const n_threads = useful_threads(call.n_rows * call.n_dim, call.n_threads);
    SLEEPFM_OMP(omp parallel for schedule(static) num_threads(n_threads))
    for (Index r = 0; r < call.n_rows; ++r) {
        measure_row(call, r);
    }
}

#if defined(SLEEPFM_TILES)

// Writes `width` samples from `first` on, whole groups, quantised: columns are the second factors of products. Zero
// beyond the last sample and the last dimension.
inline void pack_integers(RankOperand const& operand, Index n_dim, Index first, Index width, bool columns,
                          std::int32_t* panel) {
    std::int16_t q[RANK_CHUNK];
    Index const n_pairs = rank_pairs(n_dim);
    for (Index group = 0; group < width; group += RANK_ROWS) {
        std::int32_t* const to = panel + group * n_pairs;
        for (Index s = 0; s < RANK_ROWS; ++s) {
            Index const sample = first + group + s;
            std::memset(q, 0, sizeof q);
            for (Index k = 0; k < 2 * n_pairs; k += RANK_CHUNK) {
                Index const n = least(n_dim - k, RANK_CHUNK);
                if (sample < operand.n) {
                    quantise(operand.x + sample * n_dim + k, operand.mean + k, operand.factor[sample], n, q);
                    std::memset(q + n, 0, static_cast<std::size_t>(RANK_CHUNK - n) * sizeof q[0]);
                }
                for (Index i = 0; i < RANK_CHUNK && k + i < 2 * n_pairs; i += 64) {
                    place_digits(q + i, s, to + (k + i) / 64 * RANK_CHUNK_WORDS);
                }
            }
        }
        for (Index k = 0; columns && k < n_pairs; k += RANK_CHUNK_PAIRS) {
            turn_digits(to + k / RANK_CHUNK_PAIRS * RANK_CHUNK_WORDS);
        }
    }
}

#else

// Writes the panel of `width` samples from `first` on, quantised, [pair of dimensions][sample]; zero beyond the last
// sample and the last dimension.
inline void pack_integers(RankOperand const& operand, Index n_dim, Index first, Index width, bool /*columns*/,
                          std::int32_t* panel) {
    std::int16_t q[RANK_CHUNK];
    for (Index s = 0; s < width; ++s) {
        bool const real = first + s < operand.n;
        std::memset(q, 0, sizeof q);
        for (Index k = 0; k < n_dim; k += RANK_CHUNK) {
            Index const n = least(n_dim - k, RANK_CHUNK);
            if (real) {
                quantise(operand.x + (first + s) * n_dim + k, operand.mean + k, operand.factor[first + s], n, q);
            }
            if (n % 2 != 0) {
                q[n] = 0;  // n < RANK_CHUNK, which is even
            }
            for (Index pair = 0; 2 * pair < n; ++pair) {
                std::memcpy(panel + (k / 2 + pair) * width + s, q + 2 * pair, sizeof(std::int32_t));
            }
        }
    }
}

#endif

}  // namespace sleepfm::SLEEPFM_ISA
