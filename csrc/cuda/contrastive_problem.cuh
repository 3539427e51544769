// What the tile kernels of the contrastive loss share: which operands a problem multiplies, the unit of cosines as they
// come out of the tensor cores, and how exponentials are computed.
//
// An oriented problem q is problem p with rows and columns as they are (q = p) or exchanged (q = P + p). A column of a
// problem is a row of the exchanged one, so that kernels need to know rows only.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/contrastive.h"
#include "cuda/ptx.h"

namespace sleepfm::cuda {

using Index = std::int64_t;

// A "raw" cosine is a product of operands: a cosine of 1 is contrastive_operand_scale squared. Tile kernels keep it so.
constexpr float raw_one = 65536.0f;
// The raw cosine of a pair that does not count. It is below every cosine, so that its exponential is 0, and finite, so
// that 0 * excluded is 0 and not NaN.
constexpr float excluded = -1e30f;
// The maximum of no cosines: below every raw cosine (at least -raw_one) and above `excluded`.
constexpr float raw_floor = -2.0f * raw_one;
// Up to this scale s every exponential is taken relative to a cosine of 1, so that one serves the row's and the
// column's softmax. Exponentials, down to exp(-2 s), and the gradient's weights, up to exp(2 s) * 2^15, are then normal
// float32 numbers. Above it, exponentials are relative to the maximum of the row and to that of the column.
constexpr float largest_fixed_scale = 32.0f;
// Exponentials use at least this scale. For a smaller one every logit is 0 to float32's precision anyway, and
// s * excluded would no longer be far below 0.
constexpr float least_scale = 1e-20f;

struct Softmax {
    float scale;     // s = exp(log temperature)
    float exponent;  // exp(s * cosine) = 2^(exponent * raw cosine)
    bool running;    // s > largest_fixed_scale, or NaN: exponentials are relative to maxima

    __device__ __forceinline__ explicit Softmax(void const* log_temperature)
        : scale(expf(*static_cast<float const*>(log_temperature))),
          exponent((scale < least_scale ? least_scale : scale) * (1.44269504088896340736f / raw_one)),
          running(!(scale <= largest_fixed_scale)) {}

    // exp(s (x - from)) for raw cosines.
    __device__ __forceinline__ float relative(float x, float from) const { return ptx::ex2((x - from) * exponent); }
};

// The operands that the oriented problem q multiplies, [n_padded, d_padded] each; *_low null unless split.
struct Sides {
    std::uint16_t const *rows, *rows_low, *columns, *columns_low;
};

__device__ __forceinline__ Sides sides_of(ContrastiveOperands const& o, int q) {
    int const P = static_cast<int>(o.n_problems), M = static_cast<int>(o.n_modalities);
    int const p = q < P ? q : q - P;
    int i = p, j = p;
    if (o.pairwise) {
        i = 0;
        int before = 0;
        while (p >= before + M - 1 - i) {
            before += M - 1 - i;
            ++i;
        }
        j = i + 1 + p - before;
    }
    Index const matrix = o.n_padded * o.d_padded;
    std::uint16_t const* const columns = o.pairwise ? o.unit : o.mean;
    std::uint16_t const* const columns_low = o.pairwise ? o.unit_low : o.mean_low;
    Sides const sides{o.unit + i * matrix, o.split ? o.unit_low + i * matrix : nullptr, columns + j * matrix,
                      o.split ? columns_low + j * matrix : nullptr};
    return q < P ? sides : Sides{sides.columns, sides.columns_low, sides.rows, sides.rows_low};
}

}  // namespace sleepfm::cuda
