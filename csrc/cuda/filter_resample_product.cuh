// From samples and taps to outputs, for one tile: the inner loop of the CUDA filter. See filter_resample_plan.h for how
// the outputs are dealt out to threads.
#pragma once

#include "cuda/filter_resample_plan.h"
#include "cuda/ptx.h"

namespace sleepfm::cuda {

struct alignas(16) Four {
    float part[4];
};

// A channel's samples: `length` of them, the first one at segment index `start`.
template <typename Raw>
struct Window {
    Raw const* samples;
    std::int64_t start, length;
    std::int64_t reference;

    // The sample at a segment index, less the reference; beyond the window its first or last sample repeats.
    __device__ float at(std::int64_t index) const {
        std::int64_t i = index - start;
        i = i < 0 ? 0 : i > length - 1 ? length - 1 : i;
        return relative(samples[i]);
    }
    __device__ float relative(Raw sample) const {
        if (sizeof(Raw) == 2) {
            return static_cast<float>(static_cast<int>(sample) - static_cast<int>(reference));
        }
        return static_cast<float>(static_cast<std::int64_t>(sample) - reference);
    }
};

// The block's threads together call one(i, x[i]) or vector(i, samples of 16 bytes from x[i] on, number of the vector)
// so that each of x[begin .. end) is seen once. Vectors are aligned, and nothing outside the range is read.
template <typename Raw, typename One, typename Vector>
__device__ void for_each_sample(Raw const* x, int begin, int end, One one, Vector vector) {
    constexpr int width = 16 / sizeof(Raw);
    int const thread = ptx::thread_index(), n_threads = static_cast<int>(blockDim.x);
    std::uintptr_t const address = reinterpret_cast<std::uintptr_t>(x + begin);
    int lead = static_cast<int>((16 - address % 16) % 16 / sizeof(Raw));
    lead = lead < end - begin ? lead : end - begin;
    int const first = begin + lead, n_vectors = (end - first) / width, last = first + n_vectors * width;
    for (int v = thread; v < n_vectors; v += n_threads) {
        int const i = first + v * width;
        ptx::Words4 const words = ptx::load_16_read_only(x + i);
        Raw samples[width];
        memcpy(samples, &words, sizeof words);
        vector(i, samples, v);
    }
    for (int i = begin + thread; i < first; i += n_threads) {
        one(i, x[i]);
    }
    for (int i = last + thread; i < end; i += n_threads) {
        one(i, x[i]);
    }
}

// to[place(i)] = sample `begin` + i of the segment, for i in [0, n), by all threads; no barrier. A lane l has loaded
// samples w l to w l + w - 1, w = `width`. If all lanes wrote their first, then their second, ..., w lanes at a time
// would meet in one bank; lane l therefore writes number k ^ (l w / 32) at step k, for which it permutes its registers.
template <typename Raw, typename Place>
__device__ void load_samples(Window<Raw> const& window, std::int64_t begin, int n, float* to, Place place) {
    constexpr int width = 16 / sizeof(Raw);
    std::int64_t const before = window.start - begin, behind = before + window.length;
    int const first = before < 0 ? 0 : before > n ? n : static_cast<int>(before);
    int const last = behind > n ? n : behind < first ? first : static_cast<int>(behind);
    for_each_sample(
        window.samples - before, first, last, [&](int i, Raw sample) { to[place(i)] = window.relative(sample); },
        [&](int i, Raw const(&samples)[width], int v) {
            float value[width];
            for (int k = 0; k < width; ++k) {
                value[k] = window.relative(samples[k]);
            }
            int const turn = v % 32 * width / 32;
            for (int bit = 1; bit < width; bit *= 2) {
                bool const swap = (turn & bit) != 0;
                for (int k = 0; k < width; ++k) {
                    if ((k & bit) == 0) {
                        float const a = value[k], b = value[k | bit];
                        value[k] = swap ? b : a;
                        value[k | bit] = swap ? a : b;
                    }
                }
            }
            for (int k = 0; k < width; ++k) {
                to[place(i + (k ^ turn))] = value[k];
            }
        });
    int const thread = ptx::thread_index(), n_threads = static_cast<int>(blockDim.x);
    float const left = first > 0 ? window.relative(window.samples[0]) : 0.0f;
    for (int i = thread; i < first; i += n_threads) {
        to[place(i)] = left;
    }
    float const right = last < n ? window.relative(window.samples[window.length - 1]) : 0.0f;
    for (int i = last + thread; i < n; i += n_threads) {
        to[place(i)] = right;
    }
}

// Of each phase of a tile: its row of taps, and where its samples begin. In shared memory.
struct Phases {
    int row[largest_period];    // place of the row from main_offset on, in floats
    int start[largest_period];  // first sample of its output of repeat 0
};

// Loads a chunk of the table, from tap k0 on, to shared memory [groups * P, chunk]: table[v][k] is the tap of phase v
// for the sample k0 + k after the group's first one, tap k0 + k - (start[v] - group's first), 0 where there is none.
__device__ inline void load_taps(FilterRow const& f, FilterPlan const& plan, Phases const& phases, float const* taps,
                                 int n_rows, int k0, float* table) {
    int const lane = ptx::thread_index() % 32, per_group = n_rows / plan.groups;
    float const* const main = taps + f.main_offset;
    int const n = static_cast<int>(f.main_taps);
    for (int v = ptx::thread_index() / 32; v < n_rows; v += static_cast<int>(blockDim.x) / 32) {
        bool const used = v < plan.period;
        int const group_start = phases.start[v / per_group * per_group];
        int const shift = used ? phases.start[v] - (plan.padded != 0 ? group_start / 4 * 4 : group_start) - k0 : 0;
        float const* const h = used ? main + phases.row[v] : main;
        for (int k = lane; k < plan.chunk; k += 32) {
            int const tap = k - shift;
            table[v * plan.chunk + k] = used && tap >= 0 && tap < n ? h[tap] : 0.0f;
        }
    }
}

// sums[p J + i] += sum over k < n of table[p][k] samples[base[i] + k], P phases and J repeats of a thread; n is a
// multiple of 4, and so is base[i] if padded.
template <int P, int J, bool padded>
__device__ __forceinline__ void multiply(float (&sums)[32], float const* samples, int const (&base)[4],
                                         float const* table, int stride, int n) {
#pragma unroll 1
    for (int k = 0; k < n; k += 4) {
        Four x[J];
#pragma unroll
        for (int i = 0; i < J; ++i) {
            if (padded) {  // base and k are multiples of 4: the four lie between two pads
                x[i] = *reinterpret_cast<Four const*>(samples + place_of_sample(base[i] + k, true));
            } else {
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    x[i].part[c] = samples[base[i] + k + c];
                }
            }
        }
#pragma unroll
        for (int p = 0; p < P; ++p) {
            Four const h = *reinterpret_cast<Four const*>(table + p * stride + k);
#pragma unroll
            for (int i = 0; i < J; ++i) {
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    sums[p * J + i] = fmaf(h.part[c], x[i].part[c], sums[p * J + i]);
                }
            }
        }
    }
}

// A thread's outputs: phases group * P + p, p < P, of repeats first + 32 i, i < J.
struct ThreadPlace {
    int group, first;

    __device__ ThreadPlace(FilterPlan const& plan, FilterShape const& shape) {
        int const thread = ptx::thread_index();
        group = thread / 32 % plan.groups;
        first = thread / 32 / plan.groups * 32 * shape.repeats + thread % 32;
    }
};

// Computes the n_outputs outputs of a tile. samples: all that the tile needs; table: shared memory behind them; y:
// where output 0 goes, perhaps over the samples, which is why a barrier stands before the writing. n_outputs is a
// reference to shared memory, read again where it is needed, to spare a register.
__device__ inline void multiply_tile(FilterRow const& f, FilterPlan const& plan, Phases const& phases,
                                     float const* taps, float const* samples, float* table, float* y,
                                     int const& n_outputs) {
    float sums[32] = {};
    for (int k0 = 0; k0 < plan.taps; k0 += plan.chunk) {
        if (k0 > 0) {
            ptx::sync_threads();  // all have done with the previous chunk
        }
        FilterShape const shape = filter_shape(plan.shape);
        load_taps(f, plan, phases, taps, plan.groups * shape.phases, k0, table);
        ptx::sync_threads();
        ThreadPlace const at(plan, shape);
        int const n_repeats = (n_outputs + plan.period - 1) / plan.period;
        if (at.first / 32 * 32 < n_repeats) {
            int const start = phases.start[at.group * shape.phases];
            int base[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                int const j = at.first + 32 * i < n_repeats ? at.first + 32 * i : n_repeats - 1;
                base[i] = (plan.padded != 0 ? start / 4 * 4 : start) + j * plan.advance + k0;
            }
            int const stride = plan.chunk, n = plan.taps - k0 < stride ? plan.taps - k0 : stride;
            float const* const rows = table + at.group * shape.phases * stride;
            switch (2 * plan.shape + plan.padded) {
                case 2: multiply<8, 4, false>(sums, samples, base, rows, stride, n); break;
                case 3: multiply<8, 4, true>(sums, samples, base, rows, stride, n); break;
                case 4: multiply<16, 2, false>(sums, samples, base, rows, stride, n); break;
                case 5: multiply<16, 2, true>(sums, samples, base, rows, stride, n); break;
                case 6: multiply<8, 2, false>(sums, samples, base, rows, stride, n); break;
                case 7: multiply<8, 2, true>(sums, samples, base, rows, stride, n); break;
                case 8: multiply<32, 1, false>(sums, samples, base, rows, stride, n); break;
                case 9: multiply<32, 1, true>(sums, samples, base, rows, stride, n); break;
                case 10: multiply<8, 1, false>(sums, samples, base, rows, stride, n); break;
                default: multiply<8, 1, true>(sums, samples, base, rows, stride, n); break;
            }
        }
    }
    ptx::sync_threads();  // all have done with the samples
    FilterShape const shape = filter_shape(plan.shape);
    ThreadPlace const at(plan, shape);
    int const n_repeats = (n_outputs + plan.period - 1) / plan.period;
#pragma unroll
    for (int s = 0; s < 32; ++s) {
        int const v = at.group * shape.phases + s / shape.repeats, j = at.first + s % shape.repeats * 32;
        if (s < shape.phases * shape.repeats && v < plan.period && j < n_repeats) {
            y[j * plan.row_floats + place_in_row(v)] = sums[s];
        }
    }
}

// For any rate: one output for each thread at a time, with its row of taps from device memory. place(i): where output i
// of the tile goes.
template <typename Where>
__device__ void single_outputs(FilterRow const& f, std::int64_t phase, std::int64_t begin, int n, float const* taps,
                               float const* samples, float* y, Where place) {
    std::int64_t const q0 = place_of(f, phase, begin).q;
    for (int i = ptx::thread_index(); i < n; i += static_cast<int>(blockDim.x)) {
        sleepfm::Place const at = place_of(f, phase, begin + i);
        float const* const h = taps + f.main_offset + at.row * f.main_stride;
        float const* const x = samples + (at.q - q0);
        float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
        for (int t = 0; t < static_cast<int>(f.main_stride); t += 4) {
            ptx::Words4 const words = ptx::load_16_read_only(h + t);
            Four four;
            memcpy(&four, &words, sizeof four);
            a += four.part[0] * x[t];
            b += four.part[1] * x[t + 1];
            c += four.part[2] * x[t + 2];
            d += four.part[3] * x[t + 3];
        }
        y[place(i)] = (a + b) + (c + d);
    }
}

}  // namespace sleepfm::cuda
