// Which MBConv blocks the evaluation kernel is compiled for, and how it cuts their work: pure host arithmetic.
#pragma once

#include <cstdint>

namespace sleepfm::cuda {

constexpr int mbconv_chunk = 16;          // channels of the wide activation that are made and used at a time
constexpr int mbconv_chunks_of_slab = 3;  // that arrive in shared memory together: width is a multiple of 6 x 8

// K, N: channels in and out, in steps of 16. A warp expands 16 ROW_TILES samples and keeps them to itself; the first
// and the last one are its neighbours', computed again. BLOCKS: that share a multiprocessor, which caps the registers.
template <int K_, int N_, int STRIDE_, int ROW_TILES_, int WARPS_, int BLOCKS_>
struct MBConvPolicy {
    static constexpr int K = K_, N = N_, STRIDE = STRIDE_, ROW_TILES = ROW_TILES_, WARPS = WARPS_, BLOCKS = BLOCKS_;
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int ROWS = 16 * ROW_TILES;
    static constexpr int OUT_TILES = ROW_TILES / STRIDE;
    static constexpr int OUTPUTS = STRIDE == 1 ? ROWS - 2 : ROWS / 2 - 1;
    // Fragments of both matrices, 512 bytes for 16 x 16 weights, then four groups of 20 floats: biases and taps.
    static constexpr int FRAGMENT_BYTES = 512, PARAMETER_BYTES = 320;
    static constexpr int CHUNK_BYTES = FRAGMENT_BYTES * (K + N) + PARAMETER_BYTES;
    static constexpr int SLAB_BYTES = mbconv_chunks_of_slab * CHUNK_BYTES;
    static constexpr int SHARED_BYTES = 2 * SLAB_BYTES;
    static_assert(ROW_TILES % STRIDE == 0 && (STRIDE == 1 || STRIDE == 2));
};

// Calls use(Policy{}) for the block and returns true, or returns false: not compiled for it.
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
