// Backward of an MBConv block in training. With u the input of a ReLU6 and c_hat the normalised activation, a batch
// norm over n values a channel gives
//   dc = gamma / sigma (g - mean(g) - c_hat mean(g c_hat)),   g = dloss/du,   dgamma = sum g c_hat,   dbeta = sum g.
// The second batch norm's g1 therefore waits for sums over the batch. The first one's does not: its dc meets nothing
// but the expansion, which is linear, so dx and dw1 are made from g0 as it comes and corrected by terms of the narrow
// input alone (docs/kernels.md).
#pragma once

#include "cpu/mbconv_expand.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// dc = a g + b (c - mean) + d for every channel.
struct BatchNormGradient {
    float a, b, d, mean;
    Vector operator()(Vector g, Vector c) const { return a * g + (b * (c - mean) + d); }
    float operator()(float g, float c) const { return a * g + (b * (c - mean) + d); }
};

inline BatchNormGradient gradient_of(double gamma, double mean, double variance, double eps, double sum, double product,
                                     double n) {
    double const inverse = 1.0 / sqrt(variance + eps);
    double const a = gamma * inverse;
    return {static_cast<float>(a), static_cast<float>(-a * inverse * product / n), static_cast<float>(-a * sum / n),
            static_cast<float>(mean)};
}

// row[k] = sum over the groups of [groups][size] at `from`, in float64.
inline void sum_groups(float const* from, Index groups, Index size, Index n, float* row) {
    for (Index k = 0; k < round_up(n, LANES); k += LANES) {
        Doubles sum{}, more{};
        for (Index group = 0; group < groups; ++group) {
            float const* const at = from + group * size + k;
            sum += load_widened(at);
            more += load_widened(at + WIDE_LANES);
        }
        store_narrowed(row + k, sum);
        store_narrowed(row + k + WIDE_LANES, more);
    }
}

struct Backward {
    MBConvBackward const& call;
    MBConvShape const& s = call.shape;
    MBConvWeights const& w = call.weights;
    MBConvWorkspace const work{s, true};
    Dropout const dropout{call.residual};
    Index const B = s.n_clips, T = s.n_samples, S = samples_out(s), width = s.width, n_in = s.n_in, n_out = s.n_out;
    Index const width_padded = round_up(width, ROWS);
    Index const groups = n_groups(s), per_group = clips_per_group(s);
    Index const ld_in = odd_vectors(n_in), ld_out = odd_vectors(n_out);
    double const* const mean0 = call.statistics;
    double const* const variance0 = mean0 + width;
    double const* const mean1 = variance0 + width;
    double const* const variance1 = mean1 + width;
    double* const clip_sums = work.sums;                  // [B, 2, width], later [B, width, 5]
    double* const bias_sums = work.sums + B * 5 * width;  // [B, n_out]
    Index const columns = panel_width(s), tile = backward_tile(s);
    Index const ld = odd_vectors(most(tile * s.stride, columns));
    double const n0 = static_cast<double>(B * T), n1 = static_cast<double>(B * S);

    struct Scratch {
        float *lanes, *panel, *narrow, *result, *transposed, *rows, *d;
    };

    Scratch scratch() const {
        Index const widest = round_up(most(n_in, n_out), ROWS);
        Scratch t;
        t.lanes = work.thread + thread_number() * work.per_thread;  // [width, 5, LANES]
        t.panel = t.lanes + 5 * LANES * width_padded;               // [width, ld]
        t.narrow = t.panel + width_padded * ld;                     // [n_in or n_out, ld]
        t.result = t.narrow + widest * ld;                          // [n_in, ld]
        t.transposed = t.result + widest * ld;                      // [ld, n_in or n_out]
        t.rows = t.transposed + ld * most(ld_in, ld_out);           // [ROWS, ld]
        t.d = t.rows + ROWS * ld + LANES;                           // one sample before, some after
        return t;
    }

    double inverse(double variance) const { return 1.0 / sqrt(variance + call.eps); }

    // Rows of the wide panel beyond the last channel.
    void clear_padding(Scratch const& t, Strips const& strips) const {
        for (Index c = width; c < width_padded; ++c) {
            for (Index v = 0; v < strips.n_vectors; ++v) {
                store(t.panel + strips.place(width_padded, c, v * LANES), Vector{});
            }
        }
    }

    // g1 and what the projection saw, for C vectors of a channel.
    template <int C>
    void project_rows(Scratch const& t, Strips const& strips, Index c, Index at, Vector const (&vectors)[C], Index n,
                      float const* c2, float* g1) const {
        float const scale = work.scale1[c], shift = work.shift1[c], mean = static_cast<float>(mean1[c]);
        Vector sum{}, product{};
        float* const panel = t.panel + strips.place(width_padded, c, at);
#pragma GCC unroll 3
        for (int k = 0; k < C; ++k) {
            Index const left = n - k * LANES, place = c * S + at + k * LANES;
            Vector const x = load_first(c2 + place, left);
            Vector const u = x * scale + shift;
            Vector const g = first_lanes(relu6_gradient(u, vectors[k]), left);
            store_first(g1 + place, g, left);
            store(panel + k * LANES, first_lanes(relu6(u), left));
            sum += g;
            product += g * (x - mean);
        }
        float* const lanes = t.lanes + c * 2 * LANES;
        store(lanes, load(lanes) + sum);
        store(lanes + LANES, load(lanes + LANES) + product);
    }

    // g1, its sums and the projection's gradient (transposed) from one clip.
    void project(Scratch const& t, Index b, float* dw) const {
        memset(t.lanes, 0, static_cast<std::size_t>(2 * width * LANES) * sizeof(float));
        float const* const dy = call.dy + b * n_out * S;
        for (Index o = 0; o < n_out; ++o) {
            std::uint64_t const key = dropout.active ? dropout.key(b * n_out + o) : 0;
            Vector sum{};
            for (Index i = 0; i < S; i += LANES) {
                sum += first_lanes(dropout(load_first(dy + o * S + i, S - i), key, i), S - i);
            }
            bias_sums[b * n_out + o] = total(sum);
        }
        for (Index t0 = 0; t0 < S; t0 += columns) {
            Strips const strips(least(S - t0, columns));
            float const* const c2 = call.c2 + b * width * S + t0;
            float* const g1 = call.g1 + b * width * S + t0;
            fill_panel(strips, n_out, t.narrow, [&](Index o, Index at, Index n) {
                std::uint64_t const key = dropout.active ? dropout.key(b * n_out + o) : 0;
                return dropout(load_first(dy + o * S + t0 + at, n), key, t0 + at);
            });
            for (Index block = 0; block < width; block += ROWS) {
                for (Index c = block + ROWS; c < least(block + 2 * ROWS, width); ++c) {
                    prefetch(c2 + c * S, strips.n);
                }
                product_rows(strips, least(width - block, ROWS), n_out, work.project_t + block * n_out, t.narrow,
                             [&](Index r, Index at, auto const& vectors, Index n) {
                                 project_rows(t, strips, block + r, at, vectors, n, c2, g1);
                             });
            }
            clear_padding(t, strips);
            transpose_panel(strips, t.narrow, n_out, ld_out, t.transposed);
            accumulate(strips, width_padded, t.panel, t.transposed, ld_out, dw);
        }
        for (Index c = 0; c < width; ++c) {
            clip_sums[(b * 2) * width + c] = total(load(t.lanes + c * 2 * LANES));
            clip_sums[(b * 2 + 1) * width + c] = total(load(t.lanes + c * 2 * LANES + LANES)) * inverse(variance1[c]);
        }
    }

    // One channel of a tile: g0 into the panel, from v (what the first batch norm saw, less its mean).
    void channel(Scratch const& t, Columns const& at, Strips const& strips, Index b, Index c, float const* v) const {
        BatchNormGradient const to_c2 = reinterpret_cast<BatchNormGradient const*>(work.batch_norm)[c];
        float const* const c2 = call.c2 + (b * width + c) * S + at.first;
        float const* const g1 = call.g1 + (b * width + c) * S + at.first;
        Index const left = S - at.first;
        if (c + ROWS < width) {
            prefetch(c2 + ROWS * S, at.n);
            prefetch(g1 + ROWS * S, at.n);
        }
        float* const d = t.d;
        d[-1] = at.first == 0 ? 0.0f : to_c2(g1[-1], c2[-1]);
        Index i = 0;
        for (; i <= at.offset && i + LANES <= left; i += LANES) {
            store(d + i, to_c2(load(g1 + i), load(c2 + i)));
        }
        // The neighbour after the last vector too: h is zero there, but zero times the NaN that memory may hold is NaN.
        for (; i <= at.offset; i += LANES) {
            store(d + i, i < left
                             ? first_lanes(to_c2(load_first(g1 + i, left - i), load_first(c2 + i, left - i)), left - i)
                             : Vector{});
        }
        float const scale = work.scale0[c], shift = w.beta0[c];
        float const a0 = w.wd[3 * c], a1 = w.wd[3 * c + 1], a2 = w.wd[3 * c + 2];
        Vector sum{}, product{}, tap0{}, tap1{}, tap2{};
        auto const column = [&](Index k, Vector dh, Index n, auto const& taps) {
            Vector const at_v = load(v + k);
            Vector const u = at_v * scale + shift;
            Vector h = relu6(u), g = relu6_gradient(u, dh);
            if (n < LANES) {
                h = first_lanes(h, n);
                g = first_lanes(g, n);
            }
            store(t.panel + strips.place(width_padded, c, k), g);
            sum += g;
            product += g * at_v;
            taps(h);
        };
        for (Index k = 0; k < at.offset; k += LANES) {
            Vector const here = load(d + k), after = load(d + k + 1);
            if (at.stride == 1) {
                Vector const before = load(d + k - 1);
                column(k, a0 * after + a1 * here + a2 * before, at.n - k, [&](Vector h) {
                    tap0 += h * after;
                    tap1 += h * here;
                    tap2 += h * before;
                });
            } else {
                column(k, a1 * here, at.n - k, [&](Vector h) { tap1 += h * here; });
                column(at.offset + k, a2 * here + a0 * after, most(at.n_odd - k, 0), [&](Vector h) {
                    tap2 += h * here;
                    tap0 += h * after;
                });
            }
        }
        float* const lanes = t.lanes + c * 5 * LANES;
        Vector const sums[] = {sum, product, tap0, tap1, tap2};
        for (int k = 0; k < 5; ++k) {
            float* const kept = lanes + LANES * k;
            store(kept, at.first == 0 ? sums[k] : load(kept) + sums[k]);
        }
    }

    // g0 of one clip, its sums, and what it gives to dx and dw1.
    void expand(Scratch const& t, Index b, float* dw) const {
        for (Index from = 0; from < S; from += tile) {
            Columns const at(s, from, tile);
            Strips const strips(at.count);
            fill_columns(at, strips, call.x + b * n_in * T, T, n_in, work.centre, t.rows, t.narrow);
            for (Index block = 0; block < width; block += ROWS) {
                Index const n_rows = least(width - block, ROWS);
                if (call.c1 == nullptr) {
                    product(strips, n_rows, n_in, work.expand + block * n_in, t.narrow,
                            [&](Index r, Index k, Vector v, Index) { store(t.rows + r * ld + k, v); });
                }
                for (Index r = 0; r < n_rows; ++r) {
                    Index const c = block + r;
                    if (call.c1 != nullptr) {
                        float const* const c1 = call.c1 + (b * width + c) * T;
                        for (Index k = 0; k < at.count; k += LANES) {
                            store(t.rows + r * ld + k, load_column(at, c1, S, k));
                        }
                    }
                    channel(t, at, strips, b, c, t.rows + r * ld);
                }
            }
            clear_padding(t, strips);
            product(strips, n_in, width_padded, work.expand_t, t.panel,
                    [&](Index k, Index column, Vector v, Index) { store(t.result + k * ld + column, v); });
            spill_columns(at, t.result, ld, n_in, T, call.dx + b * n_in * T);
            transpose_panel(strips, t.narrow, n_in, ld_in, t.transposed);
            accumulate(strips, width_padded, t.panel, t.transposed, ld_in, dw);
        }
        for (Index c = 0; c < width; ++c) {
            double* const kept = clip_sums + (b * width + c) * 5;
            for (Index k = 0; k < 5; ++k) {
                kept[k] = total(load(t.lanes + (c * 5 + k) * LANES));
            }
            kept[1] *= inverse(variance0[c]);
        }
    }

    // The batch norm's share of dx: square x (x - mean) + offset.
    void correct(Scratch const& t, Index b, float const* square, float const* offset) const {
        Index const span = most(columns, LANES);
        for (Index t0 = 0; t0 < T; t0 += span) {
            Strips const strips(least(T - t0, span));
            float const* const x = call.x + b * n_in * T + t0;
            float* const dx = call.dx + b * n_in * T + t0;
            fill_panel(strips, n_in, t.narrow,
                       [&](Index k, Index at, Index n) { return load_first(x + k * T + at, n) - work.centre[k]; });
            product(strips, n_in, n_in, square, t.narrow, [&](Index k, Index at, Vector v, Index n) {
                float* const to = dx + k * T + at;
                Vector const direct =
                    call.residual.add ? load_first(call.dy + (b * n_in + k) * T + t0 + at, n) : Vector{};
                store_first(to, direct + (load_first(to, n) + (v + offset[k])), n);
            });
        }
    }

    void run() const {
        affine(s, mean0, variance0, w.gamma0, w.beta0, call.eps, work.scale0, work.shift0);
        affine(s, mean1, variance1, w.gamma1, w.beta1, call.eps, work.scale1, work.shift1);
        pack(w.w1, n_in, 1, nullptr, width, n_in, work.expand);
        pack(w.w3, 1, width, nullptr, width, n_out, work.project_t);
        for (Index k = 0; k < round_up(n_in, ROWS); ++k) {
            float* const to = work.expand_t + k / ROWS * width_padded * ROWS + k % ROWS;
            for (Index c = 0; c < width_padded; ++c) {
                to[c * ROWS] = k < n_in && c < width ? w.w1[c * n_in + k] * work.scale0[c] : 0.0f;
            }
        }
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
        float* const offset = work.square + round_up(n_in, ROWS) * ld_in;  // [n_in]
        Index const size_in = width_padded * ld_in, size_out = width_padded * ld_out;

        SLEEPFM_OMP(omp parallel num_threads(s.n_threads)) {
            Scratch const t = scratch();

            SLEEPFM_OMP(omp for schedule(static))
            for (Index group = 0; group < groups; ++group) {
                float* const dw = work.weight_sums + group * size_out;
                memset(dw, 0, static_cast<std::size_t>(size_out) * sizeof(float));
                for (Index b = group * per_group; b < least((group + 1) * per_group, B); ++b) {
                    project(t, b, dw);
                }
            }
            SLEEPFM_OMP(omp for schedule(static))
            for (Index block = 0; block < width; block += LANES) {
                Index const n = least(width - block, LANES);
                for (Index c = block; c < block + n; ++c) {
                    sum_groups(work.weight_sums + c * ld_out, groups, size_out, n_out, t.result + (c - block) * ld_out);
                    double sum = 0.0, product = 0.0;
                    for (Index b = 0; b < B; ++b) {
                        sum += clip_sums[(b * 2) * width + c];
                        product += clip_sums[(b * 2 + 1) * width + c];
                    }
                    call.dbeta1[c] = static_cast<float>(sum);
                    call.dgamma1[c] = static_cast<float>(product);
                    reinterpret_cast<BatchNormGradient*>(work.batch_norm)[c] = gradient_of(
                        static_cast<double>(w.gamma1[c]), mean1[c], variance1[c], call.eps, sum, product, n1);
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
                float* const dw = work.weight_sums + group * size_in;
                memset(dw, 0, static_cast<std::size_t>(size_in) * sizeof(float));
                for (Index b = group * per_group; b < least((group + 1) * per_group, B); ++b) {
                    expand(t, b, dw);
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
                double const factor = -inverse(variance0[c]) * sums[1] / n0;
                work.mean_gradient[c] = -sums[0] / n0;
                work.factor[c] = static_cast<float>(factor);
                for (Index k = 0; k < n_in; k += LANES) {
                    store(work.bent + inputs.place(width, c, k),
                          first_lanes(load_first(w.w1 + c * n_in + k, n_in - k) * work.factor[c], n_in - k));
                }
            }
            SLEEPFM_OMP(omp for schedule(static))
            for (Index block = 0; block < width_padded; block += ROWS) {
                Index const n_rows = least(width - block, ROWS);
                product(inputs, n_rows, n_in, work.expand + block * n_in, work.covariance,
                        [&](Index r, Index k, Vector v, Index n) {
                            Index const c = block + r;
                            Vector sum;
                            sum_groups(work.weight_sums + c * ld_in + k, groups, size_in, 1,
                                       reinterpret_cast<float*>(&sum));
                            store_first(call.dw1 + c * n_in + k, work.scale0[c] * (sum + work.factor[c] * v), n);
                        });
            }
            SLEEPFM_OMP(omp for schedule(static))
            for (Index block = 0; block < n_in; block += ROWS) {
                Index const n_rows = least(n_in - block, ROWS);
                float const* const packed = work.expand_t + block * width_padded;
                float* const to = work.square + block * n_in;
                product(inputs, n_rows, width, packed, work.bent, [&](Index r, Index j, Vector v, Index n) {
                    for (Index i = 0; i < least(n, LANES); ++i) {
                        to[(j + i) * ROWS + r] = v[i];
                    }
                });
                for (Index r = 0; r < n_rows; ++r) {
                    double sum = 0.0;
                    for (Index c = 0; c < width; ++c) {
                        sum += static_cast<double>(packed[c * ROWS + r]) * work.mean_gradient[c];
                    }
                    offset[block + r] = static_cast<float>(sum);
                }
            }
            SLEEPFM_OMP(omp for schedule(static))
            for (Index b = 0; b < B; ++b) {
                correct(t, b, work.square, offset);
            }
        }
    }
};

inline void backward(MBConvBackward const& call) {
    Backward{call}.run();
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
