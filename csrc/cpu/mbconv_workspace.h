// The sizes of an MBConv block's tiles, which depend on its shape alone, and the workspace of training.
#pragma once

#include <math.h>

#include "cpu/carver.h"
#include "cpu/mbconv_pack.h"
#include "cpu/threads.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// The clips of a group, whose part of a weight's gradient is summed in order by one thread. At most 16 groups, whatever
// the number of threads, so that sums have one order.
inline Index clips_per_group(MBConvShape const& s) {
    return s.n_clips <= 16 ? 1 : (s.n_clips + 15) / 16;
}

inline Index n_groups(MBConvShape const& s) {
    Index const n = clips_per_group(s);
    return (s.n_clips + n - 1) / n;
}

// Units (mbconv_columns.h) of a tile of about `columns` columns, a whole number of vectors.
inline Index units(MBConvShape const& s, Index columns) {
    Index const vectors = most(columns / LANES / s.stride, 1);
    return least(vectors * LANES, round_up(samples_out(s), LANES));
}

// Forward: the tile's input, which each block of TALL channels of the expansion reads again, stays in the first cache.
inline Index forward_tile(MBConvShape const& s) {
    return units(s, least(most(6144 / s.n_in, 16 * LANES), 24 * LANES));
}

// Backward: a tile of the wide gradient stays in the second cache.
inline Index backward_tile(MBConvShape const& s) {
    return units(s, least(most(73728 / s.width, 6 * LANES), 24 * LANES));
}

// Columns of a panel of the projection: the panel stays in the second cache, and few samples are left for a last one.
inline Index panel_width(MBConvShape const& s) {
    Index const widest = least(most(65536 / s.width / TILE, 2), 8) * TILE;
    Index const whole = round_up(samples_out(s), LANES);
    return whole <= most(widest, 8 * LANES) ? whole : widest;
}

// Samples of a clip's input that are transposed at a time for its moments, and the length of such a row: whole register
// blocks, which are ROWS high and TILE or half of it wide.
constexpr Index MOMENT_SPAN = 2 * TILE;

inline Index moments_width(Index n_in) {
    static_assert(2 * TILE % ROWS == 0);
    return round_up(n_in, TILE % ROWS == 0 ? TILE : 2 * TILE);
}

// "Packed" is the layout of mbconv_pack.h. What backward alone uses has no memory in forward.
template <typename Factor>
struct MBConvWorkspace {
    Factor* expand;                        // w1, packed [width / ROWS, n_in, ROWS]
    Factor* project;                       // w3, packed [n_out / ROWS, width, ROWS]
    Factor* expand_t;                      // backward: w1 transposed, packed [n_in / ROWS, width, ROWS], times scale0
    Factor* project_t;                     // backward: w3 transposed, packed [width / ROWS, n_out, ROWS]
    float *exact_expand, *exact_expand_t;  // backward: expand and expand_t in float32, for the corrections
    float *scale0, *shift0, *scale1, *shift1;  // [width] the batch norms as a multiplication and an addition
    float* batch_norm;                         // [width, 4] backward: BatchNormGradient of the second batch norm
    double* sums;           // of each clip. Backward: [B, 2 or 5, width], [B, n_out]; forward: [B, 2, width], [B, n_in]
    double* moments;        // forward: moments of the input, of each group of clips and of all (mbconv_moments.h)
    float* centre;          // [n_in] the input's mean
    float* weight_sums;     // backward: [groups, width, ...] sums of dw3, then of dw1
    float* bent;            // [width, ld_in] backward: w1 times `factor`
    float* factor;          // [width] backward: -(sum of g0 c_hat) / (n sigma) of the first batch norm
    double* mean_gradient;  // [width] backward: minus the mean of g0
    Factor* square;         // backward: packed [n_in, n_in], what multiplies x less its mean in the correction of dx
    float* offset;          // [n_in] backward: what that correction adds to every sample
    float* covariance;      // [n_in, ld_in] backward: sums of products of x less its mean
    float* thread;          // [n_threads, per_thread] scratch of the threads
    Index per_thread;
    Index bytes;

    MBConvWorkspace(MBConvShape const& s, bool backward) {
        Carver carver(s.workspace);
        auto const floats = [&](Index n) { return carver.take<float>(n); };
        auto const doubles = [&](Index n) { return carver.take<double>(n); };
        Index const width = round_up(s.width, ROWS), n_in = round_up(s.n_in, ROWS), n_out = round_up(s.n_out, ROWS);
        Index const ld_in = odd_vectors(s.n_in), ld_out = odd_vectors(s.n_out);
        Index const widest = most(n_in, n_out), ld_widest = most(ld_in, ld_out);
        auto const factors = [&](Index n_rows, Index n) {
            return carver.take<Factor>(round_up(n_rows, TALL) * words_of<Factor>(n));
        };
        expand = factors(width, s.n_in);
        project = factors(n_out, s.width);
        expand_t = factors(backward ? n_in : 0, width);
        project_t = factors(backward ? width : 0, s.n_out);
        if constexpr (FactorOf<Factor>::DEPTH == 1) {
            exact_expand = expand;
            exact_expand_t = expand_t;
        } else {
            exact_expand = floats(backward ? width * s.n_in : 0);
            exact_expand_t = floats(backward ? n_in * width : 0);
        }
        scale0 = floats(s.width);
        shift0 = floats(s.width);
        scale1 = floats(s.width);
        shift1 = floats(s.width);
        batch_norm = floats(backward ? 4 * s.width : 0);
        sums = doubles(s.n_clips * (5 * s.width + s.n_out + s.n_in));
        moments = doubles(backward ? 0 : n_groups(s) * n_in * moments_width(s.n_in) + (s.n_in + 1) * ld_in);
        centre = floats(s.n_in);
        weight_sums = floats(backward ? n_groups(s) * width * ld_widest : 0);
        bent = floats(backward ? width * ld_in : 0);
        factor = floats(backward ? s.width : 0);
        mean_gradient = doubles(backward ? s.width : 0);
        square = factors(backward ? n_in : 0, s.n_in);
        offset = floats(backward ? n_in : 0);
        covariance = floats(backward ? n_in * ld_in : 0);

        Index const panel = odd_vectors(panel_width(s));
        if (backward) {
            Index const columns = odd_vectors(most(backward_tile(s) * s.stride, panel_width(s)));
            Index const rows = (TALL + 1) * columns + 4 * LANES;
            per_thread = 5 * LANES * width + columns * (width + 2 * widest + ld_widest) + rows;
            per_thread =
                most(per_thread, 5 * LANES * width + columns * (width + widest) + most(LANES, ROWS) * ld_widest);
        } else {
            Index const columns = odd_vectors(forward_tile(s) * s.stride);
            Index const rows = TALL * (columns + 4 * LANES) + 2 * columns;
            Index const tile = (width + 2) * panel;
            Index const products = MOMENT_SPAN * (3 * moments_width(s.n_in) + n_in);
            per_thread = 4 * LANES * width + n_in * columns + rows + most(tile, products);
        }
        per_thread = round_up(per_thread, 16);
        thread = floats(s.n_threads * per_thread);
        bytes = carver.used();
    }
};

// The sum of a row's n values, in four chains of additions.
inline double row_sum(float const* x, Index n) {
    Vector sum[4] = {};
    Index t = 0;
    for (; t + 4 * LANES <= n; t += 4 * LANES) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            sum[i] += load(x + t + i * LANES);
        }
    }
    for (; t < n; t += LANES) {
        sum[0] += load_first(x + t, n - t);
    }
    return total((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Batch norms as scale and shift: gamma (c - mean) / sigma + beta = c scale + shift.
inline void affine(MBConvShape const& s, double const* mean, double const* variance, float const* gamma,
                   float const* beta, double eps, float* scale, float* shift) {
    for (Index c = 0; c < s.width; ++c) {
        double const factor = static_cast<double>(gamma[c]) / sqrt(variance[c] + eps);
        scale[c] = static_cast<float>(factor);
        shift[c] = static_cast<float>(static_cast<double>(beta[c]) - mean[c] * factor);
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
