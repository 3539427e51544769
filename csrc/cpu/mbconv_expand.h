// Expansion and depthwise convolution of a clip, a tile of samples and TALL channels at a time, so that what lies
// between them stays in the first cache. Shared by training and evaluation.
#pragma once

#include "cpu/mbconv_dropout.h"
#include "cpu/mbconv_workspace.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

// What a channel hands on from a tile to the next one. The depthwise convolution needs the sample before a tile, and
// with stride 1 the sample after it. With stride 1, a tile's last output is therefore left to the next tile, and its
// last two samples are handed on; with stride 2, its last odd sample.
struct Carry {
    float last, before;  // the last sample, and (stride 1) the one before it
};

// The end of a block: bias, dropout and residual for C vectors of a row of the projection, from sample t on. n: samples
// that count; x and y: the row.
template <int C>
inline void finish_rows(MBConvResidual const& residual, Dropout const& dropout, Index row, float bias, Index t,
                        Vector const (&vectors)[C], Index n, float const* x, float* y) {
    std::uint64_t const key = dropout.active ? dropout.key(row) : 0;
#pragma GCC unroll 3
    for (int c = 0; c < C; ++c) {
        Index const at = t + c * LANES, left = n - c * LANES;
        Vector v = dropout(vectors[c] + bias, key, at);
        if (residual.add) {
            v += load_first(x + at, left);
        }
        store_first(y + at, v, left);
    }
}

// How many of the S outputs are done after a tile.
inline Index expand_end(Columns const& at, Index S) {
    Index const end = at.first + at.n;
    return at.stride == 1 && end < S ? end - 1 : end;
}

// The samples that a depthwise convolution of 3 multiplies by its taps: output t needs before[t], at[t] and after[t].
struct Taps {
    float const *before, *at, *after;
};

// Goes through a tile, for every block of TALL channels: expands it; calls activation(c, t, vectors), which turns
// vectors of channel c, columns from t on, into the depthwise convolution's input; and calls convolve(c, n, taps) for
// TOGETHER channels from c on (those that share a word of the projection's factors), for the n outputs that follow
// those done before. If the last word has one channel too many, its taps repeat those of the channel before. x: the
// tile's panel; rows: scratch [TALL, ld_row].
template <Index TOGETHER, typename Factor, typename Activation, typename Convolve>
inline void expand_tile(MBConvShape const& s, Columns const& at, Strips const& strips, Factor const* packed,
                        Factor const* x, Carry* carry, float* rows, Activation activation, Convolve convolve) {
    static_assert(TALL % TOGETHER == 0);
    Index const first = at.first == 0, last = at.first + at.n == samples_out(s);
    Index const gap = 2 * LANES;  // room before every run of columns, of which stride 2 has two, for earlier samples
    Index const ld_row = at.count + 2 * gap;
    for (Index block = 0; block < s.width; block += TALL) {
        Index const n_rows = least(s.width - block, TALL);
        product_rows(strips, n_rows, s.n_in, packed + block * words_of<Factor>(s.n_in), x,
                     [=, offset = at.offset](Index r, Index t, auto& vectors, Index) {
                         constexpr int C = static_cast<int>(sizeof(vectors) / sizeof(Vector));
                         activation(block + r, t, vectors);
                         float* const to = rows + r * ld_row + gap + t;
#pragma GCC unroll 3
                         for (int c = 0; c < C; ++c) {
                             store(to + c * LANES + (t + c * LANES >= offset ? gap : 0), vectors[c]);
                         }
                     });
        // What lies around the rows of all channels first: the convolution's loads overlap these stores, and wait until
        // they have reached the cache.
        Taps taps[TALL];
        for (Index r = 0; r < round_up(n_rows, TOGETHER); ++r) {
            if (r >= n_rows) {
                taps[r] = taps[r - 1];
                continue;
            }
            Index const c = block + r;
            float* const h = rows + r * ld_row + gap;
            if (at.stride == 1) {
                h[-2] = first ? 0.0f : carry[c].before;
                h[-1] = first ? 0.0f : carry[c].last;
                h[at.n] = 0.0f;
                carry[c] = {h[at.n - 1], h[at.n - 2]};
                taps[r] = {h - 2 + first, h - 1 + first, h + first};
            } else {
                float* const odd = h + at.offset + gap;
                odd[-1] = first ? 0.0f : carry[c].last;
                if (at.n_odd < at.n) {
                    odd[at.n_odd] = 0.0f;
                }
                carry[c].last = odd[at.n - 1];
                taps[r] = {odd - 1, h, odd};
            }
        }
        for (Index r = 0; r < n_rows; r += TOGETHER) {
            convolve(block + r, at.stride == 1 ? at.n - first + last : at.n, taps + r);
        }
    }
}

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
