// Integer products of retrieval ranks. A lane has two 16-bit factors, dimensions 2 k and 2 k + 1 of one sample, whose
// products with two others are added in one instruction. Compiled once for each instruction set, see
// contrastive_simd.h.
//
// An operand is stored in panels, [panel][pair of dimensions][sample of the panel], rows in panels of RANK_ROWS and
// columns in panels of RANK_PANEL samples; a tile of products as [panel of columns][row][column of the panel].
#pragma once

#include "cpu/contrastive_simd.h"
#include "cpu/rank_quantise.h"
#include "params.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace sleepfm::SLEEPFM_ISA {

using Pairs = IntVec<float>;  // in each lane two int16

// RANK_ROWS x RANK_VECTORS sums, RANK_VECTORS vectors of columns, one broadcast factor and one product take 28 of 32
// registers with AVX-512 and 16 of 16 elsewhere; on ARM 27 of 32, where a sum takes two registers and a product none.
#if SLEEPFM_VECTOR_BYTES == 64
constexpr Index RANK_ROWS = 8;
constexpr int RANK_VECTORS = 3;
#else
constexpr Index RANK_ROWS = 6;
constexpr int RANK_VECTORS = 2;
#endif
constexpr Index RANK_PANEL = RANK_VECTORS * WIDTH<float>;
// Pairs of dimensions that a sample has room for.
inline Index rank_pairs(Index n_dim) {
    return (n_dim + 1) / 2;
}

// Pairs of dimensions that are multiplied at a time: 24 KiB of a panel of columns, which stay in the first cache.
constexpr Index RANK_PIECE = 24 * 1024 / (RANK_PANEL * 4);

// In every lane the product of both first factors plus the product of both second factors. No factor is -32768, so that
// the sum fits into 32 bits.
inline Pairs multiply_pairs(Pairs a, Pairs b) {
#if SLEEPFM_VECTOR_BYTES == 64 && defined(__AVX512BW__)
    return reinterpret_cast<Pairs>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif SLEEPFM_VECTOR_BYTES == 32 && defined(__AVX2__)
    return reinterpret_cast<Pairs>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif SLEEPFM_VECTOR_BYTES == 16 && defined(__SSE2__)
    return reinterpret_cast<Pairs>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
    return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

// How sums over pairs are kept: `add` adds the products of one more pair of dimensions, `total` gives the lanes' sums.
// Here a product and an addition.
struct TwoSteps {
    using Sum = Pairs;
    static Sum add(Sum sum, Pairs a, Pairs b) { return sum + multiply_pairs(a, b); }
    static Pairs total(Sum sum) { return sum; }
};

#if defined(__aarch64__)
// ARM multiplies and adds in one instruction, into 32-bit lanes of their own for first and second factors: `low` has
// those of the vector's first two samples, `high` of the last two, and total adds neighbouring lanes.
struct InHalves {
    struct Sum {
        int32x4_t low, high;
    };
    static Sum add(Sum sum, Pairs a, Pairs b) {
        int16x8_t const left = reinterpret_cast<int16x8_t>(a), right = reinterpret_cast<int16x8_t>(b);
        return {vmlal_s16(sum.low, vget_low_s16(left), vget_low_s16(right)), vmlal_high_s16(sum.high, left, right)};
    }
    static Pairs total(Sum sum) { return vpaddq_s32(sum.low, sum.high); }
};
#endif

// tile[r][c] = the products of n_rows rows and one panel of columns over n_pairs pairs, or added to it. row_stride:
// from one panel of rows to the next.
template <typename Step>
inline void products_of_panel(Index n_rows, Index n_pairs, Index row_stride, std::int32_t const* a,
                              std::int32_t const* b, std::int32_t* tile, bool add) {
    constexpr Index width = WIDTH<float>;
    for (Index r = 0; r < n_rows; r += RANK_ROWS, a += row_stride) {
        typename Step::Sum sum[RANK_ROWS][RANK_VECTORS] = {};
        for (Index k = 0; k < n_pairs; ++k) {
            Pairs right[RANK_VECTORS];
#pragma GCC unroll 3
            for (int w = 0; w < RANK_VECTORS; ++w) {
                right[w] = *reinterpret_cast<Pairs const*>(b + k * RANK_PANEL + w * width);
            }
#pragma GCC unroll 8
            for (int m = 0; m < RANK_ROWS; ++m) {
                Pairs const left = a[k * RANK_ROWS + m] - Pairs{};
#pragma GCC unroll 3
                for (int w = 0; w < RANK_VECTORS; ++w) {
                    sum[m][w] = Step::add(sum[m][w], left, right[w]);
                }
            }
        }
#pragma GCC unroll 8
        for (int m = 0; m < RANK_ROWS; ++m) {
#pragma GCC unroll 3
            for (int w = 0; w < RANK_VECTORS; ++w) {
                Pairs* const out = reinterpret_cast<Pairs*>(tile + (r + m) * RANK_PANEL + w * width);
                Pairs const total = Step::total(sum[m][w]);
                *out = add ? *out + total : total;
            }
        }
    }
}

using PanelProducts = void (*)(Index, Index, Index, std::int32_t const*, std::int32_t const*, std::int32_t*, bool);

#if SLEEPFM_VECTOR_BYTES == 64 && defined(__AVX512BW__)
// Multiplication and addition in one instruction (VNNI), which not every processor with AVX-512 has.
struct OneStep {
    using Sum = Pairs;
    __attribute__((target("avx512vnni"))) static Sum add(Sum sum, Pairs a, Pairs b) {
        return reinterpret_cast<Pairs>(_mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(a),
                                                           reinterpret_cast<__m512i>(b)));
    }
    static Pairs total(Sum sum) { return sum; }
};
__attribute__((target("avx512vnni"), flatten)) inline void products_in_one_step(Index n_rows, Index n_pairs,
                                                                                Index row_stride, std::int32_t const* a,
                                                                                std::int32_t const* b,
                                                                                std::int32_t* tile, bool add) {
    products_of_panel<OneStep>(n_rows, n_pairs, row_stride, a, b, tile, add);
}
inline PanelProducts panel_products() {
    return __builtin_cpu_supports("avx512vnni") ? &products_in_one_step : &products_of_panel<TwoSteps>;
}
#elif defined(__aarch64__)
inline PanelProducts panel_products() {
    return &products_of_panel<InHalves>;
}
#else
inline PanelProducts panel_products() {
    return &products_of_panel<TwoSteps>;
}
#endif

// tile[c / RANK_PANEL][r][c % RANK_PANEL] = <q_r, q_c>, for n_rows rows (a multiple of RANK_ROWS) and n_columns columns
// (a multiple of RANK_PANEL). No partial sum overflows 32 bits: the squares of a sample sum to less than 2^31
// (factor_of), which by the Cauchy-Schwarz inequality bounds the sum of any subset of the products of two samples.
struct RankProducts {
    PanelProducts const products = panel_products();

    void operator()(Index n_rows, Index n_columns, Index n_pairs, std::int32_t const* a, std::int32_t const* b,
                    std::int32_t* tile) const {
        for (Index k = 0; k < n_pairs; k += RANK_PIECE) {
            Index const n_k = least(n_pairs - k, RANK_PIECE);
            for (Index c = 0; c < n_columns; c += RANK_PANEL) {
                products(n_rows, n_k, n_pairs * RANK_ROWS, a + k * RANK_ROWS, b + c * n_pairs + k * RANK_PANEL,
                         tile + c * n_rows, k > 0);
            }
        }
    }
};

// Writes the panel of `width` samples from `first` on, quantised, [pair of dimensions][sample]; zero beyond the last
// sample and the last dimension.
inline void pack_integers(RankOperand const& operand, Index n_dim, Index first, Index width, bool /*columns*/,
                          std::int32_t* panel) {
    std::int16_t q[RANK_CHUNK];
    for (Index s = 0; s < width; ++s) {
        bool const real = first + s < operand.n;
        std::memset(q, 0, sizeof q);
        for (Index k = 0; k < n_dim; k += RANK_CHUNK) {
            Index const n = least(n_dim - k, RANK_CHUNK);
            if (real) {
                quantise(operand.x + (first + s) * n_dim + k, operand.mean + k, operand.factor[first + s], n, q);
            }
            if (n % 2 != 0) {
                q[n] = 0;  // n < RANK_CHUNK, which is even
            }
            for (Index pair = 0; 2 * pair < n; ++pair) {
                std::memcpy(panel + (k / 2 + pair) * width + s, q + 2 * pair, sizeof(std::int32_t));
            }
        }
    }
}

}  // namespace sleepfm::SLEEPFM_ISA
