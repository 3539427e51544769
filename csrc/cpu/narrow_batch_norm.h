// Batch norm in training: mean and variance of every channel over the clips and samples of the batch, and the gradients
// of input, gain and shift. A row is one channel of one clip, so that there are [B, n_channels] rows of n samples. Each
// row is summed by itself, and the rows' sums are added in the order of the clips in float64: the bits do not depend on
// the number of threads.
#pragma once

#include <math.h>

#include "cpu/mbconv_batch_norm.h"
#include "cpu/mbconv_workspace.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// What one row contributes to the sums over the batch. In forward a is its mean and b the sum of squares around that
// mean; in backward a is the sum of dy and b the sum of dy (x - mean of the channel).
struct RowSums {
    double a, b;
};

// Mean of a row, and the sum of squares around it. Differences are taken from `around`, the mean rounded to float32, so
// that large offsets do not cancel. Their mean, `step`, is what the rounding left out, and corrects both results.
inline RowSums row_moments(float const* x, Index n) {
    float const around = static_cast<float>(row_sum(x, n) / static_cast<double>(n));
    Vector sum{}, more{}, squares{}, more_squares{};
    Index t = 0;
    for (; t + 2 * LANES <= n; t += 2 * LANES) {
        Vector const a = load(x + t) - around, b = load(x + t + LANES) - around;
        sum += a;
        more += b;
        squares += a * a;
        more_squares += b * b;
    }
    for (; t < n; t += LANES) {
        Vector const a = first_lanes(load_first(x + t, n - t) - around, n - t);
        sum += a;
        squares += a * a;
    }
    double const step = total(sum + more) / static_cast<double>(n);
    return {static_cast<double>(around) + step, total(squares + more_squares) - step * step * static_cast<double>(n)};
}

// Sums of dy and of dy (x - mean) over a row.
inline RowSums row_products(float const* x, float const* dy, Index n, float mean) {
    Vector sum{}, more{}, product{}, more_product{};
    Index t = 0;
    for (; t + 2 * LANES <= n; t += 2 * LANES) {
        Vector const g = load(dy + t), h = load(dy + t + LANES);
        sum += g;
        more += h;
        product += g * (load(x + t) - mean);
        more_product += h * (load(x + t + LANES) - mean);
    }
    for (; t < n; t += LANES) {
        Vector const g = load_first(dy + t, n - t);
        sum += g;
        product += g * first_lanes(load_first(x + t, n - t) - mean, n - t);
    }
    return {total(sum + more), total(product + more_product)};
}

struct Moments {
    double mean, variance;
};

// Mean and population variance of channel `channel` from its rows' moments [B, n_channels], rows of n samples.
inline Moments moments_of(RowSums const* rows, Index B, Index n_channels, Index channel, Index n) {
    double mean = 0.0, squares = 0.0;
    for (Index b = 0; b < B; ++b) {
        mean += rows[b * n_channels + channel].a;
    }
    mean /= static_cast<double>(B);
    for (Index b = 0; b < B; ++b) {
        RowSums const& row = rows[b * n_channels + channel];
        double const d = row.a - mean;
        squares += row.b + d * d * static_cast<double>(n);
    }
    // Rounding may leave a constant channel just below zero. Written so that NaN stays NaN.
    return {mean, squares < 0.0 ? 0.0 : squares / static_cast<double>(B * n)};
}

// y = (x - mean) scale + shift.
inline void normalise_row(float const* x, Index n, float mean, float scale, float shift, float* y) {
    Index t = 0;
    for (; t + LANES <= n; t += LANES) {
        store(y + t, (load(x + t) - mean) * scale + shift);
    }
    if (t < n) {
        store_first(y + t, (load_first(x + t, n - t) - mean) * scale + shift, n - t);
    }
}

// Writes the gradients of gain and shift of one channel, from the rows' products [B, n_channels], and returns the
// function that turns a sample's dy and x into its dx. statistics is [2, n_channels]: means, then variances.
inline BatchNormGradient reduce_products(RowSums const* rows, Index B, Index n_channels, Index channel, Index n,
                                         double eps, float gamma, double const* statistics, float* dgamma,
                                         float* dbeta) {
    double const mean = statistics[channel], variance = statistics[n_channels + channel];
    double sum = 0.0, product = 0.0;
    for (Index b = 0; b < B; ++b) {
        sum += rows[b * n_channels + channel].a;
        product += rows[b * n_channels + channel].b;
    }
    product /= sqrt(variance + eps);
    dbeta[channel] = static_cast<float>(sum);
    dgamma[channel] = static_cast<float>(product);
    return gradient_of(static_cast<double>(gamma), mean, variance, eps, sum, product, static_cast<double>(B * n));
}

struct BatchNormWorkspace {
    RowSums* rows;                // [B, n_channels]
    float* scale;                 // [n_channels] gamma / deviation, in forward
    BatchNormGradient* gradient;  // [n_channels] in backward
    Index bytes;

    explicit BatchNormWorkspace(BatchNormShape const& s) {
        Carver carver(s.workspace);
        rows = carver.take<RowSums>(s.n_clips * s.n_channels);
        scale = carver.take<float>(s.n_channels);
        gradient = carver.take<BatchNormGradient>(s.n_channels);
        bytes = carver.used();
    }
};

inline void batch_norm_forward(BatchNormForward const& call) {
    BatchNormShape const& s = call.shape;
    BatchNormWorkspace const work(s);
    Index const C = s.n_channels, n = s.n_samples, n_rows = s.n_clips * C;
    SLEEPFM_OMP(omp parallel num_threads(s.n_threads)) {
        SLEEPFM_OMP(omp for schedule(static))
        for (Index row = 0; row < n_rows; ++row) {
            work.rows[row] = row_moments(call.x + row * n, n);
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index c = 0; c < C; ++c) {
            Moments const moments = moments_of(work.rows, s.n_clips, C, c, n);
            call.statistics[c] = moments.mean;
            call.statistics[C + c] = moments.variance;
            work.scale[c] = static_cast<float>(static_cast<double>(call.gamma[c]) / sqrt(moments.variance + call.eps));
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index row = 0; row < n_rows; ++row) {
            Index const c = row % C;
            normalise_row(call.x + row * n, n, static_cast<float>(call.statistics[c]), work.scale[c], call.beta[c],
                          call.y + row * n);
        }
    }
}

inline void batch_norm_backward(BatchNormBackward const& call) {
    BatchNormShape const& s = call.shape;
    BatchNormWorkspace const work(s);
    Index const C = s.n_channels, n = s.n_samples, n_rows = s.n_clips * C;
    SLEEPFM_OMP(omp parallel num_threads(s.n_threads)) {
        SLEEPFM_OMP(omp for schedule(static))
        for (Index row = 0; row < n_rows; ++row) {
            work.rows[row] =
                row_products(call.x + row * n, call.dy + row * n, n, static_cast<float>(call.statistics[row % C]));
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index c = 0; c < C; ++c) {
            work.gradient[c] = reduce_products(work.rows, s.n_clips, C, c, n, call.eps, call.gamma[c], call.statistics,
                                               call.dgamma, call.dbeta);
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index row = 0; row < n_rows; ++row) {
            BatchNormGradient const gradient = work.gradient[row % C];
            float const* const x = call.x + row * n;
            float const* const dy = call.dy + row * n;
            float* const dx = call.dx + row * n;
            Index t = 0;
            for (; t + LANES <= n; t += LANES) {
                store(dx + t, gradient(load(dy + t), load(x + t)));
            }
            if (t < n) {
                store_first(dx + t, gradient(load_first(dy + t, n - t), load_first(x + t, n - t)), n - t);
            }
        }
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
