// Backward of an MBConv block in training. With u the input of a ReLU6 and c_hat the normalised activation, a batch
// norm over n values a channel gives
//   dc = gamma / sigma (g - mean(g) - c_hat mean(g c_hat)),   g = dloss/du,   dgamma = sum g c_hat,   dbeta = sum g,
// so each of the two waits for sums over the batch; g is kept, everything else is computed again from c1 and c2.
#pragma once

#include "cpu/mbconv_forward.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// dc = a g + b (c - mean) + d for every channel.
struct BatchNormGradient {
    float a, b, d, mean;
    Vector operator()(Vector g, Vector c) const { return a * g + (b * (c - mean) + d); }
};

inline BatchNormGradient gradient_of(double gamma, double mean, double variance, double eps, double sum, double product,
                                     double n) {
    double const inverse = 1.0 / sqrt(variance + eps);
    double const a = gamma * inverse;
    return {static_cast<float>(a), static_cast<float>(-a * inverse * product / n), static_cast<float>(-a * sum / n),
            static_cast<float>(mean)};
}

// transposed[t][k] of a panel [n_k][ld]; zero beyond n_k.
inline void transpose_panel(float const* panel, Index ld, Index n_k, Index n_t, Index ldo, float* transposed) {
    for (Index t = 0; t < n_t; ++t) {
        for (Index k = 0; k < ldo; ++k) {
            transposed[t * ldo + k] = k < n_k ? panel[k * ld + t] : 0.0f;
        }
    }
}

inline void backward(MBConvBackward const& call) {
    MBConvShape const& s = call.shape;
    MBConvWeights const& w = call.weights;
    MBConvWorkspace const work(s, true);
    Index const B = s.n_clips, T = s.n_samples, S = samples_out(s), width = s.width;
    Index const width_padded = round_up(width, ROWS);
    Index const groups = n_groups(s), per_group = clips_per_group(s);
    Index const ld_in = round_up(s.n_in, LANES), ld_out = round_up(s.n_out, LANES);
    double const* const mean0 = call.statistics;
    double const* const variance0 = mean0 + width;
    double const* const mean1 = variance0 + width;
    double const* const variance1 = mean1 + width;
    affine(s, mean0, variance0, w.gamma0, w.beta0, call.eps, work.scale0, work.shift0);
    affine(s, mean1, variance1, w.gamma1, w.beta1, call.eps, work.scale1, work.shift1);
    pack(w.w1, 1, s.n_in, nullptr, s.n_in, width, work.expand_t);
    pack(w.w3, 1, width, nullptr, width, s.n_out, work.project_t);
    double* const clip_sums = work.sums;                  // [B, 2, width], later [B, width, 5]
    double* const bias_sums = work.sums + B * 5 * width;  // [B, n_out]
    Index const ldt = panel_width(T), lds = panel_width(S);
    double const n0 = static_cast<double>(B * T), n1 = static_cast<double>(B * S);
    auto* const to_c1 = reinterpret_cast<BatchNormGradient*>(work.batch_norm);  // [width]
    auto const inverse = [&](double variance) { return 1.0 / sqrt(variance + call.eps); };

    SLEEPFM_OMP(omp parallel num_threads(s.n_threads)) {
        float* const lanes = work.thread + thread_number() * work.per_thread;  // [width, 2, LANES]
        float* const panel = lanes + 2 * LANES * width_padded;                 // [width, panel]
        float* const narrow = panel + WIDEST_PANEL * width_padded;             // [n_in or n_out, panel]
        Index const widest = round_up(s.n_in > s.n_out ? s.n_in : s.n_out, LANES);
        float* const transposed = narrow + WIDEST_PANEL * widest;  // [panel, n_in or n_out]
        float* const row = transposed + WIDEST_PANEL * widest;
        Index const row_size = round_up(T > 2 * S ? T : 2 * S, LANES) + 2 * LANES;
        memset(panel, 0, static_cast<std::size_t>(WIDEST_PANEL * width_padded) * sizeof(float));

        // Projection: g1, its sums, and dw3 (transposed).
        SLEEPFM_OMP(omp for schedule(static))
        for (Index group = 0; group < groups; ++group) {
            float* const dw = work.weight_sums + group * width_padded * ld_out;
            memset(dw, 0, static_cast<std::size_t>(width_padded * ld_out) * sizeof(float));
            Index const end = (group + 1) * per_group < B ? (group + 1) * per_group : B;
            for (Index b = group * per_group; b < end; ++b) {
                memset(lanes, 0, static_cast<std::size_t>(2 * width * LANES) * sizeof(float));
                float const* const dy = call.dy + b * s.n_out * S;
                float const* const c2 = call.c2 + b * width * S;
                float* const g1 = call.g1 + b * width * S;
                for (Index o = 0; o < s.n_out; ++o) {
                    bias_sums[b * s.n_out + o] = row_sum(dy + o * S, S);
                }
                for (Index t0 = 0; t0 < S; t0 += lds) {
                    Index const n_t = S - t0 < lds ? S - t0 : lds;
                    fill_panel(s.n_out, n_t, lds, narrow,
                               [&](Index o, Index t, Index n) { return load_first(dy + o * S + t0 + t, n); });
                    product(width, s.n_out, n_t, work.project_t, narrow, lds, [&](Index c, Index t, Vector v, Index n) {
                        Vector const at = load_first(c2 + c * S + t0 + t, n);
                        Vector const u = at * work.scale1[c] + work.shift1[c];
                        Vector const g = first_lanes(relu6_gradient(u, v), n);
                        store_first(g1 + c * S + t0 + t, g, n);
                        store(panel + c * lds + t, first_lanes(relu6(u), n));
                        float* const sums = lanes + c * 2 * LANES;
                        store(sums, load(sums) + g);
                        store(sums + LANES, load(sums + LANES) + g * (at - static_cast<float>(mean1[c])));
                    });
                    transpose_panel(narrow, lds, s.n_out, n_t, ld_out, transposed);
                    accumulate(width_padded, n_t, panel, lds, transposed, ld_out, dw);
                }
                for (Index c = 0; c < width; ++c) {
                    clip_sums[(b * 2) * width + c] = total(load(lanes + c * 2 * LANES));
                    clip_sums[(b * 2 + 1) * width + c] =
                        total(load(lanes + c * 2 * LANES + LANES)) * inverse(variance1[c]);
                }
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index c = 0; c < width; ++c) {
            for (Index o = 0; o < s.n_out; ++o) {
                double sum = 0.0;
                for (Index group = 0; group < groups; ++group) {
                    sum += static_cast<double>(work.weight_sums[(group * width_padded + c) * ld_out + o]);
                }
                call.dw3[o * width + c] = static_cast<float>(sum);
            }
            double sum = 0.0, product = 0.0;
            for (Index b = 0; b < B; ++b) {
                sum += clip_sums[(b * 2) * width + c];
                product += clip_sums[(b * 2 + 1) * width + c];
            }
            call.dbeta1[c] = static_cast<float>(sum);
            call.dgamma1[c] = static_cast<float>(product);
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index o = 0; o < s.n_out; ++o) {
            double sum = 0.0;
            for (Index b = 0; b < B; ++b) {
                sum += bias_sums[b * s.n_out + o];
            }
            call.db3[o] = static_cast<float>(sum);
        }

        // Depthwise convolution: dwd, g0 and its sums.
        SLEEPFM_OMP(omp for schedule(static))
        for (Index b = 0; b < B; ++b) {
            float* const h = row;            // one zero before the first sample
            float* const dc = h + row_size;  // one zero before the first sample
            float* const dh = dc + row_size;
            float* const spread = dh + row_size;
            for (Index c = 0; c < width; ++c) {
                float const* const c1 = call.c1 + (b * width + c) * T;
                float const* const c2 = call.c2 + (b * width + c) * S;
                float const* const g1 = call.g1 + (b * width + c) * S;
                float* const g0 = call.g0 + (b * width + c) * T;
                BatchNormGradient const to_c2 =
                    gradient_of(static_cast<double>(w.gamma1[c]), mean1[c], variance1[c], call.eps,
                                static_cast<double>(call.dbeta1[c]), static_cast<double>(call.dgamma1[c]), n1);
                float const a0 = w.wd[3 * c], a1 = w.wd[3 * c + 1], a2 = w.wd[3 * c + 2];
                h[0] = 0.0f;
                for (Index t = 0; t < T; t += LANES) {
                    store_first(h + 1 + t, relu6(load_first(c1 + t, T - t) * work.scale0[c] + work.shift0[c]), T - t);
                }
                dc[0] = 0.0f;
                for (Index t = 0; t < S; t += LANES) {
                    store_first(dc + 1 + t, to_c2(load_first(g1 + t, S - t), load_first(c2 + t, S - t)), S - t);
                }
                for (Index t = T + 1; t < row_size; ++t) {
                    h[t] = 0.0f;
                }
                for (Index t = S + 1; t < row_size; ++t) {
                    dc[t] = 0.0f;
                }
                if (s.stride == 1) {
                    for (Index t = 0; t < T; ++t) {
                        dh[t] = a0 * dc[t + 2] + a1 * dc[t + 1] + a2 * dc[t];
                    }
                } else {
                    for (Index t = 0; t < S; ++t) {
                        dh[2 * t] = a1 * dc[t + 1];
                        dh[2 * t + 1] = a2 * dc[t + 1] + a0 * dc[t + 2];
                    }
                    for (Index t = 0; t < S; ++t) {  // dc where its convolution looked: every other sample
                        spread[2 * t] = dc[t + 1];
                        spread[2 * t + 1] = 0.0f;
                    }
                }
                float const* const source = s.stride == 1 ? dc + 1 : spread;
                Index const n = s.stride == 1 ? S : 2 * S - 1;
                Vector tap0{}, tap1{}, tap2{};
                for (Index t = 0; t < n; t += LANES) {
                    Vector const d = load_first(source + t, n - t);
                    tap0 += d * load(h + t);
                    tap1 += d * load(h + t + 1);
                    tap2 += d * load(h + t + 2);
                }
                Vector sum{}, product{};
                for (Index t = 0; t < T; t += LANES) {
                    Vector const at = load_first(c1 + t, T - t);
                    Vector const u = at * work.scale0[c] + work.shift0[c];
                    Vector const g = first_lanes(relu6_gradient(u, load_first(dh + t, T - t)), T - t);
                    store_first(g0 + t, g, T - t);
                    sum += g;
                    product += g * (at - static_cast<float>(mean0[c]));
                }
                double* const kept = clip_sums + (b * width + c) * 5;
                kept[0] = total(sum);
                kept[1] = total(product) * inverse(variance0[c]);
                kept[2] = total(tap0);
                kept[3] = total(tap1);
                kept[4] = total(tap2);
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index c = 0; c < width; ++c) {
            double sums[5] = {};
            for (Index b = 0; b < B; ++b) {
                for (int k = 0; k < 5; ++k) {
                    sums[k] += clip_sums[(b * width + c) * 5 + k];
                }
            }
            call.dbeta0[c] = static_cast<float>(sums[0]);
            call.dgamma0[c] = static_cast<float>(sums[1]);
            for (int k = 0; k < 3; ++k) {
                call.dwd[3 * c + k] = static_cast<float>(sums[2 + k]);
            }
            to_c1[c] =
                gradient_of(static_cast<double>(w.gamma0[c]), mean0[c], variance0[c], call.eps, sums[0], sums[1], n0);
        }

        // Expansion: dx and dw1.
        SLEEPFM_OMP(omp for schedule(static))
        for (Index group = 0; group < groups; ++group) {
            float* const dw = work.weight_sums + group * width_padded * ld_in;
            memset(dw, 0, static_cast<std::size_t>(width_padded * ld_in) * sizeof(float));
            Index const end = (group + 1) * per_group < B ? (group + 1) * per_group : B;
            for (Index b = group * per_group; b < end; ++b) {
                float const* const x = call.x + b * s.n_in * T;
                float const* const c1 = call.c1 + b * width * T;
                float const* const g0 = call.g0 + b * width * T;
                float* const dx = call.dx + b * s.n_in * T;
                for (Index t0 = 0; t0 < T; t0 += ldt) {
                    Index const n_t = T - t0 < ldt ? T - t0 : ldt;
                    fill_panel(width, n_t, ldt, panel, [&](Index c, Index t, Index n) {
                        Index const at = c * T + t0 + t;
                        return to_c1[c](load_first(g0 + at, n), load_first(c1 + at, n));
                    });
                    product(s.n_in, width, n_t, work.expand_t, panel, ldt,
                            [&](Index k, Index t, Vector v, Index n) { store_first(dx + k * T + t0 + t, v, n); });
                    fill_panel(s.n_in, n_t, ldt, narrow,
                               [&](Index k, Index t, Index n) { return load_first(x + k * T + t0 + t, n); });
                    transpose_panel(narrow, ldt, s.n_in, n_t, ld_in, transposed);
                    accumulate(width_padded, n_t, panel, ldt, transposed, ld_in, dw);
                }
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index c = 0; c < width; ++c) {
            for (Index k = 0; k < s.n_in; ++k) {
                double sum = 0.0;
                for (Index group = 0; group < groups; ++group) {
                    sum += static_cast<double>(work.weight_sums[(group * width_padded + c) * ld_in + k]);
                }
                call.dw1[c * s.n_in + k] = static_cast<float>(sum);
            }
        }
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
