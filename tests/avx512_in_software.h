// The AVX-512 intrinsics that csrc/cpu/contrastive_digits.h uses, for processors that lack them. The build with tiles
// in software includes this before everything else.
#pragma once

#include <immintrin.h>

#if !defined(__AVX512BW__)

#include <cmath>
#include <cstdint>
#include <cstring>

namespace avx512_in_software {

using Words = std::int32_t __attribute__((vector_size(64)));
using UnsignedWords = std::uint32_t __attribute__((vector_size(64)));
using Floats = float __attribute__((vector_size(64)));

inline __m512i set1_epi32(std::int32_t x) {
    return reinterpret_cast<__m512i>(x - Words{});
}

inline __m512i set1_epi8(int x) {
    return set1_epi32(static_cast<std::int32_t>(static_cast<std::uint32_t>(x & 0xff) * 0x01010101U));
}

inline __m512i add_epi32(__m512i a, __m512i b) {
    return reinterpret_cast<__m512i>(reinterpret_cast<UnsignedWords>(a) + reinterpret_cast<UnsignedWords>(b));
}

inline __m512i slli_epi32(__m512i a, unsigned n) {
    return reinterpret_cast<__m512i>(reinterpret_cast<UnsignedWords>(a) << n);
}

inline __m512i srli_epi32(__m512i a, unsigned n) {
    return reinterpret_cast<__m512i>(reinterpret_cast<UnsignedWords>(a) >> n);
}

inline __m512i xor_si512(__m512i a, __m512i b) {
    return a ^ b;
}

template <typename Element>
inline __m512i blend(std::uint64_t chosen, __m512i a, __m512i b) {
    constexpr int N = 64 / sizeof(Element);
    Element from[N], to[N];
    std::memcpy(to, &a, sizeof to);
    std::memcpy(from, &b, sizeof from);
    for (int i = 0; i < N; ++i) {
        to[i] = (chosen >> i & 1) != 0 ? from[i] : to[i];
    }
    std::memcpy(&a, to, sizeof to);
    return a;
}

// Rounds to nearest even; what does not fit becomes the least integer.
inline __m512i cvtps_epi32(__m512 x) {
    float from[16];
    std::int32_t to[16];
    std::memcpy(from, &x, sizeof from);
    for (int i = 0; i < 16; ++i) {
        to[i] = std::fabs(from[i]) < 0x1p31F ? static_cast<std::int32_t>(std::nearbyint(from[i])) : INT32_MIN;
    }
    __m512i y;
    std::memcpy(&y, to, sizeof y);
    return y;
}

inline __m512 cvtepi32_ps(__m512i x) {
    return reinterpret_cast<__m512>(__builtin_convertvector(reinterpret_cast<Words>(x), Floats));
}

inline __m512 set1_ps(float x) {
    return reinterpret_cast<__m512>(x - Floats{});
}

// c - a b, rounded once.
inline __m512 fnmadd_ps(__m512 a, __m512 b, __m512 c) {
    float x[16], y[16], z[16];
    std::memcpy(x, &a, sizeof x);
    std::memcpy(y, &b, sizeof y);
    std::memcpy(z, &c, sizeof z);
    for (int i = 0; i < 16; ++i) {
        z[i] = std::fma(-x[i], y[i], z[i]);
    }
    std::memcpy(&c, z, sizeof z);
    return c;
}

inline __m512i load_si512(void const* from) {
    __m512i x;
    std::memcpy(&x, __builtin_assume_aligned(from, 64), sizeof x);
    return x;
}

inline void store_si512(void* to, __m512i x) {
    std::memcpy(__builtin_assume_aligned(to, 64), &x, sizeof x);
}

}  // namespace avx512_in_software

#define _mm512_set1_epi32 avx512_in_software::set1_epi32
#define _mm512_set1_epi8 avx512_in_software::set1_epi8
#define _mm512_add_epi32 avx512_in_software::add_epi32
#define _mm512_slli_epi32 avx512_in_software::slli_epi32
#define _mm512_srli_epi32 avx512_in_software::srli_epi32
#define _mm512_xor_si512 avx512_in_software::xor_si512
#define _mm512_mask_blend_epi8 avx512_in_software::blend<std::uint8_t>
#define _mm512_mask_blend_epi16 avx512_in_software::blend<std::uint16_t>
#define _mm512_cvtps_epi32 avx512_in_software::cvtps_epi32
#define _mm512_cvtepi32_ps avx512_in_software::cvtepi32_ps
#define _mm512_set1_ps avx512_in_software::set1_ps
#define _mm512_fnmadd_ps avx512_in_software::fnmadd_ps
#define _mm512_load_si512 avx512_in_software::load_si512
#define _mm512_store_si512 avx512_in_software::store_si512

#endif
