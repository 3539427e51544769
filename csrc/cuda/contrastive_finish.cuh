// From the shares that forward's blocks wrote to losses, ranks and the state for backward. First a thread for each
// sample (contrastive_finish_kernel), whose block sums losses and counts; then one block that adds up the blocks'
// totals (contrastive_total_kernel). Every sum has a fixed order.
#pragma once

#include "cuda/contrastive_forward.cuh"

namespace sleepfm::cuda {

constexpr int finish_threads = 256;

// Sums over the samples of each block of contrastive_finish_kernel.
struct BlockTotals {
    double* loss;  // [P, n_blocks, 2]: by row, by column
    int* correct;  // [P, n_blocks, 2]
    int* valid;    // [P, n_blocks]
};

struct Finish {
    ContrastiveOperands operands;
    void const* log_temperature;
    Index begin, end;
    int row_groups, column_groups;
    Shares rows, columns;  // as in ForwardTiles
    double* state;         // [P, CONTRASTIVE_STATE_ROWS, N]
    std::int32_t* ranks;   // [P, 2, N]
    BlockTotals totals;
    int n_blocks;
};

// The sum of all threads' values, in a binary tree; every thread gets it. scratch: [finish_threads] in shared memory,
// free again on return.
template <typename T>
__device__ __forceinline__ T sum_of_block(T value, T* scratch) {
    scratch[threadIdx.x] = value;
    ptx::sync_threads();
    for (unsigned half = finish_threads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            scratch[threadIdx.x] += scratch[threadIdx.x + half];
        }
        ptx::sync_threads();
    }
    T const total = scratch[0];
    ptx::sync_threads();
    return total;
}

// The loss and the rank of one sample in one direction.
struct SampleLoss {
    double loss;
    int rank;
};

// Merges a sample's shares, which begin at `first`, and writes three of the state's rows, from `state` on. With the sum
// S over the other pairs relative to their maximum m, the loss is log(1 + exp(z)), z = log S - s (own - m), computed
// without cancellation for any sign of z.
__device__ __forceinline__ SampleLoss finish_sample(Shares const& shares, Index first, int groups, Index n_padded,
                                                    Softmax const& softmax, double own, double* state, Index N) {
    Share share{0.0, raw_floor, 0};
    for (int group = 0; group < groups; ++group) {
        Index const at = first + group * n_padded;
        merge(share, softmax, shares.sum[at], shares.largest[at], shares.ahead[at]);
    }
    if (share.sum == 0.0) {  // no other sample to compare with: loss 0, or NaN where own is not finite
        state[0] = 0.0;
        state[N] = state[2 * N] = 0.0 * own;
        return {0.0 * own, share.ahead};
    }
    double const largest = static_cast<double>(share.largest) / raw_one;
    double const lead = static_cast<double>(softmax.scale) * (own - largest);
    double const z = log(share.sum) - lead;
    double const small = exp(z > 0.0 ? -z : z);  // exp(-|z|)
    state[0] = largest;
    state[N] = 1.0 / (share.sum + exp(lead));
    state[2 * N] = z > 0.0 ? 1.0 / (1.0 + small) : small / (1.0 + small);  // the probability missed, 1 / (1 + exp(-z))
    return {(z > 0.0 ? z : 0.0) + log1p(small), share.ahead};
}

// blockIdx.x: block of finish_threads samples; blockIdx.y: problem. Samples that are not valid or outside [begin, end)
// get rank -1 and a state of zeros.
static __global__ void __launch_bounds__(finish_threads) contrastive_finish_kernel(Finish f) {
    SLEEPFM_SHARED(double, losses, [finish_threads]);
    SLEEPFM_SHARED(int, counts, [finish_threads]);
    Index const N = f.operands.n_samples, n_padded = f.operands.n_padded, P = f.operands.n_problems;
    Index const p = blockIdx.y, r = static_cast<Index>(blockIdx.x) * finish_threads + threadIdx.x;
    bool const valid = r < N && f.operands.valid[p * n_padded + r] != 0;
    bool const computed = valid && r >= f.begin && r < f.end;
    Softmax const softmax(f.log_temperature);
    SampleLoss by_row{0.0, -1}, by_column{0.0, -1};
    if (r < N) {
        double* const state = f.state + p * CONTRASTIVE_STATE_ROWS * N + r;
        if (computed) {
            double const own = f.operands.own[p * n_padded + r];
            state[0] = own;
            by_row = finish_sample(f.rows, p * f.column_groups * n_padded + r, f.column_groups, n_padded, softmax, own,
                                   state + N, N);
            bool const exchanged = f.columns.sum == nullptr;  // the column's sums are those of row r of problem P + p
            Shares const& shares = exchanged ? f.rows : f.columns;
            int const groups = exchanged ? f.column_groups : f.row_groups;
            by_column = finish_sample(shares, (exchanged ? P + p : p) * groups * n_padded + r, groups, n_padded,
                                      softmax, own, state + 4 * N, N);
        } else {
            for (int row = 0; row < CONTRASTIVE_STATE_ROWS; ++row) {
                state[row * N] = 0.0;
            }
        }
        f.ranks[2 * p * N + r] = by_row.rank;
        f.ranks[(2 * p + 1) * N + r] = by_column.rank;
    }
    double const row_loss = sum_of_block(by_row.loss, losses), column_loss = sum_of_block(by_column.loss, losses);
    int const row_correct = sum_of_block(by_row.rank == 0 ? 1 : 0, counts);
    int const column_correct = sum_of_block(by_column.rank == 0 ? 1 : 0, counts);
    int const n_valid = sum_of_block(valid ? 1 : 0, counts);
    if (threadIdx.x == 0) {
        Index const at = p * f.n_blocks + blockIdx.x;
        f.totals.loss[2 * at] = row_loss;
        f.totals.loss[2 * at + 1] = column_loss;
        f.totals.correct[2 * at] = row_correct;
        f.totals.correct[2 * at + 1] = column_correct;
        f.totals.valid[at] = n_valid;
    }
}

// One block: means over the valid samples, and the loss, their mean over all problems and directions that count.
static __global__ void __launch_bounds__(finish_threads)
    contrastive_total_kernel(BlockTotals totals, int n_blocks, int P, bool both_directions, float* loss, float* losses,
                             std::int64_t* correct, std::int64_t* n_valid) {
    SLEEPFM_SHARED(double, sums, [finish_threads]);
    SLEEPFM_SHARED(int, counts, [finish_threads]);
    double counted_loss = 0.0;
    std::int64_t n_counted = 0;
    for (int p = 0; p < P; ++p) {
        int valid = 0;
        for (int b = static_cast<int>(threadIdx.x); b < n_blocks; b += finish_threads) {
            valid += totals.valid[p * n_blocks + b];
        }
        valid = sum_of_block(valid, counts);
        n_counted += valid;
        for (int direction = 0; direction < 2; ++direction) {
            double sum = 0.0;
            int right = 0;
            for (int b = static_cast<int>(threadIdx.x); b < n_blocks; b += finish_threads) {
                sum += totals.loss[2 * (p * n_blocks + b) + direction];
                right += totals.correct[2 * (p * n_blocks + b) + direction];
            }
            sum = sum_of_block(sum, sums);
            right = sum_of_block(right, counts);
            counted_loss += direction == 0 || both_directions ? sum : 0.0;
            if (threadIdx.x == 0) {
                losses[2 * p + direction] = static_cast<float>(sum / (valid > 0 ? valid : 1));
                correct[2 * p + direction] = right;
            }
        }
        if (threadIdx.x == 0) {
            n_valid[p] = valid;
        }
    }
    if (threadIdx.x == 0) {
        n_counted *= both_directions ? 2 : 1;
        *loss = static_cast<float>(counted_loss / static_cast<double>(n_counted > 0 ? n_counted : 1));
    }
}

}  // namespace sleepfm::cuda
