// The contrastive loss of a small batch in one launch; pointers lie on the device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "host_device.h"
#include "params.h"

namespace sleepfm {

struct ContrastiveSmall {
    ContrastiveInput input;      // float32, bfloat16 or float16; n_threads is not used
    std::int64_t begin, end;     // samples that are computed, as rows and as columns against all N
    bool given_state;            // n_valid and state are read (backward), else written; ranks and the losses with them
    float* loss;                 // []
    float* losses;               // [P, 2]
    std::int64_t* correct;       // [P, 2]
    std::int32_t* ranks;         // [P, 2, N]
    std::int64_t* n_valid;       // [P]
    double* state;               // [P, CONTRASTIVE_STATE_ROWS, N]; null: not kept
    float const* gradient_loss;  // []; null: 1
    void* gradient_x;            // [M, N, D] contiguous, of gradient_dtype; null: no gradient
    DType gradient_dtype;
    float* gradient_log_temperature;  // []
    unsigned* barrier;                // 0 before its first use; launches that may overlap need one each
};

SLEEPFM_HOST_DEVICE inline std::int64_t contrastive_n_problems(ContrastiveInput const& p) {
    return p.pairwise ? p.n_modalities * (p.n_modalities - 1) / 2 : p.n_modalities;
}

// Arrays of the workspace, by size of element. P problems have 2 P softmaxes: q = 2 problem + direction.
struct ContrastiveSmallArrays {
    double *losses, *slopes;           // [2P, N] of each row
    double* inverse_norm;              // [M, N]
    float *unit, *mean;                // [M, N, D]; mean: of the other modalities, leave-one-out only
    float* cosine;                     // [2P, N, N], direction 1 transposed; -inf where a pair does not count
    float *largest, *weight, *missed;  // [2P, N]
    float* gradient;                   // [2P, N, D]
    std::uint8_t* shared;              // [M, N] present, and not alone
};

// Returns the bytes that the arrays take.
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
// Of the summed dimension, in shared memory at a time: a thread loads four elements of either operand.
SLEEPFM_HOST_DEVICE constexpr std::int64_t contrastive_small_slab(std::int64_t tile) {
    return 4 * contrastive_small_threads / tile;
}

struct ContrastiveSmallLaunch {
    std::int64_t tile;          // 16 or 32: edge of a tile of similarities or of gradients
    std::int64_t blocks;        // 1: no barrier between blocks
    std::int64_t shared_bytes;  // dynamic
};

// Two operands of a slab (rows padded by 16 bytes), or the partial sums of the four groups of threads.
constexpr std::int64_t contrastive_small_shared_bytes(std::int64_t tile) {
    std::int64_t const operands = 2 * contrastive_small_slab(tile) * (tile + 4), sums = 4 * tile * tile;
    return 4 * (operands > sums ? operands : sums);
}

// Small tiles until large ones would occupy half of the multiprocessors.
inline std::int64_t contrastive_small_tile(ContrastiveInput const& p, std::int64_t n_multiprocessors) {
    std::int64_t const strips = (p.n_samples + 31) / 32;
    return 2 * contrastive_n_problems(p) * strips * strips < n_multiprocessors ? 16 : 32;
}

// resident_blocks: how many blocks of that tile the device runs at a time.
inline ContrastiveSmallLaunch contrastive_small_launch(ContrastiveInput const& p, bool gradient, std::int64_t tile,
                                                       std::int64_t resident_blocks) {
    // 200,000 multiply-adds are 2 microseconds of one multiprocessor, about what the barriers would cost.
    constexpr std::int64_t alone = 200000;
    std::int64_t const P = contrastive_n_problems(p), N = p.n_samples;
    std::int64_t const work = P * N * N * p.n_dim * (gradient ? 3 : 1);
    std::int64_t const strips = (N + tile - 1) / tile, depth = (p.n_dim + tile - 1) / tile;
    std::int64_t const tiles = P * strips * strips, gradient_tiles = gradient ? 2 * P * strips * depth : 0;
    std::int64_t const wanted = std::max({tiles, gradient_tiles / 2, N});
    std::int64_t const blocks = work <= alone ? 1 : std::max<std::int64_t>(1, std::min(wanted, resident_blocks));
    return {tile, blocks, contrastive_small_shared_bytes(tile)};
}

inline std::int64_t contrastive_small_workspace_bytes(ContrastiveInput p, bool gradient) {
    p.workspace = nullptr;
    ContrastiveSmallArrays arrays{};
    return contrastive_small_arrays(p, gradient, arrays);
}

// stream is a cudaStream_t. Returns before the kernel has run.
void contrastive_small_cuda(ContrastiveSmall const& p, int device, void* stream);

}  // namespace sleepfm
