// What surrounds the matrix products of the contrastive loss where a library computes them: operands, statistics of a
// tile of similarities, its gradient, and what is left at the end. sleepfm_fast/ops/contrastive_gemm.py calls the
// steps.
#pragma once

#include <cstdint>

#include "params.h"

namespace sleepfm {

enum class GemmStep : std::int64_t {
    operands,         // x -> a, b, own, valid of one problem; rows and columns emptied
    statistics,       // tile -> partial sums of its rows and columns
    merge,            // partial sums -> rows and columns
    finish,           // rows, columns -> state, ranks, partial losses of one problem
    total,            // partial losses -> loss, losses, correct, n_valid
    weights,          // state -> weights of one problem, slopes emptied
    gradient,         // tile -> gradient of the similarities in float16, slopes
    accumulate,       // products with the gradient -> gradient of the unit rows
    finish_gradient,  // gradient of the unit rows -> gradient_x, gradient_log_temperature
};

// Unit rows times 2^14 stay below the largest float16, 65504, and keep their 11 bits down to 2^-28.
constexpr float gemm_operand_scale = 16384.0f;
constexpr float gemm_product_scale = gemm_operand_scale * gemm_operand_scale;
// Gradients of similarities are scaled to at most 2^15. The rest that their rounding leaves is kept times 2^11.
constexpr int gemm_gradient_exponent = 15;
constexpr float gemm_rest_scale = 2048.0f;
constexpr std::int64_t gemm_strip = 128;    // columns of a tile that a block takes
constexpr std::int64_t gemm_segment = 256;  // rows
constexpr std::int64_t gemm_finish_threads = 256;

// Every member takes 8 bytes: ops/contrastive_gemm.py lists them in this order. A step uses what it needs.
struct ContrastiveGemm {
    // as ContrastiveInput
    void const* x;
    std::int64_t dtype, n_modalities, n_samples, n_dim, stride_modality, stride_sample;
    float const* log_temperature;
    std::uint8_t const* mask;
    std::int64_t mask_stride_modality, mask_stride_sample, pairwise, both_directions;
    std::int64_t begin, end;
    // the problem
    std::int64_t problem, i, j;  // modalities of rows and columns; leave-one-out: j = i
    std::int64_t split;          // operands are sums of two float16 numbers
    std::int64_t width;          // elements of an operand's row, D and zeros; split: three times that,
    // [N, width] or [N, 3 width]: a = low, high, high; b = high, low, high. The small products come first in a row's
    // sum: tensor cores truncate where they add, by the size of the sum so far.
    std::uint16_t *a, *b;
    double* own;          // [N] cosine of the pair that belongs together, from float32 rows
    std::uint8_t* valid;  // [N]
    float* own_product;   // [N] the same, as the product has it
    // the tile: similarities times gemm_product_scale of n_rows rows from `row` and n_columns columns from `column`
    float* tile;
    std::int64_t stride, row, column, n_rows, n_columns;
    float const *row_shift, *column_shift;  // [N] what the similarities lack, in the same scale; null: nothing
    float *row_partials, *column_partials;  // [3, strips, n_rows], [3, segments, n_columns]: largest, sum, number ahead
    float *rows, *columns;                  // [3, N] of everything so far; columns null: not wanted
    // results
    double* partial_losses;         // [P, 2, blocks]
    std::int64_t* partial_correct;  // [P, 2, blocks]
    std::int64_t* partial_valid;    // [P, blocks]
    float *loss, *losses;
    std::int64_t* correct;
    std::int32_t* ranks;
    std::int64_t* n_valid;
    double* state;
    // gradient
    float const* gradient_loss;
    float *row_largest, *row_weight, *column_largest, *column_weight;  // [N] of the softmax over rows, over columns
    float* own_scaled;                                                 // [N] own in the product's scale
    double* unscale;                                                   // [P] what undoes the gradient's scale
    double* slopes;                                                    // [P, n_slopes]
    std::int64_t n_slopes;
    std::int64_t slope_of_columns;  // the tile counts for the columns' softmax too
    std::uint16_t *gradient_high, *gradient_low;
    float *gradient_a, *gradient_b;  // [N, width] products with the gradient
    float* gradient_unit;            // [M, N, D]
    void* gradient_x;
    float* gradient_log_temperature;
};

// stream is a cudaStream_t. Returns before the kernel has run.
void contrastive_gemm_cuda(GemmStep step, ContrastiveGemm const& g, int device, void* stream);

}  // namespace sleepfm
