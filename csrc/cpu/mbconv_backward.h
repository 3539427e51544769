// Backward of an MBConv block in training. With c the input of a batch norm, c_hat the normalised c, u = gamma c_hat +
// beta the input of the ReLU6 behind it, and g = dloss/du (g0 for the first batch norm, g1 for the second),
//   dc = gamma / sigma (g - mean(g) - c_hat mean(g c_hat)),   dgamma = sum g c_hat,   dbeta = sum g.
// So dc2 has to wait for sums of g1 over the batch, and g1 is written to memory. dc1 does not: it goes through the
// expansion only, which is linear, so that dx and dw1 are made from g0 at once, and corrected at the end by terms of
// the narrow input alone (docs/kernels/encoder-blocks.md). The passes over a clip are in mbconv_clip_backward.h; here
// are the parallel loops, with a barrier after each, and the sums over clips between them.
#pragma once

#include "cpu/mbconv_clip_backward.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// to[k] = sum over groups of from[group][k], k < n, in float64; from is [groups][size], n a multiple of LANES. A
// stretch of each group at a time, since the same place of all groups may fall on the same set of the first cache.
inline void sum_groups(float const* from, Index groups, Index size, Index n, float* to) {
    constexpr Index SPAN = 256;
    alignas(64) double sums[SPAN];
    for (Index start = 0; start < n; start += SPAN) {
        Index const span = least(n - start, SPAN);
        memset(sums, 0, sizeof sums);
        for (Index group = 0; group < groups; ++group) {
            float const* const at = from + group * size + start;
            for (Index k = 0; k < span; k += WIDE_LANES) {
                store_wide(sums + k, load_wide(sums + k) + load_widened(at + k));
            }
        }
        for (Index k = 0; k < span; k += WIDE_LANES) {
            store_narrowed(to + start + k, load_wide(sums + k));
        }
    }
}

template <typename Factor>
struct Backward : ClipBackward<Factor> {
    using Clip = ClipBackward<Factor>;
    using Clip::B, Clip::T, Clip::S, Clip::width, Clip::n_in, Clip::n_out, Clip::width_padded, Clip::groups;
    using Clip::bias_sums, Clip::call, Clip::clip_sums, Clip::ld_in, Clip::ld_out, Clip::n0, Clip::n1, Clip::per_group;
    using Clip::inverse, Clip::mean0, Clip::mean1, Clip::s, Clip::variance0, Clip::variance1, Clip::w, Clip::work;
    using typename Clip::Scratch;

    // Called by all threads of the team, who share the work.
    void pack_weights() const {
        SLEEPFM_OMP(omp for schedule(static))
        for (Index block = 0; block < width_padded / ROWS; ++block) {
            pack_block(w.w1, width, n_in, block, work.expand);
            pack_columns(w.w3, width, nullptr, width, n_out, n_out, block, work.project_t);
            if constexpr (FactorOf<Factor>::DEPTH > 1) {
                pack_block(w.w1, width, n_in, block, work.exact_expand);
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index block = 0; block < (n_in + ROWS - 1) / ROWS; ++block) {
            pack_columns(w.w1, n_in, work.scale0, n_in, width, width_padded, block, work.expand_t);
            if constexpr (FactorOf<Factor>::DEPTH > 1) {
                pack_columns(w.w1, n_in, work.scale0, n_in, width, width_padded, block, work.exact_expand_t);
            }
        }
    }

    // From the five sums of a channel over the batch: its gradients, and what corrects dx and dw1 for the first batch
    // norm.
    void correct_channel(Index c, double const* sums, Strips const& inputs) const {
        call.dbeta0[c] = static_cast<float>(sums[0]);
        call.dgamma0[c] = static_cast<float>(sums[1]);
        for (int k = 0; k < 3; ++k) {
            call.dwd[3 * c + k] = static_cast<float>(sums[2 + k]);
        }
        double const factor = -inverse(variance0[c]) * sums[1] / n0;
        work.mean_gradient[c] = -sums[0] / n0;
        work.factor[c] = static_cast<float>(factor);
        for (Index k = 0; k < n_in; k += LANES) {
            store(work.bent + inputs.place(width, c, k),
                  first_lanes(load_first(w.w1 + c * n_in + k, n_in - k) * work.factor[c], n_in - k));
        }
    }

    void run() const {
        affine(s, mean0, variance0, w.gamma0, w.beta0, call.eps, work.scale0, work.shift0);
        affine(s, mean1, variance1, w.gamma1, w.beta1, call.eps, work.scale1, work.shift1);
        double const* const input_mean = call.moments;
        double const* const products = input_mean + n_in;
        for (Index k = 0; k < n_in; ++k) {
            work.centre[k] = static_cast<float>(input_mean[k]);
        }
        Strips const inputs(n_in);
        fill_panel(inputs, n_in, work.covariance, [&](Index k, Index j, Index n) {
            Vector v{};
            for (Index i = 0; i < least(n, LANES); ++i) {
                v[i] = static_cast<float>(products[k * n_in + j + i]);
            }
            return v;
        });
        Index const size_in = width_padded * ld_in, size_out = width_padded * ld_out;

        SLEEPFM_OMP(omp parallel num_threads(s.n_threads)) {
            Tiles const tiles;
            Scratch const t = this->scratch();
            pack_weights();

            SLEEPFM_OMP(omp for schedule(static))
            for (Index group = 0; group < groups; ++group) {
                Index const first = group * per_group;
                for (Index b = first; b < least(first + per_group, B); ++b) {
                    this->project(t, b, b == first, work.weight_sums + group * size_out);
                }
            }
            SLEEPFM_OMP(omp for schedule(static))
            for (Index block = 0; block < width; block += LANES) {
                Index const n = least(width - block, LANES);
                sum_groups(work.weight_sums + block * ld_out, groups, size_out, n * ld_out, t.result);
                double sums[LANES] = {}, with_c_hat[LANES] = {};
                for (Index b = 0; b < B; ++b) {
                    double const* const of_clip = clip_sums + b * 2 * width + block;
                    for (Index i = 0; i < n; ++i) {
                        sums[i] += of_clip[i];
                        with_c_hat[i] += of_clip[width + i];
                    }
                }
                for (Index i = 0; i < n; ++i) {
                    Index const c = block + i;
                    call.dbeta1[c] = static_cast<float>(sums[i]);
                    call.dgamma1[c] = static_cast<float>(with_c_hat[i]);
                    reinterpret_cast<BatchNormGradient*>(work.batch_norm)[c] = gradient_of(
                        static_cast<double>(w.gamma1[c]), mean1[c], variance1[c], call.eps, sums[i], with_c_hat[i], n1);
                }
                for (Index o = 0; o < n_out; ++o) {
                    for (Index c = 0; c < n; ++c) {
                        call.dw3[o * width + block + c] = t.result[c * ld_out + o];
                    }
                }
            }
            SLEEPFM_OMP(omp for schedule(static))
            for (Index o = 0; o < n_out; ++o) {
                double sum = 0.0;
                for (Index b = 0; b < B; ++b) {
                    sum += bias_sums[b * n_out + o];
                }
                call.db3[o] = static_cast<float>(sum);
            }

            SLEEPFM_OMP(omp for schedule(static))
            for (Index group = 0; group < groups; ++group) {
                Index const first = group * per_group;
                for (Index b = first; b < least(first + per_group, B); ++b) {
                    this->expand(t, b, b == first, work.weight_sums + group * size_in);
                }
            }
            SLEEPFM_OMP(omp for schedule(static))
            for (Index block = 0; block < width; block += LANES) {
                Index const n = least(width - block, LANES);
                double sums[5 * LANES] = {};
                for (Index b = 0; b < B; ++b) {
                    double const* const of_clip = clip_sums + (b * width + block) * 5;
                    for (Index i = 0; i < 5 * n; ++i) {
                        sums[i] += of_clip[i];
                    }
                }
                for (Index i = 0; i < n; ++i) {
                    this->correct_channel(block + i, sums + 5 * i, inputs);
                }
            }
            SLEEPFM_OMP(omp for schedule(static))
            for (Index block = 0; block < width_padded; block += ROWS) {
                Index const n_rows = least(width - block, ROWS);
                sum_groups(work.weight_sums + block * ld_in, groups, size_in, ROWS * ld_in, t.result);
                product(inputs, n_rows, n_in, work.exact_expand + block * n_in, work.covariance,
                        [&](Index r, Index k, Vector v, Index n) {
                            Index const c = block + r;
                            Vector const sum = load(t.result + r * ld_in + k);
                            store_first(call.dw1 + c * n_in + k, work.scale0[c] * (sum + work.factor[c] * v), n);
                        });
            }
            SLEEPFM_OMP(omp for schedule(static))
            for (Index block = 0; block < n_in; block += ROWS) {
                Index const n_rows = least(n_in - block, ROWS);
                float const* const packed = work.exact_expand_t + block * width_padded;
                constexpr Index DEPTH = FactorOf<Factor>::DEPTH;
                Factor* const to = work.square + block * words_of<Factor>(n_in);
                product(inputs, n_rows, width, packed, work.bent, [&](Index r, Index j, Vector v, Index n) {
                    for (Index i = 0; i < least(n, LANES); i += DEPTH) {
                        put_word(to + packed_place<Factor>(words_of<Factor>(n_in), (j + i) / DEPTH, r),
                                 [&](Index k) { return i + k < n ? v[i + k] : 0.0f; });
                    }
                });
                for (Index r = 0; r < ROWS; r += WIDE_LANES) {
                    Doubles sum{};
                    for (Index c = 0; c < width; ++c) {
                        sum += load_widened(packed + c * ROWS + r) * work.mean_gradient[c];
                    }
                    store_narrowed(work.offset + block + r, sum);
                }
            }
            SLEEPFM_OMP(omp for schedule(static))
            for (Index b = 0; b < B; ++b) {
                this->correct(t, b);
            }
        }
    }
};

template <typename Factor>
inline void backward(MBConvBackward const& call) {
    Backward<Factor>{{call}}.run();
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
