// Forward and evaluation of an MBConv block. In training each batch norm waits for the whole batch, so the two wide
// activations are written once (c1, c2); in evaluation they exist a tile at a time.
#pragma once

#include <math.h>

#if defined(_OPENMP)
#include <omp.h>
#define SLEEPFM_OMP(directive) _Pragma(#directive)
#else
#define SLEEPFM_OMP(directive)
#endif

#include "cpu/mbconv_product.h"
#include "params.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

inline int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

inline Index samples_out(MBConvShape const& s) {
    return (s.n_samples - 1) / s.stride + 1;
}

// Clips whose share of a weight's gradient is summed together: at most 16 sums, whatever the number of threads.
inline Index clips_per_group(MBConvShape const& s) {
    return s.n_clips <= 16 ? 1 : (s.n_clips + 15) / 16;
}

inline Index n_groups(MBConvShape const& s) {
    Index const n = clips_per_group(s);
    return (s.n_clips + n - 1) / n;
}

// Samples out of a tile of evaluation: the expanded tile takes at most 384 KB, so that it stays in the second cache.
inline Index evaluation_tile(MBConvShape const& s) {
    Index const n = 98304 / s.width / TILE * TILE;
    Index const whole = round_up(samples_out(s), TILE);
    return n < TILE ? TILE : n > whole ? whole : n;
}

struct MBConvWorkspace {
    float* expand;    // packed w1 [width / ROWS, n_in, ROWS]
    float* project;   // packed w3 [n_out / ROWS, width, ROWS]
    float* expand_t;  // packed w1 transposed [n_in / ROWS, width, ROWS]
    float* project_t;
    float *scale0, *shift0, *scale1, *shift1;  // [width] the batch norms as a multiplication and an addition
    float* batch_norm;                         // [width, 4] backward: see BatchNormGradient
    double* sums;                              // [B, 5, width] and [B, n_in + n_out]
    float* weight_sums;                        // [groups, ...] of dw1 or of dw3
    float* thread;                             // [n_threads, per_thread]
    Index per_thread;
    Index bytes;

    MBConvWorkspace(MBConvShape const& s, bool backward) {
        Index used = 0;
        auto const base = static_cast<char*>(s.workspace);
        auto const take = [&](Index n_bytes) {
            char* const piece = base + used;
            used += round_up(n_bytes, 64);
            return static_cast<void*>(piece);
        };
        auto const floats = [&](Index n) { return static_cast<float*>(take(n * 4)); };
        Index const T = s.n_samples, S = samples_out(s);
        expand = floats(round_up(s.width, ROWS) * s.n_in);
        project = floats(round_up(s.n_out, ROWS) * s.width);
        expand_t = floats(backward ? round_up(s.n_in, ROWS) * s.width : 0);
        project_t = floats(backward ? round_up(s.width, ROWS) * s.n_out : 0);
        scale0 = floats(s.width);
        shift0 = floats(s.width);
        scale1 = floats(s.width);
        shift1 = floats(s.width);
        batch_norm = floats(backward ? 4 * s.width : 0);
        sums = static_cast<double*>(take(8 * s.n_clips * (5 * s.width + s.n_out + s.n_in)));
        Index const widest = s.n_in > s.n_out ? s.n_in : s.n_out;
        weight_sums = floats(backward ? n_groups(s) * round_up(s.width, ROWS) * round_up(widest, LANES) : 0);
        Index const rows = 4 * (round_up(T > 2 * S ? T : 2 * S, LANES) + 2 * LANES);
        Index const lanes = 2 * LANES * round_up(s.width, ROWS);
        Index const panels = WIDEST_PANEL * (round_up(s.width, ROWS) + 2 * round_up(widest, LANES));
        Index const tile = evaluation_tile(s);
        Index const input = round_up(tile * s.stride + 2, TILE) + TILE;
        Index const evaluation =
            s.n_in * input + s.width * (tile + TILE) + ROWS * (input + LANES) + 4 * (input + LANES);
        Index const training = rows + lanes + panels;
        per_thread = round_up(training > evaluation ? training : evaluation, 16);
        thread = floats(s.n_threads * per_thread);
        bytes = used;
    }
};

inline void pack(float const* w, Index row_stride, Index k_stride, float const* scale, Index n_rows, Index n_k,
                 float* packed) {
    for (Index block = 0; block * ROWS < n_rows; ++block) {
        pack_block(w, row_stride, k_stride, scale, n_rows, n_k, block, packed);
    }
}

// out[t] = sum_k w[k] h[stride t + k] for h with one zero before the first sample; n_out samples.
inline void depthwise(float const* __restrict__ h, Index n_out, int stride, float const* w, float bias,
                      float* __restrict__ even, float* __restrict__ odd, float* __restrict__ out) {
    float const a = w[0], b = w[1], c = w[2];
    if (stride == 1) {
        for (Index t = 0; t < n_out; ++t) {
            out[t] = bias + a * h[t] + b * h[t + 1] + c * h[t + 2];
        }
        return;
    }
    for (Index t = 0; t <= n_out; ++t) {
        even[t] = h[2 * t];
        odd[t] = h[2 * t + 1];
    }
    for (Index t = 0; t < n_out; ++t) {
        out[t] = bias + a * even[t] + b * odd[t] + c * even[t + 1];
    }
}

// The sum over a row, and the sum of squares around a mean.
inline double row_sum(float const* x, Index n) {
    Vector sum{};
    for (Index t = 0; t < n; t += LANES) {
        sum += load_first(x + t, n - t);
    }
    return total(sum);
}

inline double row_squares(float const* x, Index n, float mean) {
    Vector sum{};
    for (Index t = 0; t < n; t += LANES) {
        Vector const d = first_lanes(load_first(x + t, n - t) - mean, n - t);
        sum += d * d;
    }
    return total(sum);
}

inline void affine(MBConvShape const& s, double const* mean, double const* variance, float const* gamma,
                   float const* beta, double eps, float* scale, float* shift) {
    for (Index c = 0; c < s.width; ++c) {
        double const factor = static_cast<double>(gamma[c]) / sqrt(variance[c] + eps);
        scale[c] = static_cast<float>(factor);
        shift[c] = static_cast<float>(static_cast<double>(beta[c]) - mean[c] * factor);
    }
}

inline void forward(MBConvForward const& call) {
    MBConvShape const& s = call.shape;
    MBConvWeights const& w = call.weights;
    MBConvWorkspace const work(s, false);
    Index const B = s.n_clips, T = s.n_samples, S = samples_out(s), width = s.width;
    double* const mean0 = call.statistics;
    double* const variance0 = mean0 + width;
    double* const mean1 = variance0 + width;
    double* const variance1 = mean1 + width;
    pack(w.w1, s.n_in, 1, nullptr, width, s.n_in, work.expand);
    pack(w.w3, width, 1, nullptr, s.n_out, width, work.project);
    Index const ldt = panel_width(T), lds = panel_width(S);
    double* const input_sums = work.sums + 5 * B * width;  // [B, n_in]
    SLEEPFM_OMP(omp parallel num_threads(s.n_threads)) {
        float* const scratch = work.thread + thread_number() * work.per_thread;
        float* const lanes = scratch;  // [width, LANES]
        float* const panel = lanes + 2 * LANES * round_up(width, ROWS);
        float* const row =
            panel + WIDEST_PANEL * (round_up(width, ROWS) + 2 * round_up(s.n_in > s.n_out ? s.n_in : s.n_out, LANES));
        Index const row_size = round_up(T > 2 * S ? T : 2 * S, LANES) + 2 * LANES;

        // The mean of c1 follows from that of x: the expansion is linear.
        SLEEPFM_OMP(omp for schedule(static))
        for (Index b = 0; b < B; ++b) {
            for (Index k = 0; k < s.n_in; ++k) {
                input_sums[b * s.n_in + k] = row_sum(call.x + (b * s.n_in + k) * T, T);
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index c = 0; c < width; ++c) {
            double mean = 0.0;
            for (Index k = 0; k < s.n_in; ++k) {
                double sum = 0.0;
                for (Index b = 0; b < B; ++b) {
                    sum += input_sums[b * s.n_in + k];
                }
                mean += static_cast<double>(w.w1[c * s.n_in + k]) * (sum / static_cast<double>(B * T));
            }
            mean0[c] = mean + static_cast<double>(w.b1[c]);
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index b = 0; b < B; ++b) {
            memset(lanes, 0, static_cast<std::size_t>(width * LANES) * sizeof(float));
            float const* const x = call.x + b * s.n_in * T;
            float* const c1 = call.c1 + b * width * T;
            for (Index t0 = 0; t0 < T; t0 += ldt) {
                Index const n_t = T - t0 < ldt ? T - t0 : ldt;
                fill_panel(s.n_in, n_t, ldt, panel,
                           [&](Index k, Index t, Index n) { return load_first(x + k * T + t0 + t, n); });
                product(width, s.n_in, n_t, work.expand, panel, ldt, [&](Index c, Index t, Vector v, Index n) {
                    v += w.b1[c];
                    store_first(c1 + c * T + t0 + t, v, n);
                    Vector const d = first_lanes(v - static_cast<float>(mean0[c]), n);
                    store(lanes + c * LANES, load(lanes + c * LANES) + d * d);
                });
            }
            for (Index c = 0; c < width; ++c) {
                work.sums[b * width + c] = total(load(lanes + c * LANES));
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index c = 0; c < width; ++c) {
            double squares = 0.0;
            for (Index b = 0; b < B; ++b) {
                squares += work.sums[b * width + c];
            }
            variance0[c] = squares / static_cast<double>(B * T);
        }
        SLEEPFM_OMP(omp single)
        affine(s, mean0, variance0, w.gamma0, w.beta0, call.eps, work.scale0, work.shift0);

        // Means first, squares around each row's own mean: combined below without cancellation.
        SLEEPFM_OMP(omp for schedule(static))
        for (Index b = 0; b < B; ++b) {
            float *const h = row, *const even = row + row_size, *const odd = even + row_size;
            for (Index c = 0; c < width; ++c) {
                float const* const c1 = call.c1 + (b * width + c) * T;
                float* const c2 = call.c2 + (b * width + c) * S;
                h[0] = 0.0f;
                for (Index t = 0; t < T; t += LANES) {
                    store_first(h + 1 + t, relu6(load_first(c1 + t, T - t) * work.scale0[c] + work.shift0[c]), T - t);
                }
                h[T + 1] = h[T + 2] = h[T + 3] = 0.0f;
                depthwise(h, S, s.stride, w.wd + 3 * c, w.bd[c], even, odd, c2);
                double const mean = row_sum(c2, S) / static_cast<double>(S);
                work.sums[(b * 2) * width + c] = mean;
                work.sums[(b * 2 + 1) * width + c] = row_squares(c2, S, static_cast<float>(mean));
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index c = 0; c < width; ++c) {
            double mean = 0.0, squares = 0.0;
            for (Index b = 0; b < B; ++b) {
                mean += work.sums[(b * 2) * width + c];
            }
            mean /= static_cast<double>(B);
            for (Index b = 0; b < B; ++b) {
                double const d = static_cast<double>(static_cast<float>(work.sums[(b * 2) * width + c])) - mean;
                squares += work.sums[(b * 2 + 1) * width + c] + d * d * static_cast<double>(S);
            }
            mean1[c] = mean;
            variance1[c] = squares / static_cast<double>(B * S);
        }
        SLEEPFM_OMP(omp single)
        affine(s, mean1, variance1, w.gamma1, w.beta1, call.eps, work.scale1, work.shift1);

        SLEEPFM_OMP(omp for schedule(static))
        for (Index b = 0; b < B; ++b) {
            float const* const c2 = call.c2 + b * width * S;
            float* const y = call.y + b * s.n_out * S;
            for (Index t0 = 0; t0 < S; t0 += lds) {
                Index const n_t = S - t0 < lds ? S - t0 : lds;
                fill_panel(width, n_t, lds, panel, [&](Index k, Index t, Index n) {
                    return relu6(load_first(c2 + k * S + t0 + t, n) * work.scale1[k] + work.shift1[k]);
                });
                product(s.n_out, width, n_t, work.project, panel, lds,
                        [&](Index o, Index t, Vector v, Index n) { store_first(y + o * S + t0 + t, v + w.b3[o], n); });
            }
        }
    }
}

inline void evaluate(MBConvEvaluate const& call) {
    MBConvShape const& s = call.shape;
    MBConvWeights const& w = call.weights;
    MBConvWorkspace const work(s, false);
    Index const T = s.n_samples, S = samples_out(s), width = s.width;
    Index const tile = evaluation_tile(s);
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
        work.scale1[c] = static_cast<float>(factor1);
        work.shift1[c] =
            static_cast<float>(static_cast<double>(w.beta1[c]) +
                               (static_cast<double>(w.bd[c]) - static_cast<double>(call.mean1[c])) * factor1);
    }
    pack(w.w1, s.n_in, 1, work.scale0, width, s.n_in, work.expand);
    pack(w.w3, width, 1, nullptr, s.n_out, width, work.project);
    Index const n_tiles = (S + tile - 1) / tile;
    SLEEPFM_OMP(omp parallel for schedule(static) num_threads(s.n_threads))
    for (Index item = 0; item < s.n_clips * n_tiles; ++item) {
        Index const b = item / n_tiles, s0 = item % n_tiles * tile;
        Index const n_s = S - s0 < tile ? S - s0 : tile;
        // The tile's samples of x, from one before the first to one after the last; outside the clip h is zero.
        Index const first = s.stride * s0 - 1;
        Index const n_t = s.stride * (n_s - 1) + 3;
        Index const from = first < 0 ? 0 : first;
        Index const to = first + n_t < T ? first + n_t : T;
        Index const n_x = to - from;
        Index const input = round_up(tile * s.stride + 2, TILE) + TILE;
        float* const panels = work.thread + thread_number() * work.per_thread;  // [n_x / TILE, n_in, TILE]
        float* const expanded = panels + s.n_in * input;                        // [n_s / TILE, width, TILE]
        float* const rows = expanded + width * (tile + TILE);                   // [ROWS, input + LANES]
        float* const even = rows + ROWS * (input + LANES);
        float* const odd = even + input + LANES;
        float* const out = odd + input + LANES;
        Index const ld = input + LANES;
        float const* const x = call.x + b * s.n_in * T + from;
        for (Index t0 = 0; t0 < n_x; t0 += TILE) {
            fill_panel(s.n_in, n_x - t0 < TILE ? n_x - t0 : TILE, TILE, panels + t0 * s.n_in,
                       [&](Index k, Index t, Index n) { return load_first(x + k * T + t0 + t, n); });
        }
        Index const lead = from - first;
        for (Index row = 0; row < width; row += ROWS) {
            Index const n_rows = width - row < ROWS ? width - row : ROWS;
            for (Index t0 = 0; t0 < n_x; t0 += TILE) {
                Index const n = n_x - t0 < TILE ? n_x - t0 : TILE;
                product(n_rows, s.n_in, n, work.expand + row * s.n_in, panels + t0 * s.n_in, TILE,
                        [&](Index r, Index t, Vector v, Index) {
                            store(rows + r * ld + lead + t0 + t, relu6(v + work.shift0[row + r]));
                        });
            }
            for (Index r = 0; r < n_rows; ++r) {
                float* const h = rows + r * ld;
                Index const c = row + r;
                if (lead > 0) {
                    h[0] = 0.0f;
                }
                for (Index t = lead + n_x; t < n_t + 2; ++t) {
                    h[t] = 0.0f;
                }
                float const taps[3] = {w.wd[3 * c] * work.scale1[c], w.wd[3 * c + 1] * work.scale1[c],
                                       w.wd[3 * c + 2] * work.scale1[c]};
                depthwise(h, n_s, s.stride, taps, work.shift1[c], even, odd, out);
                for (Index t = 0; t < n_s; t += LANES) {
                    store(expanded + t / TILE * (width * TILE) + c * TILE + t % TILE, relu6(load(out + t)));
                }
            }
        }
        float* const y = call.y + b * s.n_out * S + s0;
        for (Index t0 = 0; t0 < n_s; t0 += TILE) {
            Index const n = n_s - t0 < TILE ? n_s - t0 : TILE;
            product(
                s.n_out, width, n, work.project, expanded + t0 * width, TILE,
                [&](Index o, Index t, Vector v, Index left) { store_first(y + o * S + t0 + t, v + w.b3[o], left); });
        }
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
