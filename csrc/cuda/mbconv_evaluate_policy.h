// Which MBConv blocks the evaluation kernel is compiled for, and how it cuts their work. Host arithmetic only, so that
// it can be asked where there is no GPU.
#pragma once

#include <cstdint>

namespace sleepfm::cuda {

constexpr int mbconv_chunk = 16;  // wide channels that a warp expands, convolves and projects at a time
// Chunks whose weights arrive in shared memory together, a slab. Every width is a multiple of 48 channels: six times a
// multiple of 8.
constexpr int mbconv_chunks_of_slab = 3;

// K, N: channels in and out, in steps of 16. A warp expands a stretch of 16 ROW_TILES samples. Results at its last
// sample, and with stride 1 at its first, would need samples beyond the stretch and belong to neighbouring warps, which
// expand those samples again. BLOCKS: blocks that share a multiprocessor, which caps a thread's registers.
template <int K_, int N_, int STRIDE_, int ROW_TILES_, int WARPS_, int BLOCKS_>
struct MBConvPolicy {
    static constexpr int K = K_, N = N_, STRIDE = STRIDE_, ROW_TILES = ROW_TILES_, WARPS = WARPS_, BLOCKS = BLOCKS_;
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int ROWS = 16 * ROW_TILES;
    static constexpr int OUT_TILES = ROW_TILES / STRIDE;
    static constexpr int OUTPUTS = STRIDE == 1 ? ROWS - 2 : ROWS / 2 - 1;  // results of a warp's stretch
    // A chunk of weights: fragments b of the expansion (K) and of the projection (N), 512 bytes for 16 x 16 weights,
    // then for each of the four lanes t 20 floats: 2 halves x (bias, three taps, bias) x 2 channels.
    static constexpr int FRAGMENT_BYTES = 512, PARAMETER_BYTES = 320;
    static constexpr int CHUNK_BYTES = FRAGMENT_BYTES * (K + N) + PARAMETER_BYTES;
    static constexpr int SLAB_BYTES = mbconv_chunks_of_slab * CHUNK_BYTES;
    static constexpr int SHARED_BYTES = 2 * SLAB_BYTES;
    static_assert(ROW_TILES % STRIDE == 0 && (STRIDE == 1 || STRIDE == 2));
};

// Calls use(Policy{}) with the block's policy and returns true; returns false if no kernel is compiled for the block.
// The cases are the blocks of the published network but for its last stage, whose x and y alone would need 288
// registers (docs/kernels/encoder-blocks-cuda.md).
template <typename Use>
bool for_mbconv_policy(std::int64_t n_in, std::int64_t width, std::int64_t n_out, int stride, Use use) {
    if (n_in < 8 || n_out < 8 || width < 48 || n_in % 8 != 0 || n_out % 8 != 0 || width % 48 != 0) {
        return false;
    }
    std::int64_t const K = (n_in + 15) / 16, N = (n_out + 15) / 16;
    auto const is = [&](std::int64_t k, std::int64_t n, int s) { return K == k && N == n && stride == s; };
    if (is(1, 1, 1)) {
        use(MBConvPolicy<1, 1, 1, 4, 8, 2>{});
    } else if (is(1, 2, 2)) {
        use(MBConvPolicy<1, 2, 2, 4, 8, 2>{});
    } else if (is(2, 1, 2)) {
        use(MBConvPolicy<2, 1, 2, 4, 8, 2>{});
    } else if (is(2, 2, 1)) {
        use(MBConvPolicy<2, 2, 1, 4, 12, 1>{});
    } else if (is(2, 3, 2)) {
        use(MBConvPolicy<2, 3, 2, 4, 12, 1>{});
    } else if (is(3, 3, 1)) {
        use(MBConvPolicy<3, 3, 1, 4, 8, 1>{});
    } else if (is(3, 5, 2)) {
        use(MBConvPolicy<3, 5, 2, 4, 8, 1>{});
    } else if (is(5, 5, 1)) {
        use(MBConvPolicy<5, 5, 1, 2, 12, 1>{});
    } else if (is(5, 7, 2)) {
        use(MBConvPolicy<5, 7, 2, 2, 12, 1>{});
    } else if (is(7, 7, 1)) {
        use(MBConvPolicy<7, 7, 1, 2, 8, 1>{});
    } else if (is(7, 12, 2)) {
        use(MBConvPolicy<7, 12, 2, 2, 8, 1>{});
    } else {
        return false;
    }
    return true;
}

}  // namespace sleepfm::cuda
