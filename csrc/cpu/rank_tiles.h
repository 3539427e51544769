// The integer products of rank_product.h on tiles of bytes (tiles.h). A 16-bit integer is two digits of radix 256 from
// -128 to 127, q = 256 high + low, so that
//   <q_r, q_c> = 65536 <high, high> + 256 (<high, low> + <low, high>) + <low, low>
// in arithmetic modulo 2^32, whose result is the sum itself, which fits: factor_of.
//
// An operand is stored in groups of 16 samples, each [64 dimensions after 64][digit, high first], a KiB each: of rows
// as a product's first factor, [row][64], of columns as its second one, [quad of dimensions][column][4].
#pragma once

#include <cstring>
#include <initializer_list>

#include "cpu/contrastive_simd.h"
#include "cpu/rank_quantise.h"
#include "cpu/tiles.h"
#include "params.h"

namespace sleepfm::SLEEPFM_ISA {

constexpr Index RANK_ROWS = 16;
constexpr Index RANK_PANEL = 48;  // whole groups
constexpr Index RANK_CHUNK_PAIRS = 32;
constexpr Index RANK_CHUNK_WORDS = 512;  // of both digits of a group, 32 bits each

// Pairs of dimensions that a sample has room for.
inline Index rank_pairs(Index n_dim) {
    return (n_dim + 2 * RANK_CHUNK_PAIRS - 1) / (2 * RANK_CHUNK_PAIRS) * RANK_CHUNK_PAIRS;
}

// The digits of 64 integers of row `row` of a group, as first factors. chunk: [digit][16 rows][64].
inline void place_digits(std::int16_t const* q, Index row, std::int32_t* chunk) {
    auto* const high = reinterpret_cast<std::int8_t*>(chunk) + 64 * row;
    for (Index k = 0; k < 64; ++k) {
        high[k] = static_cast<std::int8_t>((q[k] + 128) >> 8);
        high[1024 + k] = static_cast<std::int8_t>(q[k]);
    }
}

// From first to second factors, both digits: four bytes are a word, and words are transposed. As floats, for which
// there are shuffles; the bits only move.
inline void turn_digits(std::int32_t* chunk) {
    for (Index digit = 0; digit < 2; ++digit) {
        auto* const words = reinterpret_cast<float*>(chunk + 256 * digit);
        transpose<float>(words, 16, words, 16);
    }
}

// A thread's tiles 0 to 2 and 3 to 5 are the sums of two groups of columns: of both high digits, of a high and a low
// one, of both low digits. 6 is a digit of rows, 7 one of columns. While the tiles multiply, the sums that they left
// before are put together, some rows after each chunk: else the next products would wait for that.
class RankProducts {
  public:
    RankProducts() {
        TileShapes shapes;
        for (int tile = 0; tile < 8; ++tile) {
            shapes.set(tile, 16, 64);
        }
        use_tiles(shapes);
    }
    ~RankProducts() { release_tiles(); }
    RankProducts(RankProducts const&) = delete;
    RankProducts& operator=(RankProducts const&) = delete;

    // tile[c / RANK_PANEL][r][c % RANK_PANEL] = <q_r, q_c>, for n_rows rows and n_columns columns, whole groups.
    void operator()(Index n_rows, Index n_columns, Index n_pairs, std::int32_t const* a, std::int32_t const* b,
                    std::int32_t* tile) {
        for (Index k = 0; k < n_pairs; k += PIECE) {
            Index const n_chunks = (least(n_pairs - k, PIECE)) / RANK_CHUNK_PAIRS;
            std::int32_t const *const rows = a + 16 * k, *const columns = b + 16 * k;
            auto const to = [=](Index r, Index c) {
                return tile + (c / RANK_PANEL * n_rows + r) * RANK_PANEL + c % RANK_PANEL;
            };
            Index c = 0;
            for (; c + 32 <= n_columns; c += 32) {
                for (Index r = 0; r < n_rows; r += 16) {
                    multiply<2>(n_chunks, rows + r * n_pairs, columns + c * n_pairs, 16 * n_pairs);
                    leave({sums_[0], to(r, c), to(r, c + 16), k > 0});
                }
            }
            for (Index r = 0; c < n_columns && r < n_rows; r += 16) {
                multiply<1>(n_chunks, rows + r * n_pairs, columns + c * n_pairs, 0);
                leave({sums_[0], to(r, c), nullptr, k > 0});
            }
        }
        pending_.put_together(0, 16);
        pending_ = {};
    }

  private:
    using Words = std::uint32_t __attribute__((vector_size(64)));  // unsigned: sums may overflow on the way

    // Sums of one group of rows and one or two of columns, and where they go.
    struct Pending {
        std::uint32_t const* sums = nullptr;  // [group of columns][3][16 rows][16 columns]
        std::int32_t *first = nullptr, *second = nullptr;
        bool add = false;

        void put_together(Index begin, Index end) const {
            std::uint32_t const* from = sums;
            for (std::int32_t* const to : {first, second}) {
                for (Index r = begin; to != nullptr && r < end; ++r) {
                    auto const level = [&](int i) { return *reinterpret_cast<Words const*>(from + 256 * i + 16 * r); };
                    Words sum = (level(0) << 16) + (level(1) << 8) + level(2);
                    if (add) {
                        Words before;
                        std::memcpy(&before, to + r * RANK_PANEL, sizeof before);
                        sum += before;
                    }
                    std::memcpy(to + r * RANK_PANEL, &sum, sizeof sum);
                }
                from += 3 * 256;
            }
        }
    };

    // Pairs of dimensions that are multiplied at a time: of two groups of columns 16 KiB, which stay in the first cache
    // while the rows pass by.
    static constexpr Index PIECE = 4 * RANK_CHUNK_PAIRS;

    // Products to the same sums are four apart. b_group: words from one group of columns to the next.
    template <int GROUPS>
    void multiply(Index n_chunks, std::int32_t const* a, std::int32_t const* b, Index b_group) const {
        clear_tile<0>();
        clear_tile<1>();
        clear_tile<2>();
        if constexpr (GROUPS == 2) {
            clear_tile<3>();
            clear_tile<4>();
            clear_tile<5>();
        }
        for (Index k = 0; k < n_chunks; ++k) {
            std::int32_t const* const left = a + k * RANK_CHUNK_WORDS;
            std::int32_t const* const right = b + k * RANK_CHUNK_WORDS;
            [[maybe_unused]] std::int32_t const* const second = right + b_group;
            load_tile<6>(left, 64);
            load_tile<7>(right, 64);
            add_digit_product<0, 6, 7>();
            load_tile<7>(right + 256, 64);
            add_digit_product<1, 6, 7>();
            if constexpr (GROUPS == 2) {
                load_tile<7>(second, 64);
                add_digit_product<3, 6, 7>();
                load_tile<7>(second + 256, 64);
                add_digit_product<4, 6, 7>();
            }
            load_tile<6>(left + 256, 64);
            if constexpr (GROUPS == 2) {
                add_digit_product<5, 6, 7>();
                load_tile<7>(right, 64);
                add_digit_product<1, 6, 7>();
                load_tile<7>(right + 256, 64);
                add_digit_product<2, 6, 7>();
                load_tile<7>(second, 64);
                add_digit_product<4, 6, 7>();
            } else {
                add_digit_product<2, 6, 7>();
                load_tile<7>(right, 64);
                add_digit_product<1, 6, 7>();
            }
            pending_.put_together(16 * k / n_chunks, 16 * (k + 1) / n_chunks);
        }
    }

    void leave(Pending sums) {
        store_tile<0>(sums_[0], 64);
        store_tile<1>(sums_[0] + 256, 64);
        store_tile<2>(sums_[0] + 512, 64);
        if (sums.second != nullptr) {
            store_tile<3>(sums_[1], 64);
            store_tile<4>(sums_[1] + 256, 64);
            store_tile<5>(sums_[1] + 512, 64);
        }
        pending_ = sums;
    }

    alignas(64) std::uint32_t sums_[2][3 * 256];
    Pending pending_;
};

// Writes `width` samples from `first` on, whole groups, quantised: columns are the second factors of products. Zero
// beyond the last sample and the last dimension.
inline void pack_integers(RankOperand const& operand, Index n_dim, Index first, Index width, bool columns,
                          std::int32_t* panel) {
    std::int16_t q[RANK_CHUNK];
    Index const n_pairs = rank_pairs(n_dim);
    for (Index group = 0; group < width; group += RANK_ROWS) {
        std::int32_t* const to = panel + group * n_pairs;
        for (Index s = 0; s < RANK_ROWS; ++s) {
            Index const sample = first + group + s;
            std::memset(q, 0, sizeof q);
            for (Index k = 0; k < 2 * n_pairs; k += RANK_CHUNK) {
                Index const n = least(n_dim - k, RANK_CHUNK);
                if (sample < operand.n) {
                    quantise(operand.x + sample * n_dim + k, operand.mean + k, operand.factor[sample], n, q);
                    std::memset(q + n, 0, static_cast<std::size_t>(RANK_CHUNK - n) * sizeof q[0]);
                }
                for (Index i = 0; i < RANK_CHUNK && k + i < 2 * n_pairs; i += 64) {
                    place_digits(q + i, s, to + (k + i) / 64 * RANK_CHUNK_WORDS);
                }
            }
        }
        for (Index k = 0; columns && k < n_pairs; k += RANK_CHUNK_PAIRS) {
            turn_digits(to + k / RANK_CHUNK_PAIRS * RANK_CHUNK_WORDS);
        }
    }
}

}  // namespace sleepfm::SLEEPFM_ISA
