// Evaluation of an MBConv block with running statistics: a tile of samples goes through all of it, and no wide
// activation is written.
#pragma once

#include "cpu/mbconv_expand.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

inline void evaluate(MBConvEvaluate const& call) {
    MBConvShape const& s = call.shape;
    MBConvWeights const& w = call.weights;
    MBConvWorkspace const work(s, false);
    Index const T = s.n_samples, S = samples_out(s), width = s.width;
    Index const tile = evaluation_tile(s), ldx = odd_vectors(tile * s.stride);
    Dropout const dropout(call.residual);
    // The batch norms are folded: scale into the weights before them, the rest into the biases.
    for (Index c = 0; c < width; ++c) {
        double const factor0 =
            static_cast<double>(w.gamma0[c]) / sqrt(static_cast<double>(call.variance0[c]) + call.eps);
        double const factor1 =
            static_cast<double>(w.gamma1[c]) / sqrt(static_cast<double>(call.variance1[c]) + call.eps);
        work.scale0[c] = static_cast<float>(factor0);
        work.shift0[c] =
            static_cast<float>(static_cast<double>(w.beta0[c]) +
                               (static_cast<double>(w.b1[c]) - static_cast<double>(call.mean0[c])) * factor0);
        work.shift1[c] =
            static_cast<float>(static_cast<double>(w.beta1[c]) +
                               (static_cast<double>(w.bd[c]) - static_cast<double>(call.mean1[c])) * factor1);
        for (Index k = 0; k < 3; ++k) {
            work.taps[3 * c + k] = static_cast<float>(static_cast<double>(w.wd[3 * c + k]) * factor1);
        }
    }
    pack(w.w1, s.n_in, 1, work.scale0, width, s.n_in, work.expand);
    pack(w.w3, width, 1, nullptr, s.n_out, width, work.project);
    SLEEPFM_OMP(omp parallel for schedule(static) num_threads(s.n_threads))
    for (Index b = 0; b < s.n_clips; ++b) {
        float* const scratch = work.thread + thread_number() * work.per_thread;
        auto* const carry = reinterpret_cast<Carry*>(scratch);
        float* const x_panel = scratch + round_up(2 * width, 16);  // [n_in, ldx]
        float* const rows = x_panel + s.n_in * ldx;                // [ROWS, ...]
        float* const panel = rows + ROWS * (ldx + 4 * LANES);      // width rows
        float* const y = call.y + b * s.n_out * S;
        Index done = 0;
        for (Index from = 0; from < S; from += tile) {
            Columns const at(s, from, tile);
            Strips const strips(at.count);
            Index const now = expand_end(at, S);
            Strips const out_strips(now - done);
            fill_columns(at, strips, call.x + b * s.n_in * T, T, s.n_in, nullptr, rows, x_panel);
            expand_tile(
                s, at, strips, work.expand, x_panel, carry, rows,
                [shift0 = work.shift0](Index c, Index, auto& vectors) {
                    constexpr int C = static_cast<int>(sizeof(vectors) / sizeof(Vector));
                    float const shift = shift0[c];
#pragma GCC unroll 3
                    for (int k = 0; k < C; ++k) {
                        vectors[k] = relu6(vectors[k] + shift);
                    }
                },
                [&](Index c, Index n, float const* before, float const* middle, float const* after) {
                    float const* const taps = work.taps + 3 * c;
                    for (Index t = 0; t < n; t += LANES) {
                        store(panel + out_strips.place(width, c, t),
                              relu6(work.shift1[c] + taps[0] * load(before + t) + taps[1] * load(middle + t) +
                                    taps[2] * load(after + t)));
                    }
                });
            product_rows(out_strips, s.n_out, width, work.project, panel,
                         [&](Index o, Index t, auto const& vectors, Index n) {
                             finish_rows(call.residual, dropout, b * s.n_out + o, w.b3[o], done + t, vectors, n,
                                         call.x + (b * s.n_out + o) * S, y + o * S);
                         });
            done = now;
        }
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
