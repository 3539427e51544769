// The contrastive loss where a library computes the matrix products (`gemm` in docs/kernels/contrastive-loss-cuda.md):
// the steps before, between and after the products. sleepfm_fast/ops/contrastive_gemm.py calls steps and products in
// order, problem by problem and tile by tile; a step is one launch.
#pragma once

#include <cstdint>

#include "params.h"

namespace sleepfm {

enum class GemmStep : std::int64_t {
    operands,         // x -> a, b, own, valid of one problem; sets rows and columns to "nothing seen yet"
    statistics,       // tile -> row_partials, column_partials
    merge,            // row_partials, column_partials -> added to rows and columns
    finish,           // rows, columns -> state, ranks and partial losses of one problem
    total,            // partial losses -> loss, losses, correct, n_valid
    weights,          // state -> weights, scale and reference of one problem; sets its slopes to 0
    gradient,         // tile -> gradient of the similarities in float16, added to slopes
    accumulate,       // gradient_a, gradient_b -> added to gradient_unit
    finish_gradient,  // gradient_unit, slopes -> gradient_x, gradient_log_temperature
};

// Unit rows are stored times 2^14: below the largest float16, 65504, and with all 11 bits for elements down to 2^-28.
constexpr float gemm_operand_scale = 16384.0f;
constexpr float gemm_product_scale = gemm_operand_scale * gemm_operand_scale;
// Gradients of similarities are scaled to at most 2^15. What their rounding to float16 leaves is stored times 2^11,
// which brings it to their size.
constexpr int gemm_gradient_exponent = 15;
constexpr float gemm_rest_scale = 2048.0f;
constexpr std::int64_t gemm_strip = 128;    // columns of a tile that a block takes
constexpr std::int64_t gemm_segment = 256;  // rows of a tile that a block takes
constexpr std::int64_t gemm_finish_threads = 256;

// The arguments of all steps; a step uses what it needs. Every member takes 8 bytes, and ops/contrastive_gemm.py lists
// them in this order.
struct ContrastiveGemm {
    // the input: as ContrastiveInput has it
    void const* x;
    std::int64_t dtype, n_modalities, n_samples, n_dim, stride_modality, stride_sample;
    float const* log_temperature;
    std::uint8_t const* mask;
    std::int64_t mask_stride_modality, mask_stride_sample, pairwise, both_directions;
    std::int64_t begin, end;
    // the problem
    std::int64_t problem, i, j;  // modalities of rows and columns; leave-one-out: j = i
    std::int64_t split;          // each element of an operand is the sum of two float16 numbers, high and low
    std::int64_t width;          // D, rounded up with zeros to whole 16 bytes
    // Rows and columns, [N, width]. split: [N, 3 width], a = low, high, high and b = high, low, high, so that one
    // product adds the three that count. The small ones come first in the sum: tensor cores truncate where they add, by
    // the size of the sum so far.
    std::uint16_t *a, *b;
    double* own;          // [N] cosine of the sample's own pair, from rows before their rounding; 0 where not valid
    std::uint8_t* valid;  // [N] 1 where the sample takes part in the problem
    float* own_product;   // [N] the own similarity as the library's product has it, which ranks compare with
    // the tile: similarities times gemm_product_scale of n_rows rows from `row` and n_columns columns from `column`
    float* tile;  // [n_rows, stride]
    std::int64_t stride, row, column, n_rows, n_columns;
    // [N] added to a row's (column's) similarities, in the tile's scale: b's rows are multiplied less their mean, and a
    // row of a lacks its product with it. At most one of the two is not null.
    float const *row_shift, *column_shift;
    float *row_partials, *column_partials;  // [3, strips, n_rows], [3, segments, n_columns]: largest, sum, number ahead
    float *rows, *columns;                  // [3, N] the same of all tiles so far; columns null: not wanted
    // results; blocks: those of the finish step
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
    float *row_largest, *row_weight, *column_largest, *column_weight;  // [N] of the softmaxes by row and by column
    float* own_scaled;                                                 // [N] own in the tile's scale
    double* unscale;                                                   // [P] undoes the gradient's scale
    double* slopes;  // [P, n_slopes] for each block of a tile, sum over its pairs of probability * (x - own)
    std::int64_t n_slopes;
    std::int64_t slope_of_columns;                // 1: the probabilities by column are counted in slopes too
    std::uint16_t *gradient_high, *gradient_low;  // of the tile's similarities, and the rest of its rounding or null
    float *gradient_a, *gradient_b;               // [N, width] products of the gradient with the other operand's rows
    float* gradient_unit;                         // [M, N, D] sum over problems, less the common factor
    void* gradient_x;
    float* gradient_log_temperature;
};

// `stream` is a cudaStream_t. Returns before the kernel has run.
void contrastive_gemm_cuda(GemmStep step, ContrastiveGemm const& g, int device, void* stream);

}  // namespace sleepfm
