// Products of bfloat16 on tiles, Intel's AMX: tiles have up to 16 rows of 64 bytes, and one instruction adds the
// product of two to a third,
//   c[m][n] += sum over pairs k of a[m][k].first b[k][n].first + a[m][k].second b[k][n].second,
// in float32, subnormal factors and sums as zeros, whatever MXCSR says. A row of b is a pair of the summed index for 16
// columns. Every function is one instruction. In assembly, since the intrinsics of GCC 12 do not say which memory they
// read. With SLEEPFM_TILES_IN_SOFTWARE, tiles_in_software.h computes the same bits. Included by translation units with
// SLEEPFM_ISA (the namespace) defined.
#pragma once

#include <cstdint>

namespace sleepfm::SLEEPFM_ISA {

namespace {

// Rows, and bytes of a row, of each of the eight tiles. Loading it clears them.
struct alignas(64) TileShapes {
    std::uint8_t palette = 1, start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t bytes[16] = {};
    std::uint8_t rows[16] = {};

    void set(int tile, std::int64_t n_rows, std::int64_t n_bytes) {
        rows[tile] = static_cast<std::uint8_t>(n_rows);
        bytes[tile] = static_cast<std::uint16_t>(n_bytes);
    }
};

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA

#if defined(SLEEPFM_TILES_IN_SOFTWARE)

#include "cpu/tiles_in_software.h"

#else

namespace sleepfm::SLEEPFM_ISA {

namespace {

inline void use_tiles(TileShapes const& shapes) {
    asm volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
}

// Tiles belong to a thread, and the system saves them whenever it leaves the thread, until they are released.
inline void release_tiles() {
    asm volatile("tilerelease" : : : "memory");
}

template <int tile>
inline void clear_tile() {
    asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}

// stride: bytes from a row to the next.
template <int tile>
inline void load_tile(void const* from, std::int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(tile) : "memory");
}

template <int tile>
inline void store_tile(void* to, std::int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(tile) : "memory");
}

template <int c, int a, int b>
inline void add_tile_product() {
    static_assert(c != a && c != b && a != b);
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}

// The same of signed bytes, four to a word, in 32-bit integers.
template <int c, int a, int b>
inline void add_digit_product() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA

#endif
