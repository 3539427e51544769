// The factors that an MBConv block's products multiply: float32, or bfloat16 in pairs. The two of a pair follow each
// other in the sum, as instructions want them that multiply two pairs and add both products to a float32. In sums over
// channels a pair is two channels, so that a panel has half as many rows of 32-bit words; in sums over samples it is
// two neighbouring samples of a row. Wide activations in memory have the factors' type. Code for both is written once,
// by FactorOf, WideOf, words_of, put and keep below.
#pragma once

#include "cpu/element.h"
#include "cpu/mbconv_vectors.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

struct Pair {
    BFloat16 first, second;
};

// A vector's lanes as 32-bit words, and half as many bits as 16-bit words.
using Words = std::uint32_t __attribute__((vector_size(SLEEPFM_LANES * sizeof(float))));
using HalfWords = std::uint16_t __attribute__((vector_size(SLEEPFM_LANES * sizeof(std::uint16_t))));
// Pairs and halves in memory are read and written through these types only, which may alias whatever was there before.
typedef std::uint32_t UnalignedWords
    __attribute__((vector_size(SLEEPFM_LANES * sizeof(float)), aligned(alignof(std::uint16_t)), may_alias));
typedef std::uint16_t UnalignedHalfWords
    __attribute__((vector_size(SLEEPFM_LANES * sizeof(std::uint16_t)), aligned(alignof(std::uint16_t)), may_alias));
typedef std::uint32_t Word __attribute__((aligned(alignof(std::uint16_t)), may_alias));

inline Words bits_of(Vector v) {
    Words bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

inline Vector vector_of(Words bits) {
    Vector v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

inline Words load(Pair const* from) {
    return *reinterpret_cast<UnalignedWords const*>(from);
}

inline void store(Pair* to, Words pairs) {
    *reinterpret_cast<UnalignedWords*>(to) = pairs;
}

// One word in all lanes: of a packed matrix, or two neighbouring samples of a row.
inline Vector spread(float const* from) {
    return splat(*from);
}

inline Words spread(Pair const* from) {
    return *reinterpret_cast<Word const*>(from) - Words{};
}

inline Words spread(BFloat16 const* from) {
    return *reinterpret_cast<Word const*>(from) - Words{};
}

// Rounds to bfloat16, to nearest even, in the upper half of every lane; NaN stays NaN. The lower halves are undefined.
inline Words rounded(Vector v) {
    Words const bits = bits_of(v);
    Words const up = bits + 0x7fffu + ((bits >> 16) & 1u);
    return v == v ? up : bits | 0x400000u;
}

#if SLEEPFM_LANES == 16 && defined(__AVX512BW__)
// A permutation of 32 halves: numbers 0 to 15 go to the lower halves of the lanes, 16 to 31 to the upper halves.
alignas(64) constexpr std::uint16_t TURNS[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
// Numbers 0 to 15 go to the upper halves of the lanes.
alignas(64) constexpr std::uint16_t TURNS_UP[32] = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                                    0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
#endif

// A pair in every lane, rounded from `first` (lower half) and `second`.
inline Words pairs_of(Vector first, Vector second) {
#if defined(__AVX512BF16__)
    auto const both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
    return reinterpret_cast<Words>(_mm512_permutexvar_epi16(_mm512_load_si512(TURNS), both));
#else
    return rounded(first) >> 16 | (rounded(second) & 0xffff0000u);
#endif
}

inline Vector add_product(Vector sum, Vector a, Vector b) {
    return sum + a * b;
}

// sum + (product of both firsts) + (product of both seconds).
inline Vector add_product(Vector sum, Words a, Words b) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
    sum += vector_of(a << 16) * vector_of(b << 16);
    sum += vector_of(a & 0xffff0000u) * vector_of(b & 0xffff0000u);
    return sum;
#endif
}

// ---- a vector of bfloat16 in memory ---------------------------------------------------------------------------------

inline Vector widened(HalfWords v) {
#if SLEEPFM_LANES == 16 && defined(__AVX512BW__)
    // One permutation, where the compiler would take an extension and a shift.
    __m512i const low = _mm512_castsi256_si512(reinterpret_cast<__m256i>(v));
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, _mm512_load_si512(TURNS_UP), low));
#else
    return vector_of(__builtin_convertvector(v, Words) << 16);
#endif
}

inline HalfWords narrowed(Vector v) {
#if defined(__AVX512BF16__)
    return reinterpret_cast<HalfWords>(_mm512_cvtneps_pbh(v));
#else
    return __builtin_convertvector(rounded(v) >> 16, HalfWords);
#endif
}

inline Vector load(BFloat16 const* from) {
    return widened(*reinterpret_cast<UnalignedHalfWords const*>(from));
}

inline void store(BFloat16* to, HalfWords words) {
    *reinterpret_cast<UnalignedHalfWords*>(to) = words;
}

inline void store(BFloat16* to, Vector v) {
    store(to, narrowed(v));
}

inline Vector load_first(BFloat16 const* from, Index n) {
    if (n >= LANES) {
        return load(from);
    }
#if SLEEPFM_LANES == 16 && defined(__AVX512BW__) && defined(__AVX512VL__)
    auto const mask = static_cast<__mmask16>((1u << (n < 0 ? 0 : n)) - 1u);
    return widened(reinterpret_cast<HalfWords>(_mm256_maskz_loadu_epi16(mask, from)));
#else
    HalfWords v{};
    for (int i = 0; i < SLEEPFM_LANES; ++i) {
        if (i < n) {
            v[i] = from[i].bits;
        }
    }
    return widened(v);
#endif
}

inline void store_first(BFloat16* to, HalfWords words, Index n) {
    if (n >= LANES) {
        store(to, words);
        return;
    }
#if SLEEPFM_LANES == 16 && defined(__AVX512BW__) && defined(__AVX512VL__)
    auto const mask = static_cast<__mmask16>((1u << (n < 0 ? 0 : n)) - 1u);
    _mm256_mask_storeu_epi16(to, mask, reinterpret_cast<__m256i>(words));
#else
    for (int i = 0; i < SLEEPFM_LANES; ++i) {
        if (i < n) {
            to[i].bits = words[i];
        }
    }
#endif
}

inline void store_first(BFloat16* to, Vector v, Index n) {
    store_first(to, narrowed(v), n);
}

// Pairs of what two rows have in the same places.
inline Words woven(BFloat16 const* first, BFloat16 const* second) {
#if SLEEPFM_LANES == 16 && defined(__AVX512BW__)
    __m512i const low = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(first)));
    __m512i const both = _mm512_inserti64x4(low, _mm256_loadu_si256(reinterpret_cast<__m256i const*>(second)), 1);
    return reinterpret_cast<Words>(_mm512_permutexvar_epi16(_mm512_load_si512(TURNS), both));
#else
    Words const a = __builtin_convertvector(HalfWords(*reinterpret_cast<UnalignedHalfWords const*>(first)), Words);
    Words const b = __builtin_convertvector(HalfWords(*reinterpret_cast<UnalignedHalfWords const*>(second)), Words);
    return a | b << 16;
#endif
}

inline float value_of(float x) {
    return x;
}

inline float value_of(BFloat16 x) {
    return widen(x);
}

// How much of a vector counts. A loop takes Whole for all turns but its last, where n is ignored, and Part for the last
// one, where the first n lanes count.
struct Whole {
    template <typename T>
    static Vector load(T const* from, Index) {
        return SLEEPFM_ISA::load(from);
    }
    template <typename T, typename Lanes>
    static void store(T* to, Lanes v, Index) {
        SLEEPFM_ISA::store(to, v);
    }
    static Vector first(Vector v, Index) { return v; }
};

struct Part {
    template <typename T>
    static Vector load(T const* from, Index n) {
        return load_first(from, n);
    }
    template <typename T, typename Lanes>
    static void store(T* to, Lanes v, Index n) {
        store_first(to, v, n);
    }
    static Vector first(Vector v, Index n) { return first_lanes(v, n); }
};

// ---- one code for both ----------------------------------------------------------------------------------------------

// Wide: the type of wide activations in memory, and of rows that are summed along samples. DEPTH: factors in a word.
template <typename Factor>
struct FactorOf;

template <>
struct FactorOf<float> {
    using Wide = float;
    static constexpr Index DEPTH = 1;
};

template <>
struct FactorOf<Pair> {
    using Wide = BFloat16;
    static constexpr Index DEPTH = 2;
};

template <typename Factor>
using WideOf = typename FactorOf<Factor>::Wide;

// A vector as memory of type Wide holds it, rounded. Everything that is computed from a value which is also stored is
// computed from this: backward then sees each value on the same side of ReLU6's kinks as forward did, and a batch
// norm's sums are of the values that it will normalise.
template <typename Wide>
inline Vector as_kept(Vector v);

template <>
inline Vector as_kept<float>(Vector v) {
    return v;
}

template <>
inline Vector as_kept<BFloat16>(Vector v) {
    return widened(narrowed(v));
}

// Stores the first n lanes (Extent says whether n matters), and returns all lanes as memory holds them.
template <typename Extent>
inline Vector keep(float* to, Vector v, Index n) {
    Extent::store(to, v, n);
    return v;
}

template <typename Extent>
inline Vector keep(BFloat16* to, Vector v, Index n) {
    HalfWords const words = narrowed(v);
    Extent::store(to, words, n);
    return widened(words);
}

// The words that n factors of one sum take.
template <typename Factor>
constexpr Index words_of(Index n) {
    return (n + FactorOf<Factor>::DEPTH - 1) / FactorOf<Factor>::DEPTH;
}

// Stores a vector of words: the factors value(0) and, in pairs, value(1).
template <typename Value>
inline void put(float* to, Value value) {
    store(to, value(Index{0}));
}

template <typename Value>
inline void put(Pair* to, Value value) {
    store(to, pairs_of(value(Index{0}), value(Index{1})));
}

// The same for its first N words.
template <Index N, typename Value>
inline void put_first(float* to, Value value) {
    Vector const v = value(Index{0});
    memcpy(to, &v, static_cast<std::size_t>(N) * sizeof(float));
}

template <Index N, typename Value>
inline void put_first(Pair* to, Value value) {
    Words const words = pairs_of(value(Index{0}), value(Index{1}));
    memcpy(to, &words, static_cast<std::size_t>(N) * sizeof(Pair));
}

// The same for one word, from single values.
template <typename Value>
inline void put_word(float* to, Value value) {
    *to = value(Index{0});
}

template <typename Value>
inline void put_word(Pair* to, Value value) {
    BFloat16 first, second;
    narrow(value(Index{0}), first);
    narrow(value(Index{1}), second);
    *reinterpret_cast<Word*>(to) = first.bits | static_cast<std::uint32_t>(second.bits) << 16;
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
