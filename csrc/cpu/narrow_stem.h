// The stem in training: a convolution of 3 taps with stride 2, then a batch norm with the batch's statistics. Backward
// computes the gradients of the weights only: the input is data and has none.
// A clip is processed in tiles of samples. fill_taps copies a tile into a panel of 3 n_in rows, one for each tap of
// each channel, so that the convolution and its weights' gradient are the matrix products of the MBConv blocks. One
// clip runs on one thread; the gradients of the weights are summed for each group of clips and the groups added in
// order, so that the bits do not depend on the number of threads.
#pragma once

#include "cpu/mbconv_workspace.h"
#include "cpu/narrow_batch_norm.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

constexpr Index STEM_TILE = 192;  // output samples; a tile's taps and its results stay in the second cache

// Scratch memory of one thread. `even` and `odd` hold one channel's samples of a tile, `panel` the taps [3 n_in,
// STEM_TILE] in strips; backward also needs the convolution's gradient [n_gradients, STEM_TILE] and the transposed
// taps.
struct StemScratch {
    float *even, *odd, *panel, *gradient, *transposed;

    static Index floats(Index taps, Index n_gradients, Index ld) {
        return 2 * (STEM_TILE + 2 * LANES) + (taps + n_gradients + ld) * STEM_TILE;
    }

    StemScratch(float* memory, Index taps, Index n_gradients) : even(memory) {
        odd = even + STEM_TILE + 2 * LANES;  // odd[-1] is the sample before the tile; it fits into the 2 * LANES
        panel = even + 2 * (STEM_TILE + 2 * LANES);
        gradient = panel + taps * STEM_TILE;
        transposed = gradient + n_gradients * STEM_TILE;
    }
};

struct StemWorkspace {
    float* weights;               // packed [n_padded / ROWS, taps, ROWS]
    float* scale;                 // [n_out] gamma / deviation
    BatchNormGradient* gradient;  // [n_out]
    RowSums* rows;                // [B, n_out]
    float* weight_sums;           // [groups, n_padded, ld]; a row has `taps` numbers
    float* thread;                // [n_threads, per_thread]
    Index taps, ld, n_padded, groups, per_group, per_thread, bytes;

    explicit StemWorkspace(StemShape const& s) {
        Carver carver(s.workspace);
        taps = 3 * s.n_in;
        ld = odd_vectors(taps);
        n_padded = round_up(s.n_out, ROWS);
        per_group = s.n_clips <= 16 ? 1 : (s.n_clips + 15) / 16;
        groups = (s.n_clips + per_group - 1) / per_group;
        weights = carver.take<float>(n_padded * taps);
        scale = carver.take<float>(s.n_out);
        gradient = carver.take<BatchNormGradient>(s.n_out);
        rows = carver.take<RowSums>(s.n_clips * s.n_out);
        weight_sums = carver.take<float>(groups * n_padded * ld);
        per_thread = round_up(StemScratch::floats(taps, n_padded, ld), 16);
        thread = carver.take<float>(s.n_threads * per_thread);
        bytes = carver.used();
    }

    StemScratch scratch() const { return {thread + thread_number() * per_thread, taps, n_padded}; }
};

// Fills the panel with the taps of the outputs from `from` on: for every channel of a clip at x, the samples 2 t - 1,
// 2 t and 2 t + 1 of output t. Samples outside the clip are zero.
inline void fill_taps(StemShape const& s, Strips const& strips, float const* x, Index from, StemScratch const& t) {
    Index const T = s.n_samples, n = strips.n, n_odd = least(T / 2 - from, n);
    for (Index c = 0; c < s.n_in; ++c) {
        float const* const row = x + c * T + 2 * from;
        split_row(row, n, n_odd, strips.n_vectors * LANES, 0.0f, t.even, t.odd);
        t.odd[-1] = from > 0 ? row[-1] : 0.0f;
        place_row(strips, 3 * s.n_in, 3 * c, t.odd - 1, t.panel);
        place_row(strips, 3 * s.n_in, 3 * c + 1, t.even, t.panel);
        place_row(strips, 3 * s.n_in, 3 * c + 2, t.odd, t.panel);
    }
}

inline void stem_forward(StemForward const& call) {
    StemShape const& s = call.shape;
    StemWorkspace const work(s);
    Index const B = s.n_clips, T = s.n_samples, S = (T - 1) / 2 + 1, n_out = s.n_out;
    for (Index block = 0; block * ROWS < n_out; ++block) {
        pack_block(call.w, n_out, work.taps, block, work.weights);
    }
    SLEEPFM_OMP(omp parallel num_threads(s.n_threads)) {
        StemScratch const t = work.scratch();
        SLEEPFM_OMP(omp for schedule(static))
        for (Index b = 0; b < B; ++b) {
            float* const c = call.c + b * n_out * S;
            for (Index from = 0; from < S; from += STEM_TILE) {
                Strips const strips(least(S - from, STEM_TILE));
                fill_taps(s, strips, call.x + b * s.n_in * T, from, t);
                product(strips, n_out, work.taps, work.weights, t.panel, [&](Index o, Index at, Vector v, Index n) {
                    store_first(c + o * S + from + at, v + call.bias[o], n);
                });
            }
            for (Index o = 0; o < n_out; ++o) {
                work.rows[b * n_out + o] = row_moments(c + o * S, S);
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index o = 0; o < n_out; ++o) {
            auto const [mean, variance] = moments_of(work.rows, B, n_out, o, S);
            call.statistics[o] = mean;
            call.statistics[n_out + o] = variance;
            work.scale[o] = static_cast<float>(static_cast<double>(call.gamma[o]) / sqrt(variance + call.eps));
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index row = 0; row < B * n_out; ++row) {
            Index const o = row % n_out;
            normalise_row(call.c + row * S, S, static_cast<float>(call.statistics[o]), work.scale[o], call.beta[o],
                          call.y + row * S);
        }
    }
}

inline void stem_backward(StemBackward const& call) {
    StemShape const& s = call.shape;
    StemWorkspace const work(s);
    Index const B = s.n_clips, T = s.n_samples, S = (T - 1) / 2 + 1, n_out = s.n_out;
    SLEEPFM_OMP(omp parallel num_threads(s.n_threads)) {
        StemScratch const t = work.scratch();
        SLEEPFM_OMP(omp for schedule(static))
        for (Index row = 0; row < B * n_out; ++row) {
            work.rows[row] =
                row_products(call.c + row * S, call.dy + row * S, S, static_cast<float>(call.statistics[row % n_out]));
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index o = 0; o < n_out; ++o) {
            work.gradient[o] = reduce_products(work.rows, B, n_out, o, S, call.eps, call.gamma[o], call.statistics,
                                               call.dgamma, call.dbeta);
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index group = 0; group < work.groups; ++group) {
            float* const dw = work.weight_sums + group * work.n_padded * work.ld;
            Index const first = group * work.per_group;
            for (Index b = first; b < least(first + work.per_group, B); ++b) {
                float const* const c = call.c + b * n_out * S;
                float const* const dy = call.dy + b * n_out * S;
                for (Index from = 0; from < S; from += STEM_TILE) {
                    Strips const strips(least(S - from, STEM_TILE));
                    fill_taps(s, strips, call.x + b * s.n_in * T, from, t);
                    transpose_panel(strips, t.panel, work.taps, work.ld, t.transposed);
                    fill_panel(strips, work.n_padded, t.gradient, [&](Index o, Index at, Index n) {
                        Index const place = o * S + from + at;
                        return o < n_out ? work.gradient[o](load_first(dy + place, n), load_first(c + place, n))
                                         : Vector{};
                    });
                    accumulate(strips, work.n_padded, t.gradient, t.transposed, work.taps, work.ld,
                               b == first && from == 0, dw);
                }
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index o = 0; o < n_out; ++o) {
            for (Index k = 0; k < work.taps; ++k) {
                double sum = 0.0;
                for (Index group = 0; group < work.groups; ++group) {
                    sum += static_cast<double>(work.weight_sums[(group * work.n_padded + o) * work.ld + k]);
                }
                call.dw[o * work.taps + k] = static_cast<float>(sum);
            }
        }
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
