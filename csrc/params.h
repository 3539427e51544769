// The contract of every op: one plain struct each. The shape stands after every pointer; strides count elements.
// Kernels see these structs and nothing else: no torch, no Python, no allocation of outputs.
#pragma once

#include <cstdint>

namespace sleepfm {

// Element types that cross the boundary; the numbers are shared with sleepfm_fast/ops.py.
enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };

// ---- filter_resample ------------------------------------------------------------------------------------------------

// How each (clip, channel) is scaled after filtering; the numbers are the order of NORMALISATIONS in
// sleepfm_fast/ops/filter_resample.py. Rows of a filter with step = 1 keep center and scale in every case.
enum class Normalise : int {
    none = 0,    // (y - center) * scale
    zscore = 1,  // (y - mean) / standard deviation (of the population)
    robust = 2   // (y - median) / (interquartile range / 1.349), quantiles interpolated linearly
};

// One window of one channel: a row of `table`. Indices count native samples of the recording's segment.
struct WindowRow {
    std::int64_t offset;  // of the window's first sample, in raw
    std::int64_t length;  // samples in the window; 0: the channel is missing
    std::int64_t start;   // index of the window's first sample
    std::int64_t first;   // index of the sample at or before the clip's start
    std::int64_t phase;   // the clip starts at first + phase / up
    std::int64_t filter;  // row of `filters`
};
static_assert(sizeof(WindowRow) == 6 * sizeof(std::int64_t), "rows of an int64 tensor");

// One filter: a row of `filters`; sleepfm_fast/filters.py writes them. Offsets count floats of `taps`; every tap row is
// padded with zeros to a multiple of filter_tap_padding.
struct FilterRow {
    std::int64_t up, down;     // output rate / native rate in lowest terms
    std::int64_t phases;       // rows of the main table: up, or fewer (the time is then rounded to 1 / phases)
    std::int64_t main_offset;  // main table [phases, main_stride]
    std::int64_t main_taps;    // of main_stride in use
    std::int64_t main_stride;
    std::int64_t main_left;                         // row r's first tap meets sample q - main_left
    std::int64_t dc;                                // gain of main at 0 Hz: 0 or 1
    std::int64_t step;                              // 1: never normalised
    std::int64_t decimation;                        // of the low branch; 0: none
    std::int64_t decimator_offset, decimator_half;  // [2 * half + 1]
    std::int64_t low_offset, low_half;              // [2 * half + 1]
    std::int64_t interpolator_offset;               // [interpolator_taps, interpolator_stride], decimation columns used
    std::int64_t interpolator_taps, interpolator_left, interpolator_stride;
    // The main table and `low` once more, for the CPU: filter_group outputs side by side, [group_taps][filter_group],
    // column l holding the taps of output 16 g + l, moved to the first sample that the group meets. A period of
    // group_repeats * up outputs has its groups one after the other, the last one filled up with zeros.
    std::int64_t group_repeats, group_offset, group_taps;  // 0, 0, 0: there is none
    std::int64_t low_group_offset;                         // [2 * half + filter_group][filter_group]
    // The main table by its spectrum, for the CPU: see sleepfm_fast/filtering/period_blocks.py. With U = block_repeats
    // * up and D = block_repeats * down, [block_periods / 2][U / filter_group][D][filter_group]; an output needs
    // block_reach periods on either side of its own.
    std::int64_t block_repeats, block_offset, block_reach;  // 0, 0, 0: there is none
};
static_assert(sizeof(FilterRow) == 25 * sizeof(std::int64_t), "rows of an int64 tensor");

constexpr std::int64_t filter_tap_padding = 16;
constexpr std::int64_t filter_group = 16;
constexpr std::int64_t block_periods = 32;

struct FilterResample {
    void const* raw;  // [n_raw] int16 or int32
    std::int64_t n_raw;
    int raw_bytes;             // 2 or 4
    WindowRow const* table;    // [n_clips, n_channels]
    float const* calibration;  // [n_clips, n_channels, 4]: gain, offset, center, scale
    std::int64_t n_clips;
    std::int64_t n_channels;
    FilterRow const* filters;  // [n_filters]
    std::int64_t n_filters;
    float const* taps;  // [n_taps]
    std::int64_t n_taps;
    void* out;        // [n_clips, n_channels, n_out] out_dtype
    DType out_dtype;  // f32, bf16 or f16
    std::int64_t n_out;
    Normalise normalise;
};

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
    bool pairwise;            // problems (i < j) instead of one modality against the mean of the others
    bool both_directions;     // the loss counts rows and columns; else rows only
    std::int64_t begin, end;  // samples that are computed, as rows and as columns against all n_samples
    int n_threads;
    void* workspace;  // contrastive_bytes(...).workspace, aligned to 64 bytes
    void* kept;       // null, or contrastive_bytes(...).kept, aligned to 64 bytes: from forward to backward
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

// Loss, statistics and gradients of all samples in one call, for small batches on the CPU. input.begin, end and kept
// are not read; forward.state may be null.
struct ContrastiveJoint {
    ContrastiveForward forward;
    double upstream;                 // gradient of the loss
    void* gradient_x;                // null, or as in ContrastiveBackward
    void* gradient_log_temperature;  // [] T; null: no gradients at all
};

// Up to this, of either sign, gradients are exactly those of upstream 1, rounded, times upstream.
constexpr double JOINT_UPSTREAM = 1048576.0;

// ---- retrieval ranks ------------------------------------------------------------------------------------------------

// Rows x of one modality, measured for RankOperand. x - mean = step q + what is left, q the whole numbers nearest to
// (x - mean) factor / 2.
struct RankRows {
    float const* x;           // [n_rows, n_dim]
    float const* mean;        // [n_dim]
    float const* other_mean;  // [n_dim] of the other modality
    std::int64_t n_rows, n_dim;
    float* factor;    // [n_rows]
    double* step;     // [n_rows]
    double* length;   // [n_rows] |x - mean|
    double* residue;  // [n_rows] length of what is left
    double* inner;    // [n_rows] <x - mean, other_mean>
    int n_threads;
};

// A block of one modality. step, length and loss are in a unit of the caller's choice, shift, low and high in the
// product of both modalities' units, so that float holds them.
struct RankOperand {
    float const* x;  // [n, n_dim]
    std::int64_t n;
    std::int64_t first;   // number of the clip that the block starts with
    float const* mean;    // [n_dim]
    float const* factor;  // [n] of RankRows
    float const* step;    // [n]
    float const* length;  // [n] at least |x - mean| and |step q|
    float const* loss;    // [n] at least the residue, and the rounding errors of a product
    float const* shift;   // [n] what x adds to every similarity
    float const* low;     // [n] limits of the own similarity
    float const* high;
    double const* own;    // [n] <a_i, b_i>
    std::int64_t* ahead;  // [n], added to
};

// A block of queries a against a block of candidates b, in both directions. With
//     s = step_i step_j <q_i, q_j> + shift_i + shift_j,    e = loss_i length_j + length_i loss_j,
// b_j comes before a_i's own where s - e > high_i, and behind it where s + e < low_i; in between <a_i, b_j> decides in
// double, and where that is equal to the own, the lower number. The same for a_i before b_j's own with the limits of j.
struct PairRanks {
    RankOperand rows;     // a
    RankOperand columns;  // b
    std::int64_t n_dim;
    bool new_rows;  // false: a is that of the last call with this workspace
    int n_threads;
    void* workspace;  // pair_ranks_bytes(...), aligned to 64 bytes
};

// ---- mbconv ---------------------------------------------------------------------------------------------------------

// B clips, T samples in, S = (T - 1) / stride + 1 samples out; all tensors contiguous float32, but c1, c2 and g1 are
// bfloat16 where the factors of products are.
struct MBConvShape {
    std::int64_t n_clips, n_in, width, n_out, n_samples;
    int stride;  // 1 or 2
    bool bf16;   // factors of the products; sums are float32
    int n_threads;
    void* workspace;  // mbconv_workspace_bytes(...), aligned to 64 bytes
};

struct MBConvWeights {
    float const* w1;              // [width, n_in]
    float const* b1;              // [width]
    float const *gamma0, *beta0;  // [width]
    float const* wd;              // [width, 3]
    float const* bd;              // [width]
    float const *gamma1, *beta1;  // [width]
    float const* w3;              // [n_out, width]
    float const* b3;              // [n_out]
};

// y = x + dropout(projection): for as many channels out as in and stride 1.
struct MBConvResidual {
    bool add;
    double dropout;      // probability, 0 in evaluation
    std::uint64_t seed;  // what is dropped: csrc/cpu/mbconv_dropout.h
};

struct MBConvForward {  // training: statistics of the batch
    MBConvShape shape;
    MBConvWeights weights;
    MBConvResidual residual;
    double eps;
    float const* x;      // [B, n_in, T]
    void* c1;            // [B, width, T] what the first batch norm sees, less its mean; even samples before odd ones
                         // with stride 2. Null: not kept
    void* c2;            // [B, width, S] what the second sees
    double* statistics;  // [4, width] mean and population variance of c1, then of c2
    double* moments;     // [1 + n_in, n_in] mean of x, then sums of products of x less its mean
    float* y;            // [B, n_out, S]
};

struct MBConvEvaluate {  // running statistics
    MBConvShape shape;
    MBConvWeights weights;
    MBConvResidual residual;
    double eps;
    float const *mean0, *variance0, *mean1, *variance1;  // [width]
    float const* x;                                      // [B, n_in, T]
    float* y;                                            // [B, n_out, S]
};

// Running statistics; gamma null: no batch norm.
struct BatchNorm {
    float const *gamma, *beta, *mean, *variance;
    double eps;
};

struct EncoderBlock {
    MBConvEvaluate block;  // its n_in and n_samples are those that come in; x, y and workspace are not used
    BatchNorm after;       // of its n_out channels
    bool pool;             // maximum of each sample and its neighbours, last
};

// A whole encoder with running statistics: convolution of 3 with stride 2, batch norm, blocks, average over time.
struct EncoderEvaluate {
    std::int64_t n_clips, n_in, n_stem, n_samples;
    bool bf16;  // factors of the blocks' products
    int n_threads;
    void* workspace;         // encoder_workspace_bytes(...), aligned to 64 bytes
    float const* stem_w;     // [n_stem, n_in, 3]
    float const* stem_bias;  // [n_stem]
    BatchNorm stem_norm;
    EncoderBlock const* blocks;
    std::int64_t n_blocks;
    float const* x;  // [B, n_in, T]
    float* y;        // [B, n_out of the last block]
};

struct MBConvBackward {
    MBConvShape shape;
    MBConvWeights weights;
    MBConvResidual residual;
    double eps;
    float const* x;
    void const *c1, *c2;  // c1: null where forward did not keep it
    double const *statistics, *moments;
    float const* dy;  // [B, n_out, S]
    void* g1;         // [B, width, S] scratch
    float* dx;        // [B, n_in, T]
    // Gradients in the shape of the weights. Those of b1 and bd are zero: a batch norm takes constants away.
    float *dw1, *dgamma0, *dbeta0, *dwd, *dgamma1, *dbeta1, *dw3, *db3;
};

// The same block on a CUDA device, in evaluation, its batch norms folded. Channels last: [B, T, channels], contiguous.
struct MBConvPacked {
    void const* x;       // [B, T, n_in]
    void const* packed;  // width / 16 chunks as the tensor cores read them: sleepfm_fast/ops/mbconv_evaluate.py
    float const* bias;   // [n_out rounded up to a multiple of 16]
    void* y;             // [B, S, n_out]
    DType dtype;         // of x, y and the matrices: bf16 or f16
    std::int64_t n_clips, n_samples, n_in, width, n_out;
    int stride;
    bool residual;
};

// The same block on a CUDA device, in training: what stands between its matrix products. Channels last, contiguous;
// wide activations are bfloat16, and width is a multiple of 4. `partial`: a row for each of n_partials blocks, not
// initialised. sleepfm_fast/ops/mbconv_train.py has the mathematics.
struct MBConvExpansionSums {
    void const* c1;  // [n_rows, width]
    float* partial;  // [n_partials, 2, width] sums of c1 and of its square; the mean of c1 is near 0
    std::int64_t n_rows, width;
    int n_partials;
};

struct MBConvFinishExpansionSums {
    float const* partial;         // of MBConvExpansionSums
    void const* bias;             // [width] bfloat16, that the product had in place of b1
    float const* b1;              // [width]
    float const *gamma0, *beta0;  // [width]
    float const *wd, *bd;         // [width, 3], [width]
    double eps;
    double* statistics;          // [3, width] mean and variance of the expansion, mean of c1
    float* parameters;           // [7, width] scale0, shift0, three taps, bd, pivot of c2
    std::int64_t n_rows, width;  // n_rows: B T
    int n_partials;
};

struct MBConvDepthwise {
    void const* c1;           // [B, T, width]
    float const* parameters;  // of MBConvFinishExpansionSums
    void* c2;                 // [B, S, width]
    float* partial;           // [n_partials, 2, width] sums of c2 - pivot and of its square
    std::int64_t n_clips, n_samples, width;
    int stride, n_partials;
};

struct MBConvFinishDepthwise {
    float const* partial;         // of MBConvDepthwise
    float const* pivot;           // [width]
    float const *gamma1, *beta1;  // [width]
    double eps;
    double* statistics;          // [2, width] mean and variance of c2
    float* parameters;           // [3, width] scale1, shift1, mean of c2
    std::int64_t n_rows, width;  // n_rows: B S
    int n_partials;
};

struct MBConvActivate {
    void const* c2;           // [n_rows, width]
    float const* parameters;  // of MBConvFinishDepthwise
    void* a2;                 // [n_rows, width]
    std::int64_t n_rows, width;
};

struct MBConvGradientSums {
    void const *c2, *da2;     // [n_rows, width]
    float const* parameters;  // of MBConvFinishDepthwise
    float* partial;           // [n_partials, 2, width] sums of g1 and of g1 (c2 - mean)
    std::int64_t n_rows, width;
    int n_partials;
};

struct MBConvFinishGradientSums {
    float const* partial;                    // of MBConvGradientSums
    double const* statistics1;               // of MBConvFinishDepthwise
    float const *parameters0, *parameters1;  // of MBConvFinishExpansionSums and MBConvFinishDepthwise
    float const* gamma1;                     // [width]
    double eps;
    float *dgamma1, *dbeta1;     // [width]
    float* parameters;           // [9, width] scale0, shift0, three taps, scale1, shift1, slope and constant of dc2
    std::int64_t n_rows, width;  // n_rows: B S
    int n_partials;
};

struct MBConvDepthwiseBackward {
    void const *c1, *c2, *da2;  // [B, T, width], [B, S, width] twice
    float const* parameters;    // of MBConvFinishGradientSums
    void* g0;                   // [B, T, width]
    float* partial;             // [n_partials, 5, width] sums of g0, of g0 c1, and gradients of the taps
    std::int64_t n_clips, n_samples, width;
    int stride, n_partials;
};

struct MBConvFinishDepthwiseBackward {
    float const* partial;       // of MBConvDepthwiseBackward
    double const* statistics0;  // of MBConvFinishExpansionSums
    float const* gamma0;        // [width]
    double eps;
    float *dgamma0, *dbeta0, *dwd;  // [width], [width], [width, 3]
    float* vectors;  // [3, width] scale0; then by what the expansion's gradient depends on the mean of g0, and on c1
    std::int64_t n_rows, width;  // n_rows: B T
    int n_partials;
};

// ---- narrow layers of the encoder: stem and maximum of three --------------------------------------------------------

// B clips, T samples in, S = (T - 1) / 2 + 1 samples out; all tensors contiguous float32.
struct StemShape {
    std::int64_t n_clips, n_in, n_out, n_samples;
    int n_threads;
    void* workspace;  // stem_workspace_bytes(...), aligned to 64 bytes
};

struct StemForward {  // convolution of 3 with stride 2 and a zero on either side, batch norm with the batch's
                      // statistics
    StemShape shape;
    double eps;
    float const* x;             // [B, n_in, T]
    float const* w;             // [n_out, n_in, 3]
    float const* bias;          // [n_out]
    float const *gamma, *beta;  // [n_out]
    float* c;                   // [B, n_out, S] what the batch norm sees
    double* statistics;         // [2, n_out] mean and population variance of c
    float* y;                   // [B, n_out, S]
};

struct StemBackward {
    StemShape shape;
    double eps;
    float const *x, *c, *gamma, *dy;
    double const* statistics;
    float *dw, *dgamma, *dbeta;  // that of the bias is zero: the batch norm takes constants away
};

struct BatchNormShape {
    std::int64_t n_clips, n_channels, n_samples;
    int n_threads;
    void* workspace;  // batch_norm_workspace_bytes(...), aligned to 64 bytes
};

struct BatchNormForward {  // with the batch's statistics
    BatchNormShape shape;
    double eps;
    float const* x;             // [B, C, n]
    float const *gamma, *beta;  // [C]
    double* statistics;         // [2, C] mean and population variance
    float* y;                   // [B, C, n]
};

struct BatchNormBackward {
    BatchNormShape shape;
    double eps;
    float const *x, *gamma, *dy;
    double const* statistics;
    float *dx, *dgamma, *dbeta;
};

// Maximum of each sample and its two neighbours; rows are independent.
struct MaxPool {
    std::int64_t n_rows, n_samples;
    int n_threads;
    float const* x;   // [n_rows, n_samples]
    float const* dy;  // backward
    float* result;    // y or dx
};

}  // namespace sleepfm
