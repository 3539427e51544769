// What the tile kernels of the contrastive loss share: which rows meet which columns, in which unit cosines come out of
// the tensor cores, and how exponentials are written.
//
// Problems are numbered with their orientation: q < P has the problem's rows as rows, q = P + p has them exchanged, so
// that a column's sum or gradient is the row's of the exchanged problem.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/contrastive.h"
#include "cuda/ptx.h"

namespace sleepfm::cuda {

using Index = std::int64_t;

// A cosine of 1 in the products of operands: contrastive_operand_scale squared. The tile kernels keep this unit.
constexpr float raw_one = 65536.0f;
// Stands for "no such pair": below every cosine, finite so that 0 * excluded is 0, not NaN.
constexpr float excluded = -1e30f;
// Below every cosine, above `excluded`: the largest of no cosines at all.
constexpr float raw_floor = -2.0f * raw_one;
// Up to this scale s all exponentials are taken relative to a cosine of 1: exp(-2 s) and the gradient's weights, up to
// exp(2 s) * 2^15, are normal float32 numbers. Above, relative to the largest of the row and of the column.
constexpr float largest_fixed_scale = 32.0f;

// Below, every logit is 0 to float32's precision, and the exponentials take this scale: s * excluded still excludes.
constexpr float least_scale = 1e-20f;

struct Softmax {
    float scale;     // s
    float exponent;  // exp(s x) = 2^(exponent * raw x)
    bool running;    // maxima are kept

    __device__ __forceinline__ explicit Softmax(void const* log_temperature)
        : scale(expf(*static_cast<float const*>(log_temperature))),
          exponent((scale < least_scale ? least_scale : scale) * (1.44269504088896340736f / raw_one)),
          running(!(scale <= largest_fixed_scale)) {}

    // exp(s (x - from)), cosines in the raw unit.
    __device__ __forceinline__ float relative(float x, float from) const { return ptx::ex2((x - from) * exponent); }
};

// The operands that problem q multiplies, hi and lo part, [n_padded, d_padded] each.
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
