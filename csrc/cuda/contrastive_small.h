// The contrastive loss of a small batch in one launch (`small` in docs/kernels/contrastive-loss-cuda.md): its
// arguments, its workspace, and how many blocks of which tile suit the batch. All pointers lie on the device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "host_device.h"
#include "params.h"

namespace sleepfm {

struct ContrastiveSmall {
    ContrastiveInput input;   // float32, bfloat16 or float16; its begin, end, kept and n_threads are not used
    std::int64_t begin, end;  // results are for these samples, as rows and as columns, each against all N
    // true (backward alone): n_valid and state are read, and losses, correct and ranks are not touched. false: all of
    // them are written.
    bool given_state;
    float* loss;                 // []
    float* losses;               // [P, 2]
    std::int64_t* correct;       // [P, 2]
    std::int32_t* ranks;         // [P, 2, N]
    std::int64_t* n_valid;       // [P]
    double* state;               // [P, CONTRASTIVE_STATE_ROWS, N]; null: not kept
    float const* gradient_loss;  // []; null: it is 1
    void* gradient_x;            // [M, N, D] contiguous, of gradient_dtype; null: no gradients are computed
    DType gradient_dtype;
    float* gradient_log_temperature;  // []
    unsigned* barrier;  // grid_barrier's state, 0 before its first use; overlapping launches need one each
};

SLEEPFM_HOST_DEVICE inline std::int64_t contrastive_n_problems(ContrastiveInput const& p) {
    return p.pairwise ? p.n_modalities * (p.n_modalities - 1) / 2 : p.n_modalities;
}

// The workspace's arrays, those of wider elements first. P problems have 2 P softmaxes, q = 2 problem + direction,
// whose rows are the problem's rows (direction 0) or its columns (direction 1).
struct ContrastiveSmallArrays {
    double *losses, *slopes;  // [2P, N] of each row: its loss, and sum over c of p_rc (x_rc - x_rr)
    double* inverse_norm;     // [M, N] 1 / max(norm, norm_floor), negative where the norm is below the floor
    float *unit, *mean;       // [M, N, D] unit rows, and means of the other modalities' (leave-one-out only)
    float* cosine;            // [2P, N, N], for direction 1 transposed; -inf where a sample of the pair is not valid
    // [2P, N] the largest cosine m of the other pairs; 1 / (sum over all pairs of exp(s (x - m))); the probability that
    // is not on the own pair. The last two are 0 in direction 1 if only rows count.
    float *largest, *weight, *missed;
    float* gradient;       // [2P, N, D] of the operand that is softmax q's rows, less the common factor
    std::uint8_t* shared;  // [M, N] 1 where the sample has the modality and at least one other
};

// Cuts p.workspace into the arrays and returns the bytes that they take; a null workspace is only counted.
SLEEPFM_HOST_DEVICE inline std::int64_t contrastive_small_arrays(ContrastiveInput const& p, bool gradient,
                                                                 ContrastiveSmallArrays& arrays) {
    std::int64_t const n_rows = 2 * contrastive_n_problems(p) * p.n_samples;
    std::int64_t const of_samples = p.n_modalities * p.n_samples, of_x = of_samples * p.n_dim;
    char* const base = static_cast<char*>(p.workspace);
    std::int64_t at = 0;
    auto const doubles = [&](std::int64_t n) {
        double* const array = base == nullptr ? nullptr : reinterpret_cast<double*>(base + at);
        at += 8 * n;
        return array;
    };
    auto const floats = [&](std::int64_t n) {
        float* const array = base == nullptr ? nullptr : reinterpret_cast<float*>(base + at);
        at += 4 * n;
        return array;
    };
    arrays.losses = doubles(n_rows);
    arrays.slopes = doubles(n_rows);
    arrays.inverse_norm = doubles(of_samples);
    arrays.unit = floats(of_x);
    arrays.mean = floats(p.pairwise ? 0 : of_x);
    arrays.cosine = floats(n_rows * p.n_samples);
    arrays.largest = floats(n_rows);
    arrays.weight = floats(n_rows);
    arrays.missed = floats(n_rows);
    arrays.gradient = floats(gradient ? n_rows * p.n_dim : 0);
    arrays.shared = base == nullptr ? nullptr : reinterpret_cast<std::uint8_t*>(base + at);
    return at + of_samples;
}

constexpr std::int64_t contrastive_small_threads = 256;
// How much of the summed dimension is in shared memory at a time: a thread then loads four elements of either operand.
SLEEPFM_HOST_DEVICE constexpr std::int64_t contrastive_small_slab(std::int64_t tile) {
    return 4 * contrastive_small_threads / tile;
}

struct ContrastiveSmallLaunch {
    std::int64_t tile;          // 16 or 32: edge of a tile of similarities or of gradients
    std::int64_t blocks;        // with 1, the block's own barrier takes the place of the grid's
    std::int64_t shared_bytes;  // dynamic shared memory
};

// The same memory holds a slab of both operands (a row of `tile` floats and 4 of padding for each k), and later the
// partial sums of the four groups of threads.
constexpr std::int64_t contrastive_small_shared_bytes(std::int64_t tile) {
    std::int64_t const operands = 2 * contrastive_small_slab(tile) * (tile + 4), sums = 4 * tile * tile;
    return 4 * (operands > sums ? operands : sums);
}

// Tiles of 16 x 16 until those of 32 x 32 would occupy half of the multiprocessors: till then the time is latency.
inline std::int64_t contrastive_small_tile(ContrastiveInput const& p, std::int64_t n_multiprocessors) {
    std::int64_t const strips = (p.n_samples + 31) / 32;
    return 2 * contrastive_n_problems(p) * strips * strips < n_multiprocessors ? 16 : 32;
}

// resident_blocks: how many blocks with this tile the device runs at a time; a grid barrier needs all of them running.
inline ContrastiveSmallLaunch contrastive_small_launch(ContrastiveInput const& p, bool gradient, std::int64_t tile,
                                                       std::int64_t resident_blocks) {
    // 200,000 multiply-adds take one multiprocessor about 2 microseconds, computed, not measured: about what the grid
    // barriers of several blocks would cost.
    constexpr std::int64_t alone = 200000;
    std::int64_t const P = contrastive_n_problems(p), N = p.n_samples;
    std::int64_t const work = P * N * N * p.n_dim * (gradient ? 3 : 1);
    std::int64_t const strips = (N + tile - 1) / tile, depth = (p.n_dim + tile - 1) / tile;
    std::int64_t const tiles = P * strips * strips, gradient_tiles = gradient ? 2 * P * strips * depth : 0;
    std::int64_t const wanted = std::max({tiles, gradient_tiles / 2, N});
    std::int64_t const blocks = work <= alone ? 1 : std::max<std::int64_t>(1, std::min(wanted, resident_blocks));
    return {tile, blocks, contrastive_small_shared_bytes(tile)};
}

// Calls launch(blocks), and while it returns false, that these are too many at a time, again with half of them. Returns
// the number that was launched, or 0 if not even one could be. The results do not depend on it. What instruments a
// kernel, or gives the process a part of the device only, may leave room for fewer blocks than the runtime was asked
// about.
template <typename Launch>
std::int64_t launch_that_fits(std::int64_t blocks, Launch launch) {
    while (blocks > 0 && !launch(blocks)) {
        blocks /= 2;
    }
    return blocks;
}

inline std::int64_t contrastive_small_workspace_bytes(ContrastiveInput p, bool gradient) {
    p.workspace = nullptr;
    ContrastiveSmallArrays arrays{};
    return contrastive_small_arrays(p, gradient, arrays);
}

// `stream` is a cudaStream_t. Returns before the kernel has run.
void contrastive_small_cuda(ContrastiveSmall const& p, int device, void* stream);

}  // namespace sleepfm
