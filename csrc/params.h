// The contract of every op: one plain struct of pointers, sizes and options for each. The shape of an array stands
// after its pointer, row-major, so that the last dimension is contiguous; strides count elements, not bytes. Kernels
// see these structs and nothing else: no torch, no Python. The caller allocates all outputs and workspaces.
#pragma once

#include <cstdint>

namespace sleepfm {

// Element types of tensors; the numbers are those of DTYPE_CODES in sleepfm_fast/ops/registry.py.
enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };

// ---- filter_resample ------------------------------------------------------------------------------------------------

// How a (clip, channel) is scaled after filtering; the numbers are the order of NORMALISATIONS in
// sleepfm_fast/ops/filter_resample.py. Channels whose filter has step = 1 use center and scale in every case.
enum class Normalise : int {
    none = 0,    // (y - center) * scale
    zscore = 1,  // (y - mean) / standard deviation (of the population)
    robust = 2   // (y - median) / (interquartile range / 1.349), quantiles interpolated linearly
};

// The samples that one clip of one channel is computed from: a row of `table`. Indices count native samples (as
// recorded) from the beginning of the recording's segment.
struct WindowRow {
    std::int64_t offset;  // where the window's first sample lies in `raw`
    std::int64_t length;  // number of samples in the window; 0: the channel is missing, and its outputs are 0
    std::int64_t start;   // index of the window's first sample
    std::int64_t first;   // index of the last sample at or before the beginning of the clip
    std::int64_t phase;   // the clip begins at sample first + phase / up, 0 <= phase < up
    std::int64_t filter;  // row of `filters`
};
static_assert(sizeof(WindowRow) == 6 * sizeof(std::int64_t), "rows of an int64 tensor");

// One filter: a row of `filters`, written by sleepfm_fast/filters.py. An offset says where a table begins in `taps`, in
// floats; every row of taps is padded with zeros to a multiple of filter_tap_padding.
//
// An output is the main filter, one row of a polyphase table times consecutive samples. Where a high-pass would need
// thousands of taps, its complement, the "low branch", is computed at a low rate and subtracted from the samples first:
// decimator (a low-pass kept at every `decimation`-th sample), low-pass, interpolator.
struct FilterRow {
    std::int64_t up, down;     // output rate / native rate in lowest terms
    std::int64_t phases;       // rows of the main table: up, or fewer (an output's time is then rounded to 1 / phases)
    std::int64_t main_offset;  // main table [phases, main_stride]
    std::int64_t main_taps;    // taps of a row that are in use, of main_stride
    std::int64_t main_stride;
    std::int64_t main_left;                         // the first tap multiplies sample q - main_left, q of the output
    std::int64_t dc;                                // gain of the main filter at 0 Hz: 0 or 1
    std::int64_t step;                              // 1: the channel is stepwise and never normalised
    std::int64_t decimation;                        // of the low branch; 0: there is none
    std::int64_t decimator_offset, decimator_half;  // [2 * half + 1]
    std::int64_t low_offset, low_half;              // [2 * half + 1]
    // [interpolator_taps, interpolator_stride]; column d gives the sample d places behind a decimated one.
    std::int64_t interpolator_offset;
    std::int64_t interpolator_taps, interpolator_left, interpolator_stride;
    // The main table and the low-pass again, arranged for the CPU's vectors: [group_taps][filter_group] for
    // filter_group outputs side by side. Column l has the taps of output 16 g + l, shifted so that all columns begin at
    // the first sample which the group needs. The groups of a period of group_repeats * up outputs follow each other;
    // the last one is filled up with zeros.
    std::int64_t group_repeats, group_offset, group_taps;  // 0, 0, 0: there is no such table
    std::int64_t low_group_offset;                         // [2 * low_half + filter_group][filter_group]
    // The main table as its spectrum, for the CPU (sleepfm_fast/filtering/period_blocks.py): [block_periods / 2]
    // [U / filter_group][D][filter_group] with U = block_repeats * up and D = block_repeats * down. An output needs
    // block_reach periods of D samples on either side of its own.
    std::int64_t block_repeats, block_offset, block_reach;  // 0, 0, 0: there is no such table
};
static_assert(sizeof(FilterRow) == 25 * sizeof(std::int64_t), "rows of an int64 tensor");

constexpr std::int64_t filter_tap_padding = 16;  // floats: one AVX-512 vector, two of AVX2
constexpr std::int64_t filter_group = 16;        // outputs that lie side by side in a vector (or several)
constexpr std::int64_t block_periods = 32;       // length of the transforms over periods

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

// What forward and backward read. M modalities, N samples, D dimensions. P problems, each a matrix of N x N cosines:
// M for leave-one-out (a modality's rows against the mean of the others' as columns), M (M - 1) / 2 for pairwise. "T"
// is double if x is double, else float.
struct ContrastiveInput {
    void const* x;  // [M, N, D] of `dtype`; the stride of D is 1
    DType dtype;
    std::int64_t stride_modality;
    std::int64_t stride_sample;
    std::int64_t n_modalities;
    std::int64_t n_samples;
    std::int64_t n_dim;
    void const* log_temperature;  // [] T
    std::uint8_t const* mask;     // [M, N], 1 where the sample has the modality; null: all have all
    std::int64_t mask_stride_modality;
    std::int64_t mask_stride_sample;
    bool pairwise;            // a problem for each pair of modalities (i < j), instead of leave-one-out
    bool both_directions;     // true: the loss is of rows and columns; false: of rows only
    std::int64_t begin, end;  // results are for these samples, as rows and as columns, each against all N
    int n_threads;
    void* workspace;  // contrastive_bytes(...).workspace bytes, aligned to 64
    void* kept;       // null, or contrastive_bytes(...).kept bytes, aligned to 64, which forward leaves for backward
};

// What backward needs from forward, in rows of N doubles for each problem: 0: the cosine of the sample's own pair. Then
// for the softmax over its row (1, 2, 3) and over its column (4, 5, 6): the largest cosine m of the other pairs,
// 1 / (sum over all pairs of exp(s (cosine - m))), and the probability that is not on the own pair.
constexpr int CONTRASTIVE_STATE_ROWS = 7;

struct ContrastiveForward {
    ContrastiveInput input;
    void* loss;             // [] T
    void* losses;           // [P, 2] T: by row, by column
    std::int64_t* correct;  // [P, 2] number of samples of rank 0
    std::int32_t* ranks;    // [P, 2, N] number of pairs ahead of the own one; -1 where the sample does not take part
    std::int64_t* n_valid;  // [P] number of samples that take part
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

// Loss, statistics and gradients of all samples in one call, for small batches on the CPU. begin, end and kept of the
// input are not read; forward.state may be null.
struct ContrastiveJoint {
    ContrastiveForward forward;
    double upstream;                 // gradient that arrives at the loss
    void* gradient_x;                // as in ContrastiveBackward, or null
    void* gradient_log_temperature;  // [] T; null: no gradients at all
};

// Where |upstream| is at most this, gradients are exactly those for upstream = 1, as rounded to their type, times
// upstream.
constexpr double JOINT_UPSTREAM = 1048576.0;

// ---- retrieval ranks ------------------------------------------------------------------------------------------------

// Measures the rows x of one modality for RankOperand. A row is written as x - mean = step q + residue, where q are the
// integers nearest to (x - mean) factor / 2.
struct RankRows {
    float const* x;           // [n_rows, n_dim]
    float const* mean;        // [n_dim]
    float const* other_mean;  // [n_dim], the other modality's mean
    std::int64_t n_rows, n_dim;
    float* factor;    // [n_rows]
    double* step;     // [n_rows]
    double* length;   // [n_rows] |x - mean|
    double* residue;  // [n_rows] length of the residue
    double* inner;    // [n_rows] <x - mean, other_mean>
    int n_threads;
};

// A block of clips of one modality. The caller divides step, length and loss by a unit of its choice, and shift, low
// and high by the product of both modalities' units, so that float32 can hold them.
struct RankOperand {
    float const* x;  // [n, n_dim]
    std::int64_t n;
    std::int64_t first;   // number of the block's first clip; a tie goes to the lower number
    float const* mean;    // [n_dim]
    float const* factor;  // [n] of RankRows
    float const* step;    // [n]
    float const* length;  // [n] upper bound of |x - mean| and of |step q|
    float const* loss;    // [n] upper bound of the residue's length, with room for the rounding errors of a product
    float const* shift;   // [n] what the row adds to each of its similarities, since the product is of centred rows
    float const* low;     // [n] lower and upper limit of <a_i, b_i> - <mean_a, mean_b>, the clip's own pair
    float const* high;
    double const* own;    // [n] <a_i, b_i>
    std::int64_t* ahead;  // [n] number of candidates ahead of the own one; this call's are added
};

// A block of queries a against a block of candidates b, in both directions. With
//     s = step_i step_j <q_i, q_j> + shift_i + shift_j,    e = loss_i length_j + length_i loss_j,
// <a_i, b_j> - <mean_a, mean_b> lies within e of s. So b_j is ahead of a_i's own partner where s - e > high_i, and
// behind it where s + e < low_i. In between <a_i, b_j> is computed in double and compared with `own`; equal ones are
// ordered by number. Whether a_i is ahead of b_j's own partner is decided in the same way with the limits of j.
struct PairRanks {
    RankOperand rows;     // a
    RankOperand columns;  // b
    std::int64_t n_dim;
    bool new_rows;  // false: `rows` is that of the last call with this workspace, which still holds it quantised
    int n_threads;
    void* workspace;  // pair_ranks_bytes(...) bytes, aligned to 64
};

// ---- mbconv ---------------------------------------------------------------------------------------------------------

// The encoder's block: expansion w1 to `width` channels, batch norm, ReLU6, depthwise convolution wd of 3, batch norm,
// ReLU6, projection w3. B clips, T samples in, S = (T - 1) / stride + 1 samples out. All tensors are contiguous
// float32, except that c1, c2 and g1 are bfloat16 if `bf16` is set.
struct MBConvShape {
    std::int64_t n_clips, n_in, width, n_out, n_samples;
    int stride;  // 1 or 2
    bool bf16;   // the matrix products' factors are rounded to bfloat16; their sums are float32
    int n_threads;
    void* workspace;  // mbconv_workspace_bytes(...) bytes, aligned to 64
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

// y = x + dropout(projection), if `add` is set; needs n_out = n_in and stride 1.
struct MBConvResidual {
    bool add;
    double dropout;      // probability of dropping an element, 0 in evaluation
    std::uint64_t seed;  // decides which elements are dropped: csrc/cpu/mbconv_dropout.h
};

// Training: the batch norms use the batch's statistics.
struct MBConvForward {
    MBConvShape shape;
    MBConvWeights weights;
    MBConvResidual residual;
    double eps;
    float const* x;      // [B, n_in, T]
    void* c1;            // [B, width, T] input of the first batch norm less the channel's mean; with stride 2 a row's
                         // even samples come before its odd ones. Null: not kept, backward computes it again
    void* c2;            // [B, width, S] input of the second batch norm
    double* statistics;  // [4, width] mean and population variance of the first batch norm's input, then the second's
    double* moments;     // [1 + n_in, n_in] mean of x, then the sums of products of x less its mean
    float* y;            // [B, n_out, S]
};

// Evaluation: the batch norms use their running statistics.
struct MBConvEvaluate {
    MBConvShape shape;
    MBConvWeights weights;
    MBConvResidual residual;
    double eps;
    float const *mean0, *variance0, *mean1, *variance1;  // [width]
    float const* x;                                      // [B, n_in, T]
    float* y;                                            // [B, n_out, S]
};

// A batch norm with its running statistics; gamma null: there is no batch norm.
struct BatchNorm {
    float const *gamma, *beta, *mean, *variance;
    double eps;
};

struct EncoderBlock {
    MBConvEvaluate block;  // with the sizes it has within the encoder; its x, y and workspace are not used
    BatchNorm after;       // of the block's n_out channels
    bool pool;             // last, each sample becomes the maximum of itself and its two neighbours
};

// A whole encoder in evaluation: stem (convolution of 3 with stride 2, batch norm), blocks, average over time.
struct EncoderEvaluate {
    std::int64_t n_clips, n_in, n_stem, n_samples;
    bool bf16;  // as MBConvShape's, for all blocks
    int n_threads;
    void* workspace;         // encoder_workspace_bytes(...) bytes, aligned to 64
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
    void const *c1, *c2;  // forward's; c1 null: forward did not keep it, and it is computed again
    double const *statistics, *moments;
    float const* dy;  // [B, n_out, S]
    void* g1;         // [B, width, S] scratch: the gradient of the second batch norm's output
    float* dx;        // [B, n_in, T]
    // Gradients in the shapes of the weights. Those of b1 and bd are exactly zero and not computed: a batch norm with
    // the batch's statistics removes any constant from its input.
    float *dw1, *dgamma0, *dbeta0, *dwd, *dgamma1, *dbeta1, *dw3, *db3;
};

// The same block on a CUDA device in evaluation, its batch norms folded into the weights. Channels last:
// [B, T, channels], contiguous.
struct MBConvPacked {
    void const* x;       // [B, T, n_in]
    void const* packed;  // weights in width / 16 chunks, in the order in which lanes read them as fragments:
                         // sleepfm_fast/ops/mbconv_evaluate.py
    float const* bias;   // of the projection, [n_out rounded up to a multiple of 16]
    void* y;             // [B, S, n_out]
    DType dtype;         // of x, y and the matrices: bf16 or f16
    std::int64_t n_clips, n_samples, n_in, width, n_out;
    int stride;
    bool residual;
};

// The same block on a CUDA device in training: the steps between its matrix products, in their order. c1 is the
// expansion, c2 the depthwise convolution of a1 = ReLU6(batch norm of c1), a2 = ReLU6(batch norm of c2) the
// projection's factor; d... are gradients, g0 and g1 those of the batch norms' outputs. Channels last, contiguous; wide
// activations are bfloat16, and width is a multiple of 4. Each of n_partials thread blocks writes a row of `partial`,
// which needs no initialisation; a "Finish" step adds the rows. sleepfm_fast/ops/mbconv_train.py has the mathematics.
struct MBConvExpansionSums {
    void const* c1;  // [n_rows, width]
    float* partial;  // [n_partials, 2, width] sums of c1 and of c1^2, exact enough since the mean of c1 is near 0
    std::int64_t n_rows, width;
    int n_partials;
};

struct MBConvFinishExpansionSums {
    float const* partial;         // of MBConvExpansionSums
    void const* bias;             // [width] bfloat16, which the product added in place of b1 to bring the mean near 0
    float const* b1;              // [width]
    float const *gamma0, *beta0;  // [width]
    float const *wd, *bd;         // [width, 3], [width]
    double eps;
    double* statistics;          // [3, width] mean (with b1) and population variance of the expansion, mean of c1
    float* parameters;           // [7, width] scale0, shift0, three taps, bd, pivot of c2 (a value near its mean)
    std::int64_t n_rows, width;  // n_rows: B T
    int n_partials;
};

struct MBConvDepthwise {
    void const* c1;           // [B, T, width]
    float const* parameters;  // of MBConvFinishExpansionSums
    void* c2;                 // [B, S, width]
    float* partial;           // [n_partials, 2, width] sums of c2 - pivot and of (c2 - pivot)^2
    std::int64_t n_clips, n_samples, width;
    int stride, n_partials;
};

struct MBConvFinishDepthwise {
    float const* partial;         // of MBConvDepthwise
    float const* pivot;           // [width]
    float const *gamma1, *beta1;  // [width]
    double eps;
    double* statistics;          // [2, width] mean and population variance of c2
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
    float* parameters;           // [9, width] scale0, shift0, three taps, scale1, shift1, then slope and constant in
                                 // dc2 = scale1 g1 + slope c2 + constant
    std::int64_t n_rows, width;  // n_rows: B S
    int n_partials;
};

struct MBConvDepthwiseBackward {
    void const *c1, *c2, *da2;  // [B, T, width], [B, S, width] twice
    float const* parameters;    // of MBConvFinishGradientSums
    void* g0;                   // [B, T, width]
    float* partial;             // [n_partials, 5, width] sums of g0 and of g0 c1, and the three taps' gradients
    std::int64_t n_clips, n_samples, width;
    int stride, n_partials;
};

struct MBConvFinishDepthwiseBackward {
    float const* partial;       // of MBConvDepthwiseBackward
    double const* statistics0;  // of MBConvFinishExpansionSums
    float const* gamma0;        // [width]
    double eps;
    float *dgamma0, *dbeta0, *dwd;  // [width], [width], [width, 3]
    // [3, width] scale0, constant and slope in dc1 = scale0 g0 + constant + slope (c1 - its mean)
    float* vectors;
    std::int64_t n_rows, width;  // n_rows: B T
    int n_partials;
};

// ---- narrow layers of the encoder: stem and max pooling over three samples ------------------------------------------

// B clips, T samples in, S = (T - 1) / 2 + 1 samples out; all tensors contiguous float32.
struct StemShape {
    std::int64_t n_clips, n_in, n_out, n_samples;
    int n_threads;
    void* workspace;  // stem_workspace_bytes(...) bytes, aligned to 64
};

// Convolution of 3 with stride 2 and one zero of padding on either side, then batch norm with the batch's statistics.
struct StemForward {
    StemShape shape;
    double eps;
    float const* x;             // [B, n_in, T]
    float const* w;             // [n_out, n_in, 3]
    float const* bias;          // [n_out]
    float const *gamma, *beta;  // [n_out]
    float* c;                   // [B, n_out, S] input of the batch norm
    double* statistics;         // [2, n_out] mean and population variance of c
    float* y;                   // [B, n_out, S]
};

struct StemBackward {
    StemShape shape;
    double eps;
    float const *x, *c, *gamma, *dy;
    double const* statistics;
    float *dw, *dgamma, *dbeta;  // the bias has none: the batch norm removes constants, so that it is exactly zero
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

// Each sample becomes the maximum of itself and its two neighbours in the row.
struct MaxPool {
    std::int64_t n_rows, n_samples;
    int n_threads;
    float const* x;   // [n_rows, n_samples]
    float const* dy;  // in backward only
    float* result;    // y in forward, dx in backward
};

}  // namespace sleepfm
