// The maximum of each sample and its two neighbours, and its gradient. As in torch, the first of equal samples is the
// maximum, and a NaN is larger than everything before it.
#pragma once

#include "cpu/mbconv_workspace.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// Lanes in which b, the later sample, replaces a as the maximum: b is larger, or NaN.
inline Mask displaces(Vector a, Vector b) {
    return (b > a) | (b != b);
}

inline bool displaces(float a, float b) {
    return b > a || b != b;
}

inline Vector where(Mask mask, Vector v) {
    Mask bits;
    memcpy(&bits, &v, sizeof bits);
    bits &= mask;
    memcpy(&v, &bits, sizeof v);
    return v;
}

inline Vector later(Vector a, Vector b) {
    return displaces(a, b) ? b : a;
}

// Index of the sample that is the maximum around sample t of a row of n.
inline Index maximum_around(float const* x, Index n, Index t) {
    Index best = t > 0 ? t - 1 : t;
    for (Index i = best + 1; i <= t + 1 && i < n; ++i) {
        best = displaces(x[best], x[i]) ? i : best;
    }
    return best;
}

// For vectors of samples from `edge` on that end `edge` samples before the row's end: the last may overlap the one
// before. Returns whether there are any.
template <typename Body>
inline bool inner_vectors(Index n, Index edge, Body body) {
    Index const end = n - edge - LANES;  // the last vector's first sample
    if (end < edge) {
        return false;
    }
    for (Index t = edge; t < end; t += LANES) {
        body(t);
    }
    body(end);
    return true;
}

// y of a row of n.
inline void max_pool_row(float const* x, Index n, float* y) {
    bool const inner = inner_vectors(
        n, 1, [&](Index t) { store(y + t, later(later(load(x + t - 1), load(x + t)), load(x + t + 1))); });
    for (Index t = 0; t < n; t += inner ? n - 1 : 1) {
        y[t] = x[maximum_around(x, n, t)];
    }
}

inline void max_pool_forward(MaxPool const& call) {
    Index const n = call.n_samples;
    SLEEPFM_OMP(omp parallel for schedule(static) num_threads(call.n_threads))
    for (Index row = 0; row < call.n_rows; ++row) {
        max_pool_row(call.x + row * n, n, call.result + row * n);
    }
}

inline void max_pool_backward(MaxPool const& call) {
    Index const n = call.n_samples;
    SLEEPFM_OMP(omp parallel for schedule(static) num_threads(call.n_threads))
    for (Index row = 0; row < call.n_rows; ++row) {
        float const* const x = call.x + row * n;
        float const* const dy = call.dy + row * n;
        float* const dx = call.result + row * n;
        bool const inner = inner_vectors(n, 2, [&](Index t) {
            Vector const a = load(x + t - 2), b = load(x + t - 1), c = load(x + t), d = load(x + t + 1),
                         e = load(x + t + 2);
            Mask const of_before = displaces(later(a, b), c);
            Mask const of_own = displaces(b, c) & ~displaces(later(b, c), d);
            Mask const of_after = ~displaces(c, d) & ~displaces(later(c, d), e);
            store(dx + t,
                  where(of_before, load(dy + t - 1)) + where(of_own, load(dy + t)) + where(of_after, load(dy + t + 1)));
        });
        for (Index t = 0; t < n; t += inner && t == 1 ? n - 3 : 1) {
            float sum = 0.0f;
            for (Index i = most(t - 1, 0); i <= least(t + 1, n - 1); ++i) {
                sum += maximum_around(x, n, i) == t ? dy[i] : 0.0f;
            }
            dx[t] = sum;
        }
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
