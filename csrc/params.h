// The contract of every op: one plain struct each. The shape stands after every pointer; strides count elements.
// Kernels see these structs and nothing else: no torch, no Python, no allocation of outputs.
#pragma once

#include <cstdint>

namespace sleepfm {

// Element types that cross the boundary; the numbers are shared with sleepfm_fast/ops.py.
enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };

// ---- filter_resample ------------------------------------------------------------------------------------------------

// ---- contrastive_loss -----------------------------------------------------------------------------------------------

// What forward and backward read. M modalities, N samples, D dimensions, P problems: M for leave-one-out,
// M(M-1)/2 for pairwise. "T" is double where x is, else float.
struct ContrastiveInput {
    void const* x;  // [M, N, D], elements of `dtype`, the last stride 1
    DType dtype;
    std::int64_t stride_modality;
    std::int64_t stride_sample;
    std::int64_t n_modalities;
    std::int64_t n_samples;
    std::int64_t n_dim;
    void const* log_temperature;  // [] T
    std::uint8_t const* mask;     // [M, N] 1 where present; null: all present
    std::int64_t mask_stride_modality;
    std::int64_t mask_stride_sample;
    bool pairwise;         // problems (i < j) instead of one modality against the mean of the others
    bool both_directions;  // the loss counts rows and columns; else rows only
    int n_threads;
    void* workspace;  // contrastive_workspace_bytes(...), aligned to 64 bytes
};

// What backward needs of forward, a row of N doubles each: the cosine of the pair that belongs together; then for rows
// and for columns: the largest cosine of the others, 1 / (sum of exponentials relative to it), probability missed.
constexpr int CONTRASTIVE_STATE_ROWS = 7;

struct ContrastiveForward {
    ContrastiveInput input;
    void* loss;             // [] T
    void* losses;           // [P, 2] T
    std::int64_t* correct;  // [P, 2]
    std::int32_t* ranks;    // [P, 2, N], -1 where the sample does not take part
    std::int64_t* n_valid;  // [P]
    double* state;          // [P, CONTRASTIVE_STATE_ROWS, N]
};

struct ContrastiveBackward {
    ContrastiveInput input;
    void const* gradient_loss;       // [] T
    std::int64_t const* n_valid;     // [P]
    double const* state;             // [P, CONTRASTIVE_STATE_ROWS, N]
    void* gradient_x;                // [M, N, D] contiguous, elements of `dtype`
    void* gradient_log_temperature;  // [] T
};

}  // namespace sleepfm
