// The kernels that add up the rows of sums which mbconv_train.cuh's blocks leave in `partial`, and make of them the
// batch norms' statistics, scales and shifts, the gradients of their weights and of the taps, and the parameters that
// the next kernel needs of each channel. In float64 and in a fixed order: 32 groups of threads take every 32nd row
// each, and their sums meet in shared memory after one barrier.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/mbconv_train.cuh"
#include "cuda/ptx.h"
#include "params.h"

namespace sleepfm::cuda {

// A block takes few channels, 32 bytes of a row (a sector of memory), so that many threads share a channel's rows and
// each waits for few loads one after another.
constexpr int finish_channels = 8, finish_groups = between_threads / finish_channels;

// sums[K] of a channel over the rows of `partial` [n_partials, K, width]. The block's channels are those of its first
// finish_channels threads, though every thread gets its lane's. All threads of the block call it.
template <int K>
__device__ __forceinline__ void add_partials(float const* partial, int n_partials, std::int64_t width,
                                             double (&sums)[K]) {
    SLEEPFM_SHARED(double, of_groups, [finish_groups][K][finish_channels]);
    int const lane = static_cast<int>(threadIdx.x) % finish_channels;
    int const group = static_cast<int>(threadIdx.x) / finish_channels;
    std::int64_t const channel = static_cast<std::int64_t>(blockIdx.x) * finish_channels + lane;
    double of_group[K] = {};
    if (channel < width) {
#pragma unroll(16 / K)
        for (int row = group; row < n_partials; row += finish_groups) {
#pragma unroll
            for (int k = 0; k < K; ++k) {
                of_group[k] += static_cast<double>(partial[(static_cast<std::int64_t>(row) * K + k) * width + channel]);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
        of_groups[group][k][lane] = of_group[k];
    }
    ptx::sync_threads();
#pragma unroll
    for (int k = 0; k < K; ++k) {
        sums[k] = 0.0;
    }
#pragma unroll 2
    for (int g = 0; g < finish_groups; ++g) {
#pragma unroll
        for (int k = 0; k < K; ++k) {
            sums[k] += of_groups[g][k][lane];
        }
    }
}

// The first batch norm's statistics, and the parameters of mbconv_depthwise_kernel.
__global__ void __launch_bounds__(between_threads)
    mbconv_finish_expansion_sums_kernel(MBConvFinishExpansionSums const p) {
    double sums[2];
    add_partials(p.partial, p.n_partials, p.width, sums);
    std::int64_t const channel = static_cast<std::int64_t>(blockIdx.x) * finish_channels + threadIdx.x;
    if (threadIdx.x >= finish_channels || channel >= p.width) {
        return;
    }
    double const n = static_cast<double>(p.n_rows), mean = sums[0] / n, difference = sums[1] / n - mean * mean;
    double const variance = difference < 0.0 ? 0.0 : difference;
    double const scale = static_cast<double>(p.gamma0[channel]) / sqrt(variance + p.eps);
    double const bias = static_cast<double>(ptx::from_bf16(static_cast<std::uint16_t const*>(p.bias)[channel]));
    float const *const taps = p.wd + 3 * channel, beta = p.beta0[channel];
    p.statistics[channel] = mean - bias + static_cast<double>(p.b1[channel]);
    p.statistics[p.width + channel] = variance;
    p.statistics[2 * p.width + channel] = mean;
    // The last one is the pivot: the convolution of a constant relu6(beta), the activation of a c1 at its mean. It is
    // near the mean of c2.
    float const rows[7] = {static_cast<float>(scale),
                           static_cast<float>(static_cast<double>(beta) - mean * scale),
                           taps[0],
                           taps[1],
                           taps[2],
                           p.bd[channel],
                           p.bd[channel] + (taps[0] + taps[1] + taps[2]) * relu6(beta)};
#pragma unroll
    for (int row = 0; row < 7; ++row) {
        p.parameters[row * p.width + channel] = rows[row];
    }
}

// The second batch norm's statistics, scale, shift and mean, from mbconv_depthwise_kernel's sums.
__global__ void __launch_bounds__(between_threads) mbconv_finish_depthwise_kernel(MBConvFinishDepthwise const p) {
    double sums[2];
    add_partials(p.partial, p.n_partials, p.width, sums);
    std::int64_t const channel = static_cast<std::int64_t>(blockIdx.x) * finish_channels + threadIdx.x;
    if (threadIdx.x >= finish_channels || channel >= p.width) {
        return;
    }
    double const n = static_cast<double>(p.n_rows), distance = sums[0] / n;
    double const mean = static_cast<double>(p.pivot[channel]) + distance;
    double const difference = sums[1] / n - distance * distance;
    double const variance = difference < 0.0 ? 0.0 : difference;
    double const scale = static_cast<double>(p.gamma1[channel]) / sqrt(variance + p.eps);
    p.statistics[channel] = mean;
    p.statistics[p.width + channel] = variance;
    p.parameters[channel] = static_cast<float>(scale);
    p.parameters[p.width + channel] = static_cast<float>(static_cast<double>(p.beta1[channel]) - mean * scale);
    p.parameters[2 * p.width + channel] = static_cast<float>(mean);
}

// Gradients of the second batch norm, and the parameters of mbconv_depthwise_backward_kernel.
__global__ void __launch_bounds__(between_threads)
    mbconv_finish_gradient_sums_kernel(MBConvFinishGradientSums const p) {
    double sums[2];
    add_partials(p.partial, p.n_partials, p.width, sums);
    std::int64_t const channel = static_cast<std::int64_t>(blockIdx.x) * finish_channels + threadIdx.x;
    if (threadIdx.x >= finish_channels || channel >= p.width) {
        return;
    }
    double const mean = p.statistics1[channel], variance = p.statistics1[p.width + channel] + p.eps;
    double const n = static_cast<double>(p.n_rows), scale = static_cast<double>(p.gamma1[channel]) / sqrt(variance);
    // dc2 = scale (g1 - mean of g1 - (c2 - mean) of_c2)
    double const of_c2 = sums[1] / (n * variance);
    p.dbeta1[channel] = static_cast<float>(sums[0]);
    p.dgamma1[channel] = static_cast<float>(sums[1] / sqrt(variance));
    for (int row = 0; row < 5; ++row) {
        p.parameters[row * p.width + channel] = p.parameters0[row * p.width + channel];
    }
    p.parameters[5 * p.width + channel] = p.parameters1[channel];
    p.parameters[6 * p.width + channel] = p.parameters1[p.width + channel];
    p.parameters[7 * p.width + channel] = static_cast<float>(-scale * of_c2);
    p.parameters[8 * p.width + channel] = static_cast<float>(scale * (of_c2 * mean - sums[0] / n));
}

// Gradients of the first batch norm and of the taps, and the vectors with which the caller forms
// dc1 = scale g0 + vectors[1] + vectors[2] (c1 - mean): the last two are what the statistics' dependence on c1 adds.
__global__ void __launch_bounds__(between_threads)
    mbconv_finish_depthwise_backward_kernel(MBConvFinishDepthwiseBackward const p) {
    double sums[5];
    add_partials(p.partial, p.n_partials, p.width, sums);
    std::int64_t const channel = static_cast<std::int64_t>(blockIdx.x) * finish_channels + threadIdx.x;
    if (threadIdx.x >= finish_channels || channel >= p.width) {
        return;
    }
    double const variance = p.statistics0[p.width + channel] + p.eps, n = static_cast<double>(p.n_rows);
    double const scale = static_cast<double>(p.gamma0[channel]) / sqrt(variance);
    double const product = sums[1] - p.statistics0[2 * p.width + channel] * sums[0];  // sum of g0 (c1 - mean)
    p.dbeta0[channel] = static_cast<float>(sums[0]);
    p.dgamma0[channel] = static_cast<float>(product / sqrt(variance));
    for (int k = 0; k < 3; ++k) {
        p.dwd[3 * channel + k] = static_cast<float>(sums[2 + k]);
    }
    p.vectors[channel] = static_cast<float>(scale);
    p.vectors[p.width + channel] = static_cast<float>(-scale * sums[0] / n);
    p.vectors[2 * p.width + channel] = static_cast<float>(-scale * product / (n * variance));
}

}  // namespace sleepfm::cuda
