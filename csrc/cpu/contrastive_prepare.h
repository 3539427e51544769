// How the contrastive loss's operands (unit embeddings e, and means of the other modalities o) are made from x, and the
// scale of its exponentials.
#pragma once

#include <cmath>
#include <cstring>

#include "cpu/contrastive_work.h"
#include "cpu/element.h"
#include "cpu/threads.h"

namespace sleepfm::SLEEPFM_ISA {

constexpr double NORM_FLOOR = 1e-12;  // torch.nn.functional.normalize's eps

// Whether sample r, which may lie beyond N, has modality m.
inline bool is_present(ContrastiveInput const& in, Index m, Index r) {
    return r < in.n_samples &&
           (in.mask == nullptr || in.mask[m * in.mask_stride_modality + r * in.mask_stride_sample] != 0);
}

// Sample r's row of modality m.
template <typename Element>
inline Element const* row_of(ContrastiveInput const& in, Index m, Index r) {
    return static_cast<Element const*>(in.x) + m * in.stride_modality + r * in.stride_sample;
}

// What a row of this length is divided by.
inline double divisor_of(double norm) {
    return norm < NORM_FLOOR ? NORM_FLOOR : norm;
}

// |x| of one row; squares are summed in double, in a fixed order.
template <typename Element>
inline double length_of(Element const* x, Index D) {
    double lane[16] = {};
    Index k = 0;
    for (; k + 16 <= D; k += 16) {
        for (int l = 0; l < 16; ++l) {
            double const value = static_cast<double>(widen(x[k + l]));
            lane[l] += value * value;
        }
    }
    for (int l = 0; k < D; ++k, ++l) {
        double const value = static_cast<double>(widen(x[k]));
        lane[l] += value * value;
    }
    for (int half = 8; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) {
            lane[l] += lane[l + half];
        }
    }
    return std::sqrt(lane[0]);
}

// An element of e = x / max(|x|, 1e-12); divisor = max(|x|, 1e-12), inverse = 1 / divisor. For float, the product with
// the reciprocal in double, rounded once, is right in all but rare cases; for double only the quotient is.
template <typename T, typename Element>
inline T unit_element(Element x, double divisor, double inverse) {
    double const value = static_cast<double>(widen(x));
    return static_cast<T>(sizeof(T) == 8 ? value / divisor : value * inverse);
}

// Writes the unit rows of one modality of WIDTH samples to their panel, in squares of WIDTH x WIDTH elements that are
// transposed. x[l]: sample l's row, null where it is absent; norm[l]: its length.
template <typename T, typename Element>
inline void pack_units(Element const* const* x, double const* norm, Shape const& shape, T* panel) {
    constexpr Index width = WIDTH<T>;
    double divisor[width], inverse[width];
    for (Index l = 0; l < width; ++l) {
        divisor[l] = divisor_of(norm[l]);
        inverse[l] = 1.0 / divisor[l];
    }
    alignas(64) T square[width * width];
    for (Index k = 0; k < shape.D; k += width) {
        Index const n = least(shape.D - k, width);
        for (Index l = 0; l < width; ++l) {
            T* const row = square + l * width;
            if (x[l] == nullptr || n < width) {
                std::memset(row, 0, sizeof(T) * width);
            }
            if (x[l] == nullptr) {
                continue;
            }
            if (n == width) {
                for (Index i = 0; i < width; ++i) {
                    row[i] = unit_element<T>(x[l][k + i], divisor[l], inverse[l]);
                }
            } else {
                for (Index i = 0; i < n; ++i) {
                    row[i] = unit_element<T>(x[l][k + i], divisor[l], inverse[l]);
                }
            }
        }
        if (n == width) {
            transpose<T>(square, width, panel + k * PANEL, PANEL);
        } else {
            for (Index i = 0; i < n; ++i) {
                for (Index l = 0; l < width; ++l) {
                    panel[(k + i) * PANEL + l] = square[l * width + i];
                }
            }
        }
    }
    for (Index k = shape.D; k < shape.d_padded; ++k) {
        store<T>(panel + k * PANEL, Vec<T>{});
    }
}

// Presence, unit rows and means of the others, of WIDTH samples from r on.
template <typename T, typename Element>
inline void prepare_samples(ContrastiveInput const& in, Shape const& shape, Operands<T> const& operands, Index r) {
    constexpr Index width = WIDTH<T>;
    bool present[MAX_MODALITIES][width];
    alignas(64) T n_others[width];
    for (Index l = 0; l < width; ++l) {
        Index n_present = 0;
        for (Index m = 0; m < shape.M; ++m) {
            present[m][l] = is_present(in, m, r + l);
            n_present += present[m][l];
        }
        for (Index m = 0; m < shape.M; ++m) {
            present[m][l] = present[m][l] && n_present > 1;  // alone, a modality has nothing to be compared with
        }
        operands.n_others[r + l] = n_present - 1;
        n_others[l] = n_present > 1 ? static_cast<T>(n_present - 1) : T{1};
    }
    Index const at = Operands<T>::place_of_unit(shape, r), unit_stride = Operands<T>::unit_stride(shape);
    for (Index m = 0; m < shape.M; ++m) {
        double* const norm = operands.norm + m * shape.n_padded + r;
        Element const* x[width];
        for (Index l = 0; l < width; ++l) {
            x[l] = present[m][l] ? row_of<Element>(in, m, r + l) : nullptr;
            norm[l] = x[l] == nullptr ? 0.0 : length_of(x[l], shape.D);
        }
        pack_units<T, Element>(x, norm, shape, operands.unit + m * unit_stride + at);
    }
    for (Index p = 0; p < shape.P; ++p) {
        for (Index l = 0; l < width; ++l) {
            bool const valid = present[shape.row_of[p]][l] && present[shape.column_of[p]][l];
            operands.bias[p * shape.n_padded + r + l] = valid ? T{0} : static_cast<T>(EXCLUDED);
        }
    }
    if (shape.pairwise) {
        return;
    }
    Vec<T> const share = load<T>(n_others);
    bool exact = true;  // all reciprocals are exact, so that multiplying with them equals dividing, which is slow
    for (Index l = 0; l < width; ++l) {
        exact = exact && (n_others[l] == T{1} || n_others[l] == T{2} || n_others[l] == T{4});
    }
    Vec<T> const inverse = T{1} / share;
    for (Index m = 0; m < shape.M; ++m) {
        T* const o = operands.mean + m * unit_stride + at;
        alignas(64) T here[width];
        for (Index l = 0; l < width; ++l) {
            here[l] = present[m][l] ? T{1} : T{0};
        }
        auto const is_here = load<T>(here) != Vec<T>{};
        for (Index k = 0; k < shape.d_padded; ++k) {
            Vec<T> sum{};
            for (Index other = 0; other < shape.M; ++other) {
                if (other != m) {
                    sum += load<T>(operands.unit + other * unit_stride + at + k * PANEL);
                }
            }
            Vec<T> const mean = exact ? sum * inverse : sum / share;
            store<T>(o + k * PANEL, is_here ? mean : Vec<T>{});
        }
    }
}

// Makes the operands of all samples; called by all threads of a parallel region, and ends with a barrier. Calls then(r)
// for every sample, padding included, when its operands are there.
template <typename T, typename Then>
inline void prepare(ContrastiveInput const& in, Shape const& shape, Operands<T> const& operands, Then const& then) {
    constexpr Index together = Operands<T>::TOGETHER;
    Operands<T> const own = operands.of_thread(shape);
    SLEEPFM_OMP(omp for schedule(static))
    for (Index first = 0; first < shape.n_padded; first += together) {
        Index const end = least(first + together, shape.n_padded);
        for (Index r = first; r < end; r += WIDTH<T>) {
            with_element<T>(in.dtype, [&](auto element) { prepare_samples<T, decltype(element)>(in, shape, own, r); });
        }
        own.complete(shape, first);
        for (Index r = first; r < end; ++r) {
            then(r);
        }
    }
}

// s = exp(log_temperature).
template <typename T>
inline double scale_of(ContrastiveInput const& in) {
    return std::exp(static_cast<double>(*static_cast<T const*>(in.log_temperature)));
}

// The scale that exponentials use: s, but at least 1e-25. There every logit is 0 to T's precision anyway, and
// s * EXCLUDED is still far below 0.
template <typename T>
inline T exponent_scale(double s) {
    return static_cast<T>(s < 1e-25 ? 1e-25 : s);
}

// Whether exponentials may be taken relative to a cosine of 1 in place of the maxima. Cosines lie in [-1, 1], so that
// s (x - 1) >= -2 s, which must stay within the range of `exponential` in float, 64, with room for rounding. Row and
// column then share one exponential.
inline bool is_fixed_maximum(double s) {
    return s <= 31.5;
}

}  // namespace sleepfm::SLEEPFM_ISA
