// The instructions of csrc/cpu/tiles.h, or what stands for them (SLEEPFM_TILES_IN_SOFTWARE), for test_tiles.py.
// Arguments: `products SEED` writes products of tiles to standard output, each with its tiles before it, and `digits
// SEED` products of bytes; `NAME` makes a mistake. Status 2: this processor or system has no tiles.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#define SLEEPFM_ISA amx
#include "cpu/cpu_features.h"
#include "cpu/tiles.h"

namespace {

using sleepfm::amx::TileShapes;

std::uint64_t state = 1;

std::uint32_t random_bits() {
    state = state * 6364136223846793005U + 1442695040888963407U;
    return static_cast<std::uint32_t>(state >> 33);
}

std::uint32_t below(std::uint32_t n) {
    return random_bits() % n;
}

// Bits of float32 with the exponent -127 + `exponent`, which 0 to 255 have; a power of two if `whole`.
std::uint32_t number(std::uint32_t exponent, bool whole = false) {
    std::uint32_t const sign = below(2);
    return sign << 31 | exponent << 23 | (whole ? 0 : below(1U << 23));
}

// A number with one of `many` exponents around that of 1, or, seldom, any bits: infinite, subnormal, not a number.
std::uint32_t any_number(std::uint32_t many) {
    if (below(64) == 0) {
        std::uint32_t const upper = below(1U << 16);
        return upper << 16 | below(1U << 16);
    }
    return number(127 - many / 2 + below(many + 1));
}

// Words [16][16] each: tile 0 is c, 1 is a and 2 is b.
std::uint32_t words[3][16][16];

TileShapes shapes_of(int n_rows, int n_words, int n_columns) {
    TileShapes shapes;
    shapes.set(0, n_rows, 4 * n_columns);
    shapes.set(1, n_rows, 4 * n_words);
    shapes.set(2, n_words, 4 * n_columns);
    return shapes;
}

void product(int n_rows, int n_words, int n_columns, bool of_digits) {
    using namespace sleepfm::amx;
    use_tiles(shapes_of(n_rows, n_words, n_columns));
    load_tile<0>(words[0], 64);
    load_tile<1>(words[1], 64);
    load_tile<2>(words[2], 64);
    for (int i = 0; i < 2; ++i) {
        if (of_digits) {
            add_digit_product<0, 1, 2>();
        } else {
            add_tile_product<0, 1, 2>();
        }
    }
    store_tile<0>(words[0], 64);
    release_tiles();
}

// A pair of factors k of tile 1 or 2 whose products are at the least normal number, 2^-126: that or next to it (k = 0),
// then a few that are half a unit of its 24 bits, then what is as large or nothing.
std::uint32_t tiny_factor(int tile, int k) {
    std::uint32_t const exponent = 40 + 7 * static_cast<std::uint32_t>(k % 6);
    if (tile == 1) {
        return number(exponent, k == 0 && below(4) != 0);
    }
    std::uint32_t const other = 128 - exponent;  // of products from 2^-126 on
    return k == 0          ? number(other, below(4) != 0)
           : k == 1        ? number(other - 26 + below(4))
           : below(4) == 0 ? number(other - 1 + below(2))
                           : 0;
}

enum Kind { MIDDLING, TINY, ANY, DIGITS };

// A word of tile 0, 1 or 2. Sums of MIDDLING numbers neither overflow nor vanish, TINY ones are around the least normal
// number; of digits every third is the most negative.
std::uint32_t word(Kind kind, std::uint32_t many, int tile, int row, int column) {
    if (kind == DIGITS) {
        std::uint32_t const upper = below(1U << 16) << 16, lower = below(1U << 16);
        return below(3) == 0 ? 0x80808080U : upper | lower;
    }
    auto const factor = [&] {
        return kind == MIDDLING ? number(123 + below(9))
               : kind == ANY    ? any_number(many)
               : tile > 0       ? tiny_factor(tile, tile == 1 ? column : row)
               : below(2) == 0  ? 0
                                : number(below(4));
    };
    std::uint32_t const first = factor();
    return tile == 0 ? first : first >> 16 | (factor() & 0xffff0000U);
}

void products(std::uint64_t seed, bool of_digits) {
    state = seed;
    for (int i = 0; i < (of_digits ? 4096 : 3 * 4096); ++i) {
        Kind const kind = of_digits ? DIGITS : static_cast<Kind>(i % 3);
        int const shape[3] = {i % 16 + 1, i / 16 % 16 + 1, i / 256 % 16 + 1};  // rows, words, columns
        std::fwrite(shape, 1, sizeof shape, stdout);
        for (int tile = 0; tile < 3; ++tile) {
            for (int row = 0; row < 16; ++row) {
                for (int column = 0; column < 16; ++column) {
                    words[tile][row][column] = word(kind, i % 2 == 0 ? 60 : 250, tile, row, column);
                }
            }
            std::fwrite(words[tile], 1, sizeof words[tile], stdout);
        }
        product(shape[0], shape[1], shape[2], of_digits);
        std::fwrite(words[0], 1, sizeof words[0], stdout);
    }
}

// 24 rows of 16 words, without a byte after them.
std::uint32_t* rows_of_words() {
    auto* const memory = static_cast<std::uint32_t*>(std::malloc(24 * 64));
    std::memset(memory, 0, 24 * 64);
    return memory;
}

int mistake(std::string const& name) {
    using namespace sleepfm::amx;
    TileShapes shapes = shapes_of(16, 16, 16);
    std::uint32_t* const memory = rows_of_words();
    if (name == "none") {
        use_tiles(shapes);
        load_tile<0>(memory + 8 * 16, 64);
        load_tile<1>(memory, 64);
        add_tile_product<0, 1, 2>();
        store_tile<0>(memory + 8 * 16, 64);
        release_tiles();
    } else if (name == "rows_of_shapes") {
        shapes.set(4, 17, 64);
        use_tiles(shapes);
    } else if (name == "bytes_of_shapes") {
        shapes.set(4, 16, 68);
        use_tiles(shapes);
    } else if (name == "half_a_shape") {
        shapes.set(4, 0, 64);
        use_tiles(shapes);
    } else if (name == "ninth_tile") {
        shapes.set(8, 16, 64);
        use_tiles(shapes);
    } else if (name == "no_shapes") {
        clear_tile<0>();
    } else if (name == "released") {
        use_tiles(shapes);
        release_tiles();
        load_tile<0>(memory, 64);
    } else if (name == "tile_without_shape") {
        use_tiles(shapes);
        store_tile<3>(memory, 64);
    } else if (name == "summed_index") {
        shapes.set(1, 16, 4 * 12);
        use_tiles(shapes);
        add_tile_product<0, 1, 2>();
    } else if (name == "rows_of_sums") {
        shapes.set(0, 8, 64);
        use_tiles(shapes);
        add_tile_product<0, 1, 2>();
    } else if (name == "columns_of_sums") {
        shapes.set(0, 16, 32);
        use_tiles(shapes);
        add_tile_product<0, 1, 2>();
    } else if (name == "half_a_word") {
        shapes.set(1, 16, 62);
        use_tiles(shapes);
        add_tile_product<0, 1, 2>();
    } else if (name == "overlapping_rows") {  // a processor stores them
        use_tiles(shapes);
        store_tile<0>(memory, 60);
        release_tiles();
    } else if (name == "kept_tiles") {  // a processor keeps them
        use_tiles(shapes);
    } else if (name ==
               "read_beyond_rows") {  // the last of these and the next two: only the address sanitizer sees them
        use_tiles(shapes);
        load_tile<0>(memory + 9 * 16, 64);
        release_tiles();
    } else if (name == "stride_of_load") {
        use_tiles(shapes);
        load_tile<0>(memory, 128);
        release_tiles();
    } else if (name == "write_beyond_rows") {
        use_tiles(shapes);
        store_tile<0>(memory + 8 * 16 + 1, 64);
        release_tiles();
    } else {
        std::fprintf(stderr, "there is no mistake '%s'\n", name.c_str());
        return 1;
    }
    std::free(memory);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
#if !defined(SLEEPFM_TILES_IN_SOFTWARE)
    if (sleepfm::available_isas().back() != "amx") {
        return 2;
    }
#endif
    if (argc == 3 && std::string(argv[1]) == "products") {
        products(static_cast<std::uint64_t>(std::atoll(argv[2])), false);
        return 0;
    }
    if (argc == 3 && std::string(argv[1]) == "digits") {
        products(static_cast<std::uint64_t>(std::atoll(argv[2])), true);
        return 0;
    }
    return argc == 2 ? mistake(argv[1]) : 1;
}
