// The instructions of tiles.h in C++, for tests on processors that lack them, and for the address sanitizer, which does
// not see what assembly reads. What a processor refuses ends the process with a sentence, and so does a store whose
// rows overlap, or a thread that ends without releasing its tiles. Included by tiles.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace sleepfm::SLEEPFM_ISA {

namespace {

[[noreturn]] inline void refuse_tiles(char const* what, int a, int b, int c) {
    std::fprintf(stderr, "tiles: ");
    std::fprintf(stderr, what, a, b, c);
    std::fprintf(stderr, ".\n");
    std::abort();
}

// A thread's tiles, zero beyond the rows and bytes of their shapes.
struct SoftwareTiles {
    TileShapes shapes{0};
    alignas(64) unsigned char rows[8][16][64] = {};

    ~SoftwareTiles() {
        if (shapes.palette != 0) {
            refuse_tiles("a thread ends with tiles in use", 0, 0, 0);
        }
    }

    void use(TileShapes const& wanted) {
        bool is_reserved = wanted.palette != 1 || wanted.start_row != 0;
        for (int i = 0; i < 14; ++i) {
            is_reserved = is_reserved || wanted.reserved[i] != 0;
        }
        for (int i = 8; i < 16; ++i) {
            is_reserved = is_reserved || wanted.bytes[i] != 0 || wanted.rows[i] != 0;
        }
        if (is_reserved) {
            refuse_tiles("shapes with other than eight tiles of palette 1, from row 0", 0, 0, 0);
        }
        for (int i = 0; i < 8; ++i) {
            int const n = wanted.rows[i], bytes = wanted.bytes[i];
            if (n > 16 || bytes > 64 || (n == 0) != (bytes == 0)) {
                refuse_tiles("tile %d with %d rows of %d bytes", i, n, bytes);
            }
        }
        shapes = wanted;
        std::memset(rows, 0, sizeof rows);
    }

    void release() {
        shapes = TileShapes{0};
        std::memset(rows, 0, sizeof rows);
    }

    void check(int tile) const {
        if (shapes.rows[tile] == 0) {
            refuse_tiles("tile %d has no shape", tile, 0, 0);
        }
    }

    void load(int tile, unsigned char const* from, std::int64_t stride) {
        check(tile);
        std::memset(rows[tile], 0, sizeof rows[tile]);
        for (int m = 0; m < shapes.rows[tile]; ++m) {
            std::memcpy(rows[tile][m], from + m * stride, shapes.bytes[tile]);
        }
    }

    void store(int tile, unsigned char* to, std::int64_t stride) const {
        check(tile);
        if (shapes.rows[tile] > 1 && (stride < 0 ? -stride : stride) < shapes.bytes[tile]) {
            refuse_tiles("tile %d is stored in rows of %d bytes, %d bytes apart", tile, shapes.bytes[tile],
                         static_cast<int>(stride));
        }
        for (int m = 0; m < shapes.rows[tile]; ++m) {
            std::memcpy(to + m * stride, rows[tile][m], shapes.bytes[tile]);
        }
    }

    // Words of the summed index of a product whose shapes fit each other.
    int check_product(int c, int a, int b) const {
        for (int tile : {c, a, b}) {
            check(tile);
            if (shapes.bytes[tile] % 4 != 0) {
                refuse_tiles("tile %d of a product has rows of %d bytes, no whole number of words", tile,
                             shapes.bytes[tile], 0);
            }
        }
        int const n_words = shapes.bytes[a] / 4;
        if (shapes.rows[b] != n_words) {
            refuse_tiles("tile %d has %d words in a row, and its product's other factor %d rows", a, n_words,
                         shapes.rows[b]);
        }
        if (shapes.rows[c] != shapes.rows[a]) {
            refuse_tiles("tile %d gets a product of %d rows in its %d", c, shapes.rows[a], shapes.rows[c]);
        }
        if (shapes.bytes[c] != shapes.bytes[b]) {
            refuse_tiles("tile %d gets a product with rows of %d bytes in its %d", c, shapes.bytes[b], shapes.bytes[c]);
        }
        return n_words;
    }

    // Not inlined, for the copies of all triples of tiles would take minutes to compile.
    [[gnu::noinline]] void add_product(int c, int a, int b) {
        int const n_words = check_product(c, a, b);
        for (int m = 0; m < shapes.rows[c]; ++m) {
            float first[16] = {}, second[16] = {}, sums[16];  // of the pairs' first and second members
            for (int k = 0; k < n_words; ++k) {
                std::uint32_t pair, pairs[16];
                std::memcpy(&pair, rows[a][m] + 4 * k, sizeof pair);
                std::memcpy(pairs, rows[b][k], sizeof pairs);
                add(first, pair << 16, pairs, 16);
                add(second, pair & 0xffff0000U, pairs, 0);
            }
            std::memcpy(sums, rows[c][m], sizeof sums);
            for (int n = 0; n < 16; ++n) {
                sums[n] = flushed(flushed(sums[n]) + flushed(first[n] + second[n]));
            }
            std::memcpy(rows[c][m], sums, shapes.bytes[c]);
        }
    }

    [[gnu::noinline]] void add_digit_product(int c, int a, int b) {
        int const n_words = check_product(c, a, b);
        for (int m = 0; m < shapes.rows[c]; ++m) {
            UnsignedWords sums;
            std::memcpy(&sums, rows[c][m], sizeof sums);
            for (int k = 0; k < n_words; ++k) {
                std::int8_t digits[4];
                UnsignedWords words;
                std::memcpy(digits, rows[a][m] + 4 * k, sizeof digits);
                std::memcpy(&words, rows[b][k], sizeof words);
                for (int i = 0; i < 4; ++i) {
                    auto const theirs = reinterpret_cast<SignedWords>(words << (24 - 8 * i)) >> 24;
                    sums += reinterpret_cast<UnsignedWords>(theirs * digits[i]);
                }
            }
            std::memcpy(rows[c][m], &sums, shapes.bytes[c]);
        }
    }

  private:
    using UnsignedWords = std::uint32_t __attribute__((vector_size(64)));
    using SignedWords = std::int32_t __attribute__((vector_size(64)));

    static constexpr float LEAST_NORMAL = 0x1p-126F;

    static float flushed(float x) { return std::fabs(x) < LEAST_NORMAL ? std::copysign(0.0F, x) : x; }

    static float float_of(std::uint32_t bits) {
        float x;
        std::memcpy(&x, &bits, sizeof x);
        return flushed(x);
    }

    // sums[n] += factor times the upper half of pairs[n] << shift.
    static void add(float (&sums)[16], std::uint32_t factor, std::uint32_t const (&pairs)[16], int shift) {
        float const a = float_of(factor);
        float next[16];
        bool is_at_the_edge = false;
        for (int n = 0; n < 16; ++n) {
            next[n] = std::fma(a, float_of(pairs[n] << shift & 0xffff0000U), sums[n]);
            is_at_the_edge |= std::fabs(next[n]) == LEAST_NORMAL;
        }
        // A sum is subnormal if it is after rounding to 24 bits, and fma rounds to fewer below the least normal number.
        for (int n = 0; is_at_the_edge && n < 16; ++n) {
            double const b = static_cast<double>(float_of(pairs[n] << shift & 0xffff0000U));
            double const exact = static_cast<double>(a) * b + static_cast<double>(sums[n]);
            if (std::fabs(next[n]) == LEAST_NORMAL && std::fabs(exact) < 0x1p-126 - 0x1p-151) {
                next[n] = std::copysign(0.0F, next[n]);
            }
        }
        for (int n = 0; n < 16; ++n) {
            sums[n] = flushed(next[n]);
        }
    }
};

thread_local SoftwareTiles software_tiles;

inline void use_tiles(TileShapes const& shapes) {
    software_tiles.use(shapes);
}

inline void release_tiles() {
    software_tiles.release();
}

template <int tile>
inline void clear_tile() {
    software_tiles.check(tile);
    std::memset(software_tiles.rows[tile], 0, sizeof software_tiles.rows[tile]);
}

template <int tile>
inline void load_tile(void const* from, std::int64_t stride) {
    software_tiles.load(tile, static_cast<unsigned char const*>(from), stride);
}

template <int tile>
inline void store_tile(void* to, std::int64_t stride) {
    software_tiles.store(tile, static_cast<unsigned char*>(to), stride);
}

template <int c, int a, int b>
inline void add_tile_product() {
    static_assert(c != a && c != b && a != b);
    software_tiles.add_product(c, a, b);
}

template <int c, int a, int b>
inline void add_digit_product() {
    static_assert(c != a && c != b && a != b);
    software_tiles.add_digit_product(c, a, b);
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
