// Vectors along time, and the two small matrix products of an MBConv block. Compiled once for each instruction set.
#pragma once

#include <string.h>

#include <cstdint>

namespace sleepfm::SLEEPFM_ISA {

namespace {

using Index = std::int64_t;
using Vector = float __attribute__((vector_size(SLEEPFM_LANES * sizeof(float))));
using Mask = std::int32_t __attribute__((vector_size(SLEEPFM_LANES * sizeof(float))));

constexpr Index LANES = SLEEPFM_LANES;
// Rows times vectors held in registers: 8 x 3 of 32 with AVX-512, 4 x 3 of 16 otherwise; the rest holds the operands.
constexpr Index ROWS = SLEEPFM_LANES == 16 ? 8 : 4;
constexpr Index COLUMNS = 3;
constexpr Index TILE = COLUMNS * LANES;
constexpr Index WIDEST_PANEL = 8 * LANES;

// Samples of a panel, a multiple of LANES, for rows of n samples: two register blocks, or the whole row where it fits
// into little more; few samples are then left over, and sums over a panel run long.
inline Index panel_width(Index n) {
    Index const whole = (n + LANES - 1) / LANES * LANES;
    return whole <= WIDEST_PANEL ? whole : 2 * TILE;
}

inline Index round_up(Index value, Index multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

inline Vector splat(float value) {
    return value - Vector{};  // a broadcast: x - 0 is x, where x + 0 would be an addition for the sake of -0
}

inline Vector load(float const* from) {
    Vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float* to, Vector v) {
    memcpy(to, &v, sizeof v);
}

// The first n lanes; the others are zero.
inline Vector load_first(float const* from, Index n) {
    if (n >= LANES) {
        return load(from);
    }
    Vector v{};
    memcpy(&v, from, static_cast<std::size_t>(n) * sizeof(float));
    return v;
}

inline void store_first(float* to, Vector v, Index n) {
    memcpy(to, &v, static_cast<std::size_t>(n >= LANES ? LANES : n) * sizeof(float));
}

inline Vector first_lanes(Vector v, Index n) {
    if (n >= LANES) {
        return v;
    }
    Mask lane;
    for (int i = 0; i < SLEEPFM_LANES; ++i) {
        lane[i] = i;
    }
    return lane < static_cast<std::int32_t>(n) ? v : Vector{};
}

inline double total(Vector v) {
    double sum = 0.0;
    for (int i = 0; i < SLEEPFM_LANES; ++i) {
        sum += static_cast<double>(v[i]);
    }
    return sum;
}

// Both comparisons are false for NaN, which stays NaN as in torch.
inline Vector relu6(Vector v) {
    v = v < 0.0f ? Vector{} : v;
    return v > 6.0f ? splat(6.0f) : v;
}

inline Vector relu6_gradient(Vector at, Vector gradient) {
    return ((at <= 0.0f) | (at >= 6.0f)) != 0 ? Vector{} : gradient;
}

// Rows of a weight matrix [n_rows, n_k] in blocks of ROWS, [block][k][ROWS], zero beyond n_rows; `row(r)[k * stride]`
// times scale[r].
inline void pack_block(float const* w, Index row_stride, Index k_stride, float const* scale, Index n_rows, Index n_k,
                       Index block, float* packed) {
    float* const out = packed + block * n_k * ROWS;
    for (Index r = 0; r < ROWS; ++r) {
        Index const row = block * ROWS + r;
        float const factor = row >= n_rows ? 0.0f : scale == nullptr ? 1.0f : scale[row];
        for (Index k = 0; k < n_k; ++k) {
            out[k * ROWS + r] = row < n_rows ? w[row * row_stride + k * k_stride] * factor : 0.0f;
        }
    }
}

template <int C>
using Block = Vector[ROWS][C];

// block = w x panel: w [n_k][ROWS], panel [n_k][ld].
template <int C>
inline void multiply(Index n_k, float const* w, float const* panel, Index ld, Block<C>& block) {
    Vector sum[ROWS][C] = {};
    for (Index k = 0; k < n_k; ++k) {
        Vector x[C];
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            x[c] = load(panel + k * ld + c * LANES);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            Vector const a = splat(w[k * ROWS + r]);
#pragma GCC unroll 3
            for (int c = 0; c < C; ++c) {
                sum[r][c] += a * x[c];
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            block[r][c] = sum[r][c];
        }
    }
}

// out [ROWS rows of ldo] += a x b over n_t samples: a [ROWS][lda], b [n_t][ldo].
template <int C>
inline void accumulate_block(Index n_t, float const* a, Index lda, float const* b, Index ldo, float* out) {
    Vector sum[ROWS][C];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            sum[r][c] = load(out + r * ldo + c * LANES);
        }
    }
    for (Index t = 0; t < n_t; ++t) {
        Vector y[C];
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            y[c] = load(b + t * ldo + c * LANES);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            Vector const x = splat(a[r * lda + t]);
#pragma GCC unroll 3
            for (int c = 0; c < C; ++c) {
                sum[r][c] += x * y[c];
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            store(out + r * ldo + c * LANES, sum[r][c]);
        }
    }
}

// out [n_rows][ldo] += a [n_rows][lda] x b [n_t][ldo]; n_rows a multiple of ROWS, ldo of LANES.
inline void accumulate(Index n_rows, Index n_t, float const* a, Index lda, float const* b, Index ldo, float* out) {
    for (Index column = 0; column < ldo; column += TILE) {
        Index const left = (ldo - column) / LANES;
        for (Index row = 0; row < n_rows; row += ROWS) {
            float const* const rows = a + row * lda;
            float* const to = out + row * ldo + column;
            if (left >= 3) {
                accumulate_block<3>(n_t, rows, lda, b + column, ldo, to);
            } else if (left == 2) {
                accumulate_block<2>(n_t, rows, lda, b + column, ldo, to);
            } else {
                accumulate_block<1>(n_t, rows, lda, b + column, ldo, to);
            }
        }
    }
}

// panel[k][0..ld) = value(k, t, n) for the vector at sample t with n valid lanes, zero beyond n_t.
template <typename Value>
inline void fill_panel(Index n_k, Index n_t, Index ld, float* panel, Value value) {
    Index const full = n_t / LANES * LANES;
    for (Index k = 0; k < n_k; ++k) {
        float* const row = panel + k * ld;
        for (Index t = 0; t < full; t += LANES) {
            store(row + t, value(k, t, LANES));
        }
        if (full < n_t) {
            store(row + full, first_lanes(value(k, full, n_t - full), n_t - full));
        }
        for (Index t = full + (full < n_t ? LANES : 0); t < ld; t += LANES) {
            store(row + t, Vector{});
        }
    }
}

// Calls body(row, t, vector, valid lanes) for w x panel, C vectors from sample t0 on.
template <int C, typename Body>
inline void product_columns(Index n_rows, Index n_k, Index n_t, float const* packed, float const* panel, Index ld,
                            Index t0, Body body) {
    bool const whole = n_t - t0 >= C * LANES;
    for (Index row = 0; row < n_rows; row += ROWS) {
        Vector block[ROWS][C];
        multiply<C>(n_k, packed + row * n_k, panel + t0, ld, block);
        Index const n = n_rows - row < ROWS ? n_rows - row : ROWS;
        for (Index r = 0; r < n; ++r) {
            if (whole) {
#pragma GCC unroll 3
                for (int c = 0; c < C; ++c) {
                    body(row + r, t0 + c * LANES, block[r][c], LANES);
                }
                continue;
            }
            for (int c = 0; c < C; ++c) {
                Index const t = t0 + c * LANES;
                if (t < n_t) {
                    body(row + r, t, block[r][c], n_t - t);
                }
            }
        }
    }
}

// w x panel: packed w [n_rows / ROWS][n_k][ROWS], panel [n_k][ld], of which n_t samples count.
template <typename Body>
inline void product(Index n_rows, Index n_k, Index n_t, float const* packed, float const* panel, Index ld, Body body) {
    Index const n_vectors = (n_t + LANES - 1) / LANES;
    for (Index v = 0; v < n_vectors;) {
        Index const left = n_vectors - v;
        if (left >= 3 && left != 4) {
            product_columns<3>(n_rows, n_k, n_t, packed, panel, ld, v * LANES, body);
            v += 3;
        } else if (left >= 2) {
            product_columns<2>(n_rows, n_k, n_t, packed, panel, ld, v * LANES, body);
            v += 2;
        } else {
            product_columns<1>(n_rows, n_k, n_t, packed, panel, ld, v * LANES, body);
            v += 1;
        }
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
