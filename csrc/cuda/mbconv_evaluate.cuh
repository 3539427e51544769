// An MBConv block in evaluation as one kernel: expansion, ReLU6, depthwise convolution of 3, ReLU6, projection and
// residual. In memory only x is read and y written. A warp holds a stretch of one clip's samples in registers
// throughout and goes through the wide channels 16 at a time; the sums of one product (mma fragment d) are, rounded,
// the first factor of the next (fragment a). Only weights pass through shared memory, in two slabs: while one is used,
// cp.async fills the other. One barrier for each slab says both that it has arrived and that the other is no longer
// read.
//
// Samples: a lane's rows of the fragments are consecutive in time. With g = lane / 4, lane 4 g + t holds rows
// 2 ROW_TILES g to 2 ROW_TILES g + 2 ROW_TILES - 1 of the stretch; row r is row g (r even) or g + 8 (r odd) of the
// tensor cores' tile r / 2 % ROW_TILES. So all neighbours of the depthwise convolution but the first and the last are
// the lane's own: two exchanges for a channel, one with stride 2.
// Channels: lane t holds 8 consecutive ones of every 32 (4 of a last 16) of x and y, so that it reads and writes 16
// bytes at a time. The weights' rows and columns are permuted to match: sleepfm_fast/ops/mbconv_evaluate.py.
// ReLU6 is saturation to [0, 1], which additions and multiply-adds do at no cost: the weights and biases before each
// ReLU6 are divided by 6, and the projection's are multiplied by 6.
#pragma once

#include <cstdint>

#include "cuda/mbconv_evaluate_policy.h"
#include "cuda/ptx.h"
#include "params.h"

namespace sleepfm::cuda {

// ---- element types --------------------------------------------------------------------------------------------------

// The type of the matrices, of x and of y: bf16 or f16.
template <DType type>
struct MBConvElement {
    static_assert(type == DType::bf16 || type == DType::f16, "what the tensor cores read");
    static constexpr bool BF16 = type == DType::bf16;
    static constexpr std::uint32_t nan_pair = BF16 ? 0x7fc07fc0u : 0x7e007e00u;

    static __device__ __forceinline__ void mma(float (&d)[4], std::uint32_t const (&a)[4],
                                               std::uint32_t const (&b)[2]) {
        BF16 ? ptx::mma_m16n8k16_bf16(d, a, b) : ptx::mma_m16n8k16_f16(d, a, b);
    }
    static __device__ __forceinline__ std::uint32_t pack(float low, float high) {
        return BF16 ? ptx::pack_bf16(low, high) : ptx::pack_f16(low, high);
    }
    static __device__ __forceinline__ float unpack(std::uint16_t bits) {
        return BF16 ? ptx::from_bf16(bits) : ptx::from_f16(bits);
    }
};

// ---- addresses ------------------------------------------------------------------------------------------------------

// The first of the 8 (4) consecutive channels that lane t of four holds of the 32 (a last 16) channels of `group`.
// STEPS: channels of the row in steps of 16.
template <int STEPS>
__device__ __forceinline__ int mbconv_channel(int group, int t) {
    return 32 * group + (group < STEPS / 2 ? 8 : 4) * t;
}

__device__ __forceinline__ float mbconv_float(std::uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Begins the copy of a slab of weights, shared out among all threads; the caller commits.
template <typename Policy>
__device__ __forceinline__ void mbconv_copy_slab(unsigned char* slab, unsigned char const* from) {
#pragma unroll 1
    for (int at = ptx::thread_index() * 16; at < Policy::SLAB_BYTES; at += Policy::THREADS * 16) {
        ptx::cp_async_16(slab + at, from + at, true);
    }
}

// ---- the stretch of a warp ------------------------------------------------------------------------------------------

// Loads x as the expansion's first factor (fragment a). Samples outside the clip and channels beyond n_in are zeros.
// first: the sample of row 0, -1 at the beginning of a clip.
template <typename Policy>
__device__ __forceinline__ void mbconv_load(std::uint32_t (&x)[Policy::ROW_TILES][Policy::K][4], MBConvPacked const& p,
                                            std::int64_t clip, int first, int lane) {
    int const t = lane % 4, n_in = static_cast<int>(p.n_in);
    int const sample = first + 2 * Policy::ROW_TILES * (lane / 4);
    unsigned const n_samples = clip < p.n_clips ? static_cast<unsigned>(p.n_samples) : 0u;
    auto const* row = static_cast<std::uint16_t const*>(p.x) + (clip * p.n_samples + sample) * p.n_in;
#pragma unroll
    for (int r = 0; r < 2 * Policy::ROW_TILES; ++r, row += n_in) {
        int const i = r / 2, half = r % 2;
        bool const inside = static_cast<unsigned>(sample + r) < n_samples;
#pragma unroll
        for (int q = 0; q < Policy::K / 2; ++q) {
            int const channel = mbconv_channel<Policy::K>(q, t);
            ptx::Words4 words{};
            if (inside && channel < n_in) {
                words = ptx::load_16_read_only(row + channel);
            }
            x[i][2 * q][half] = words.word[0];
            x[i][2 * q][2 + half] = words.word[1];
            x[i][2 * q + 1][half] = words.word[2];
            x[i][2 * q + 1][2 + half] = words.word[3];
        }
        if constexpr (Policy::K % 2 != 0) {
            int const channel = mbconv_channel<Policy::K>(Policy::K / 2, t);
            bool const reads = inside && channel < n_in;
            // Two loads: the words of one load of 8 bytes would be in neighbouring registers, and would be moved to
            // those that the tensor cores want again in every chunk.
            x[i][Policy::K - 1][half] = reads ? ptx::load_4_read_only(row + channel) : 0u;
            x[i][Policy::K - 1][2 + half] = reads ? ptx::load_4_read_only(row + channel + 2) : 0u;
        }
    }
}

// Finds samples that are not finite, since saturation would turn NaN into 0. Bit r of the result: one of the rows r -
// 1, r and r + 1 around this lane's row r is not finite, so that an output there must be NaN. Warp-collective.
template <typename Policy, typename Element>
__device__ __forceinline__ unsigned mbconv_spoilt(std::uint32_t const (&x)[Policy::ROW_TILES][Policy::K][4], int lane) {
    constexpr int ROWS = 2 * Policy::ROW_TILES;
    unsigned spoilt = 0;
    std::uint32_t const zeros[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < Policy::ROW_TILES; ++i) {
        // Rows of x times zeros: NaN if an element is not finite, else 0; the same in all four lanes that share a row.
        float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int s = 0; s < Policy::K; ++s) {
            Element::mma(sums, x[i][s], zeros);
        }
        spoilt |= (sums[0] == 0.0f ? 0u : 1u) << 2 * i | (sums[2] == 0.0f ? 0u : 2u) << 2 * i;
    }
    unsigned const before = ptx::shuffle_idx(spoilt, (lane + 28) % 32),
                   after = ptx::shuffle_idx(spoilt, (lane + 4) % 32);
    // Bit r + 1 is row r; bits 0 and ROWS + 1 are the last row of the lane before and the first of the lane behind.
    unsigned const seen = spoilt << 1 | before >> (ROWS - 1) | (after & 1u) << (ROWS + 1);
    return seen | seen >> 1 | seen >> 2;
}

// What is special about a lane's rows, of which there are at most 8, in one register: bits 0 to 7 outside, bits 8 to 15
// spoilt, bit 31 at_edge.
class MBConvRows {
  public:
    MBConvRows() = default;
    __device__ __forceinline__ MBConvRows(unsigned outside, unsigned spoilt, bool at_edge)
        : bits_(outside | (spoilt & 0xffu) << 8 | (at_edge ? 0x80000000u : 0u)) {}
    // Row r lies outside the clip and is the depthwise convolution's zero padding.
    __device__ __forceinline__ bool outside(int r) const { return (bits_ >> r & 1u) != 0; }
    // Some row of some lane of the warp lies outside the clip.
    __device__ __forceinline__ bool at_edge() const { return static_cast<int>(bits_) < 0; }
    // An output whose middle tap is on row r sees a sample that is not finite.
    __device__ __forceinline__ bool spoilt(int r) const { return (bits_ >> (8 + r) & 1u) != 0; }

  private:
    unsigned bits_;
};

// ---- a chunk of 16 wide channels ------------------------------------------------------------------------------------

// y += what 16 wide channels contribute: expands them (`wide`), convolves and packs them (`narrow`, fragment a), and
// multiplies with the projection. chunk: their weights in shared memory. Warp-collective.
template <typename Policy, typename Element>
__device__ __forceinline__ void mbconv_add_chunk(float (&y)[Policy::OUT_TILES][2 * Policy::N][4],
                                                 std::uint32_t const (&x)[Policy::ROW_TILES][Policy::K][4],
                                                 unsigned char const* chunk, MBConvRows rows, int lane) {
    constexpr int ROWS = 2 * Policy::ROW_TILES;
    unsigned char const* const fragments = chunk + 16 * lane;
    float wide[2][Policy::ROW_TILES][4];
#pragma unroll
    for (int i = 0; i < Policy::ROW_TILES; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            wide[0][i][e] = wide[1][i][e] = 0.0f;
        }
    }
#pragma unroll
    for (int s = 0; s < Policy::K; ++s) {
        auto const w = *reinterpret_cast<ptx::Words4 const*>(fragments + s * Policy::FRAGMENT_BYTES);
        std::uint32_t const first[2] = {w.word[0], w.word[1]}, second[2] = {w.word[2], w.word[3]};
#pragma unroll
        for (int i = 0; i < Policy::ROW_TILES; ++i) {
            Element::mma(wide[0][i], x[i][s], first);
            Element::mma(wide[1][i], x[i][s], second);
        }
    }
    // parameter(n, which, k), for channel 2 t + k of half n of the chunk: which = 0 the expansion's bias, 1 to 3 the
    // taps, 4 the depthwise convolution's bias.
    auto const* const parameters = reinterpret_cast<ptx::Words4 const*>(
        chunk + (Policy::K + Policy::N) * Policy::FRAGMENT_BYTES + lane % 4 * (Policy::PARAMETER_BYTES / 4));
    ptx::Words4 const words[5] = {parameters[0], parameters[1], parameters[2], parameters[3], parameters[4]};
    auto const parameter = [&](int n, int which, int k) {
        return mbconv_float(words[(10 * n + 2 * which + k) / 4].word[(10 * n + 2 * which + k) % 4]);
    };
    std::uint32_t narrow[Policy::OUT_TILES][4];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
        float out[2][ROWS / Policy::STRIDE];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            float v[ROWS + 2];  // row r is v[r + 1]; a neighbour on either side
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                v[r + 1] = ptx::add_saturated(wide[n][r / 2][2 * (r % 2) + k], parameter(n, 0, k));
            }
            if (rows.at_edge()) {  // ReLU6 of the bias is not 0, but padding is
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    v[r + 1] = rows.outside(r) ? 0.0f : v[r + 1];
                }
            }
            v[0] = Policy::STRIDE == 1 ? ptx::shuffle_idx(v[ROWS], (lane + 28) % 32) : 0.0f;
            v[ROWS + 1] = ptx::shuffle_idx(v[1], (lane + 4) % 32);
#pragma unroll
            for (int o = 0; o < ROWS / Policy::STRIDE; ++o) {
                int const r = Policy::STRIDE == 1 ? o + 1 : 2 * o + 2;  // place in v of the middle tap
                float sum = v[r - 1] * parameter(n, 1, k) + parameter(n, 4, k);
                sum = v[r] * parameter(n, 2, k) + sum;
                out[k][o] = ptx::multiply_add_saturated(v[r + 1], parameter(n, 3, k), sum);
            }
        }
#pragma unroll
        for (int o = 0; o < ROWS / Policy::STRIDE; ++o) {
            narrow[o / 2][2 * n + o % 2] = Element::pack(out[0][o], out[1][o]);
        }
    }
#pragma unroll
    for (int j = 0; j < Policy::N; ++j) {
        auto const w = *reinterpret_cast<ptx::Words4 const*>(fragments + (Policy::K + j) * Policy::FRAGMENT_BYTES);
        std::uint32_t const first[2] = {w.word[0], w.word[1]}, second[2] = {w.word[2], w.word[3]};
#pragma unroll
        for (int i = 0; i < Policy::OUT_TILES; ++i) {
            Element::mma(y[i][2 * j], narrow[i], first);
            Element::mma(y[i][2 * j + 1], narrow[i], second);
        }
    }
}

// ---- results --------------------------------------------------------------------------------------------------------

// The values that y's sums begin with: the projection's bias and, with a residual, x, which has the same layout.
template <typename Policy, typename Element>
__device__ __forceinline__ void mbconv_begin(float (&y)[Policy::OUT_TILES][2 * Policy::N][4],
                                             std::uint32_t const (&x)[Policy::ROW_TILES][Policy::K][4],
                                             MBConvPacked const& p, int lane) {
#pragma unroll
    for (int j = 0; j < 2 * Policy::N; ++j) {
        int const group = j / 4 < Policy::N / 2 ? j / 4 : Policy::N / 2;
        int const channel = mbconv_channel<Policy::N>(group, lane % 4) + 2 * (j - 4 * group);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            float const bias = p.bias[channel + k];
#pragma unroll
            for (int i = 0; i < Policy::OUT_TILES; ++i) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    y[i][j][2 * half + k] = bias;
                    if constexpr (Policy::STRIDE == 1 && Policy::K == Policy::N) {
                        std::uint32_t const pair = x[i][j / 2][2 * (j % 2) + half];
                        y[i][j][2 * half + k] +=
                            p.residual ? Element::unpack(static_cast<std::uint16_t>(pair >> 16 * k)) : 0.0f;
                    }
                }
            }
        }
    }
}

// Writes the stretch's outputs that exist and belong to this warp; an output that sees a sample that is not finite is
// NaN in all channels.
template <typename Policy, typename Element>
__device__ __forceinline__ void mbconv_store(float const (&y)[Policy::OUT_TILES][2 * Policy::N][4],
                                             MBConvPacked const& p, std::int64_t clip, int first_output,
                                             MBConvRows rows, int lane) {
    int const g = lane / 4, t = lane % 4, n_out = static_cast<int>(p.n_out);
    int const n_outputs = static_cast<int>((p.n_samples - 1) / Policy::STRIDE + 1);
    // The number within the stretch of the lane's first output; with stride 1 row 0 is the sample before the stretch.
    int const first = 2 * Policy::OUT_TILES * g - (Policy::STRIDE == 1 ? 1 : 0);
    int const last = n_outputs - first_output < Policy::OUTPUTS ? n_outputs - first_output : Policy::OUTPUTS;
    auto* row = static_cast<std::uint16_t*>(p.y) + (clip * n_outputs + first_output + first) * p.n_out;
#pragma unroll
    for (int o = 0; o < 2 * Policy::OUT_TILES; ++o, row += n_out) {
        int const i = o / 2, half = o % 2;
        if (clip >= p.n_clips || first + o < 0 || first + o >= last) {
            continue;
        }
        bool const nan = rows.spoilt(Policy::STRIDE == 1 ? o : 2 * o + 1);
        auto const pair = [&](int j) {
            return nan ? Element::nan_pair : Element::pack(y[i][j][2 * half], y[i][j][2 * half + 1]);
        };
#pragma unroll
        for (int q = 0; q < Policy::N / 2; ++q) {
            int const channel = mbconv_channel<Policy::N>(q, t);
            if (channel < n_out) {
                ptx::store_16(row + channel, {{pair(4 * q), pair(4 * q + 1), pair(4 * q + 2), pair(4 * q + 3)}});
            }
        }
        if constexpr (Policy::N % 2 != 0) {
            int const channel = mbconv_channel<Policy::N>(Policy::N / 2, t);
            if (channel < n_out) {
                *reinterpret_cast<std::uint64_t*>(row + channel) =
                    static_cast<std::uint64_t>(pair(2 * Policy::N - 1)) << 32 | pair(2 * Policy::N - 2);
            }
        }
    }
}

// ---- kernel ---------------------------------------------------------------------------------------------------------

// A warp's stretch: OUTPUTS outputs of one clip.
template <typename Policy>
struct MBConvStretch {
    std::int64_t clip;
    int first_output;

    // n_stretches: stretches of a clip. The thread's number is read anew, so that no register holds this during the
    // loop over weights.
    __device__ __forceinline__ explicit MBConvStretch(int n_stretches) {
        unsigned const stretch = blockIdx.x * Policy::WARPS + static_cast<unsigned>(ptx::thread_index()) / 32;
        unsigned const of_clip = static_cast<unsigned>(n_stretches);
        clip = stretch / of_clip;
        first_output = static_cast<int>(stretch % of_clip) * Policy::OUTPUTS;
    }
};

template <typename Policy, DType type>
__global__ void __launch_bounds__(Policy::THREADS, Policy::BLOCKS)
    mbconv_evaluate_kernel(MBConvPacked const p, int n_stretches) {
    using Element = MBConvElement<type>;
    SLEEPFM_DYNAMIC_SHARED(unsigned char, slabs);
    int const lane = ptx::thread_index() % 32;
    auto const* const weights = static_cast<unsigned char const*>(p.packed);
    int const n_slabs = static_cast<int>(p.width) / (mbconv_chunk * mbconv_chunks_of_slab);
    mbconv_copy_slab<Policy>(slabs, weights);
    ptx::cp_async_commit();

    std::uint32_t x[Policy::ROW_TILES][Policy::K][4];
    float y[Policy::OUT_TILES][2 * Policy::N][4];
    MBConvRows rows;
    {
        MBConvStretch<Policy> const stretch(n_stretches);
        int const first = Policy::STRIDE * stretch.first_output - 1;
        mbconv_load<Policy>(x, p, stretch.clip, first, lane);
        unsigned const spoilt = mbconv_spoilt<Policy, Element>(x, lane);
        unsigned outside = 0;
#pragma unroll
        for (int r = 0; r < 2 * Policy::ROW_TILES; ++r) {
            int const sample = first + 2 * Policy::ROW_TILES * (lane / 4) + r;
            outside |= sample < 0 || sample >= p.n_samples ? 1u << r : 0u;
        }
        rows = MBConvRows(outside, spoilt, ptx::any(outside != 0));
    }
    mbconv_begin<Policy, Element>(y, x, p, lane);

    for (int slab = 0; slab < n_slabs; ++slab) {
        ptx::cp_async_wait<0>();
        ptx::sync_threads();  // the slab has arrived for all threads; the one before it, overwritten next, was read
        if (slab + 1 < n_slabs) {
            mbconv_copy_slab<Policy>(slabs + (slab + 1) % 2 * Policy::SLAB_BYTES,
                                     weights + static_cast<std::int64_t>(slab + 1) * Policy::SLAB_BYTES);
            ptx::cp_async_commit();
        }
        unsigned char const* const chunks = slabs + slab % 2 * Policy::SLAB_BYTES;
#pragma unroll 1
        for (int c = 0; c < mbconv_chunks_of_slab; ++c) {
            mbconv_add_chunk<Policy, Element>(y, x, chunks + c * Policy::CHUNK_BYTES, rows, lane);
        }
    }
    MBConvStretch<Policy> const stretch(n_stretches);
    mbconv_store<Policy, Element>(y, p, stretch.clip, stretch.first_output, rows, ptx::thread_index() % 32);
}

}  // namespace sleepfm::cuda
