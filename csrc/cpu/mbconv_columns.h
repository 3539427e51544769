// From rows of a clip in memory to the columns of a tile's panel, and back; and transposes. A tile is a run of "units".
// With stride 1 a unit is a sample. With stride 2 it is a pair of samples, and the even samples of all pairs come
// before the odd ones, so that the depthwise convolution and its gradient read consecutive columns.
#pragma once

#include "cpu/mbconv_product.h"
#include "params.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

inline Index samples_out(MBConvShape const& s) {
    return (s.n_samples - 1) / s.stride + 1;
}

// Floats of a row of n: an odd number of vectors, so that rows do not fall on few sets of the cache.
inline Index odd_vectors(Index n) {
    Index const vectors = (n + LANES - 1) / LANES;
    return (vectors + (vectors % 2 == 0)) * LANES;
}

using Four = float __attribute__((vector_size(16)));
#if defined(__clang__)
#define SLEEPFM_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
using FourLanes = std::int32_t __attribute__((vector_size(16)));
#define SLEEPFM_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, FourLanes{__VA_ARGS__})
#endif

inline Four load_four(float const* from) {
    Four v;
    memcpy(&v, from, sizeof v);
    return v;
}

inline void store_four(float* to, Four v) {
    memcpy(to, &v, sizeof v);
}

// A tile of a clip: units [first, first + n) of samples_out. Its columns are [0, n) and, with stride 2, the odd samples
// [offset, offset + n_odd); n_odd is n - 1 where a clip of odd length ends.
struct Columns {
    Index first, n, n_odd, offset, count;  // count: all columns, whole vectors
    int stride;

    Columns(MBConvShape const& s, Index from, Index tile) : first(from), stride(s.stride) {
        Index const units = samples_out(s);
        n = units - from < tile ? units - from : tile;
        offset = round_up(n, LANES);
        Index const odd = s.n_samples / 2 - from;
        n_odd = stride == 1 ? 0 : odd < n ? odd : n;
        count = offset * stride;
    }
};

#if SLEEPFM_LANES == 16 && defined(__AVX512F__)
// The chosen lanes of two vectors, those of a numbered 0 to 15, those of b 16 to 31. EVEN and ODD lanes; LOWER and
// UPPER: half of each vector, interleaved.
inline Vector chosen(std::int32_t const (&lanes)[16], Vector a, Vector b) {
    return _mm512_permutex2var_ps(a, _mm512_load_si512(lanes), b);
}
alignas(64) constexpr std::int32_t EVEN[16] = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
alignas(64) constexpr std::int32_t ODD[16] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
alignas(64) constexpr std::int32_t LOWER[16] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
alignas(64) constexpr std::int32_t UPPER[16] = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
#endif

// Separates the n even and the n_odd odd samples of a row, less `shift`; zeros from there to `padded` of each.
inline void split_row(float const* row, Index n, Index n_odd, Index padded, float shift, float* even, float* odd) {
    Index const whole = n_odd / 4 * 4;
    Index t = 0;
#if SLEEPFM_LANES == 16 && defined(__AVX512F__)
    for (; t + LANES <= whole; t += LANES) {
        Vector const a = load(row + 2 * t), b = load(row + 2 * t + LANES);
        store(even + t, chosen(EVEN, a, b) - shift);
        store(odd + t, chosen(ODD, a, b) - shift);
    }
#endif
    for (; t < whole; t += 4) {
        Four const a = load_four(row + 2 * t), b = load_four(row + 2 * t + 4);
        store_four(even + t, SLEEPFM_SHUFFLE(a, b, 0, 2, 4, 6) - shift);
        store_four(odd + t, SLEEPFM_SHUFFLE(a, b, 1, 3, 5, 7) - shift);
    }
    for (; t < padded; ++t) {
        even[t] = t < n ? row[2 * t] - shift : 0.0f;
        odd[t] = t < n_odd ? row[2 * t + 1] - shift : 0.0f;
    }
}

// Fills a tile's panel from n_k rows of n_row samples: factor k is row k less centre[k] (0 if centre is null); zero
// where there is no sample. lines: scratch for one row or, for pairs, two.
template <typename Factor>
inline void fill_columns(Columns const& at, Strips const& strips, float const* rows, Index n_row, Index n_k,
                         float const* centre, float* lines, Factor* panel) {
    constexpr Index DEPTH = FactorOf<Factor>::DEPTH;
    Index const n_words = words_of<Factor>(n_k);
    for (Index k = 0; k < n_k; k += DEPTH) {
        float const* const row = rows + k * n_row + at.first * at.stride;
        Index const n_valid = n_k - k < DEPTH ? n_k - k : DEPTH;
        float shift[DEPTH];
        for (Index i = 0; i < DEPTH; ++i) {
            shift[i] = centre == nullptr || i >= n_valid ? 0.0f : centre[k + i];
            if (k + DEPTH + i < n_k) {
                prefetch(row + (DEPTH + i) * n_row, at.n * at.stride);
            }
        }
        if (at.stride == 1) {
            for_strips(strips, n_words, k / DEPTH, panel, [&, n = at.n](Index t, Factor* to) {
                put(to, [&](Index i) {
                    float const* const from = row + i * n_row + t;
                    if (i > 0 && i >= n_valid) {
                        return Vector{};
                    }
                    return t + LANES <= n ? load(from) - shift[i]
                                          : first_lanes(load_first(from, n - t) - shift[i], n - t);
                });
            });
            continue;
        }
        for (Index i = 0; i < n_valid; ++i) {
            float* const line = lines + i * at.count;
            split_row(row + i * n_row, at.n, at.n_odd, at.offset, shift[i], line, line + at.offset);
        }
        for_strips(strips, n_words, k / DEPTH, panel, [&](Index t, Factor* to) {
            put(to, [&](Index i) { return i > 0 && i >= n_valid ? Vector{} : load(lines + i * at.count + t); });
        });
    }
}

// Stores one vector of a tile's columns, from t on, to a row of a clip that has all even samples (n_even of them)
// before all odd ones, as c1 does. Returns the vector as the row holds it, rounded.
template <typename Wide>
inline Vector keep_column(Columns const& at, Wide* row, Index n_even, Index t, Vector v) {
    if (t < at.offset) {
        return keep<Part>(row + at.first + t, v, at.n - t);
    }
    Index const left = at.n_odd - (t - at.offset);
    return left > 0 ? keep<Part>(row + n_even + at.first + t - at.offset, v, left) : v;
}

// The same for C vectors; at once if all are whole and either even or odd.
template <int C, typename Wide>
inline void keep_columns(Columns const& at, Wide* row, Index n_even, Index t, Vector (&vectors)[C]) {
    bool const odd = t >= at.offset;
    Index const left = odd ? at.offset + at.n_odd - t : at.n - t;
    if (left >= C * LANES) {
        Wide* const to = row + at.first + (odd ? n_even - at.offset : 0) + t;
#pragma GCC unroll 3
        for (int c = 0; c < C; ++c) {
            vectors[c] = keep<Whole>(to + c * LANES, vectors[c], LANES);
        }
        return;
    }
    for (int c = 0; c < C; ++c) {
        vectors[c] = keep_column(at, row, n_even, t + c * LANES, vectors[c]);
    }
}

// The other way: stores the tile's columns, panel [n_k][ld], to rows of n_row samples in their natural order.
inline void spill_columns(Columns const& at, float const* panel, Index ld, Index n_k, Index n_row, float* rows) {
    for (Index k = 0; k < n_k; ++k) {
        float const* const in = panel + k * ld;
        float* const row = rows + k * n_row + at.first * at.stride;
        if (at.stride == 1) {
            memcpy(row, in, static_cast<std::size_t>(at.n) * sizeof(float));
            continue;
        }
        float const* const odd = in + at.offset;
        Index const whole = at.n_odd / 4 * 4;
        Index t = 0;
#if SLEEPFM_LANES == 16 && defined(__AVX512F__)
        for (; t + LANES <= whole; t += LANES) {
            Vector const a = load(in + t), b = load(odd + t);
            store(row + 2 * t, chosen(LOWER, a, b));
            store(row + 2 * t + LANES, chosen(UPPER, a, b));
        }
#endif
        for (; t < whole; t += 4) {
            Four const a = load_four(in + t), b = load_four(odd + t);
            store_four(row + 2 * t, SLEEPFM_SHUFFLE(a, b, 0, 4, 1, 5));
            store_four(row + 2 * t + 4, SLEEPFM_SHUFFLE(a, b, 2, 6, 3, 7));
        }
        for (; t < at.n_odd; ++t) {
            row[2 * t] = in[t];
            row[2 * t + 1] = odd[t];
        }
        if (at.n_odd < at.n) {
            row[2 * at.n_odd] = in[at.n_odd];
        }
    }
}

// transposed[t][k], t < n_t, from panel [n_k][ld]; zero for n_k <= k < ldo.
inline void transpose_rows(float const* panel, Index ld, Index n_k, Index n_t, Index ldo, float* transposed) {
    Index const whole_k = n_k / 4 * 4, whole_t = n_t / 4 * 4;
    for (Index t = 0; t < whole_t; t += 4) {
        for (Index k = 0; k < whole_k; k += 4) {
            float const* const from = panel + k * ld + t;
            float* const to = transposed + t * ldo + k;
            Four const a = load_four(from), b = load_four(from + ld), c = load_four(from + 2 * ld),
                       d = load_four(from + 3 * ld);
            Four const ab = SLEEPFM_SHUFFLE(a, b, 0, 4, 1, 5), cd = SLEEPFM_SHUFFLE(c, d, 0, 4, 1, 5);
            Four const ba = SLEEPFM_SHUFFLE(a, b, 2, 6, 3, 7), dc = SLEEPFM_SHUFFLE(c, d, 2, 6, 3, 7);
            store_four(to, SLEEPFM_SHUFFLE(ab, cd, 0, 1, 4, 5));
            store_four(to + ldo, SLEEPFM_SHUFFLE(ab, cd, 2, 3, 6, 7));
            store_four(to + 2 * ldo, SLEEPFM_SHUFFLE(ba, dc, 0, 1, 4, 5));
            store_four(to + 3 * ldo, SLEEPFM_SHUFFLE(ba, dc, 2, 3, 6, 7));
        }
    }
    for (Index t = 0; t < n_t; ++t) {
        for (Index k = t < whole_t ? whole_k : 0; k < ldo; ++k) {
            transposed[t * ldo + k] = k < n_k ? panel[k * ld + t] : 0.0f;
        }
    }
}

// The same for pairs: a word of the panel has factors k and k + 1 of sample t, a word transposed[t / 2][k] samples t
// and t + 1 of factor k.
inline void transpose_rows(Pair const* panel, Index ld, Index n_k, Index n_t, Index ldo, Pair* transposed) {
    using FourWords = std::uint32_t __attribute__((vector_size(16)));
    using EightHalves = std::uint16_t __attribute__((vector_size(16)));
    auto const load_words = [](Pair const* from) {
        FourWords v;
        memcpy(&v, from, sizeof v);
        return v;
    };
    auto const halves = [](Four v) {
        EightHalves h;
        memcpy(&h, &v, sizeof h);
        return h;
    };
    auto const floats = [&](Pair const* from) {
        FourWords const v = load_words(from);
        Four f;
        memcpy(&f, &v, sizeof f);
        return f;
    };
    // Factors k .. k + 7 of samples t and t + 1.
    auto const weave = [&](Four even, Four odd, Pair* to) {
        EightHalves const a = halves(even), b = halves(odd);
#if defined(__clang__)
        EightHalves const low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
        EightHalves const high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
        EightHalves const low = __builtin_shuffle(a, b, EightHalves{0, 8, 1, 9, 2, 10, 3, 11});
        EightHalves const high = __builtin_shuffle(a, b, EightHalves{4, 12, 5, 13, 6, 14, 7, 15});
#endif
        memcpy(to, &low, sizeof low);
        memcpy(to + 4, &high, sizeof high);
    };
    Index const whole_k = n_k / 8 * 8, whole_t = n_t / 4 * 4;
    for (Index t = 0; t < whole_t; t += 4) {
        for (Index k = 0; k < whole_k; k += 8) {
            Pair const* const from = panel + k / 2 * ld + t;
            Pair* const to = transposed + t / 2 * ldo + k;
            Four const a = floats(from), b = floats(from + ld), c = floats(from + 2 * ld), d = floats(from + 3 * ld);
            Four const ab = SLEEPFM_SHUFFLE(a, b, 0, 4, 1, 5), cd = SLEEPFM_SHUFFLE(c, d, 0, 4, 1, 5);
            Four const ba = SLEEPFM_SHUFFLE(a, b, 2, 6, 3, 7), dc = SLEEPFM_SHUFFLE(c, d, 2, 6, 3, 7);
            weave(SLEEPFM_SHUFFLE(ab, cd, 0, 1, 4, 5), SLEEPFM_SHUFFLE(ab, cd, 2, 3, 6, 7), to);
            weave(SLEEPFM_SHUFFLE(ba, dc, 0, 1, 4, 5), SLEEPFM_SHUFFLE(ba, dc, 2, 3, 6, 7), to + ldo);
        }
    }
    for (Index t = 0; t < n_t; t += 2) {
        for (Index k = t < whole_t ? whole_k : 0; k < ldo; ++k) {
            Pair pair{};
            if (k < n_k) {
                Pair const* const from = panel + k / 2 * ld + t;
                pair.first = k % 2 == 0 ? from[0].first : from[0].second;
                if (t + 1 < n_t) {
                    pair.second = k % 2 == 0 ? from[1].first : from[1].second;
                }
            }
            transposed[t / 2 * ldo + k] = pair;
        }
    }
}

// transposed [words of columns][ldo] from a panel of n_k factors.
template <typename Factor>
inline void transpose_panel(Strips const& strips, Factor const* panel, Index n_k, Index ldo, Factor* transposed) {
    constexpr Index DEPTH = FactorOf<Factor>::DEPTH;
    for (Index strip = 0; strip < strips.n_strips; ++strip) {
        Index const first = strips.first(strip), width = strips.width(strip);
        transpose_rows(panel + first * words_of<Factor>(n_k), width, n_k, width, ldo, transposed + first / DEPTH * ldo);
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
