// Last step of the contrastive loss's backward pass: from the gradients of unit rows and means, summed over all tiles,
// to that of x.
#pragma once

#include "cpu/contrastive_prepare.h"

namespace sleepfm::SLEEPFM_ISA {

// The unit rows of WIDTH samples from r on, anew, for operands that keep none.
template <typename T, typename Element>
inline void restore_units(ContrastiveInput const& in, Shape const& shape, Operands<T> const& operands, Index r) {
    constexpr Index width = WIDTH<T>;
    for (Index m = 0; m < shape.M; ++m) {
        double const* const norm = operands.norm + m * shape.n_padded + r;
        Element const* x[width];
        for (Index l = 0; l < width; ++l) {
            x[l] = norm[l] == 0.0 ? nullptr : row_of<Element>(in, m, r + l);
        }
        pack_units<T, Element>(
            x, norm, shape, operands.unit + m * Operands<T>::unit_stride(shape) + Operands<T>::place_of_unit(shape, r));
    }
}

// The sum of the values of all modalities but m.
template <typename T, int modalities>
inline Vec<T> over_others(Vec<T> const (&values)[modalities], int m) {
    Vec<T> sum{};
    for (int other = 0; other < modalities; ++other) {
        if (other != m) {
            sum += values[other];
        }
    }
    return sum;
}

// Adds the own pairs' part of the gradients of e, de, and of o, of WIDTH samples from r on, in one dimension. share:
// 1 / (number of other modalities).
template <typename T, int modalities>
inline void add_own_pairs(Shape const& shape, BackwardWork<T> const& work, Index r, Vec<T> share,
                          Vec<T> const (&e)[modalities], Vec<T> (&de)[modalities], Vec<T> (&of_mean)[modalities]) {
    T const* pull = work.pull + r;
    for (int row = 0; row < modalities; ++row) {
        if (!shape.pairwise) {
            de[row] += load<T>(pull) * (share * over_others<T>(e, row));
            of_mean[row] += load<T>(pull) * e[row];
            pull += shape.n_padded;
            continue;
        }
        for (int column = row + 1; column < modalities; ++column, pull += shape.n_padded) {
            de[row] += load<T>(pull) * e[column];
            de[column] += load<T>(pull) * e[row];
        }
    }
}

// Adds each modality's part of the other modalities' means (and the own pairs' part, if it is apart) to the gradients
// of e, de, of WIDTH samples from r on, and sums <e, de>. modalities: shape.M, known so that all lie in registers.
// Where a modality is absent its gradients are zero: its rows and columns do not count.
template <typename T, int modalities>
inline void add_gradients_of_means(Shape const& shape, BackwardWork<T> const& work, Index r,
                                   double (*along)[WIDTH<T>]) {
    constexpr Index width = WIDTH<T>;
    alignas(64) T share_of[width];
    for (Index l = 0; l < width; ++l) {
        Index const n_others = work.operands.n_others[r + l];
        share_of[l] = n_others > 0 ? T{1} / static_cast<T>(n_others) : T{0};
    }
    Vec<T> const share = load<T>(share_of);
    T const* const unit = work.operands.unit + Operands<T>::place_of_unit(shape, r);
    Index const unit_stride = Operands<T>::unit_stride(shape);
    T* const d_row = work.d_row + shape.place_of_sums(r);
    T const* const d_column = work.d_column + shape.place_of_sums(r);
    Vec<T> along_of_piece[modalities] = {};  // over 16 dimensions in T; these are summed in double
    for (Index k = 0; k < shape.D; ++k) {
        Vec<T> e[modalities], de[modalities], of_mean[modalities];
        for (int m = 0; m < modalities; ++m) {
            e[m] = load<T>(unit + m * unit_stride + k * PANEL);
            de[m] = load<T>(d_row + m * shape.matrix + k * SUMS_PANEL);
            of_mean[m] = shape.pairwise ? Vec<T>{} : load<T>(d_column + m * shape.matrix + k * SUMS_PANEL);
        }
        if constexpr (GradientProducts<T>::OWN_PAIRS_APART) {
            add_own_pairs<T>(shape, work, r, share, e, de, of_mean);
        }
        if (!shape.pairwise) {
            for (int m = 0; m < modalities; ++m) {
                de[m] += share * over_others<T>(of_mean, m);
            }
        }
        for (int m = 0; m < modalities; ++m) {
            store<T>(d_row + m * shape.matrix + k * SUMS_PANEL, de[m]);
            along_of_piece[m] += e[m] * de[m];
        }
        if (k % 16 == 15 || k + 1 == shape.D) {
            for (int m = 0; m < modalities; ++m) {
                alignas(64) T lane[width];
                store<T>(lane, along_of_piece[m]);
                for (Index l = 0; l < width; ++l) {
                    along[m][l] += static_cast<double>(lane[l]);
                }
                along_of_piece[m] = Vec<T>{};
            }
        }
    }
}

// From the gradients of e and o to that of x, for WIDTH samples from r on: dx = (de - e <e, de>) / |x|, once each
// modality's part of the other modalities' means is in de. What is absent or outside [begin, end) gets zeros.
template <typename T, typename Element>
inline void finish_gradients(ContrastiveBackward const& call, Shape const& shape, BackwardWork<T> const& work,
                             Index r) {
    constexpr Index width = WIDTH<T>;
    ContrastiveInput const& in = call.input;
    bool wanted[MAX_MODALITIES][width];
    bool any_of[MAX_MODALITIES] = {}, any = false;
    for (Index m = 0; m < shape.M; ++m) {
        for (Index l = 0; l < width; ++l) {
            Index const sample = r + l;
            wanted[m][l] = sample >= in.begin && sample < in.end && work.operands.n_others[sample] > 0 &&
                           is_present(in, m, sample);
            any_of[m] = any_of[m] || wanted[m][l];
            any = any || wanted[m][l];
            if (sample < shape.N && !wanted[m][l]) {
                std::memset(static_cast<Element*>(call.gradient_x) + (m * shape.N + sample) * shape.D, 0,
                            static_cast<std::size_t>(shape.D) * sizeof(Element));
            }
        }
    }
    if (!any) {
        return;
    }
    if constexpr (!Operands<T>::KEEPS_UNITS) {
        restore_units<T, Element>(in, shape, work.operands, r);
    }
    double along[MAX_MODALITIES][width] = {};
    switch (shape.M) {
        case 2: add_gradients_of_means<T, 2>(shape, work, r, along); break;
        case 3: add_gradients_of_means<T, 3>(shape, work, r, along); break;
        case 4: add_gradients_of_means<T, 4>(shape, work, r, along); break;
        case 5: add_gradients_of_means<T, 5>(shape, work, r, along); break;
        case 6: add_gradients_of_means<T, 6>(shape, work, r, along); break;
        case 7: add_gradients_of_means<T, 7>(shape, work, r, along); break;
        default: add_gradients_of_means<T, 8>(shape, work, r, along); break;
    }
    for (Index m = 0; m < shape.M; ++m) {
        if (!any_of[m]) {
            continue;
        }
        T const* const e =
            work.operands.unit + m * Operands<T>::unit_stride(shape) + Operands<T>::place_of_unit(shape, r);
        T const* const de = work.d_row + m * shape.matrix + shape.place_of_sums(r);
        alignas(64) T projection_of[width];
        alignas(64) T inverse_of[width];
        for (Index l = 0; l < width; ++l) {
            double const norm = work.operands.norm[m * shape.n_padded + r + l];
            projection_of[l] = norm < NORM_FLOOR ? T{0} : static_cast<T>(along[m][l]);
            inverse_of[l] = static_cast<T>(1.0 / divisor_of(norm));
        }
        Vec<T> const projection = load<T>(projection_of);
        Vec<T> const inverse = load<T>(inverse_of);
        alignas(64) T square[width * width];
        alignas(64) T turned[width * width];
        for (Index k = 0; k < shape.D; k += width) {
            Index const n = least(shape.D - k, width);
            for (Index i = 0; i < n; ++i) {
                Vec<T> dx = (load<T>(de + (k + i) * SUMS_PANEL) - load<T>(e + (k + i) * PANEL) * projection) * inverse;
                if constexpr (GradientProducts<T>::IS_SCALED) {
                    dx *= work.products.unscale;
                }
                store<T>(square + i * width, dx);
            }
            transpose<T>(square, width, turned, width);
            for (Index l = 0; l < width; ++l) {
                if (!wanted[m][l]) {
                    continue;
                }
                auto* const out = static_cast<Element*>(call.gradient_x) + (m * shape.N + r + l) * shape.D + k;
                T const* const row = turned + l * width;
                if (n == width) {
                    Element whole[width];
                    for (Index i = 0; i < width; ++i) {
                        narrow(row[i], whole[i]);
                    }
                    std::memcpy(out, whole, sizeof whole);
                } else {
                    for (Index i = 0; i < n; ++i) {
                        narrow(row[i], out[i]);
                    }
                }
            }
        }
    }
}

}  // namespace sleepfm::SLEEPFM_ISA
