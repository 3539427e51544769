// What memory does while the products of a tile are computed: the next row's integers come into the second cache, and
// the outputs of the tile before leave past the caches. With nothing to compute, a core would wait for both.
//
// Included once for each instruction set, with SLEEPFM_ISA and SLEEPFM_LANES defined: see filter_row.h.
#pragma once

#include "cpu/filter_product.h"
#include "cpu/filter_resample.h"

namespace sleepfm::cpu::SLEEPFM_ISA {

namespace {

// out[i] = a y[i] + b for i < n, past the caches from the first address on that a streamed store can have.
inline void stream(float* out, float const* y, std::int64_t n, float a, float b) {
    std::int64_t i = 0;
#if SLEEPFM_LANES >= 8
    for (; i < n && reinterpret_cast<std::uintptr_t>(out + i) % sizeof(Vector) != 0; ++i) {
        out[i] = y[i] * a + b;
    }
    for (; i + SLEEPFM_LANES <= n; i += SLEEPFM_LANES) {
        Vector const v = load(y + i) * a + b;
#if SLEEPFM_LANES == 16
        _mm512_stream_ps(out + i, (__m512)v);
#else
        _mm256_stream_ps(out + i, (__m256)v);
#endif
    }
#endif
    for (; i < n; ++i) {
        out[i] = y[i] * a + b;
    }
}

// Writes n of the outputs that are left.
inline void write_some(Traffic& traffic, std::int64_t n) {
    stream(traffic.out, traffic.y, n, traffic.a, traffic.b);
    traffic.out += n;
    traffic.y += n;
    traffic.n -= n;
}

// The first of n_steps steps that move all that is left.
inline void move_some(Traffic& traffic, std::int64_t n_steps) {
    constexpr std::int64_t line = 64, line_floats = line / static_cast<std::int64_t>(sizeof(float));
    std::int64_t const n_lines = (traffic.next_bytes + n_steps * line - 1) / (n_steps * line);
    for (std::int64_t i = 0; i < n_lines && traffic.next_bytes > 0; ++i) {
        __builtin_prefetch(traffic.next, 0, 2);
        traffic.next += line;
        traffic.next_bytes -= line;
    }
    // Whole lines of the result, but for the first and the last one.
    auto const in_line =
        static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(traffic.out) % line / sizeof(float));
    std::int64_t const some = (traffic.n + n_steps - 1) / n_steps;
    std::int64_t const n = (in_line + some + line_floats - 1) / line_floats * line_floats - in_line;
    write_some(traffic, n < traffic.n ? n : traffic.n);
}

}  // namespace

}  // namespace sleepfm::cpu::SLEEPFM_ISA
