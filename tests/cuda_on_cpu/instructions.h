// The host bodies of csrc/cuda/ptx.h. A warp-collective instruction is carried out for the whole warp when its last
// lane arrives.
#pragma once

#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine.h"

namespace cuda_on_cpu {

// ---- warp-collective instructions -----------------------------------------------------------------------------------

// `act` sees the warp's lanes, each with its own `argument`; `parameter` must be the same in all lanes.
template <typename Argument, typename Act>
void collective(Collective kind, long parameter, Argument& argument, Act act) {
    Fiber& f = *machine->current;
    Warp& w = *f.warp;
    f.collective = kind;
    f.parameter = parameter;
    f.argument = &argument;
    std::uint32_t const all = w.n_lanes == 32 ? 0xffffffffu : (1u << w.n_lanes) - 1u;
    w.ready &= ~(1u << f.lane);
    w.at_collective |= 1u << f.lane;
    if (w.at_collective != all) {
        leave(false);
        return;
    }
    for (Fiber const* lane : w.lanes) {
        if (lane->collective != kind) {
            fault("the lanes of the warp are at different instructions: %s", warp_text(w).c_str());
        }
        if (lane->parameter != parameter) {
            fault("%s has %ld in lane %u and %ld in lane %u; expected the same in all lanes",
                  collective_names[static_cast<int>(kind)], parameter, f.lane, lane->parameter, lane->lane);
        }
    }
    {
        races::Quiet const quiet;
        act(w);
    }
    w.at_collective = 0;
    w.ready = all;
    ++machine->progress;
    Schedule const schedule = static_cast<Schedule>(machine->options->schedule);
    if (schedule == Schedule::round_robin || schedule == Schedule::shuffled) {
        leave(true);
    }
}

template <typename Argument>
Argument& argument_of(Warp const& w, unsigned lane) {
    return *static_cast<Argument*>(w.lanes[lane]->argument);
}

template <typename T>
struct Exchange {
    T value, result;
    int parameter;
};

template <typename T>
T shuffle(T value, Collective kind, int parameter) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    Exchange<T> exchange{value, value, parameter};
    long const same = kind == Collective::shuffle_idx ? 0 : parameter;
    collective(kind, same * 16 + static_cast<long>(sizeof(T)), exchange, [kind](Warp const& w) {
        for (unsigned lane = 0; lane < w.n_lanes; ++lane) {
            Exchange<T>& e = argument_of<Exchange<T>>(w, lane);
            unsigned const n = static_cast<unsigned>(e.parameter);
            unsigned const source = kind == Collective::shuffle_xor    ? lane ^ n
                                    : kind == Collective::shuffle_down ? lane + n
                                                                       : n % 32;
            e.result = source < w.n_lanes ? argument_of<Exchange<T>>(w, source).value : e.value;
        }
    });
    return exchange.result;
}

inline unsigned ballot(bool predicate) {
    Exchange<unsigned> exchange{predicate ? 1u : 0u, 0, 0};
    collective(Collective::ballot, 0, exchange, [](Warp const& w) {
        unsigned bits = 0;
        for (unsigned lane = 0; lane < w.n_lanes; ++lane) {
            bits |= argument_of<Exchange<unsigned>>(w, lane).value << lane;
        }
        for (unsigned lane = 0; lane < w.n_lanes; ++lane) {
            argument_of<Exchange<unsigned>>(w, lane).result = bits;
        }
    });
    return exchange.result;
}

inline void sync_warp() {
    Fiber& f = *machine->current;
    if (f.warp_syncs++ != machine->options->skipped_warp_sync) {
        int none = 0;
        collective(Collective::sync_warp, 0, none, [](Warp const& w) {
            for (Fiber* lane : w.lanes) {
                ++lane->passed.warp_syncs;
            }
        });
    }
}

// ---- tensor cores ---------------------------------------------------------------------------------------------------

inline void check_shared(char const* what, void const* address, std::size_t bytes) {
    Block const& block = *machine->current->warp->block;
    char const* const p = static_cast<char const*>(address);
    bool inside = p >= block.shared.begin && p + bytes <= block.shared.begin + block.shared.bytes;
    for (StaticShared const& s : block.statics) {
        inside = inside || (p >= s.memory && p + bytes <= s.memory + s.bytes);
    }
    if (!inside) {
        fault(
            "%s: the address does not lie in the block's shared memory (%zu bytes dynamic; %lld bytes from its "
            "beginning)",
            what, block.shared.bytes, static_cast<long long>(p - block.shared.begin));
    }
    if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0) {
        fault("%s: the address in shared memory is not a multiple of 16", what);
    }
}

struct MatrixRow {
    std::uint16_t const* row;
    std::uint32_t* r;
};

template <int n_matrices, bool transposed>
void ldmatrix(std::uint32_t (&r)[n_matrices], void const* smem_row) {
    if (machine->current->lane < 8 * n_matrices) {
        check_shared("ldmatrix", smem_row, 16);
        note_unless_quiet(smem_row, 16, races::Kind::read);
    }
    MatrixRow mine{static_cast<std::uint16_t const*>(smem_row), r};
    collective(Collective::ldmatrix, 2 * n_matrices + (transposed ? 1 : 0), mine, [](Warp const& w) {
        if (w.n_lanes != 32) {
            fault("ldmatrix: the warp has %u lanes; expected 32", w.n_lanes);
        }
        for (int m = 0; m < n_matrices; ++m) {
            std::uint16_t const* rows[8];
            int in_bank[8] = {};
            int wavefronts = 0;
            for (unsigned i = 0; i < 8; ++i) {
                rows[i] = argument_of<MatrixRow>(w, 8 * static_cast<unsigned>(m) + i).row;
                std::size_t const four_banks = reinterpret_cast<std::uintptr_t>(rows[i]) / 16 % 8;
                wavefronts = std::max(wavefronts, ++in_bank[four_banks]);
            }
            machine->options->ldmatrix_wavefronts += wavefronts;
            for (unsigned lane = 0; lane < 32; ++lane) {
                unsigned const g = lane / 4, t = lane % 4;
                std::uint32_t const low = transposed ? rows[2 * t][g] : rows[g][2 * t];
                std::uint32_t const high = transposed ? rows[2 * t + 1][g] : rows[g][2 * t + 1];
                argument_of<MatrixRow>(w, lane).r[m] = low | high << 16;
            }
        }
        machine->options->ldmatrix_matrices += n_matrices;
    });
}

enum class Half { f16, bf16 };

template <Half half>
inline float float_of(std::uint16_t bits) {
    std::uint32_t const sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
    if (half == Half::f16) {
        word = static_cast<std::uint32_t>(bits & 0x7fffu) << 13;
        if (word >= 0x0f800000u) {  // infinity, NaN
            word |= 0x7f800000u;
        } else {
            float value;
            memcpy(&value, &word, sizeof value);
            value *= 0x1p112f;  // exponent bias 127 - 15; exact for subnormal numbers too
            memcpy(&word, &value, sizeof word);
        }
        word |= sign;
    }
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

// How mma adds. rounded: as float does. Devices truncate: the products of a block and the sum so far are cut towards
// zero to multiples of 2^-(23 + EXTRA_BITS) of the largest power of two among them (a product's is that of its factors
// together), added exactly, and cut to a float. For float16 and bfloat16 blocks are of 8 with one extra bit on compute
// capability 8.x, of 16 with two on 9.0 (Khattak and Mikaitis, Accurate Models of NVIDIA Tensor Cores, 2025).
enum class Sums { rounded, ampere, hopper };

template <unsigned N, int EXTRA_BITS>
float sum_truncated(float sum, float const* a, float const* b) {
    bool finite = std::isfinite(sum);
    for (unsigned k = 0; k < N; ++k) {
        finite = finite && std::isfinite(a[k]) && std::isfinite(b[k]);
    }
    if (!finite) {
        for (unsigned k = 0; k < N; ++k) {
            sum += a[k] * b[k];
        }
        return sum;
    }
    int largest = sum == 0.0f ? INT_MIN : std::ilogb(sum);
    for (unsigned k = 0; k < N; ++k) {
        if (a[k] != 0.0f && b[k] != 0.0f) {
            int const exponent = std::ilogb(a[k]) + std::ilogb(b[k]);
            largest = exponent > largest ? exponent : largest;
        }
    }
    if (largest == INT_MIN) {
        return sum;
    }
    int const shift = 23 + EXTRA_BITS - largest;
    double const scale = std::ldexp(1.0, shift);
    auto total = static_cast<std::int64_t>(static_cast<double>(sum) * scale);
    for (unsigned k = 0; k < N; ++k) {
        total += static_cast<std::int64_t>(static_cast<double>(a[k]) * static_cast<double>(b[k]) * scale);
    }
    std::int64_t magnitude = total < 0 ? -total : total;
    for (int dropped = 1; magnitude >> 24 >= std::int64_t{1} << dropped >> 1; ++dropped) {
        magnitude = magnitude >> dropped << dropped;
    }
    return static_cast<float>(std::ldexp(static_cast<double>(total < 0 ? -magnitude : magnitude), -shift));
}

struct Fragments {
    float* d;
    std::uint32_t const* a;
    std::uint32_t const* b;
};

template <Half half>
__attribute__((no_sanitize("undefined"))) void multiply(Warp const& w) {
    if (w.n_lanes != 32) {
        fault("mma: the warp has %u lanes; expected 32", w.n_lanes);
    }
    auto const low = [](std::uint32_t v) { return float_of<half>(static_cast<std::uint16_t>(v)); };
    auto const high = [](std::uint32_t v) { return float_of<half>(static_cast<std::uint16_t>(v >> 16)); };
    float a[16][16], d[16][8], b[16][8];
    for (unsigned lane = 0; lane < 32; ++lane) {
        unsigned const g = lane / 4, t = lane % 4;
        Fragments const& f = argument_of<Fragments>(w, lane);
        for (unsigned i = 0; i < 4; ++i) {
            unsigned const row = g + 8 * (i % 2), column = 2 * t + 8 * (i / 2);
            a[row][column] = low(f.a[i]);
            a[row][column + 1] = high(f.a[i]);
        }
        for (unsigned i = 0; i < 2; ++i) {
            b[2 * t + 8 * i][g] = low(f.b[i]);
            b[2 * t + 8 * i + 1][g] = high(f.b[i]);
        }
        for (unsigned i = 0; i < 4; ++i) {
            d[g + 8 * (i / 2)][2 * t + i % 2] = f.d[i];
        }
    }
    Sums const sums = static_cast<Sums>(machine->options->sums);
    for (unsigned row = 0; row < 16 && sums == Sums::rounded; ++row) {
        for (unsigned k = 0; k < 16; ++k) {
            float const factor = a[row][k];
            for (unsigned column = 0; column < 8; ++column) {
                d[row][column] += factor * b[k][column];
            }
        }
    }
    for (unsigned column = 0; column < 8 && sums != Sums::rounded; ++column) {
        float factors[16];
        for (unsigned k = 0; k < 16; ++k) {
            factors[k] = b[k][column];
        }
        for (unsigned row = 0; row < 16; ++row) {
            float& sum = d[row][column];
            if (sums == Sums::hopper) {
                sum = sum_truncated<16, 2>(sum, a[row], factors);
            } else {
                sum = sum_truncated<8, 1>(sum, a[row], factors);
                sum = sum_truncated<8, 1>(sum, a[row] + 8, factors + 8);
            }
        }
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
        unsigned const g = lane / 4, t = lane % 4;
        for (unsigned i = 0; i < 4; ++i) {
            argument_of<Fragments>(w, lane).d[i] = d[g + 8 * (i / 2)][2 * t + i % 2];
        }
    }
    ++machine->options->mma;
}

template <Half half>
void mma_m16n8k16(float (&d)[4], std::uint32_t const (&a)[4], std::uint32_t const (&b)[2]) {
    Fragments mine{d, a, b};
    collective(Collective::mma, static_cast<long>(half), mine, [](Warp const& w) { multiply<half>(w); });
}

// ---- copies ---------------------------------------------------------------------------------------------------------

inline void check_global(char const* what, void const* address, std::size_t bytes = 16) {
    if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
        fault("%s: the address in global memory is not a multiple of %zu", what, bytes);
    }
}

inline void check_not_written(void const* global) {
    Buffer const* const buffer = buffer_of(global);
    if (buffer != nullptr && buffer->writable) {
        fault(
            "the read-only path reads buffer '%s', which this kernel may write: it may give old "
            "bytes, use load_16",
            buffer->name.c_str());
    }
}

inline void carry_out(Copy const& copy) {
    if (copy.valid) {
        memcpy(copy.to, copy.from, 16);
    } else {
        memset(copy.to, 0, 16);
    }
}

inline void cp_async_16(void* smem, void const* global, bool valid) {
    check_shared("cp_async_16", smem, 16);
    if (valid) {
        check_global("cp_async_16", global);
    }
    Fiber& f = *machine->current;
    Copy const copy{smem, global, valid};
    note_unless_quiet(smem, 16, races::Kind::copy_begins);
    races::Quiet const quiet;
    if (valid) {
        note_access(global, 16, races::Kind::read);
    }
    if (static_cast<Copies>(machine->options->copies) == Copies::eager) {
        carry_out(copy);
    } else {
        memset(smem, poison_byte, 16);
    }
    f.open_copies.push_back(copy);
    ++machine->options->copies_issued;
}

inline void cp_async_commit() {
    Fiber& f = *machine->current;
    f.groups.push_back(std::move(f.open_copies));
    f.open_copies.clear();
}

inline void cp_async_wait(int pending) {
    Fiber& f = *machine->current;
    if (f.waits++ == machine->options->skipped_wait) {
        return;
    }
    races::Quiet const quiet;
    while (f.groups.size() > static_cast<std::size_t>(pending)) {
        for (Copy const& copy : f.groups.front()) {
            if (static_cast<Copies>(machine->options->copies) == Copies::deferred) {
                carry_out(copy);
            }
            note_access(copy.to, 16, races::Kind::copy_ends);
            if (copy.valid) {
                note_access(copy.from, 16, races::Kind::read);
            }
        }
        f.groups.erase(f.groups.begin());
    }
}

template <typename Words>
Words load_16(void const* global, bool streaming) {
    check_global(streaming ? "load_16_streaming" : "load_16", global);
    if (streaming) {
        check_not_written(global);
    }
    note_unless_quiet(global, sizeof(Words), races::Kind::read);
    races::Quiet const quiet;
    Words words;
    memcpy(&words, global, sizeof words);
    return words;
}

template <typename Word>
Word load_word(void const* global) {
    check_global(sizeof(Word) == 4 ? "load_4" : "load_8", global, sizeof(Word));
    check_not_written(global);
    note_unless_quiet(global, sizeof(Word), races::Kind::read);
    races::Quiet const quiet;
    Word word;
    memcpy(&word, global, sizeof word);
    return word;
}

template <typename Words>
void store_16(void* global, Words const& words) {
    check_global("store_16", global);
    note_unless_quiet(global, sizeof words, races::Kind::write);
    races::Quiet const quiet;
    memcpy(global, &words, sizeof words);
}

// ---- between blocks -------------------------------------------------------------------------------------------------

inline unsigned atomic_add(unsigned* word, unsigned value) {
    note_unless_quiet(word, sizeof *word, races::Kind::atomic_write);
    races::Quiet const quiet;
    unsigned const before = *word;
    *word = before + value;
    return before;
}

// Others run before the word is read.
inline unsigned load_acquire(unsigned const* global) {
    Fiber& f = *machine->current;
    f.warp->ready &= ~(1u << f.lane);
    f.warp->spinning |= 1u << f.lane;
    leave(true);
    note_unless_quiet(global, sizeof *global, races::Kind::atomic_read);
    races::Quiet const quiet;
    return *global;
}

}  // namespace cuda_on_cpu
