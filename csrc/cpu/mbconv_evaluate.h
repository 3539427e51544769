// Evaluation of an MBConv block: its batch norms, with their running statistics, are folded into the weights; then a
// tile of samples goes through expansion, depthwise convolution and projection, and no wide activation leaves the
// second cache.
#pragma once

#include "cpu/mbconv_expand.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// Samples of a tile: its input stays in the first cache, what the projection multiplies in the second.
inline Index evaluation_tile(MBConvShape const& s) {
    return least(units(s, least(most(6144 / s.n_in, 16 * LANES), 24 * LANES)),
                 most(98304 / s.width / LANES, 1) * LANES);
}

// What a batch norm with running statistics multiplies its input by.
inline double factor_of(float gamma, float variance, double eps) {
    return static_cast<double>(gamma) / sqrt(static_cast<double>(variance) + eps);
}

// Packs block `block` of w [n_rows, n_k], each of its ROWS rows times its scale, as pack_block does.
template <typename Factor>
inline void pack_scaled(float const* w, double const* scale, Index n_rows, Index n_k, Index block, Factor* packed) {
    float const* const rows = w + block * ROWS * n_k;
#if defined(SLEEPFM_TILES)
    if constexpr (FactorOf<Factor>::DEPTH == 2) {
        if (tile_words<Factor>(words_of<Factor>(n_k)) != 0) {
            pack_rows(n_rows - block * ROWS, n_k, packed + block * words_of<Factor>(n_k) * ROWS,
                      [=](Index r, Index k) { return scaled(load_first(rows + r * n_k + k, n_k - k), scale[r]); });
            return;
        }
    }
#endif
    pack_elements(n_rows - block * ROWS, n_k, packed + block * words_of<Factor>(n_k) * ROWS, [=](Index r, Index k) {
        return static_cast<float>(static_cast<double>(rows[r * n_k + k]) * scale[r]);
    });
}

// A block whose batch norms (its own two, and one after it) are folded: their factors into the weights before them, the
// rest into the biases.
template <typename Factor>
struct FoldedBlock {
    static constexpr Index DEPTH = FactorOf<Factor>::DEPTH;
    MBConvShape s;
    MBConvResidual residual;
    Factor *expand, *project;       // w1 and w3, packed: [width / ROWS, n_in, ROWS], [n_out / ROWS, width, ROWS]
    float *taps, *shift0, *shift1;  // [width, 3] taps; [width] what follows expansion and depthwise convolution
    float* bias;                    // [n_out] what follows the projection
    Index n_scratch_floats;         // scratch for one clip at a time

    FoldedBlock(MBConvShape const& shape, MBConvResidual const& add, Carver& carver) : s(shape), residual(add) {
        expand = carver.take<Factor>(round_up(s.width, TALL) * words_of<Factor>(s.n_in));
        project = carver.take<Factor>(round_up(s.n_out, TALL) * words_of<Factor>(s.width));
        taps = carver.take<float>(3 * s.width);
        shift0 = carver.take<float>(s.width);
        shift1 = carver.take<float>(s.width);
        bias = carver.take<float>(s.n_out);
        n_scratch_floats = round_up(2 * s.width, 16) + (words_of<Factor>(s.n_in) + TALL) * ldx() + 4 * TALL * LANES +
                           words_of<Factor>(s.width) * round_up(evaluation_tile(s) + 1, LANES);
    }

    Index ldx() const { return odd_vectors(evaluation_tile(s) * s.stride); }

    Index n_parts() const { return (s.width + ROWS - 1) / ROWS + (s.n_out + ROWS - 1) / ROWS; }

    // Folds one of n_parts() independent parts of the weights: ROWS channels inside, or ROWS channels out.
    void fold(MBConvEvaluate const& call, BatchNorm const& after, Index part) const {
        MBConvWeights const& w = call.weights;
        Index const n_inside = (s.width + ROWS - 1) / ROWS;
        double scale[ROWS];
        if (part < n_inside) {
            for (Index c = part * ROWS; c < least((part + 1) * ROWS, s.width); ++c) {
                double const factor0 = factor_of(w.gamma0[c], call.variance0[c], call.eps);
                double const factor1 = factor_of(w.gamma1[c], call.variance1[c], call.eps);
                scale[c - part * ROWS] = factor0;
                shift0[c] =
                    static_cast<float>(static_cast<double>(w.beta0[c]) +
                                       (static_cast<double>(w.b1[c]) - static_cast<double>(call.mean0[c])) * factor0);
                shift1[c] =
                    static_cast<float>(static_cast<double>(w.beta1[c]) +
                                       (static_cast<double>(w.bd[c]) - static_cast<double>(call.mean1[c])) * factor1);
                for (Index k = 0; k < 3; ++k) {
                    taps[3 * c + k] = static_cast<float>(static_cast<double>(w.wd[3 * c + k]) * factor1);
                }
            }
            pack_scaled(w.w1, scale, s.width, s.n_in, part, expand);
            return;
        }
        part -= n_inside;
        for (Index o = part * ROWS; o < least((part + 1) * ROWS, s.n_out); ++o) {
            double const factor =
                after.gamma == nullptr ? 1.0 : factor_of(after.gamma[o], after.variance[o], after.eps);
            double const shift = after.gamma == nullptr
                                     ? 0.0
                                     : static_cast<double>(after.beta[o]) - static_cast<double>(after.mean[o]) * factor;
            scale[o - part * ROWS] = factor;
            bias[o] = static_cast<float>(static_cast<double>(w.b3[o]) * factor + shift);
        }
        pack_scaled(w.w3, scale, s.n_out, s.width, part, project);
    }

    // One clip: y [n_out, S] from x [n_in, T].
    void evaluate(float const* x, float* y, float* scratch) const {
        Index const T = s.n_samples, S = samples_out(s), width = s.width, tile = evaluation_tile(s);
        Dropout const dropout(residual);
        auto* const carry = reinterpret_cast<Carry*>(scratch);
        float* const narrow = scratch + round_up(2 * width, 16);
        float* const rows = narrow + words_of<Factor>(s.n_in) * ldx();                     // [TALL, ...]
        auto* const x_panel = reinterpret_cast<Factor*>(narrow);                           // n_in factors, ldx
        auto* const panel = reinterpret_cast<Factor*>(rows + TALL * (ldx() + 4 * LANES));  // width factors
        Index done = 0;
        for (Index from = 0; from < S; from += tile) {
            Columns const at(s, from, tile);
            Strips const strips(at.count);
            Index const now = expand_end(at, S);
            Strips const out_strips(now - done);
            fill_columns(at, strips, x, T, s.n_in, nullptr, rows, x_panel);
            expand_tile<DEPTH>(
                s, at, strips, expand, x_panel, carry, rows,
                [shifts = shift0](Index c, Index, auto& vectors) {
                    constexpr int C = static_cast<int>(sizeof(vectors) / sizeof(Vector));
                    float const shift = shifts[c];
#pragma GCC unroll 3
                    for (int k = 0; k < C; ++k) {
                        vectors[k] = relu6(vectors[k] + shift);
                    }
                },
                [&](Index c, Index, Taps const* around) {
                    Vector shift[DEPTH], tap0[DEPTH], tap1[DEPTH], tap2[DEPTH];
                    for (Index i = 0; i < DEPTH; ++i) {
                        Index const channel = least(c + i, width - 1);
                        shift[i] = splat(shift1[channel]);
                        tap0[i] = splat(taps[3 * channel]);
                        tap1[i] = splat(taps[3 * channel + 1]);
                        tap2[i] = splat(taps[3 * channel + 2]);
                    }
                    for_strips(out_strips, words_of<Factor>(width), c / DEPTH, panel, [&](Index t, Factor* to) {
                        put(to, [&](Index i) {
                            return relu6(shift[i] + tap0[i] * load(around[i].before + t) +
                                         tap1[i] * load(around[i].at + t) + tap2[i] * load(around[i].after + t));
                        });
                    });
                });
            product_rows(out_strips, s.n_out, width, project, panel,
                         [&](Index o, Index t, auto const& vectors, Index n) {
                             finish_rows(residual, dropout, o, bias[o], done + t, vectors, n, x + o * S, y + o * S);
                         });
            done = now;
        }
    }
};

template <typename Factor>
struct EvaluateWorkspace {
    Carver carver;
    FoldedBlock<Factor> block;
    Index per_thread;
    float* thread;  // [n_threads, per_thread]
    Index bytes;

    explicit EvaluateWorkspace(MBConvShape const& s, MBConvResidual const& residual = {})
        : carver(s.workspace),
          block(s, residual, carver),
          per_thread(round_up(block.n_scratch_floats, 16)),
          thread(carver.take<float>(s.n_threads * per_thread)),
          bytes(carver.used()) {}
};

template <typename Factor>
inline void evaluate(MBConvEvaluate const& call) {
    MBConvShape const& s = call.shape;
    EvaluateWorkspace<Factor> const work(s, call.residual);
    SLEEPFM_OMP(omp parallel num_threads(s.n_threads)) {
        Tiles const tiles;
        SLEEPFM_OMP(omp for schedule(static))
        for (Index part = 0; part < work.block.n_parts(); ++part) {
            work.block.fold(call, {}, part);
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index b = 0; b < s.n_clips; ++b) {
            work.block.evaluate(call.x + b * s.n_in * s.n_samples, call.y + b * s.n_out * samples_out(s),
                                work.thread + thread_number() * work.per_thread);
        }
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
