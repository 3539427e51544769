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

}  // namespace sleepfm::SLEEPFM_ISA
