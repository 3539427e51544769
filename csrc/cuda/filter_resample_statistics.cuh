// What is done with the outputs of a row in shared memory: sums and order statistics over the block, and writing them
// out. The order of sums depends on nothing but sizes, so that the bits are the same in every run.
#pragma once

#include "cuda/filter_resample_plan.h"
#include "cuda/ptx.h"
#include "half_precision.h"
#include "launch.h"

namespace sleepfm::cuda {

constexpr int most_warps = static_cast<int>(filter_resample_threads / 32);

// Combines the values of all threads of the block, in a fixed order; every thread gets the result. All threads call it.
template <typename T, typename Combine>
__device__ T reduce_block(T value, Combine combine) {
    SLEEPFM_SHARED(T, of_warp, [most_warps]);
    for (int mask = 16; mask > 0; mask /= 2) {
        value = combine(value, ptx::shuffle_xor(value, mask));
    }
    if (ptx::thread_index() % 32 == 0) {
        of_warp[ptx::thread_index() / 32] = value;
    }
    ptx::sync_threads();
    value = of_warp[0];
    for (unsigned w = 1; w < blockDim.x / 32; ++w) {
        value = combine(value, of_warp[w]);
    }
    ptx::sync_threads();  // all have read of_warp, which the next call writes
    return value;
}

template <typename T>
__device__ T sum_over_block(T value) {
    return reduce_block(value, [](T a, T b) { return a + b; });
}
template <typename T>
__device__ T least_of_block(T value) {
    return reduce_block(value, [](T a, T b) { return a < b ? a : b; });
}

// The place of output n in rows of `period` outputs (output_row_floats), which advances without divisions.
struct Cursor {
    int phase, repeat_floats;

    __device__ Cursor(FilterPlan const& plan, int n)
        : phase(n % plan.period), repeat_floats(n / plan.period * plan.row_floats) {}
    __device__ int place() const { return repeat_floats + place_in_row(phase); }
    // By a number of outputs that is whole_floats / row_floats periods and `rest` < period phases.
    __device__ void advance(FilterPlan const& plan, int whole_floats, int rest) {
        phase += rest;
        repeat_floats += whole_floats;
        if (phase >= plan.period) {
            phase -= plan.period;
            repeat_floats += plan.row_floats;
        }
    }
};

// Calls see(output) for outputs [0, n), each by one thread; a thread sees its own in increasing order.
template <typename See>
__device__ void for_each_output(FilterPlan const& plan, float const* y, int n, See see) {
    int const n_threads = static_cast<int>(blockDim.x), thread = ptx::thread_index();
    int const whole_floats = n_threads / plan.period * plan.row_floats, rest = n_threads % plan.period;
    Cursor at(plan, thread);
    for (int i = thread; i < n; i += n_threads) {
        see(y[at.place()]);
        at.advance(plan, whole_floats, rest);
    }
}

// ---- order statistics -----------------------------------------------------------------------------------------------

// An unsigned integer for each float, in the same order, and back: negative floats have all bits inverted, others the
// sign bit.
__device__ inline std::uint32_t order_key(float value) {
    std::uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}
__device__ inline float value_of_key(std::uint32_t key) {
    std::uint32_t const bits = key ^ ((key >> 31) != 0 ? 0x80000000u : 0xffffffffu);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Three quartiles by radix selection over the keys, in shared memory. A quartile lies between two neighbours in the
// sorted outputs; passes 0 to 3 find the key of the lower one, eight bits each from the top, and pass 4 the upper one.
struct Quartiles {
    std::uint32_t count[3][256];  // outputs that share the prefix, by their next eight bits
    std::uint32_t prefix[3];      // bits of the lower neighbour's key found so far; in the end the key
    std::uint32_t rank[3];        // its rank among the outputs that share them
    std::int64_t up_to[3];        // number of outputs that are not above the lower neighbour
    std::uint32_t above[3];       // the least key above it
};

// Before each pass: counts to 0, and before the first one the ranks of the lower neighbours among n outputs. Ends with
// a barrier.
__device__ inline void begin_pass(Quartiles& q, int pass, std::int64_t n) {
    for (int i = ptx::thread_index(); i < 3 * 256; i += static_cast<int>(blockDim.x)) {
        q.count[i / 256][i % 256] = 0;
    }
    if (pass == 0 && ptx::thread_index() == 0) {
        for (int k = 0; k < 3; ++k) {
            q.prefix[k] = 0;
            q.up_to[k] = 0;
            q.above[k] = 0xffffffffu;
            q.rank[k] = static_cast<std::uint32_t>(0.25 * (k + 1) * static_cast<double>(n - 1));
        }
    }
    ptx::sync_threads();
}

// Passes 0 to 3: counts the outputs [0, n) at y. In pass 0 all share the empty prefix, so that one count serves all
// three.
__device__ inline void count_digits(Quartiles& q, int pass, FilterPlan const& plan, float const* y, int n) {
    int const shift = 24 - 8 * pass;
    std::uint32_t const known = pass == 0 ? 0u : 0xffffffffu << (shift + 8);
    std::uint32_t const p0 = q.prefix[0], p1 = q.prefix[1], p2 = q.prefix[2];
    for_each_output(plan, y, n, [&](float value) {
        std::uint32_t const key = order_key(value), digit = key >> shift & 255u;
        if ((key & known) == p0) {
            ptx::add_shared_u32(&q.count[0][digit], 1);
        }
        if (pass > 0 && (key & known) == p1) {
            ptx::add_shared_u32(&q.count[1][digit], 1);
        }
        if (pass > 0 && (key & known) == p2) {
            ptx::add_shared_u32(&q.count[2][digit], 1);
        }
    });
}

// After each of passes 0 to 3: a warp for each quartile finds the digit in which its rank falls. A lane has eight
// digits; a prefix sum over the lanes says which lane's they are, and only that lane writes. Begins and ends with a
// barrier.
__device__ inline void end_digit(Quartiles& q, int pass) {
    ptx::sync_threads();
    int const lane = ptx::thread_index() % 32, shift = 24 - 8 * pass;
    for (int k = ptx::thread_index() / 32; k < 3; k += static_cast<int>(blockDim.x) / 32) {
        std::uint32_t const* const count = q.count[pass == 0 ? 0 : k];  // of the first digit: the same for all three
        std::uint32_t own = 0;
        for (int i = 0; i < 8; ++i) {
            own += count[8 * lane + i];
        }
        std::uint32_t up_to = own;
        for (int distance = 1; distance < 32; distance *= 2) {
            std::uint32_t const left = ptx::shuffle_idx(up_to, lane < distance ? 0 : lane - distance);
            up_to += lane < distance ? 0 : left;
        }
        std::uint32_t const rank = q.rank[k];
        ptx::sync_warp();  // all lanes have read the rank, which one of them overwrites
        std::uint32_t below = up_to - own;
        if (rank >= below && rank < up_to) {
            int digit = 8 * lane;
            for (; rank >= below + count[digit]; ++digit) {
                below += count[digit];
            }
            q.prefix[k] |= static_cast<std::uint32_t>(digit) << shift;
            q.rank[k] = rank - below;
        }
    }
    ptx::sync_threads();
}

// Pass 4: for each quartile, how many of the outputs [0, n) at y are not above its lower neighbour, and the least key
// above it.
__device__ inline void count_neighbours(Quartiles& q, FilterPlan const& plan, float const* y, int n) {
#pragma unroll 1
    for (int k = 0; k < 3; ++k) {
        int up_to = 0;
        std::uint32_t above = 0xffffffffu;
        std::uint32_t const found = q.prefix[k];
        for_each_output(plan, y, n, [&](float value) {
            std::uint32_t const key = order_key(value);
            up_to += key > found ? 0 : 1;
            above = key > found && key < above ? key : above;
        });
        up_to = sum_over_block(up_to);
        above = least_of_block(above);
        if (ptx::thread_index() == 0) {
            q.up_to[k] += up_to;
            q.above[k] = above < q.above[k] ? above : q.above[k];
        }
    }
}

// Quartile k of n outputs, as numpy.quantile has it: linear between the two neighbours.
__device__ inline double quartile(Quartiles const& q, int k, std::int64_t n) {
    double const place = 0.25 * (k + 1) * static_cast<double>(n - 1);
    std::int64_t const rank = static_cast<std::int64_t>(place);
    double const share = place - static_cast<double>(rank), low = static_cast<double>(value_of_key(q.prefix[k]));
    double const next = q.up_to[k] > rank + 1 ? low : static_cast<double>(value_of_key(q.above[k]));
    return share > 0.0 ? low + share * (next - low) : low;
}

// ---- writing --------------------------------------------------------------------------------------------------------

__device__ inline void put(float* out, float value) {
    *out = value;
}

struct Bf16 {
    std::uint16_t bits;
};
struct F16 {
    std::uint16_t bits;
};

__device__ inline void put(Bf16* out, float value) {
    out->bits = to_bf16(value);
}
__device__ inline void put(F16* out, float value) {
    out->bits = to_f16(value);
}

__device__ inline ptx::Words4 pack(float const (&v)[4], float const*) {
    ptx::Words4 words;
    memcpy(&words, v, sizeof words);
    return words;
}
__device__ inline ptx::Words4 pack(float const (&v)[8], Bf16 const*) {
    return {{ptx::pack_bf16(v[0], v[1]), ptx::pack_bf16(v[2], v[3]), ptx::pack_bf16(v[4], v[5]),
             ptx::pack_bf16(v[6], v[7])}};
}
__device__ inline ptx::Words4 pack(float const (&v)[8], F16 const*) {
    return {
        {ptx::pack_f16(v[0], v[1]), ptx::pack_f16(v[2], v[3]), ptx::pack_f16(v[4], v[5]), ptx::pack_f16(v[6], v[7])}};
}

// Writes out[0 .. n), by all threads, 16 bytes at a time where they are aligned. value(i, values) fills an array with
// the values for out[i], out[i + 1], ...: a vector's, or a single one.
template <typename Out, typename Value>
__device__ void write_values(Out* out, std::int64_t n, Value value) {
    constexpr int width = 16 / sizeof(Out);
    int const thread = ptx::thread_index(), n_threads = static_cast<int>(blockDim.x);
    std::uintptr_t const address = reinterpret_cast<std::uintptr_t>(out);
    std::int64_t lead = static_cast<std::int64_t>((16 - address % 16) % 16 / sizeof(Out));
    lead = lead < n ? lead : n;
    std::int64_t const n_vectors = (n - lead) / width, last = lead + n_vectors * width;
    for (std::int64_t v = thread; v < n_vectors; v += n_threads) {
        float values[width];
        value(lead + v * width, values);
        ptx::store_16(out + lead + v * width, pack(values, out));
    }
    auto const single = [&](std::int64_t i) {
        float values[1];
        value(i, values);
        put(out + i, values[0]);
    };
    for (std::int64_t i = thread; i < lead; i += n_threads) {
        single(i);
    }
    for (std::int64_t i = last + thread; i < n; i += n_threads) {
        single(i);
    }
}

template <typename Out>
__device__ void fill(Out* out, std::int64_t n, float value) {
    for (std::int64_t i = ptx::thread_index(); i < n; i += blockDim.x) {
        put(out + i, value);
    }
}

// out[i] = a y[i] + b for i in [0, n).
template <typename Out>
__device__ void write_outputs(Out* out, FilterPlan const& plan, float const* y, int n, float a, float b) {
    write_values(out, n, [&](std::int64_t i, auto& values) {
        Cursor at(plan, static_cast<int>(i));
        for (float& value : values) {
            value = y[at.place()] * a + b;
            at.advance(plan, 0, 1);
        }
    });
}

}  // namespace sleepfm::cuda
