// The contrastive loss's products on tiles of 8-bit integers (tiles.h). A number x of a row with the unit u becomes the
// integer q = round(x / u), and q three digits of radix 256 from -128 to 127,
//   q = 65536 q0 + 256 q1 + q2.
// Of the nine products of digits the six of the upper three levels are summed, each level exactly, in 32-bit integers:
//   level 0: q0 r0,   level 1: q0 r1 + q1 r0,   level 2: q0 r2 + q1 r1 + q2 r0,
//   sum of q r = 65536 (65536 level 0 + 256 level 1 + level 2).
// A sum is one of integers, whatever its order: equal rows give equal bits wherever they lie.
//
// Digits lie as tiles read them: a stack is the three digits of 16 x 64 elements, most significant first. As the first
// factor each digit is [16 rows][64 of the summed index], as the second one [16 quads of the summed index][16 columns]
// [4]. The order of the summed index is free: the quad j of 64 samples is those of numbers j, j + 16, j + 32, j + 48.
#pragma once

#include <immintrin.h>

#include "cpu/contrastive_simd.h"
#include "cpu/tiles.h"

namespace sleepfm::SLEEPFM_ISA {

constexpr Index GROUP = 16;  // rows or columns of a tile
constexpr Index CHUNK = 64;  // elements of the summed index in a tile
constexpr int DIGITS = 3;
constexpr Index TILE_BYTES = GROUP * CHUNK;
constexpr Index STACK = DIGITS * TILE_BYTES;
// Chunks whose products' sums fit 32 bits: three products of 128 x 128 an element.
constexpr Index MOST_CHUNKS = (Index{1} << 31) / (3 * 128 * 128 * CHUNK) - 1;

// Samples of a panel of operands, [panel][dimension][sample of the panel], and of a tile's columns: a chunk of the
// gradients' summed index.
constexpr Index PANEL = CHUNK;
// The same of sums of gradients, so that they are written in the order in which they lie.
constexpr Index SUMS_PANEL = 2 * GROUP;
constexpr Index DIMENSIONS = GROUP;  // dimensions are padded to a multiple of this

// Samples on a side of a tile: half or a quarter of them. These products are faster than memory is for smaller tiles.
inline Index block_length(Index n_samples) {
    Index const whole = round_up(n_samples, PANEL);
    Index const wanted = round_up(n_samples <= 512 ? (n_samples + 1) / 2 : (n_samples + 3) / 4, PANEL);
    Index const block = most(n_samples <= 512 ? 128 : 256, least(wanted, 512));
    return n_samples > 0 ? least(block, whole) : block;
}

using Lanes = IntVec<float>;

inline Lanes magnitude(Vec<float> x) {
    return reinterpret_cast<Lanes>(x) & 0x7FFFFFFF;
}
// Of the magnitudes' bits, which are in the order of the numbers; NaN is the largest.
inline Lanes larger(Lanes a, Lanes b) {
    return a > b ? a : b;
}

// What numbers are multiplied with to become integers, 1 / u, and a factor of every product's scale, 256 u:
// <x, y> = x.step y.step (65536 level 0 + 256 level 1 + level 2).
struct Scale {
    Vec<float> inverse, step;
    Vec<float> rest;  // 1 / u = inverse + rest: inverse alone would lengthen a whole row, by up to 2^-24
};

// u is the smallest of four fractional bits for which no integer exceeds 0x7F7F7F, the largest of three digits. Where
// the largest magnitude is a power of two it is 2^-22 of that, so that signs, 0 and halves become integers exactly.
// Magnitudes below 2^-100 count as that. Where something is not finite, step is NaN.
inline Scale scale_of(Lanes largest) {
    constexpr float SHARE = 1.000001F / 0x7F7F7F;
    constexpr std::int32_t FRACTION = 0x7FFFFF, ROUNDED = 0x7FFFF, LEAST = (127 - 100) << 23, INFINITE = 0x7F800000;
    auto const magnitudes = reinterpret_cast<Vec<float>>(larger(largest, Lanes{} + LEAST));
    Lanes const rounded = (reinterpret_cast<Lanes>(magnitudes * SHARE) + ROUNDED) & ~ROUNDED;
    Vec<float> const unit = (largest & FRACTION) == 0 ? magnitudes * 0x1p-22F : reinterpret_cast<Vec<float>>(rounded);
    Vec<float> const inverse = 1.0F / unit;
    Vec<float> const step = largest >= INFINITE ? Vec<float>{} + __builtin_nanf("") : unit * 256.0F;
    auto const exact_product =
        _mm512_fnmadd_ps(reinterpret_cast<__m512>(unit), reinterpret_cast<__m512>(inverse), _mm512_set1_ps(1.0F));
    return {inverse, step, reinterpret_cast<Vec<float>>(exact_product) * inverse};
}

// An integer of three digits, with 128 added to each.
inline __m512i shifted_integer(Vec<float> x) {
    return _mm512_add_epi32(_mm512_cvtps_epi32(reinterpret_cast<__m512>(x)), _mm512_set1_epi32(0x808080));
}

// Byte number BYTE, of the lowest 0, of the words of four vectors, as the four bytes of words.
template <int BYTE>
inline __m512i bytes_of_words(__m512i a, __m512i b, __m512i c, __m512i d) {
    constexpr __mmask64 ODD_BYTES = 0xAAAAAAAAAAAAAAAAU;
    constexpr __mmask32 ODD_HALVES = 0xAAAAAAAAU;
    // a0 b0 a2 b2, or a1 b1 a3 b3
    auto const alternate = [](__m512i v, __m512i w) {
        return BYTE % 2 == 0 ? _mm512_mask_blend_epi8(ODD_BYTES, v, _mm512_slli_epi32(w, 8))
                             : _mm512_mask_blend_epi8(ODD_BYTES, _mm512_srli_epi32(v, 8), w);
    };
    __m512i const ab = alternate(a, b), cd = alternate(c, d);
    return BYTE < 2 ? _mm512_mask_blend_epi16(ODD_HALVES, ab, _mm512_slli_epi32(cd, 16))
                    : _mm512_mask_blend_epi16(ODD_HALVES, _mm512_srli_epi32(ab, 16), cd);
}

// Takes the digits apart of four vectors of shifted integers: to[digit * TILE_BYTES], a vector each.
inline void store_digits(__m512i a, __m512i b, __m512i c, __m512i d, std::int8_t* to) {
    __m512i const flip = _mm512_set1_epi8(-128);
    _mm512_store_si512(to, _mm512_xor_si512(bytes_of_words<2>(a, b, c, d), flip));
    _mm512_store_si512(to + TILE_BYTES, _mm512_xor_si512(bytes_of_words<1>(a, b, c, d), flip));
    _mm512_store_si512(to + 2 * TILE_BYTES, _mm512_xor_si512(bytes_of_words<0>(a, b, c, d), flip));
}

// Turns every digit of a stack from one factor's form to the other's: words are transposed.
inline void turn_stack(std::int8_t const* from, std::int8_t* to) {
    for (int digit = 0; digit < DIGITS; ++digit) {
        transpose<float>(reinterpret_cast<float const*>(from + digit * TILE_BYTES), GROUP,
                         reinterpret_cast<float*>(to + digit * TILE_BYTES), GROUP);
    }
}

// ---- products -------------------------------------------------------------------------------------------------------

// The sums of one product of digits, for 16 rows and up to 32 columns.
struct Levels {
    alignas(64) std::int32_t sum[2][DIGITS][GROUP][GROUP];  // [column / 16][level][row][column % 16]
};

// Makes numbers of Levels: to[row][column] = step of the row * step of the column * the sum, or added to it.
struct Result {
    Levels const* from = nullptr;
    float* to = nullptr;
    Index row_stride = 0;             // elements
    float const* row_step = nullptr;  // none: 1
    float const* column_step = nullptr;
    int n_groups = 0;  // of 16 columns
    bool add = false;

    void rows(Index first, Index last) const {
        for (Index r = first; r < last; ++r) {
            float const row = row_step == nullptr ? 1.0F : row_step[r];
            for (int g = 0; g < n_groups; ++g) {
                auto const level = [&](int l) {
                    return reinterpret_cast<Vec<float>>(_mm512_cvtepi32_ps(_mm512_load_si512(from->sum[g][l][r])));
                };
                Vec<float> const sum = level(0) * 65536.0F + (level(1) * 256.0F + level(2));
                Vec<float> const scale = load(column_step + g * GROUP) * row;
                float* const out = to + r * row_stride + g * GROUP;
                store<float>(out, add ? load(out) + sum * scale : sum * scale);
            }
        }
    }
};

// Multiplies blocks of 16 x 32 or 16 x 16, one after the other. The sums of a block become numbers between the tile
// instructions of the next one, which occupy other units of the core.
class DigitProducts {
  public:
    DigitProducts() {
        TileShapes shapes;
        for (int tile = 0; tile < 8; ++tile) {
            shapes.set(tile, GROUP, CHUNK);
        }
        use_tiles(shapes);
    }
    ~DigitProducts() { release_tiles(); }
    DigitProducts(DigitProducts const&) = delete;
    DigitProducts& operator=(DigitProducts const&) = delete;

    // Stacks of a lie a_stride bytes apart along the summed index, those of b follow each other, and the second group
    // of b's columns is b_group bytes after the first one.
    template <int GROUPS>
    void multiply(Index n_chunks, std::int8_t const* a, Index a_stride, std::int8_t const* b, Index b_group,
                  Result result) {
        clear_tile<0>();
        clear_tile<1>();
        clear_tile<2>();
        if constexpr (GROUPS > 1) {
            clear_tile<3>();
            clear_tile<4>();
            clear_tile<5>();
        }
        for (Index k = 0; k < n_chunks; ++k) {
            add_chunk<GROUPS>(a + k * a_stride, b + k * STACK, b + b_group + k * STACK);
            pending_.rows(k * GROUP / n_chunks, (k + 1) * GROUP / n_chunks);
        }
        store_tile<0>(levels_.sum[0][0], 64);
        store_tile<1>(levels_.sum[0][1], 64);
        store_tile<2>(levels_.sum[0][2], 64);
        if constexpr (GROUPS > 1) {
            store_tile<3>(levels_.sum[1][0], 64);
            store_tile<4>(levels_.sum[1][1], 64);
            store_tile<5>(levels_.sum[1][2], 64);
        }
        pending_ = result;
        pending_.from = &levels_;
        pending_.n_groups = GROUPS;
    }
    void finish() {
        pending_.rows(0, GROUP);
        pending_ = Result{};
    }

  private:
    // Tiles 0 to 2 and 3 to 5 are the levels of both groups of columns, 6 and 7 the factors. Every product shares one
    // factor with the one before it, and comes at least three after the last one to the same sums.
    template <int GROUPS>
    static void add_chunk(std::int8_t const* a, std::int8_t const* b, std::int8_t const* c) {
        constexpr Index D1 = TILE_BYTES, D2 = 2 * TILE_BYTES;
        load_tile<6>(a, 64);
        load_tile<7>(b, 64);
        add_digit_product<0, 6, 7>();
        if constexpr (GROUPS > 1) {
            load_tile<7>(c, 64);
            add_digit_product<3, 6, 7>();
            load_tile<6>(a + D2, 64);
            add_digit_product<5, 6, 7>();
            load_tile<7>(b, 64);
            add_digit_product<2, 6, 7>();
            load_tile<6>(a + D1, 64);
            add_digit_product<1, 6, 7>();
            load_tile<7>(c, 64);
            add_digit_product<4, 6, 7>();
            load_tile<7>(c + D1, 64);
            add_digit_product<5, 6, 7>();
            load_tile<7>(b + D1, 64);
            add_digit_product<2, 6, 7>();
            load_tile<6>(a, 64);
            add_digit_product<1, 6, 7>();
            load_tile<7>(c + D1, 64);
            add_digit_product<4, 6, 7>();
            load_tile<7>(c + D2, 64);
            add_digit_product<5, 6, 7>();
            load_tile<7>(b + D2, 64);
            add_digit_product<2, 6, 7>();
        } else {
            load_tile<6>(a + D2, 64);
            add_digit_product<2, 6, 7>();
            load_tile<6>(a + D1, 64);
            add_digit_product<1, 6, 7>();
            load_tile<7>(b + D1, 64);
            add_digit_product<2, 6, 7>();
            load_tile<6>(a, 64);
            add_digit_product<1, 6, 7>();
            load_tile<7>(b + D2, 64);
            add_digit_product<2, 6, 7>();
        }
    }

    Levels levels_;   // those of the block before, which are numbers by the time the next one's are stored
    Result pending_;  // of that block
};

// out = a b^T, or added to it, for n_rows of a and n_columns of b, multiples of 16, summed over n_chunks. Row groups of
// a lie a_group bytes apart and their stacks along the summed index a_stride; column groups of b lie b_group bytes
// apart and their stacks follow each other. out is [column / out_columns] matrices, out_panel elements apart, of rows
// of out_columns elements, 32 or 64.
inline void multiply_piece(DigitProducts& products, Index n_rows, Index n_columns, Index n_chunks, std::int8_t const* a,
                           Index a_group, Index a_stride, float const* a_step, std::int8_t const* b, Index b_group,
                           float const* b_step, float* out, Index out_columns, Index out_panel, bool add) {
    for (Index c = 0; c < n_columns; c += 2 * GROUP) {
        std::int8_t const* const right = b + c / GROUP * b_group;
        float* const to = out + c / out_columns * out_panel + c % out_columns;
        for (Index r = 0; r < n_rows; r += GROUP) {
            Result result;
            result.to = to + r * out_columns;
            result.row_stride = out_columns;
            result.row_step = a_step == nullptr ? nullptr : a_step + r;
            result.column_step = b_step + c;
            result.add = add;
            std::int8_t const* const left = a + r / GROUP * a_group;
            if (c + GROUP < n_columns) {
                products.multiply<2>(n_chunks, left, a_stride, right, b_group, result);
            } else {
                products.multiply<1>(n_chunks, left, a_stride, right, b_group, result);
            }
        }
    }
}

// tile[c / PANEL][r][c % PANEL] = sum over n_chunks of dimensions of a(r, k) b(c, k), in pieces of PIECE_CHUNKS: the
// second factor's part for 32 columns then is as large as the first cache, and sums of integers do not overflow.
constexpr Index PIECE_CHUNKS = 8;
static_assert(PIECE_CHUNKS <= MOST_CHUNKS, "sums of integers overflow");

inline void multiply_cosines(Index n_rows, Index n_columns, Index n_chunks, std::int8_t const* a, float const* a_step,
                             std::int8_t const* b, float const* b_step, float* tile) {
    DigitProducts products;
    for (Index k = 0; k < n_chunks; k += PIECE_CHUNKS) {
        Index const n_here = least(n_chunks - k, PIECE_CHUNKS);
        multiply_piece(products, n_rows, n_columns, n_here, a + k * STACK, n_chunks * STACK, STACK, a_step,
                       b + k * STACK, n_chunks * STACK, b_step, tile, PANEL, n_rows * PANEL, k > 0);
    }
    products.finish();
}

// out(c, d) = sum over samples of g(c) a(d), or added to it: a block of samples as [group of dimensions][n_chunks]
// stacks, and the digits of a tile's gradients; see make_column_digits.
inline void multiply_gradients(Index n_columns, Index n_dim, Index n_chunks, std::int8_t const* a,
                               std::int8_t const* digits, float const* step, float* out, bool add) {
    DigitProducts products;
    multiply_piece(products, n_dim, n_columns, n_chunks, a, n_chunks * STACK, STACK, nullptr, digits, n_chunks * STACK,
                   step, out, SUMS_PANEL, n_dim * SUMS_PANEL, add);
    products.finish();
}

// ---- operands -------------------------------------------------------------------------------------------------------

// A panel of one modality's rows, [dimension][64 samples], as digits; what is null is not made.
// n_dim: rows of the panel, a multiple of 16.
struct PanelDigits {
    std::int8_t* rows;     // [4 groups of samples][chunk of dimensions] stacks, as the first factor of cosines
    std::int8_t* columns;  // the same as the second factor
    float* step;           // [64]
};

inline void make_digits(float const* panel, Index n_dim, PanelDigits const& to) {
    Index const n_chunks = (n_dim + CHUNK - 1) / CHUNK;
    Scale scale[PANEL / GROUP];
    for (Index g = 0; g < PANEL / GROUP; ++g) {
        Lanes largest{};
        for (Index k = 0; k < n_dim; ++k) {
            largest = larger(largest, magnitude(load(panel + k * PANEL + g * GROUP)));
        }
        scale[g] = scale_of(largest);
        store<float>(to.step + g * GROUP, scale[g].step);
    }
    auto const integer = [&](Index k, Index g) {
        Vec<float> const x = k < n_dim ? load(panel + k * PANEL + g * GROUP) : Vec<float>{};
        return shifted_integer(x * scale[g].inverse + x * scale[g].rest);
    };
    alignas(64) std::int8_t stack[STACK];
    for (Index g = 0; g < PANEL / GROUP; ++g) {
        for (Index chunk = 0; chunk < n_chunks; ++chunk) {
            Index const at = (g * n_chunks + chunk) * STACK;
            std::int8_t* const words = to.columns != nullptr ? to.columns + at : stack;
            for (Index quad = 0; quad < GROUP; ++quad) {
                Index const k = chunk * CHUNK + 4 * quad;
                store_digits(integer(k, g), integer(k + 1, g), integer(k + 2, g), integer(k + 3, g), words + quad * 64);
            }
            if (to.rows != nullptr) {
                turn_stack(words, to.rows + at);
            }
        }
    }
}

// A block of samples, from digits made for cosines, [group of samples][n_chunks] stacks, to those for gradients,
// [group of dimensions][n_panels] stacks. first_factor: the form that the digits have.
inline void turn_block(Index n_panels, Index n_dim, std::int8_t const* from, bool first_factor, std::int8_t* to) {
    constexpr Index GROUPS = PANEL / GROUP;
    Index const n_chunks = (n_dim + CHUNK - 1) / CHUNK;
    alignas(64) std::int8_t turned[GROUPS][STACK];
    for (Index panel = 0; panel < n_panels; ++panel) {
        for (Index chunk = 0; chunk < n_chunks; ++chunk) {
            std::int8_t const* stack[GROUPS];
            for (Index g = 0; g < GROUPS; ++g) {
                stack[g] = from + ((panel * GROUPS + g) * n_chunks + chunk) * STACK;
                if (first_factor) {
                    turn_stack(stack[g], turned[g]);
                    stack[g] = turned[g];
                }
            }
            Index const left = (n_dim - chunk * CHUNK) / 4, n_quads = least(left, GROUP);
            for (Index i = 0; i < DIGITS * n_quads; ++i) {
                // The bytes of a word are a quad of dimensions, and become four samples of a dimension.
                Index const digit = i / n_quads, quad = i % n_quads, at = digit * TILE_BYTES + quad * 64;
                __m512i const a = _mm512_load_si512(stack[0] + at), b = _mm512_load_si512(stack[1] + at);
                __m512i const c = _mm512_load_si512(stack[2] + at), d = _mm512_load_si512(stack[3] + at);
                Index const k = chunk * CHUNK + 4 * quad;
                std::int8_t* const out =
                    to + (k / GROUP * n_panels + panel) * STACK + digit * TILE_BYTES + k % GROUP * 64;
                _mm512_store_si512(out, bytes_of_words<0>(a, b, c, d));
                _mm512_store_si512(out + 64, bytes_of_words<1>(a, b, c, d));
                _mm512_store_si512(out + 128, bytes_of_words<2>(a, b, c, d));
                _mm512_store_si512(out + 192, bytes_of_words<3>(a, b, c, d));
            }
        }
    }
}

// A tile of gradients G(r, c), [panel of columns][row][column of the panel], as the second factor whose columns are c
// and whose summed index is r, each row multiplied with its step. largest: the bits of the largest magnitude of each
// column. Writes the columns' steps.
inline void make_column_digits(Index n_rows, Index n_columns, float const* tile, float const* row_step,
                               std::int32_t const* largest, std::int8_t* digits, float* column_step) {
    Index const n_chunks = (n_rows + CHUNK - 1) / CHUNK;
    for (Index c = 0; c < n_columns; c += GROUP) {
        Scale const scale = scale_of(*reinterpret_cast<Lanes const*>(largest + c));
        store<float>(column_step + c, scale.step);
        float const* const column = tile + c / PANEL * n_rows * PANEL + c % PANEL;
        auto const integer = [&](Index r) {
            return shifted_integer(r < n_rows ? load(column + r * PANEL) * row_step[r] * scale.inverse : Vec<float>{});
        };
        for (Index chunk = 0; chunk < n_chunks; ++chunk) {
            std::int8_t* const stack = digits + (c / GROUP * n_chunks + chunk) * STACK;
            for (Index quad = 0; quad < GROUP; ++quad) {
                Index const r = chunk * CHUNK + quad;
                store_digits(integer(r), integer(r + GROUP), integer(r + 2 * GROUP), integer(r + 3 * GROUP),
                             stack + quad * 64);
            }
        }
    }
}

// The same with rows and columns exchanged: the summed index is c.
inline void make_row_digits(Index n_rows, Index n_columns, float const* tile, float const* column_step,
                            std::int32_t const* largest, std::int8_t* digits, float* row_step) {
    Index const n_chunks = (n_columns + CHUNK - 1) / CHUNK;
    alignas(64) std::int8_t stack[STACK];
    for (Index first = 0; first < n_rows; first += GROUP) {
        Scale const scale = scale_of(*reinterpret_cast<Lanes const*>(largest + first));
        store<float>(row_step + first, scale.step);
        alignas(64) float inverse[GROUP];
        store<float>(inverse, scale.inverse);
        for (Index chunk = 0; chunk < n_chunks; ++chunk) {
            Index const c0 = chunk * CHUNK, n_here = least(n_columns - c0, CHUNK);
            for (Index i = 0; i < GROUP; ++i) {
                float const* const row = tile + (chunk * n_rows + first + i) * PANEL;
                auto const integer = [&](Index c) {
                    return shifted_integer(c < n_here ? load(row + c) * load(column_step + c0 + c) * inverse[i]
                                                      : Vec<float>{});
                };
                store_digits(integer(0), integer(GROUP), integer(2 * GROUP), integer(3 * GROUP), stack + i * 64);
            }
            turn_stack(stack, digits + (first / GROUP * n_chunks + chunk) * STACK);
        }
    }
}

}  // namespace sleepfm::SLEEPFM_ISA
