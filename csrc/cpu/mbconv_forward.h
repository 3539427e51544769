// Forward of an MBConv block in training. The expansion is linear, so that the first batch norm's statistics follow
// from the moments of the narrow input (mbconv_moments.h) before anything is expanded. The second batch norm's need the
// whole batch, so that its input c2 is written and read again for the projection. The steps are parallel loops over
// clips, groups of clips or channels, with barriers between them; the order of sums does not depend on the number of
// threads.
#pragma once

#include "cpu/mbconv_expand.h"
#include "cpu/mbconv_moments.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// Sums of c2 - pivot and of its square for a channel of one clip, by lane. The pivot is the mean of the clip's first
// tile. That is near enough for the variance not to cancel: with n of N samples in that tile, the square of its
// distance from the clip's mean is at most N / n variances.
struct PivotSums {
    float sum[LANES], squares[LANES];
};

// out[t] = bias + taps[0] x.before[t] + taps[1] x.at[t] + taps[2] x.after[t] for n outputs, and their sums around the
// pivot, which the first tile chooses. Sums are of the outputs as they are stored.
template <typename Wide>
inline void depthwise(Taps const& x, Index n, float const* taps, float bias, Wide* out, bool first, float& pivot,
                      PivotSums& sums) {
    float const a = taps[0], b = taps[1], c = taps[2];
    float const around = first ? 0.0f : pivot;
    Vector sum{}, squares{}, more{}, more_squares{};  // two chains of additions
    auto const output = [&](Index t) {
        return bias + a * load(x.before + t) + b * load(x.at + t) + c * load(x.after + t);
    };
    Index t = 0;
    for (; t + 2 * LANES <= n; t += 2 * LANES) {
        Vector const y = keep<Whole>(out + t, output(t), LANES);
        Vector const z = keep<Whole>(out + t + LANES, output(t + LANES), LANES);
        Vector const d = y - around, e = z - around;
        sum += d;
        more += e;
        squares += d * d;
        more_squares += e * e;
    }
    for (; t < n; t += LANES) {
        Vector const y = keep<Part>(out + t, output(t), n - t);
        Vector const d = first_lanes(y - around, n - t);
        sum += d;
        squares += d * d;
    }
    sum += more;
    squares += more_squares;
    if (!first) {
        store(sums.sum, load(sums.sum) + sum);
        store(sums.squares, load(sums.squares) + squares);
        return;
    }
    pivot = n > 0 ? static_cast<float>(total(sum) / static_cast<double>(n)) : bias;
    Vector sum_a{}, sum_b{}, squares_a{}, squares_b{};
    for (t = 0; t + 2 * LANES <= n; t += 2 * LANES) {
        Vector const d = load(out + t) - pivot, e = load(out + t + LANES) - pivot;
        sum_a += d;
        sum_b += e;
        squares_a += d * d;
        squares_b += e * e;
    }
    for (; t < n; t += LANES) {
        Vector const d = first_lanes(load_first(out + t, n - t) - pivot, n - t);
        sum_a += d;
        squares_a += d * d;
    }
    store(sums.sum, sum_a + sum_b);
    store(sums.squares, squares_a + squares_b);
}

template <typename Factor>
inline void forward(MBConvForward const& call) {
    using Wide = WideOf<Factor>;
    MBConvShape const& s = call.shape;
    MBConvWeights const& w = call.weights;
    MBConvWorkspace<Factor> const work(s, false);
    Index const B = s.n_clips, T = s.n_samples, S = samples_out(s), width = s.width, n_in = s.n_in;
    double* const mean0 = call.statistics;
    double* const variance0 = mean0 + width;
    double* const mean1 = variance0 + width;
    double* const variance1 = mean1 + width;
    double* const input_mean = call.moments;
    double* const covariance = input_mean + n_in;
    Index const groups = n_groups(s), per_group = clips_per_group(s), ld_in = odd_vectors(n_in);
    Index const tile = forward_tile(s), ldx = odd_vectors(tile * s.stride);
    Index const columns = panel_width(s);
    Dropout const dropout(call.residual);
    double* const input_sums = work.sums + 2 * B * width;  // [B, n_in]
    Index const ldm = moments_width(n_in), n_moments = round_up(n_in, ROWS) * ldm;
    double* const half = work.moments + groups * n_moments;  // [n_in, ld_in]: see quadratic_forms
    double* const padded_mean = half + n_in * ld_in;         // [ld_in] the input's mean, zero beyond n_in
    SLEEPFM_OMP(omp parallel num_threads(s.n_threads)) {
        Tiles const tiles;
        float* const scratch = work.thread + thread_number() * work.per_thread;
        auto* const lanes = reinterpret_cast<PivotSums*>(scratch);                  // [width]
        float* const pivots = scratch + (2 * LANES + 2) * width;                    // [width]
        auto* const carry = reinterpret_cast<Carry*>(scratch + 2 * LANES * width);  // [width]
        float* const narrow = scratch + round_up((2 * LANES + 3) * width, 16);
        float* const rows = narrow + n_in * ldx;  // [TALL, ...]
        float* const products_of_input = rows + TALL * (ldx + 4 * LANES);
        auto* const x_panel = reinterpret_cast<Factor*>(narrow);           // n_in factors, ldx
        auto* const panel = reinterpret_cast<Factor*>(products_of_input);  // width factors

        SLEEPFM_OMP(omp for schedule(static) nowait)
        for (Index block = 0; block < (width + ROWS - 1) / ROWS; ++block) {
            pack_block(w.w1, width, n_in, block, work.expand);
        }
        SLEEPFM_OMP(omp for schedule(static) nowait)
        for (Index block = 0; block < (s.n_out + ROWS - 1) / ROWS; ++block) {
            pack_block(w.w3, s.n_out, width, block, work.project);
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index b = 0; b < B; ++b) {
            for (Index k = 0; k < n_in; ++k) {
                input_sums[b * n_in + k] = row_sum(call.x + (b * n_in + k) * T, T);
            }
        }
        SLEEPFM_OMP(omp single)
        for (Index k = 0; k < ld_in; ++k) {
            double sum = 0.0;
            for (Index b = 0; b < (k < n_in ? B : 0); ++b) {
                sum += input_sums[b * n_in + k];
            }
            padded_mean[k] = sum / static_cast<double>(B * T);
            if (k < n_in) {
                input_mean[k] = padded_mean[k];
                work.centre[k] = static_cast<float>(input_mean[k]);
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index group = 0; group < groups; ++group) {
            double* const products = work.moments + group * n_moments;
            memset(products, 0, static_cast<std::size_t>(n_moments) * sizeof(double));
            for (Index b = group * per_group; b < least((group + 1) * per_group, B); ++b) {
                add_moments<Factor>(s, call.x + b * n_in * T, work.centre, products_of_input, products);
            }
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index i = 0; i < n_in; ++i) {
            double* const to = half + i * ld_in;
            memset(to, 0, static_cast<std::size_t>(ld_in) * sizeof(double));
            for (Index group = 0; group < groups; ++group) {
                double const* const from = work.moments + group * n_moments + i * ldm;
                for (Index k = i; k < n_in; ++k) {
                    to[k] += from[k];
                }
            }
            for (Index k = i; k < n_in; ++k) {
                covariance[i * n_in + k] = covariance[k * n_in + i] = to[k];
            }
            to[i] *= 0.5;
        }
        SLEEPFM_OMP(omp for schedule(static))
        for (Index block = 0; block < (width + 3) / 4; ++block) {
            auto* const wide = reinterpret_cast<double*>(products_of_input);  // [4, ld_in]
            Index const n_rows = least(width - 4 * block, 4);
            for (Index r = 0; r < 4; ++r) {
                Index const row = 4 * block + r;
                Doubles means{};
                for (Index k = 0; k < ld_in; k += LANES) {
                    HalfVector halves[2];
                    Vector const v = r < n_rows ? load_first(w.w1 + row * n_in + k, n_in - k) : Vector{};
                    memcpy(halves, &v, sizeof halves);
                    for (Index i = 0; i < 2; ++i) {
                        Doubles const of_row = __builtin_convertvector(halves[i], Doubles);
                        store_wide(wide + r * ld_in + k + i * WIDE_LANES, of_row);
                        means += of_row * load_wide(padded_mean + k + i * WIDE_LANES);
                    }
                }
                if (r < n_rows) {
                    mean0[row] = total(means) + static_cast<double>(w.b1[row]);
                }
            }
            double forms[4];
            quadratic_forms(n_rows, n_in, half, ld_in, wide, forms);
            for (Index r = 0; r < n_rows; ++r) {
                // In this form NaN stays NaN.
                variance0[4 * block + r] = forms[r] < 0.0 ? 0.0 : forms[r] / static_cast<double>(B * T);
            }
        }
        SLEEPFM_OMP(omp single)
        affine(s, mean0, variance0, w.gamma0, w.beta0, call.eps, work.scale0, work.shift0);

        SLEEPFM_OMP(omp for schedule(static))
        for (Index b = 0; b < B; ++b) {
            Wide* const c1 = call.c1 == nullptr ? nullptr : static_cast<Wide*>(call.c1) + b * width * T;
            Wide* const c2 = static_cast<Wide*>(call.c2) + b * width * S;
            Index done = 0;
            for (Index from = 0; from < S; from += tile) {
                Columns const at(s, from, tile);
                Strips const strips(at.count);
                fill_columns(at, strips, call.x + b * n_in * T, T, n_in, work.centre, rows, x_panel);
                expand_tile<1>(
                    s, at, strips, work.expand, x_panel, carry, rows,
                    [=, scale0 = work.scale0, beta0 = w.beta0](Index c, Index t, auto& vectors) {
                        constexpr int C = static_cast<int>(sizeof(vectors) / sizeof(Vector));
                        if (c1 != nullptr) {
                            keep_columns(at, c1 + c * T, S, t, vectors);
                        } else {
#pragma GCC unroll 3
                            for (int k = 0; k < C; ++k) {
                                vectors[k] = as_kept<Wide>(vectors[k]);
                            }
                        }
                        float const scale = scale0[c], shift = beta0[c];
#pragma GCC unroll 3
                        for (int k = 0; k < C; ++k) {
                            vectors[k] = relu6(vectors[k] * scale + shift);
                        }
                    },
                    [&](Index c, Index n, Taps const* taps) {
                        if (c + TALL < width) {
                            prefetch_to_write(c2 + (c + TALL) * S + done, n);
                        }
                        depthwise(taps[0], n, w.wd + 3 * c, w.bd[c], c2 + c * S + done, from == 0, pivots[c], lanes[c]);
                    });
                done = expand_end(at, S);
            }
            for (Index c = 0; c < width; ++c) {
                double const step = total(load(lanes[c].sum)) / static_cast<double>(S);
                work.sums[(b * 2) * width + c] = static_cast<double>(pivots[c]) + step;
                work.sums[(b * 2 + 1) * width + c] =
                    total(load(lanes[c].squares)) - step * step * static_cast<double>(S);
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
                double const d = work.sums[(b * 2) * width + c] - mean;
                squares += work.sums[(b * 2 + 1) * width + c] + d * d * static_cast<double>(S);
            }
            mean1[c] = mean;
            variance1[c] = squares < 0.0 ? 0.0 : squares / static_cast<double>(B * S);
        }
        SLEEPFM_OMP(omp single)
        affine(s, mean1, variance1, w.gamma1, w.beta1, call.eps, work.scale1, work.shift1);

        SLEEPFM_OMP(omp for schedule(static))
        for (Index b = 0; b < B; ++b) {
            Wide const* const c2 = static_cast<Wide const*>(call.c2) + b * width * S;
            float* const y = call.y + b * s.n_out * S;
            for (Index t0 = 0; t0 < S; t0 += columns) {
                Strips const strips(least(S - t0, columns));
                fill_panel(strips, width, panel, [&](Index k, Index t, Index n) {
                    Wide const* const from = c2 + k * S + t0 + t;
                    __builtin_prefetch(from + 2 * S);
                    return relu6(load_first(from, n) * work.scale1[k] + work.shift1[k]);
                });
                product_rows(strips, s.n_out, width, work.project, panel,
                             [&](Index o, Index t, auto const& vectors, Index n) {
                                 finish_rows(call.residual, dropout, b * s.n_out + o, w.b3[o], t0 + t, vectors, n,
                                             call.x + (b * s.n_out + o) * S, y + o * S);
                             });
            }
        }
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
