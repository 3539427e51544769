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

// The steps, each called by all threads of the team, who share its work. Those that end without a barrier say so.
template <typename Factor>
struct Forward {
    using Wide = WideOf<Factor>;
    MBConvForward const& call;
    MBConvShape const& s = call.shape;
    MBConvWeights const& w = call.weights;
    MBConvWorkspace<Factor> const work{s, false};
    Dropout const dropout{call.residual};
    Index const B = s.n_clips, T = s.n_samples, S = samples_out(s), width = s.width, n_in = s.n_in;
    Index const groups = n_groups(s), per_group = clips_per_group(s), ld_in = odd_vectors(n_in);
    Index const tile = forward_tile(s), ldx = odd_vectors(tile * s.stride);
    Index const columns = panel_width(s);
    double* const mean0 = call.statistics;
    double* const variance0 = mean0 + width;
    double* const mean1 = variance0 + width;
    double* const variance1 = mean1 + width;
    double* const input_mean = call.moments;
    double* const covariance = input_mean + n_in;
    double* const clip_means = work.sums;                  // [B, 2, width] mean of c2 and sum of squares around it
    double* const input_sums = work.sums + 2 * B * width;  // [B, n_in]
    Index const ldm = moments_width(n_in), n_moments = round_up(n_in, ROWS) * ldm;
    double* const half = work.moments + groups * n_moments;  // [n_in, ld_in]: see quadratic_forms
    double* const padded_mean = half + n_in * ld_in;         // [ld_in] the input's mean, zero beyond n_in

    // A thread's scratch. From `narrow` on the steps use it in turns.
    struct Scratch {
        PivotSums* lanes;  // [width]
        Carry* carry;      // [width]
        float* pivots;     // [width]
        Factor* x_panel;   // n_in factors, ldx
        float* rows;       // [TALL, ldx + 4 LANES]
        float* products;   // of the input: see add_moments
        double* wide;      // [4, ld_in] rows of w1
        Factor* panel;     // width factors
    };

    Scratch scratch() const {
        float* const base = work.thread + thread_number() * work.per_thread;
        float* const narrow = base + round_up((2 * LANES + 3) * width, 16);
        Scratch t;
        t.lanes = reinterpret_cast<PivotSums*>(base);
        t.carry = reinterpret_cast<Carry*>(base + 2 * LANES * width);
        t.pivots = base + (2 * LANES + 2) * width;
        t.x_panel = reinterpret_cast<Factor*>(narrow);
        t.rows = narrow + n_in * ldx;
        t.products = t.rows + TALL * (ldx + 4 * LANES);
        t.wide = reinterpret_cast<double*>(t.products);
        t.panel = reinterpret_cast<Factor*>(t.products);
        return t;
    }

    // Without a barrier.
    void pack_weights() const {
        SLEEPFM_OMP(omp for schedule(static) nowait)
        for (Index block = 0; block < (width + ROWS - 1) / ROWS; ++block) {
            pack_block(w.w1, width, n_in, block, work.expand);
        }
        SLEEPFM_OMP(omp for schedule(static) nowait)
        for (Index block = 0; block < (s.n_out + ROWS - 1) / ROWS; ++block) {
            pack_block(w.w3, s.n_out, width, block, work.project);
        }
    }

    void find_input_mean() const {
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
    }

    // The sums of products of the centred input, of groups of clips and then of all.
    void find_covariance(Scratch const& t) const {
        SLEEPFM_OMP(omp for schedule(static))
        for (Index group = 0; group < groups; ++group) {
            double* const products = work.moments + group * n_moments;
            memset(products, 0, static_cast<std::size_t>(n_moments) * sizeof(double));
            for (Index b = group * per_group; b < least((group + 1) * per_group, B); ++b) {
                add_moments<Factor>(s, call.x + b * n_in * T, work.centre, t.products, products);
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
    }

    // The first batch norm, whose input is c1 = w1 x + b1: mean w1 mean(x) + b1, variance w1 C w1 / (B T).
    void find_first_norm(Scratch const& t) const {
        SLEEPFM_OMP(omp for schedule(static))
        for (Index block = 0; block < (width + 3) / 4; ++block) {
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
                        store_wide(t.wide + r * ld_in + k + i * WIDE_LANES, of_row);
                        means += of_row * load_wide(padded_mean + k + i * WIDE_LANES);
                    }
                }
                if (r < n_rows) {
                    mean0[row] = total(means) + static_cast<double>(w.b1[row]);
                }
            }
            double forms[4];
            quadratic_forms(n_rows, n_in, half, ld_in, t.wide, forms);
            for (Index r = 0; r < n_rows; ++r) {
                // In this form NaN stays NaN.
                variance0[4 * block + r] = forms[r] < 0.0 ? 0.0 : forms[r] / static_cast<double>(B * T);
            }
        }
        SLEEPFM_OMP(omp single)
        affine(s, mean0, variance0, w.gamma0, w.beta0, call.eps, work.scale0, work.shift0);
    }

    // Clip b's c1, if it is kept, and c2 with its statistics. c1 is of the centred input, without b1 and mean0, which
    // the batch norm subtracts.
    void expand(Scratch const& t, Index b) const {
        Wide* const c1 = call.c1 == nullptr ? nullptr : static_cast<Wide*>(call.c1) + b * width * T;
        Wide* const c2 = static_cast<Wide*>(call.c2) + b * width * S;
        // What the innermost functions read, as values: members are read again after every store.
        Index const n_channels = width, n_out_samples = S;
        float const *const wd = w.wd, *const bd = w.bd;
        float* const pivots = t.pivots;
        PivotSums* const lanes = t.lanes;
        Index done = 0;
        for (Index from = 0; from < S; from += tile) {
            Columns const at(s, from, tile);
            Strips const strips(at.count);
            fill_columns(at, strips, call.x + b * n_in * T, T, n_in, work.centre, t.rows, t.x_panel);
            expand_tile<1>(
                s, at, strips, work.expand, t.x_panel, t.carry, t.rows,
                [at, c1, S = S, T = T, scale0 = work.scale0, beta0 = w.beta0](Index c, Index column, auto& vectors) {
                    constexpr int C = static_cast<int>(sizeof(vectors) / sizeof(Vector));
                    if (c1 != nullptr) {
                        keep_columns(at, c1 + c * T, S, column, vectors);
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
                    if (c + TALL < n_channels) {
                        prefetch_to_write(c2 + (c + TALL) * n_out_samples + done, n);
                    }
                    depthwise(taps[0], n, wd + 3 * c, bd[c], c2 + c * n_out_samples + done, from == 0, pivots[c],
                              lanes[c]);
                });
            done = expand_end(at, S);
        }
        for (Index c = 0; c < width; ++c) {
            double const step = total(load(t.lanes[c].sum)) / static_cast<double>(S);
            clip_means[(b * 2) * width + c] = static_cast<double>(t.pivots[c]) + step;
            clip_means[(b * 2 + 1) * width + c] =
                total(load(t.lanes[c].squares)) - step * step * static_cast<double>(S);
        }
    }

    // The second batch norm, from the clips' means and the sums of squares around them.
    void find_second_norm() const {
        SLEEPFM_OMP(omp for schedule(static))
        for (Index c = 0; c < width; ++c) {
            double mean = 0.0, squares = 0.0;
            for (Index b = 0; b < B; ++b) {
                mean += clip_means[(b * 2) * width + c];
            }
            mean /= static_cast<double>(B);
            for (Index b = 0; b < B; ++b) {
                double const d = clip_means[(b * 2) * width + c] - mean;
                squares += clip_means[(b * 2 + 1) * width + c] + d * d * static_cast<double>(S);
            }
            mean1[c] = mean;
            variance1[c] = squares < 0.0 ? 0.0 : squares / static_cast<double>(B * S);
        }
        SLEEPFM_OMP(omp single)
        affine(s, mean1, variance1, w.gamma1, w.beta1, call.eps, work.scale1, work.shift1);
    }

    // Clip b's y from its c2.
    void project(Scratch const& t, Index b) const {
        Wide const* const c2 = static_cast<Wide const*>(call.c2) + b * width * S;
        float* const y = call.y + b * s.n_out * S;
        float const *const scale = work.scale1, *const shift = work.shift1;
        for (Index t0 = 0; t0 < S; t0 += columns) {
            Strips const strips(least(S - t0, columns));
            fill_panel(strips, width, t.panel, [=, S = S](Index k, Index at, Index n) {
                Wide const* const from = c2 + k * S + t0 + at;
                __builtin_prefetch(from + 2 * S);
                return relu6(load_first(from, n) * scale[k] + shift[k]);
            });
            product_rows(strips, s.n_out, width, work.project, t.panel,
                         [&](Index o, Index at, auto const& vectors, Index n) {
                             finish_rows(call.residual, dropout, b * s.n_out + o, w.b3[o], t0 + at, vectors, n,
                                         call.x + (b * s.n_out + o) * S, y + o * S);
                         });
        }
    }

    void run() const {
        SLEEPFM_OMP(omp parallel num_threads(s.n_threads)) {
            Tiles const tiles;
            Scratch const t = scratch();
            pack_weights();
            find_input_mean();
            find_covariance(t);
            find_first_norm(t);
            SLEEPFM_OMP(omp for schedule(static))
            for (Index b = 0; b < B; ++b) {
                expand(t, b);
            }
            find_second_norm();
            SLEEPFM_OMP(omp for schedule(static))
            for (Index b = 0; b < B; ++b) {
                project(t, b);
            }
        }
    }
};

template <typename Factor>
inline void forward(MBConvForward const& call) {
    Forward<Factor>{call}.run();
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
