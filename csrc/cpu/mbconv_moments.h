// Second moments of a block's input, C = sum of x x^T with x less its mean, from which the variance of each channel of
// the expansion follows: w C w / n. In float64: where the input's channels go together (an artefact in all leads) and w
// takes their difference, what is left is a small part of C. With bfloat16 factors they are the moments of the rounded
// input, which is what the expansion multiplies; products of two bfloat16 are exact in float32, and float32 sums over
// at most MOMENT_SPAN samples do less to C than the rounding of the input does.
#pragma once

#include <type_traits>

#include "cpu/mbconv_workspace.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// out [ROWS][ldm] += sum over t < n_t of rows[t][i] columns[t][j], i < ROWS, a register block 3 vectors wide; rows and
// columns are places in the same [n_t][ldm].
[[gnu::noinline, maybe_unused]] void add_moments_block(Index n_t, double const* rows, double const* columns, Index ldm,
                                                       double* out) {
    Doubles sum[ROWS][3];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 3
        for (int c = 0; c < 3; ++c) {
            sum[r][c] = load_wide(out + r * ldm + c * WIDE_LANES);
        }
    }
    for (Index t = 0; t < n_t; ++t) {
        Doubles y[3];
#pragma GCC unroll 3
        for (int c = 0; c < 3; ++c) {
            y[c] = load_wide(columns + t * ldm + c * WIDE_LANES);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            Doubles const x = rows[t * ldm + r] - Doubles{};
#pragma GCC unroll 3
            for (int c = 0; c < 3; ++c) {
                sum[r][c] += x * y[c];
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 3
        for (int c = 0; c < 3; ++c) {
            store_wide(out + r * ldm + c * WIDE_LANES, sum[r][c]);
        }
    }
}

// The same for pairs of samples, C vectors wide: rows and columns are places in the same [words of samples][ldm].
template <int C>
[[gnu::noinline]] void add_moments_block(Index n_words, Pair const* rows, Pair const* columns, Index ldm, double* out) {
    Vector sum[ROWS][C] = {};
    for (Index t = 0; t < n_words; ++t) {
        Words y[C];
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            y[c] = load(columns + t * ldm + c * LANES);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            Words const x = spread(rows + t * ldm + r);
#pragma GCC unroll 3
            for (int c = 0; c < C; ++c) {
                sum[r][c] = add_product(sum[r][c], x, y[c]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            HalfVector halves[2];
            memcpy(halves, &sum[r][c], sizeof halves);
            double* const to = out + r * ldm + c * LANES;
            store_wide(to, load_wide(to) + __builtin_convertvector(halves[0], Doubles));
            store_wide(to + WIDE_LANES, load_wide(to + WIDE_LANES) + __builtin_convertvector(halves[1], Doubles));
        }
    }
}

#if defined(SLEEPFM_TILES)

// The same on tiles, for C vectors of columns from `column` on: rows [n][MOMENT_SPAN], columns [MOMENT_SPAN / 2][ldm].
// The rows before `end` get sums.
template <int C>
inline void add_moments_tiles(Index end, Index column, BFloat16 const* rows, Pair const* columns, Index ldm,
                              double* out) {
    constexpr Index STRIDE = MOMENT_SPAN * static_cast<Index>(sizeof(BFloat16));
    alignas(64) float sums[TALL * C * LANES];
    for (Index row = 0; row < end; row += TALL) {
        clear_sums<0, C>();
        for (Index t = 0; t < MOMENT_SPAN; t += 32) {
            load_tile<6>(rows + row * MOMENT_SPAN + t, STRIDE);
            add_products<0, C>(columns + t / 2 * ldm + column, ldm * static_cast<Index>(sizeof(Pair)));
        }
        store_sums<0, C>(sums, C * LANES * static_cast<Index>(sizeof(float)));
        for (Index r = 0; r < least(end - row, TALL); ++r) {
            double* const to = out + (row + r) * ldm + column;
            for (Index k = 0; k < C * LANES; k += WIDE_LANES) {
                store_wide(to + k, load_wide(to + k) + load_widened(sums + r * C * LANES + k));
            }
        }
    }
}

// add_moments, of pairs. Two neighbouring samples of a row are a pair as they are: the columns are a transpose of
// words.
inline void add_moments_tiles(MBConvShape const& s, float const* x, float const* centre, float* scratch,
                              double* products) {
    static_assert(MOMENT_SPAN % 32 == 0, "whole tiles of samples");
    Index const n_in = s.n_in, ldm = moments_width(n_in);
    auto* const rows = reinterpret_cast<BFloat16*>(scratch);  // [n_in to whole tiles, MOMENT_SPAN]
    auto* const columns = reinterpret_cast<Pair*>(scratch + round_up(n_in, TALL) * MOMENT_SPAN / 2);
    Strips const inputs(n_in);
    use_tiles(TALL, 16);
    for (Index t0 = 0; t0 < s.n_samples; t0 += MOMENT_SPAN) {
        Index const n = s.n_samples - t0;
        for (Index k = 0; k < n_in; ++k) {
            for (Index t = 0; t < MOMENT_SPAN; t += LANES) {
                Vector const v = load_first(x + k * s.n_samples + t0 + t, n - t) - centre[k];
                store(rows + k * MOMENT_SPAN + t, first_lanes(v, n - t));
            }
        }
        // As floats, for which there are shuffles; the bits only move.
        transpose_rows(reinterpret_cast<float const*>(rows), MOMENT_SPAN / 2, n_in, MOMENT_SPAN / 2, ldm,
                       reinterpret_cast<float*>(columns));
        for (Index i = 0; i < inputs.n_strips; ++i) {
            Index const column = inputs.first(i), width = inputs.width(i) / LANES;
            Index const end = least(round_up(n_in, ROWS), column + width * LANES);
            auto const block = width == 3   ? &add_moments_tiles<3>
                               : width == 2 ? &add_moments_tiles<2>
                                            : &add_moments_tiles<1>;
            block(end, column, rows, columns, ldm, products);
        }
    }
}

#endif

// products[i][k] += sum over t of x[i][t] x[k][t] for k >= i (and for some k < i), over one clip, x less centre. Rows
// of products are moments_width(n_in) long.
template <typename Factor>
inline void add_moments(MBConvShape const& s, float const* x, float const* centre, float* scratch, double* products) {
#if defined(SLEEPFM_TILES)
    if constexpr (FactorOf<Factor>::DEPTH == 2) {
        add_moments_tiles(s, x, centre, scratch, products);
        return;
    }
#endif
    Index const n_in = s.n_in, ldm = moments_width(n_in);
    auto* const samples = reinterpret_cast<double*>(scratch);                        // [MOMENT_SPAN, ldm]
    auto* const panel = reinterpret_cast<Factor*>(scratch + 2 * MOMENT_SPAN * ldm);  // n_in factors
    Factor* const transposed = panel + n_in * MOMENT_SPAN;                           // [words of MOMENT_SPAN, ldm]
    Strips const inputs(n_in);
    for (Index t0 = 0; t0 < s.n_samples; t0 += MOMENT_SPAN) {
        Strips const strips(least(s.n_samples - t0, MOMENT_SPAN));
        fill_panel(strips, n_in, panel, [&](Index k, Index t, Index left) {
            return load_first(x + k * s.n_samples + t0 + t, left) - centre[k];
        });
        transpose_panel(strips, panel, n_in, ldm, transposed);
        if constexpr (FactorOf<Factor>::DEPTH == 1) {
            for (Index i = 0; i < strips.n * ldm; i += WIDE_LANES) {
                store_wide(samples + i, load_widened(transposed + i));
            }
            for (Index column = 0; column < n_in; column += 3 * WIDE_LANES) {
                for (Index row = 0; row < least(n_in, column + 3 * WIDE_LANES); row += ROWS) {
                    add_moments_block(strips.n, samples + row, samples + column, ldm, products + row * ldm + column);
                }
            }
        } else {
            Index const n_words = words_of<Factor>(strips.n);
            for (Index i = 0; i < inputs.n_strips; ++i) {
                Index const column = inputs.first(i), n_columns = inputs.width(i);
                for (Index row = 0; row < least(n_in, column + n_columns); row += ROWS) {
                    auto const block = n_columns == 3 * LANES   ? add_moments_block<3>
                                       : n_columns == 2 * LANES ? add_moments_block<2>
                                                                : add_moments_block<1>;
                    block(n_words, transposed + row, transposed + column, ldm, products + row * ldm + column);
                }
            }
        }
    }
}

// forms[r] = 2 sum over i, k of w[r][i] half[i][k] w[r][k] for n_rows <= 4 rows of w [4][ld], which is w C w: half
// [n][ld] is C's upper triangle with half of its diagonal. Elements below the diagonal must be zero.
[[gnu::noinline]] void quadratic_forms(Index n_rows, Index n, double const* half, Index ld, double const* w,
                                       double* forms) {
    Doubles sum[4] = {};
    // Two rows of the matrix share each load of w; a last odd one is alone.
    auto const add_rows = [&](auto count, Index i) {
        constexpr int N = decltype(count)::value;
        Doubles row[N][4] = {};
        for (Index k = i / LANES * LANES; k < n; k += WIDE_LANES) {
            Doubles h[N];
#pragma GCC unroll 2
            for (int j = 0; j < N; ++j) {
                h[j] = load_wide(half + (i + j) * ld + k);
            }
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r) {
                Doubles const v = load_wide(w + r * ld + k);
#pragma GCC unroll 2
                for (int j = 0; j < N; ++j) {
                    row[j][r] += h[j] * v;
                }
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 2
            for (int j = 0; j < N; ++j) {
                sum[r] += row[j][r] * w[r * ld + i + j];
            }
        }
    };
    Index i = 0;
    for (; i + 2 <= n; i += 2) {
        add_rows(std::integral_constant<int, 2>{}, i);
    }
    if (i < n) {
        add_rows(std::integral_constant<int, 1>{}, i);
    }
    for (Index r = 0; r < n_rows; ++r) {
        forms[r] = 2.0 * total(sum[r]);
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
