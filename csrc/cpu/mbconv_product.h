// Vectors along time, and the two small matrix products of an MBConv block. Compiled once for each instruction set.
#pragma once

#include <string.h>

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace sleepfm::SLEEPFM_ISA {

namespace {

using Index = std::int64_t;
using Vector = float __attribute__((vector_size(SLEEPFM_LANES * sizeof(float))));
using Mask = std::int32_t __attribute__((vector_size(SLEEPFM_LANES * sizeof(float))));

constexpr Index LANES = SLEEPFM_LANES;
// Rows times vectors held in registers: 8 x 3 of 32 with AVX-512 and on ARM, 4 x 3 of 16 otherwise; the rest holds the
// operands.
#if SLEEPFM_LANES == 16 || defined(__aarch64__)
constexpr Index ROWS = 8;
#else
constexpr Index ROWS = 4;
#endif
constexpr Index COLUMNS = 3;
constexpr Index TILE = COLUMNS * LANES;

inline Index round_up(Index value, Index multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

inline Vector splat(float value) {
    return value - Vector{};  // a broadcast: x - 0 is x, where x + 0 would be an addition for the sake of -0
}

// Vectors where floats are. Not memcpy, which may change anything: the compiler would read every pointer again after a
// store. A typedef: in a `using`, Clang passes over `aligned`.
typedef float Unaligned __attribute__((vector_size(SLEEPFM_LANES * sizeof(float)), aligned(alignof(float))));

inline Vector load(float const* from) {
    return *reinterpret_cast<Unaligned const*>(from);
}

inline void store(float* to, Vector v) {
    *reinterpret_cast<Unaligned*>(to) = v;
}

// Ask for n floats that are read soon.
inline void prefetch(float const* from, Index n) {
    for (Index i = 0; i < n; i += 16) {
        __builtin_prefetch(from + i);
    }
}

// Ask for n floats that are written soon.
inline void prefetch_to_write(float* to, Index n) {
    for (Index i = 0; i < n; i += 16) {
        __builtin_prefetch(to + i, 1);
    }
}

// All bits of the first n lanes.
inline Mask lanes_before(Index n) {
    Mask lane;
    for (int i = 0; i < SLEEPFM_LANES; ++i) {
        lane[i] = i;
    }
    return lane < static_cast<std::int32_t>(n);
}

// The first n lanes; the others are zero and their memory is not touched.
inline Vector load_first(float const* from, Index n) {
    if (n >= LANES) {
        return load(from);
    }
#if SLEEPFM_LANES == 16 && defined(__AVX512F__)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << (n < 0 ? 0 : n)) - 1u), from);
#elif SLEEPFM_LANES == 8 && defined(__AVX__)
    Mask const lanes = lanes_before(n);
    return _mm256_maskload_ps(from, reinterpret_cast<__m256i const&>(lanes));
#else
    Vector v{};
    for (int i = 0; i < SLEEPFM_LANES; ++i) {
        if (i < n) {
            v[i] = from[i];
        }
    }
    return v;
#endif
}

inline void store_first(float* to, Vector v, Index n) {
    if (n >= LANES) {
        store(to, v);
        return;
    }
#if SLEEPFM_LANES == 16 && defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << (n < 0 ? 0 : n)) - 1u), v);
#elif SLEEPFM_LANES == 8 && defined(__AVX__)
    // Halves: a masked store takes some processors 40 operations.
    __m128 part = _mm256_castps256_ps128(v);
    if (n & 4) {
        _mm_storeu_ps(to, part);
        part = _mm256_extractf128_ps(v, 1);
        to += 4;
    }
    if (n & 2) {
        _mm_storel_pi(reinterpret_cast<__m64*>(to), part);
        part = _mm_movehl_ps(part, part);
        to += 2;
    }
    if (n & 1) {
        _mm_store_ss(to, part);
    }
#else
    for (int i = 0; i < SLEEPFM_LANES; ++i) {
        if (i < n) {
            to[i] = v[i];
        }
    }
#endif
}

inline Vector first_lanes(Vector v, Index n) {
    if (n >= LANES) {
        return v;
    }
    return lanes_before(n) ? v : Vector{};
}

inline double total(Vector v) {
    double sum = 0.0;
    for (int i = 0; i < SLEEPFM_LANES; ++i) {
        sum += static_cast<double>(v[i]);
    }
    return sum;
}

// Half as many lanes in float64, a register's worth.
constexpr Index WIDE_LANES = SLEEPFM_LANES / 2;
using Doubles = double __attribute__((vector_size(SLEEPFM_LANES * sizeof(float))));
using HalfVector = float __attribute__((vector_size(SLEEPFM_LANES / 2 * sizeof(float))));

inline Doubles load_wide(double const* from) {
    Doubles v;
    memcpy(&v, from, sizeof v);
    return v;
}

inline void store_wide(double* to, Doubles v) {
    memcpy(to, &v, sizeof v);
}

inline Doubles load_widened(float const* from) {
    HalfVector v;
    memcpy(&v, from, sizeof v);
    return __builtin_convertvector(v, Doubles);
}

inline void store_narrowed(float* to, Doubles v) {
    HalfVector const half = __builtin_convertvector(v, HalfVector);
    memcpy(to, &half, sizeof half);
}

// NaN stays NaN, as in torch: the maximum and minimum of x86 give their second operand then, those of ARM are NaN.
// Written as two comparisons, the compiler takes four instructions.
inline Vector relu6(Vector v) {
#if SLEEPFM_LANES == 16 && defined(__AVX512F__)
    return _mm512_min_ps(splat(6.0f), _mm512_max_ps(Vector{}, v));
#elif SLEEPFM_LANES == 8 && defined(__AVX__)
    return _mm256_min_ps(splat(6.0f), _mm256_max_ps(Vector{}, v));
#elif SLEEPFM_LANES == 4 && defined(__SSE2__)
    return _mm_min_ps(splat(6.0f), _mm_max_ps(Vector{}, v));
#elif defined(__aarch64__)
    return vminq_f32(splat(6.0f), vmaxq_f32(Vector{}, v));
#else
    v = v < 0.0f ? Vector{} : v;
    return v > 6.0f ? splat(6.0f) : v;
#endif
}

// The gradient where 0 < at < 6, and where `at` is NaN; else zero.
inline Vector relu6_gradient(Vector at, Vector gradient) {
#if SLEEPFM_LANES == 16 && defined(__AVX512F__)
    __mmask16 const above = _mm512_cmp_ps_mask(at, Vector{}, _CMP_NLE_UQ);
    return _mm512_maskz_mov_ps(_mm512_mask_cmp_ps_mask(above, at, splat(6.0f), _CMP_NGE_UQ), gradient);
#elif SLEEPFM_LANES == 8 && defined(__AVX__)
    return _mm256_and_ps(
        gradient, _mm256_and_ps(_mm256_cmp_ps(at, Vector{}, _CMP_NLE_UQ), _mm256_cmp_ps(at, splat(6.0f), _CMP_NGE_UQ)));
#else
    Mask const outside = (at <= 0.0f) | (at >= 6.0f);
    Mask bits;
    memcpy(&bits, &gradient, sizeof bits);
    bits &= ~outside;
    Vector result;
    memcpy(&result, &bits, sizeof result);
    return result;
#endif
}

// For loops of which all turns but the last meet whole vectors: of those, n is no matter.
struct Whole {
    static Vector load(float const* from, Index) { return SLEEPFM_ISA::load(from); }
    static void store(float* to, Vector v, Index) { SLEEPFM_ISA::store(to, v); }
    static Vector first(Vector v, Index) { return v; }
};

struct Part {
    static Vector load(float const* from, Index n) { return load_first(from, n); }
    static void store(float* to, Vector v, Index n) { store_first(to, v, n); }
    static Vector first(Vector v, Index n) { return first_lanes(v, n); }
};

// Rows of a weight matrix [n_rows, n_k] in blocks of ROWS, [block][k][ROWS], zero beyond n_rows; `row(r)[k * stride]`
// times scale[r].
inline void pack_block(float const* w, Index row_stride, Index k_stride, float const* scale, Index n_rows, Index n_k,
                       Index block, float* packed) {
    float* const out = packed + block * n_k * ROWS;
    Index const first = block * ROWS, n_valid = n_rows - first < ROWS ? n_rows - first : ROWS;
    for (Index k = 0; k < n_k; ++k) {
        for (Index r = 0; r < ROWS; ++r) {
            float const factor = scale == nullptr || r >= n_valid ? 1.0f : scale[first + r];
            out[k * ROWS + r] = r < n_valid ? w[(first + r) * row_stride + k * k_stride] * factor : 0.0f;
        }
    }
}

// How a panel's columns lie in memory: strips of as many vectors as a register block is wide, each [k][columns of the
// strip], so that a product reads memory in order. The last strips are narrower: 2 + 2 vectors rather than 3 + 1.
struct Strips {
    Index n, n_vectors, tail, n_strips;  // n: columns that count; tail: first vector of the narrower strips

    explicit Strips(Index n_columns) : n(n_columns), n_vectors((n_columns + LANES - 1) / LANES) {
        static_assert(COLUMNS == 3, "2 + 2 = 3 + 1");
        Index const over = n_vectors % 3;
        tail = n_vectors - (over == 1 && n_vectors > 1 ? 4 : over);
        n_strips = tail / 3 + (n_vectors - tail + 1) / 2;
    }

    Index first(Index strip) const { return LANES * (strip < tail / 3 ? 3 * strip : tail + 2 * (strip - tail / 3)); }
    Index width(Index strip) const { return LANES * (strip < tail / 3 ? 3 : n_vectors == 1 ? 1 : 2); }

    // Where the vector at column t of row k is, in a panel of n_k rows.
    Index place(Index n_k, Index k, Index t) const {
        Index const v = t / LANES;
        bool const narrow = v >= tail;
        Index const start = LANES * (narrow ? v - (v - tail) % 2 : v - v % 3);
        return start * n_k + k * LANES * (narrow ? (n_vectors == 1 ? 1 : 2) : 3) + t - start;
    }
};

// w x strip: w [n_k][ROWS], strip [n_k][C vectors]; body as for product_rows, from a row on. A function of its own:
// where it is inlined into more, the compiler runs out of registers and keeps sums in memory (two thirds of the speed).
template <int C, typename Body>
[[gnu::noinline]] void multiply(Index n_k, float const* w, float const* strip, Index row, Index n_rows, Index t,
                                Index n, Body& body) {
    Vector sum[ROWS][C] = {};
    for (Index k = 0; k < n_k; ++k) {
        Vector x[C];
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            x[c] = load(strip + (k * C + c) * LANES);
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
        if (r < n_rows) {
            Vector vectors[C];  // a copy: the sums have no address and stay in registers
#pragma GCC unroll 3
            for (int c = 0; c < C; ++c) {
                vectors[c] = sum[r][c];
            }
            body(row + r, t, vectors, n);
        }
    }
}

// out [R rows of ldo] (+)= a x b over all columns: rows row .. row + R of the panel a, b [columns][ldo].
template <int R, int C>
[[gnu::noinline]] void accumulate_block(Strips const& strips, Index n_rows, Index row, float const* a, float const* b,
                                        Index ldo, bool fresh, float* out) {
    Vector sum[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            sum[r][c] = fresh ? Vector{} : load(out + r * ldo + c * LANES);
        }
    }
    for (Index strip = 0; strip < strips.n_strips; ++strip) {
        Index const width = strips.width(strip), first = strips.first(strip);
        float const* const rows = a + first * n_rows + row * width;
        Index const n_t = strips.n - first < width ? strips.n - first : width;
        for (Index t = 0; t < n_t; ++t) {
            Vector y[C];
#pragma GCC unroll 3
            for (int c = 0; c < C; ++c) {
                y[c] = load(b + (first + t) * ldo + c * LANES);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                Vector const x = splat(rows[r * width + t]);
#pragma GCC unroll 3
                for (int c = 0; c < C; ++c) {
                    sum[r][c] += x * y[c];
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            store(out + r * ldo + c * LANES, sum[r][c]);
        }
    }
}

template <int R, int C>
inline void accumulate_rows(Strips const& strips, Index n_rows, float const* a, float const* b, Index ldo, bool fresh,
                            float* out) {
    for (Index row = 0; row < n_rows; row += R) {
        if (!fresh && row + R < n_rows) {  // the sums are larger than the second cache where the samples are few
            for (Index r = 0; r < R; ++r) {
                prefetch_to_write(out + (row + R + r) * ldo, C * LANES);
            }
        }
        accumulate_block<R, C>(strips, n_rows, row, a, b, ldo, fresh, out + row * ldo);
    }
}

// out [n_rows][ldo] = a x b over all columns of the panel a of n_rows rows, a multiple of ROWS; b [columns][ldo], of
// which n columns count; added to what is there unless `fresh`.
inline void accumulate(Strips const& strips, Index n_rows, float const* a, float const* b, Index n, Index ldo,
                       bool fresh, float* out) {
    constexpr int R = static_cast<int>(ROWS);
    Strips const columns(n);
    for (Index i = 0; i < columns.n_strips; ++i) {
        Index const column = columns.first(i);
        float const* const from = b + column;
        float* const to = out + column;
        switch (columns.width(i) / LANES) {
            case 3: accumulate_rows<R, 3>(strips, n_rows, a, from, ldo, fresh, to); break;
            case 2:
                if (ROWS == 4 && n_rows % 6 == 0) {  // 12 sums, as many as keep the multipliers busy
                    accumulate_rows<6, 2>(strips, n_rows, a, from, ldo, fresh, to);
                } else {
                    accumulate_rows<R, 2>(strips, n_rows, a, from, ldo, fresh, to);
                }
                break;
            default: accumulate_rows<R, 1>(strips, n_rows, a, from, ldo, fresh, to);
        }
    }
}

// Row k, columns from t on of a panel of n_k rows = value(k, t, n) with n valid lanes; zero beyond.
template <typename Value>
inline void fill_panel(Strips const& strips, Index n_k, float* panel, Value value) {
    for (Index k = 0; k < n_k; ++k) {
        for (Index strip = 0; strip < strips.n_strips; ++strip) {
            Index const first = strips.first(strip), width = strips.width(strip);
            bool const whole = first + width <= strips.n;
            float* const row = panel + first * n_k + k * width;
            for (Index t = 0; t < width; t += LANES) {
                Index const n = strips.n - first - t;
                store(row + t, whole ? value(k, first + t, LANES) : first_lanes(value(k, first + t, n), n));
            }
        }
    }
}

// body(t, to) for every vector of row k of a panel of n_k rows: column t and its place.
template <typename Body>
inline void for_strips(Strips const& strips, Index n_k, Index k, float* panel, Body body) {
    for (Index strip = 0; strip < strips.n_strips; ++strip) {
        Index const first = strips.first(strip), width = strips.width(strip);
        float* const to = panel + first * n_k + k * width;
        body(first, to);
        if (width > LANES) {
            body(first + LANES, to + LANES);
        }
        if (width > 2 * LANES) {
            body(first + 2 * LANES, to + 2 * LANES);
        }
    }
}

// Row k of a panel of n_k rows from `row`, which has whole vectors.
inline void place_row(Strips const& strips, Index n_k, Index k, float const* row, float* panel) {
    for_strips(strips, n_k, k, panel, [row](Index t, float* to) { store(to, load(row + t)); });
}

// Calls body(row, t, vectors, n) for w x strip: C vectors of a row from column t on, of which n columns count.
template <int C, typename Body>
inline void product_strip(Index n_rows, Index n_k, Index t, Index n, float const* packed, float const* strip,
                          Body& body) {
    for (Index row = 0; row < n_rows; row += ROWS) {
        multiply<C>(n_k, packed + row * n_k, strip, row, n_rows - row, t, n, body);
    }
}

// w x panel: packed w [n_rows / ROWS][n_k][ROWS], panel of n_k rows.
template <typename Body>
inline void product_rows(Strips const& strips, Index n_rows, Index n_k, float const* packed, float const* panel,
                         Body body) {
    for (Index i = 0; i < strips.n_strips; ++i) {
        Index const t = strips.first(i);
        float const* const strip = panel + t * n_k;
        switch (strips.width(i) / LANES) {
            case 3: product_strip<3>(n_rows, n_k, t, strips.n - t, packed, strip, body); break;
            case 2: product_strip<2>(n_rows, n_k, t, strips.n - t, packed, strip, body); break;
            default: product_strip<1>(n_rows, n_k, t, strips.n - t, packed, strip, body);
        }
    }
}

// The same, a vector at a time: body(row, t, vector, valid lanes).
template <typename Body>
inline void product(Strips const& strips, Index n_rows, Index n_k, float const* packed, float const* panel, Body body) {
    product_rows(strips, n_rows, n_k, packed, panel, [&](Index row, Index t, auto const& vectors, Index n) {
        constexpr int C = static_cast<int>(sizeof(vectors) / sizeof(Vector));
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            body(row, t + c * LANES, vectors[c], n - c * LANES);
        }
    });
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
