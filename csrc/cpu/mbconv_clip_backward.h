// What one clip contributes to the gradients of an MBConv block, in three passes: project (from dy to g1), expand (from
// g1 to g0, dx and dw1) and correct (the first batch norm's part of dx). Only the first two go through wide
// activations. mbconv_backward.h has the equations and what happens between the passes.
#pragma once

#include "cpu/mbconv_batch_norm.h"
#include "cpu/mbconv_expand.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// Where the vectors of a backward tile, of at most 24, lie in a panel of n_k rows: Strips::place without divisions.
struct Places {
    Index start[24], step[24];

    Places(Strips const& strips, Index n_k) {
        for (Index v = 0; v < strips.n_vectors; ++v) {
            start[v] = strips.place(n_k, 0, v * LANES);
            step[v] = strips.place(n_k, 1, v * LANES) - start[v];
        }
    }

    Index operator()(Index row, Index column) const { return start[column / LANES] + row * step[column / LANES]; }
};

template <typename Factor>
struct ClipBackward {
    using Wide = WideOf<Factor>;
    MBConvBackward const& call;
    MBConvShape const& s = call.shape;
    MBConvWeights const& w = call.weights;
    MBConvWorkspace<Factor> const work{s, true};
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

    Wide const* const c1 = static_cast<Wide const*>(call.c1);
    Wide const* const c2 = static_cast<Wide const*>(call.c2);
    Wide* const g1 = static_cast<Wide*>(call.g1);

    // A thread's scratch.
    struct Scratch {
        float* lanes;        // [width, 2 or 5, LANES] sums of a channel over a clip, by lane
        Wide* panel;         // width rows of samples: for sums over samples
        Factor* wide;        // the same as factors: for sums over channels. With float32 it is the panel itself
        Factor* narrow;      // panel of n_in or n_out factors
        float* result;       // [n_in, ld]
        Factor* transposed;  // [ld, n_in or n_out] the narrow panel transposed
        float *rows, *d;     // [TALL, ld]; a row of dc2, with one sample before it and some after
    };

    Scratch scratch() const {
        Index const widest = round_up(most(n_in, n_out), ROWS);
        Scratch t;
        t.lanes = work.thread + thread_number() * work.per_thread;
        float* const panel = t.lanes + 5 * LANES * width_padded;  // [width, ld]; for pairs in halves: panel, wide
        t.panel = reinterpret_cast<Wide*>(panel);
        t.wide = reinterpret_cast<Factor*>(FactorOf<Factor>::DEPTH == 1 ? panel : panel + width_padded * ld / 2);
        float* const narrow = panel + width_padded * ld;
        t.narrow = reinterpret_cast<Factor*>(narrow);
        t.result = narrow + widest * ld;
        float* const transposed = t.result + widest * ld;
        t.transposed = reinterpret_cast<Factor*>(transposed);
        t.rows = transposed + ld * most(ld_in, ld_out);
        t.d = t.rows + TALL * ld + LANES;
        return t;
    }

    double inverse(double variance) const { return 1.0 / sqrt(variance + call.eps); }

    // Zeros to the wide panel's rows beyond the last channel.
    void clear_padding(Scratch const& t, Strips const& strips) const {
        for (Index c = width; c < width_padded; ++c) {
            for (Index v = 0; v < strips.n_vectors; ++v) {
                store(t.panel + strips.place(width_padded, c, v * LANES), Vector{});
            }
        }
    }

    // For C vectors of channel c, samples from `at` on, whose gradients behind the second ReLU6 are `vectors`: writes
    // g1, adds to its sums, and puts the ReLU6's output, the projection's input, into the panel.
    template <typename Extent, int C>
    void project_rows(Scratch const& t, Strips const& strips, Index c, Index at, Vector const (&vectors)[C], Index n,
                      Wide const* clip_c2, Wide* clip_g1) const {
        float const scale = work.scale1[c], shift = work.shift1[c], mean = static_cast<float>(mean1[c]);
        Vector sum{}, product{};
        Wide* const panel = t.panel + strips.place(width_padded, c, at);
        Index const place = c * S + at;
#pragma GCC unroll 3
        for (int k = 0; k < C; ++k) {
            Index const left = n - k * LANES;
            Vector const x = Extent::load(clip_c2 + place + k * LANES, left);
            Vector const u = x * scale + shift;
            Vector const g =
                keep<Extent>(clip_g1 + place + k * LANES, Extent::first(relu6_gradient(u, vectors[k]), left), left);
            store(panel + k * LANES, Extent::first(relu6(u), left));
            sum += g;
            product += g * (x - mean);
        }
        float* const lanes = t.lanes + c * 2 * LANES;
        store(lanes, load(lanes) + sum);
        store(lanes + LANES, load(lanes + LANES) + product);
    }

    // The first pass over clip b: g1, its sums, and the projection's gradient, transposed, added to dw (or written, if
    // `first`).
    void project(Scratch const& t, Index b, bool first, float* dw) const {
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
            Wide const* const clip_c2 = c2 + b * width * S + t0;
            Wide* const clip_g1 = g1 + b * width * S + t0;
            fill_panel(strips, n_out, t.narrow, [&](Index o, Index at, Index n) {
                std::uint64_t const key = dropout.active ? dropout.key(b * n_out + o) : 0;
                return dropout(load_first(dy + o * S + t0 + at, n), key, t0 + at);
            });
            for (Index block = 0; block < width; block += TALL) {
                for (Index c = block + TALL; c < least(block + 2 * TALL, width); ++c) {
                    prefetch(clip_c2 + c * S, strips.n);
                }
                product_rows(strips, least(width - block, TALL), n_out,
                             work.project_t + block * words_of<Factor>(n_out), t.narrow,
                             [&](Index r, Index at, auto const& vectors, Index n) {
                                 constexpr int C = static_cast<int>(sizeof(vectors) / sizeof(Vector));
                                 if (n >= C * LANES) {
                                     project_rows<Whole>(t, strips, block + r, at, vectors, n, clip_c2, clip_g1);
                                 } else {
                                     project_rows<Part>(t, strips, block + r, at, vectors, n, clip_c2, clip_g1);
                                 }
                             });
            }
            clear_padding(t, strips);
            transpose_panel(strips, t.narrow, n_out, ld_out, t.transposed);
            accumulate(strips, width_padded, t.panel, t.transposed, n_out, ld_out, first && t0 == 0, dw);
        }
        for (Index c = 0; c < width; ++c) {
            clip_sums[(b * 2) * width + c] = total(load(t.lanes + c * 2 * LANES));
            clip_sums[(b * 2 + 1) * width + c] = total(load(t.lanes + c * 2 * LANES + LANES)) * inverse(variance1[c]);
        }
    }

    // dc2 of channel c of a tile to t.d, from one sample before the tile to a vector after it; zero outside the clip.
    void gradient_of_c2(Scratch const& t, Columns const& at, Index b, Index c) const {
        BatchNormGradient const to_c2 = reinterpret_cast<BatchNormGradient const*>(work.batch_norm)[c];
        Wide const* const row = c2 + (b * width + c) * S + at.first;
        Wide const* const gradient = g1 + (b * width + c) * S + at.first;
        Index const left = S - at.first;
        if (c + ROWS < width) {
            prefetch(row + ROWS * S, at.n);
            prefetch(gradient + ROWS * S, at.n);
        }
        float* const d = t.d;
        d[-1] = at.first == 0 ? 0.0f : to_c2(value_of(gradient[-1]), value_of(row[-1]));
        Index const end = least(at.offset, left - LANES);
        Index i = 0;
        for (; i <= end; i += LANES) {
            store(d + i, to_c2(load(gradient + i), load(row + i)));
        }
        // A vector beyond the tile's last one too: h is zero there, but memory may hold NaN, and 0 * NaN is NaN.
        for (; i <= at.offset; i += LANES) {
            store(d + i,
                  i < left
                      ? first_lanes(to_c2(load_first(gradient + i, left - i), load_first(row + i, left - i)), left - i)
                      : Vector{});
        }
    }

    // g0 of channel c of a tile, to the panel, and its five sums: of g0, of g0 v, and the gradients of the taps. v: c1
    // less its mean, with stride 2 of even samples, and v_odd of odd ones. t.d: dc2.
    template <int STRIDE, typename Expanded>
    void channel(Scratch const& t, Columns const& at, Places const& places, Index c, Expanded const* v,
                 Expanded const* v_odd) const {
        float const scale = work.scale0[c], shift = w.beta0[c];
        float const a0 = w.wd[3 * c], a1 = w.wd[3 * c + 1], a2 = w.wd[3 * c + 2];
        float const* const d = t.d;
        Vector sum{}, product{}, tap0{}, tap1{}, tap2{};
        // Puts g0 of a vector, from dh, into the panel, and returns h, the depthwise convolution's input.
        auto const through = [&](auto extent, Expanded const* from, Vector dh, Index n, Index column) {
            using Extent = decltype(extent);
            Vector const at_v = Extent::load(from, n);
            Vector const u = at_v * scale + shift;
            Vector const g = keep<Whole>(t.panel + places(c, column), Extent::first(relu6_gradient(u, dh), n), LANES);
            sum += g;
            product += g * at_v;
            return Extent::first(relu6(u), n);
        };
        auto const both = [&](auto extent, Index k) {
            Vector const here = load(d + k), after = load(d + k + 1);
            if constexpr (STRIDE == 1) {
                Vector const before = load(d + k - 1);
                Vector const h = through(extent, v + k, a0 * after + a1 * here + a2 * before, at.n - k, k);
                tap0 += h * after;
                tap1 += h * here;
                tap2 += h * before;
            } else {
                Vector const even = through(extent, v + k, a1 * here, at.n - k, k);
                Vector const odd =
                    through(extent, v_odd + k, a2 * here + a0 * after, most(at.n_odd - k, 0), at.offset + k);
                tap0 += odd * after;
                tap1 += even * here;
                tap2 += odd * here;
            }
        };
        Index const whole = STRIDE == 1 ? at.n : at.n_odd;
        Index k = 0;
        for (; k + LANES <= whole; k += LANES) {
            both(Whole{}, k);
        }
        for (; k < at.offset; k += LANES) {
            both(Part{}, k);
        }
        float* const lanes = t.lanes + c * 5 * LANES;
        Vector const sums[] = {sum, product, tap0, tap1, tap2};
#pragma GCC unroll 5
        for (int i = 0; i < 5; ++i) {
            float* const kept = lanes + LANES * i;
            store(kept, at.first == 0 ? sums[i] : load(kept) + sums[i]);
        }
    }

    template <typename Expanded>
    void channel(Scratch const& t, Columns const& at, Places const& places, Index c, Expanded const* v,
                 Expanded const* v_odd) const {
        if (s.stride == 1) {
            channel<1>(t, at, places, c, v, v_odd);
        } else {
            channel<2>(t, at, places, c, v, v_odd);
        }
    }

    // For pairs: the panel's rows c and c + 1, interleaved, become a row of `wide`.
    void pair_rows(Scratch const& t, Strips const& strips, Index c) const {
        if constexpr (FactorOf<Factor>::DEPTH == 2) {
            for (Index strip = 0; strip < strips.n_strips; ++strip) {
                Index const first = strips.first(strip), n = strips.width(strip);
                Wide const* const from = t.panel + first * width_padded + c * n;
                Factor* const to = t.wide + first * width_padded / 2 + c / 2 * n;
                for (Index k = 0; k < n; k += LANES) {
                    store(to + k, woven(from + k, from + n + k));
                }
            }
        }
    }

    // The second pass over clip b: g0, its sums, and its products with w1 (to dx) and with the input (added to dw, or
    // written, if `first`), both still without the first batch norm's correction.
    void expand(Scratch const& t, Index b, bool first, float* dw) const {
        for (Index from = 0; from < S; from += tile) {
            Columns const at(s, from, tile);
            Strips const strips(at.count);
            Places const places(strips, width_padded);
            fill_columns(at, strips, call.x + b * n_in * T, T, n_in, work.centre, t.rows, t.narrow);
            clear_padding(t, strips);
            for (Index block = 0; block < width; block += TALL) {
                Index const n_rows = least(width - block, TALL);
                if (c1 == nullptr) {
                    product(strips, n_rows, n_in, work.expand + block * words_of<Factor>(n_in), t.narrow,
                            [&](Index r, Index k, Vector v, Index) { store(t.rows + r * ld + k, as_kept<Wide>(v)); });
                }
                for (Index r = 0; r < n_rows; ++r) {
                    Index const c = block + r;
                    gradient_of_c2(t, at, b, c);
                    if (c1 == nullptr) {
                        float const* const v = t.rows + r * ld;
                        channel(t, at, places, c, v, v + at.offset);
                    } else {
                        Wide const* const v = c1 + (b * width + c) * T + at.first;
                        channel(t, at, places, c, v, v + S);
                    }
                }
                for (Index c = block; c < least(block + TALL, width_padded); c += 2) {
                    pair_rows(t, strips, c);
                }
            }
            product(strips, n_in, width_padded, work.expand_t, t.wide,
                    [&](Index k, Index column, Vector v, Index) { store(t.result + k * ld + column, v); });
            spill_columns(at, t.result, ld, n_in, T, call.dx + b * n_in * T);
            transpose_panel(strips, t.narrow, n_in, ld_in, t.transposed);
            accumulate(strips, width_padded, t.panel, t.transposed, n_in, ld_in, first && from == 0, dw);
        }
        for (Index c = 0; c < width; ++c) {
            double* const kept = clip_sums + (b * width + c) * 5;
            for (Index k = 0; k < 5; ++k) {
                kept[k] = total(load(t.lanes + (c * 5 + k) * LANES));
            }
            kept[1] *= inverse(variance0[c]);
        }
    }

    // The third pass over clip b: adds the first batch norm's part, square x (x - mean) + offset, and the residual's.
    void correct(Scratch const& t, Index b) const {
        Index const span = most(columns, LANES);
        for (Index t0 = 0; t0 < T; t0 += span) {
            Strips const strips(least(T - t0, span));
            float const* const x = call.x + b * n_in * T + t0;
            float* const dx = call.dx + b * n_in * T + t0;
            fill_panel(strips, n_in, t.narrow, [&](Index k, Index at, Index n) {
                float const* const from = x + k * T + at;
                __builtin_prefetch(from + 2 * T);
                return load_first(from, n) - work.centre[k];
            });
            product(strips, n_in, n_in, work.square, t.narrow, [&](Index k, Index at, Vector v, Index n) {
                float* const to = dx + k * T + at;
                Vector const direct =
                    call.residual.add ? load_first(call.dy + (b * n_in + k) * T + t0 + at, n) : Vector{};
                store_first(to, direct + (load_first(to, n) + (v + work.offset[k])), n);
            });
        }
    }
};

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
