// The steps between the matrix products of an MBConv block in training: batch norms as scale and shift, ReLU6, the
// depthwise convolution of 3, their gradients, and the sums over samples that the batch norms' statistics and the
// weights' gradients need. Each kernel goes through its arrays once, bound by memory. Activations are [samples, width]
// bfloat16, channels last; the names are those of params.h.
//
// A thread has 4 consecutive channels (8 bytes, which the threads beside it continue) and walks along samples, so that
// the convolution's neighbours and all sums stay in its registers. A block has `lanes` threads along the channels, and
// with the rest of its threads several such walkers. The walkers' float32 sums meet in shared memory, after one
// barrier; each block writes a row of `partial`, and mbconv_train_finish.cuh adds the rows in float64. Every sum has a
// fixed order.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/ptx.h"
#include "params.h"

namespace sleepfm::cuda {

constexpr int between_threads = 256;
constexpr int between_channels = 4;  // channels of a thread
constexpr int between_lanes = 64;    // the most threads side by side along the channels
constexpr int between_run = 32;      // consecutive samples that a walker of a convolution takes at a time

// ---- four channels --------------------------------------------------------------------------------------------------

using Bits = std::uint64_t;  // four bfloat16 as they are in memory

struct Four {
    float v[between_channels];
};

__device__ __forceinline__ Four four_of_bits(Bits bits) {
    Four x;
#pragma unroll
    for (int c = 0; c < between_channels; ++c) {
        x.v[c] = ptx::from_bf16(static_cast<std::uint16_t>(bits >> 16 * c));
    }
    return x;
}

// Stores x rounded to bfloat16 and replaces it by what was stored, so that sums are of the values that others will
// read.
__device__ __forceinline__ void store_bf16(void* to, Four& x) {
    std::uint32_t const low = ptx::pack_bf16(x.v[0], x.v[1]), high = ptx::pack_bf16(x.v[2], x.v[3]);
    *static_cast<Bits*>(to) = static_cast<Bits>(high) << 32 | low;
    x.v[0] = ptx::from_bf16(static_cast<std::uint16_t>(low));
    x.v[1] = ptx::from_bf16(static_cast<std::uint16_t>(low >> 16));
    x.v[2] = ptx::from_bf16(static_cast<std::uint16_t>(high));
    x.v[3] = ptx::from_bf16(static_cast<std::uint16_t>(high >> 16));
}

// Row `row` of parameters [rows, width], for the four channels from `channel` on.
__device__ __forceinline__ Four four_of(float const* parameters, std::int64_t width, int row, int channel) {
    Four x;
#pragma unroll
    for (int c = 0; c < between_channels; ++c) {
        x.v[c] = parameters[row * width + channel + c];
    }
    return x;
}

// The batch norm of x. Always one fused multiply-add, so that every kernel, forward and backward, gets the same bits
// and sees the value on the same side of ReLU6's kinks.
__device__ __forceinline__ float normalised(float x, float scale, float shift) {
    return fmaf(x, scale, shift);
}

// NaN stays NaN, since both comparisons are false.
__device__ __forceinline__ float relu6(float u) {
    return u < 0.0f ? 0.0f : u > 6.0f ? 6.0f : u;
}

// Where the gradient of ReLU6 is 0. Not at NaN, so that the gradient there comes through.
__device__ __forceinline__ bool is_flat(float u) {
    return u <= 0.0f || u >= 6.0f;
}

// ---- threads --------------------------------------------------------------------------------------------------------

// The place of a thread in its block: `lane` along the channels, `number` of its walker. Threads left over, or beyond
// the last channel, do not work, but do come to the barrier of add_walkers.
struct Walker {
    int lane, number, n_walkers, channel;
    bool works;

    __device__ __forceinline__ Walker(std::int64_t width, int lanes) {
        int const thread = static_cast<int>(threadIdx.x);
        lane = thread % lanes;
        number = thread / lanes;
        n_walkers = between_threads / lanes;
        channel = (static_cast<int>(blockIdx.y) * lanes + lane) * between_channels;
        works = number < n_walkers && channel < width;
    }
    // The walker's first piece of work (sample or run), and the distance to its next one.
    __device__ __forceinline__ std::int64_t first() const {
        return static_cast<std::int64_t>(blockIdx.x) * n_walkers + number;
    }
    __device__ __forceinline__ std::int64_t step() const { return static_cast<std::int64_t>(gridDim.x) * n_walkers; }
};

// Calls use(row, fetch(row)) for the walker's rows in order. N fetches are issued before the first is used. (In a loop
// unrolled by the compiler the test for the end stands between any two loads, and one is waited for at a time.)
template <int N, typename Fetch, typename Use>
__device__ __forceinline__ void walk_rows(Walker const& me, std::int64_t n_rows, Fetch const& fetch, Use const& use) {
    std::int64_t const step = me.step();
    std::int64_t row = me.first();
#pragma unroll 1
    for (; row + (N - 1) * step < n_rows; row += N * step) {
        decltype(fetch(row)) ahead[N];
#pragma unroll
        for (int k = 0; k < N; ++k) {
            ahead[k] = fetch(row + k * step);
        }
#pragma unroll
        for (int k = 0; k < N; ++k) {
            use(row + k * step, ahead[k]);
        }
    }
    if (row < n_rows) {  // fewer than N rows are left; a fetch beyond the end repeats the first one and is not used
        decltype(fetch(row)) ahead[N - 1];
#pragma unroll
        for (int k = 0; k < N - 1; ++k) {
            ahead[k] = fetch(row + k * step < n_rows ? row + k * step : row);
        }
#pragma unroll
        for (int k = 0; k < N - 1; ++k) {
            if (row + k * step < n_rows) {
                use(row + k * step, ahead[k]);
            }
        }
    }
}

// Samples [begin, end) of one clip: run `number` of all clips. n_samples: samples of a clip.
struct Run {
    std::int64_t clip;
    int begin, end;

    __device__ __forceinline__ Run(std::int64_t number, int runs_of_clip, int n_samples) {
        clip = number / runs_of_clip;
        begin = static_cast<int>(number % runs_of_clip) * between_run;
        end = n_samples - begin < between_run ? n_samples : begin + between_run;
    }
};

// Writes row blockIdx.x of `partial` [n_partials, K, width]: the sums of the block's walkers, added in their order. All
// threads of the block call it, those that do not work with sums of 0.
template <int K>
__device__ __forceinline__ void add_walkers(Walker const& me, Four const (&sums)[K], int lanes, std::int64_t width,
                                            float* partial) {
    SLEEPFM_SHARED(float, of_threads, [K][between_channels][between_threads]);
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int c = 0; c < between_channels; ++c) {
            of_threads[k][c][threadIdx.x] = sums[k].v[c];
        }
    }
    ptx::sync_threads();
    int const n_channels = lanes * between_channels;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < K * n_channels; i += between_threads) {
        int const k = i / n_channels, of_block = i % n_channels;
        std::int64_t const channel = static_cast<std::int64_t>(blockIdx.y) * n_channels + of_block;
        if (channel < width) {
            float const* const from = of_threads[k][of_block % between_channels] + of_block / between_channels;
            float sum = 0.0f;
            for (int walker = 0; walker < me.n_walkers; ++walker) {
                sum += from[walker * lanes];
            }
            partial[(static_cast<std::int64_t>(blockIdx.x) * K + k) * width + channel] = sum;
        }
    }
}

// ---- forward --------------------------------------------------------------------------------------------------------

// Sums of c1 and of c1^2.
__global__ void __launch_bounds__(between_threads, 4)
    mbconv_expansion_sums_kernel(MBConvExpansionSums const p, int lanes) {
    Walker const me(p.width, lanes);
    Four sums[2] = {};
    if (me.works) {
        auto const* const c1 = static_cast<std::uint16_t const*>(p.c1) + me.channel;
        auto const fetch = [&](std::int64_t row) { return ptx::load_8_read_only(c1 + row * p.width); };
        walk_rows<8>(me, p.n_rows, fetch, [&](std::int64_t, Bits bits) {
            Four const x = four_of_bits(bits);
#pragma unroll
            for (int c = 0; c < between_channels; ++c) {
                sums[0].v[c] += x.v[c];
                sums[1].v[c] = fmaf(x.v[c], x.v[c], sums[1].v[c]);
            }
        });
    }
    add_walkers(me, sums, lanes, p.width, p.partial);
}

// c2 = depthwise convolution of relu6(batch norm of c1), and the sums of c2 - pivot and of (c2 - pivot)^2; around a
// pivot near the mean, the variance loses few digits to cancellation.
template <int STRIDE>
__global__ void __launch_bounds__(between_threads, STRIDE == 1 ? 3 : 2)
    mbconv_depthwise_kernel(MBConvDepthwise const p, int lanes) {
    Walker const me(p.width, lanes);
    Four sums[2] = {};
    if (me.works) {
        auto const parameter = [&](int row) { return four_of(p.parameters, p.width, row, me.channel); };
        Four const scale = parameter(0), shift = parameter(1), bias = parameter(5), pivot = parameter(6);
        Four const taps[3] = {parameter(2), parameter(3), parameter(4)};
        int const n_in = static_cast<int>(p.n_samples), n_out = (n_in - 1) / STRIDE + 1;
        int const runs_of_clip = (n_out + between_run - 1) / between_run;
        auto const* const c1 = static_cast<std::uint16_t const*>(p.c1) + me.channel;
        auto* const c2 = static_cast<std::uint16_t*>(p.c2) + me.channel;
        for (std::int64_t number = me.first(); number < p.n_clips * runs_of_clip; number += me.step()) {
            Run const run(number, runs_of_clip, n_out);
            auto const* const from = c1 + run.clip * n_in * p.width;
            // Beyond the clip fetch returns zeros, from which `activation` makes the convolution's padding: zeros after
            // the ReLU6.
            auto const fetch = [&](int t) {
                return t >= 0 && t < n_in ? ptx::load_8_read_only(from + t * p.width) : Bits{0};
            };
            auto const activation = [&](int t, Bits bits) {
                Four x = four_of_bits(bits);
#pragma unroll
                for (int c = 0; c < between_channels; ++c) {
                    x.v[c] = relu6(normalised(x.v[c], scale.v[c], shift.v[c]));
                    x.v[c] = t >= 0 && t < n_in ? x.v[c] : 0.0f;
                }
                return x;
            };
            auto const write = [&](int s, Four const& left, Four const& middle, Four const& right) {
                Four y;
#pragma unroll
                for (int c = 0; c < between_channels; ++c) {
                    y.v[c] = fmaf(taps[0].v[c], left.v[c], bias.v[c]);
                    y.v[c] = fmaf(taps[1].v[c], middle.v[c], y.v[c]);
                    y.v[c] = fmaf(taps[2].v[c], right.v[c], y.v[c]);
                }
                store_bf16(c2 + (run.clip * n_out + s) * p.width, y);
#pragma unroll
                for (int c = 0; c < between_channels; ++c) {
                    float const d = y.v[c] - pivot.v[c];
                    sums[0].v[c] += d;
                    sums[1].v[c] = fmaf(d, d, sums[1].v[c]);
                }
            };
            int const first = run.begin * STRIDE;
            Four left = activation(first - 1, fetch(first - 1));
            if constexpr (STRIDE == 1) {
                Four middle = activation(first, fetch(first));
                Bits ahead[3] = {fetch(first + 1), fetch(first + 2), fetch(first + 3)};  // loads under way
#pragma unroll 1
                for (int s = run.begin; s < run.end; ++s) {
                    Four const right = activation(s + 1, ahead[0]);
                    ahead[0] = ahead[1];
                    ahead[1] = ahead[2];
                    ahead[2] = fetch(s + 4);
                    write(s, left, middle, right);
                    left = middle;
                    middle = right;
                }
            } else {
                Bits ahead[4] = {fetch(first), fetch(first + 1), fetch(first + 2), fetch(first + 3)};
#pragma unroll 1
                for (int s = run.begin; s < run.end; ++s) {
                    Four const middle = activation(2 * s, ahead[0]), right = activation(2 * s + 1, ahead[1]);
                    ahead[0] = ahead[2];
                    ahead[1] = ahead[3];
                    ahead[2] = fetch(2 * s + 4);
                    ahead[3] = fetch(2 * s + 5);
                    write(s, left, middle, right);
                    left = right;
                }
            }
        }
    }
    add_walkers(me, sums, lanes, p.width, p.partial);
}

// a2 = relu6(batch norm of c2), the projection's factor.
__global__ void __launch_bounds__(between_threads, 4) mbconv_activate_kernel(MBConvActivate const p, int lanes) {
    Walker const me(p.width, lanes);
    if (!me.works) {
        return;
    }
    Four const scale = four_of(p.parameters, p.width, 0, me.channel);
    Four const shift = four_of(p.parameters, p.width, 1, me.channel);
    auto const* const c2 = static_cast<std::uint16_t const*>(p.c2) + me.channel;
    auto* const a2 = static_cast<std::uint16_t*>(p.a2) + me.channel;
    auto const fetch = [&](std::int64_t row) { return ptx::load_8_read_only(c2 + row * p.width); };
    walk_rows<8>(me, p.n_rows, fetch, [&](std::int64_t row, Bits bits) {
        Four x = four_of_bits(bits);
#pragma unroll
        for (int c = 0; c < between_channels; ++c) {
            x.v[c] = relu6(normalised(x.v[c], scale.v[c], shift.v[c]));
        }
        store_bf16(a2 + row * p.width, x);
    });
}

// ---- backward -------------------------------------------------------------------------------------------------------

// Sums of g1, the gradient of the second batch norm's output, and of g1 (c2 - mean).
__global__ void __launch_bounds__(between_threads, 4)
    mbconv_gradient_sums_kernel(MBConvGradientSums const p, int lanes) {
    Walker const me(p.width, lanes);
    Four sums[2] = {};
    if (me.works) {
        auto const parameter = [&](int row) { return four_of(p.parameters, p.width, row, me.channel); };
        Four const scale = parameter(0), shift = parameter(1), mean = parameter(2);
        auto const* const c2 = static_cast<std::uint16_t const*>(p.c2) + me.channel;
        auto const* const da2 = static_cast<std::uint16_t const*>(p.da2) + me.channel;
        struct Both {
            Bits c2, da2;
        };
        auto const fetch = [&](std::int64_t row) {
            return Both{ptx::load_8_read_only(c2 + row * p.width), ptx::load_8_read_only(da2 + row * p.width)};
        };
        walk_rows<4>(me, p.n_rows, fetch, [&](std::int64_t, Both const& bits) {
            Four const x = four_of_bits(bits.c2), g = four_of_bits(bits.da2);
#pragma unroll
            for (int c = 0; c < between_channels; ++c) {
                float const g1 = is_flat(normalised(x.v[c], scale.v[c], shift.v[c])) ? 0.0f : g.v[c];
                sums[0].v[c] += g1;
                sums[1].v[c] = fmaf(g1, x.v[c] - mean.v[c], sums[1].v[c]);
            }
        });
    }
    add_walkers(me, sums, lanes, p.width, p.partial);
}

// g0, the gradient of the first batch norm's output: g1 from da2 and the second ReLU6, dc2 = scale1 g1 + slope c2 +
// constant (backward of the second batch norm), the transposed convolution, and the first ReLU6. Sums of g0 and of
// g0 c1, and the three taps' gradients. A walker's run is of samples of c2; it writes the samples of g0 in step with
// them.
template <int STRIDE>
__global__ void __launch_bounds__(between_threads, 2)
    mbconv_depthwise_backward_kernel(MBConvDepthwiseBackward const p, int lanes) {
    Walker const me(p.width, lanes);
    Four sums[5] = {};
    if (me.works) {
        auto const parameter = [&](int row) { return four_of(p.parameters, p.width, row, me.channel); };
        Four const scale0 = parameter(0), shift0 = parameter(1), scale1 = parameter(5), shift1 = parameter(6);
        Four const taps[3] = {parameter(2), parameter(3), parameter(4)};
        Four const slope = parameter(7), constant = parameter(8);
        int const n_in = static_cast<int>(p.n_samples), n_out = (n_in - 1) / STRIDE + 1;
        int const runs_of_clip = (n_out + between_run - 1) / between_run;
        auto const* const c1 = static_cast<std::uint16_t const*>(p.c1) + me.channel;
        auto const* const c2 = static_cast<std::uint16_t const*>(p.c2) + me.channel;
        auto const* const da2 = static_cast<std::uint16_t const*>(p.da2) + me.channel;
        auto* const g0 = static_cast<std::uint16_t*>(p.g0) + me.channel;
        for (std::int64_t number = me.first(); number < p.n_clips * runs_of_clip; number += me.step()) {
            Run const run(number, runs_of_clip, n_out);
            // What sample s of c2, and the STRIDE samples of c1 in step with it, need from memory; loaded a step before
            // it is used.
            struct Ahead {
                Bits c2, da2, c1[STRIDE];
            };
            auto const fetch = [&](int s) {
                Ahead bits{};
                if (s >= 0 && s < n_out) {
                    std::int64_t const at = (run.clip * n_out + s) * p.width;
                    bits.c2 = ptx::load_8_read_only(c2 + at);
                    bits.da2 = ptx::load_8_read_only(da2 + at);
                }
#pragma unroll
                for (int k = 0; k < STRIDE; ++k) {
                    int const t = s * STRIDE + k;
                    bool const inside = t >= 0 && t < n_in;
                    bits.c1[k] = inside ? ptx::load_8_read_only(c1 + (run.clip * n_in + t) * p.width) : Bits{0};
                }
                return bits;
            };
            auto const gradient = [&](int s, Ahead const& bits) {  // dc2, zero beyond the clip
                Four const x = four_of_bits(bits.c2), g = four_of_bits(bits.da2);
                Four d;
#pragma unroll
                for (int c = 0; c < between_channels; ++c) {
                    float const g1 = is_flat(normalised(x.v[c], scale1.v[c], shift1.v[c])) ? 0.0f : g.v[c];
                    d.v[c] = fmaf(scale1.v[c], g1, fmaf(slope.v[c], x.v[c], constant.v[c]));
                    d.v[c] = s >= 0 && s < n_out ? d.v[c] : 0.0f;
                }
                return d;
            };
            // Sample t of g0. The convolution multiplied its activation by taps 0, 1 and 2 for the outputs one after
            // it, at it and one before it, whose gradients are `after`, `here` and `before`.
            auto const write = [&](int t, Bits bits, Four const& after, Four const& here, Four const& before) {
                Four const x = four_of_bits(bits);
                Four y;
                float a1[between_channels];
#pragma unroll
                for (int c = 0; c < between_channels; ++c) {
                    float const u = normalised(x.v[c], scale0.v[c], shift0.v[c]);
                    float const da1 =
                        fmaf(taps[0].v[c], after.v[c], fmaf(taps[1].v[c], here.v[c], taps[2].v[c] * before.v[c]));
                    a1[c] = relu6(u);
                    y.v[c] = is_flat(u) ? 0.0f : da1;
                }
                store_bf16(g0 + (run.clip * n_in + t) * p.width, y);
#pragma unroll
                for (int c = 0; c < between_channels; ++c) {
                    sums[0].v[c] += y.v[c];
                    sums[1].v[c] = fmaf(y.v[c], x.v[c], sums[1].v[c]);
                    sums[2].v[c] = fmaf(after.v[c], a1[c], sums[2].v[c]);
                    sums[3].v[c] = fmaf(here.v[c], a1[c], sums[3].v[c]);
                    sums[4].v[c] = fmaf(before.v[c], a1[c], sums[4].v[c]);
                }
            };
            Four before = STRIDE == 1 ? gradient(run.begin - 1, fetch(run.begin - 1)) : Four{};
            Ahead bits = fetch(run.begin), next = fetch(run.begin + 1);
            Four here = gradient(run.begin, bits);
#pragma unroll 1
            for (int s = run.begin; s < run.end; ++s) {
                Ahead const later = fetch(s + 2);
                Four const after = gradient(s + 1, next);
                if constexpr (STRIDE == 1) {
                    write(s, bits.c1[0], after, here, before);
                    before = here;
                } else {  // an even sample was in one output, by the middle tap; an odd one in those on either side
                    write(2 * s, bits.c1[0], Four{}, here, Four{});
                    if (2 * s + 1 < n_in) {
                        write(2 * s + 1, bits.c1[STRIDE - 1], after, Four{}, here);
                    }
                }
                here = after;
                bits = next;
                next = later;
            }
        }
    }
    add_walkers(me, sums, lanes, p.width, p.partial);
}

}  // namespace sleepfm::cuda
