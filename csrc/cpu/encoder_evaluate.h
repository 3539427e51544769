// An encoder in evaluation: stem, MBConv blocks, max pooling over three samples, average over time. A clip goes through
// all of it on one thread, to and fro between two buffers, so that activations between layers stay in the caches. The
// weights are folded by all threads first, with a barrier after.
#pragma once

#include <vector>

#include "cpu/mbconv_evaluate.h"
#include "cpu/narrow_pool.h"
#include "cpu/narrow_stem.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

template <typename Factor>
struct EncoderWorkspace {
    StemShape stem;
    float *stem_weights, *stem_bias;  // folded: packed [n_stem / ROWS, 3 n_in, ROWS], [n_stem]
    std::vector<FoldedBlock<Factor>> blocks;
    float* thread;  // [n_threads, per_thread]: two buffers for a layer's input and output, then scratch
    Index buffer, per_thread, bytes;

    explicit EncoderWorkspace(EncoderEvaluate const& call) {
        Carver carver(call.workspace);
        Index const taps = 3 * call.n_in, n_padded = round_up(call.n_stem, ROWS);
        Index S = (call.n_samples - 1) / 2 + 1;
        stem = {call.n_clips, call.n_in, call.n_stem, call.n_samples, call.n_threads, call.workspace};
        stem_weights = carver.take<float>(n_padded * taps);
        stem_bias = carver.take<float>(call.n_stem);
        buffer = call.n_stem * S;
        Index scratch = StemScratch::floats(taps, 0, 0);
        blocks.reserve(static_cast<std::size_t>(call.n_blocks));
        for (Index i = 0; i < call.n_blocks; ++i) {
            MBConvShape const& s = call.blocks[i].block.shape;
            blocks.emplace_back(s, call.blocks[i].block.residual, carver);
            S = samples_out(s);
            buffer = most(buffer, s.n_out * S);
            scratch = most(scratch, blocks.back().n_scratch_floats);
        }
        buffer = round_up(buffer, 16);
        per_thread = round_up(2 * buffer + scratch, 16);
        thread = carver.take<float>(call.n_threads * per_thread);
        bytes = carver.used();
    }
};

// The stem of one clip, its batch norm folded: y [n_stem, S] from x [n_in, T].
template <typename Factor>
inline void evaluate_stem(EncoderWorkspace<Factor> const& work, float const* x, float* y, float* scratch) {
    StemShape const& s = work.stem;
    Index const S = (s.n_samples - 1) / 2 + 1, taps = 3 * s.n_in;
    StemScratch const t(scratch, taps, 0);
    for (Index from = 0; from < S; from += STEM_TILE) {
        Strips const strips(least(S - from, STEM_TILE));
        fill_taps(s, strips, x, from, t);
        product(strips, s.n_out, taps, work.stem_weights, t.panel, [&](Index o, Index at, Vector v, Index n) {
            store_first(y + o * S + from + at, v + work.stem_bias[o], n);
        });
    }
}

template <typename Factor>
inline void fold_stem(EncoderEvaluate const& call, EncoderWorkspace<Factor> const& work) {
    BatchNorm const& norm = call.stem_norm;
    for (Index block = 0; block * ROWS < call.n_stem; ++block) {
        double scale[ROWS];  // on the stack: inside a parallel region nothing may throw
        for (Index o = block * ROWS; o < least((block + 1) * ROWS, call.n_stem); ++o) {
            double const factor = factor_of(norm.gamma[o], norm.variance[o], norm.eps);
            double const offset = static_cast<double>(call.stem_bias[o]) - static_cast<double>(norm.mean[o]);
            scale[o - block * ROWS] = factor;
            work.stem_bias[o] = static_cast<float>(static_cast<double>(norm.beta[o]) + offset * factor);
        }
        pack_scaled(call.stem_w, scale, call.n_stem, 3 * call.n_in, block, work.stem_weights);
    }
}

template <typename Factor>
inline void encode(EncoderEvaluate const& call) {
    EncoderWorkspace<Factor> const work(call);
    SLEEPFM_OMP(omp parallel num_threads(call.n_threads)) {
        Tiles const tiles;
        SLEEPFM_OMP(omp single nowait)
        fold_stem(call, work);
        for (Index i = 0; i < call.n_blocks; ++i) {
            FoldedBlock<Factor> const& block = work.blocks[static_cast<std::size_t>(i)];
            SLEEPFM_OMP(omp for schedule(static) nowait)
            for (Index part = 0; part < block.n_parts(); ++part) {
                block.fold(call.blocks[i].block, call.blocks[i].after, part);
            }
        }
        SLEEPFM_OMP(omp barrier)
        SLEEPFM_OMP(omp for schedule(dynamic))
        for (Index b = 0; b < call.n_clips; ++b) {
            float* at = work.thread + thread_number() * work.per_thread;
            float* next = at + work.buffer;
            float* const scratch = next + work.buffer;
            auto const advance = [&] {
                float* const free = at;
                at = next;
                next = free;
            };
            evaluate_stem(work, call.x + b * call.n_in * call.n_samples, at, scratch);
            Index n_channels = call.n_stem, S = (call.n_samples - 1) / 2 + 1;
            for (Index i = 0; i < call.n_blocks; ++i) {
                FoldedBlock<Factor> const& block = work.blocks[static_cast<std::size_t>(i)];
                block.evaluate(at, next, scratch);
                advance();
                n_channels = block.s.n_out;
                S = samples_out(block.s);
                if (call.blocks[i].pool) {
                    for (Index c = 0; c < n_channels; ++c) {
                        max_pool_row(at + c * S, S, next + c * S);
                    }
                    advance();
                }
            }
            for (Index c = 0; c < n_channels; ++c) {
                call.y[b * n_channels + c] = static_cast<float>(row_sum(at + c * S, S) / static_cast<double>(S));
            }
        }
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
