// Finds accesses that no barrier orders, whatever order they were carried out in. Sources compiled with
// -fsanitize=thread call __tsan_* at every load and store; here those functions are the emulator's own, and nothing of
// the compiler's runtime is linked. For every byte of global and shared memory it is kept who wrote and who read it
// last, and after which barriers.
//
// Two accesses of which one is a write are ordered if one thread makes both; within a block, if a barrier of all its
// threads stands between; within a warp, also if a sync_warp does (exchanges of registers order nothing); between
// blocks, if a grid barrier does. The bytes that cp.async writes may not be touched until its thread has waited, and
// count as written then.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fenced_memory.h"

namespace cuda_on_cpu::races {

#if defined(__SANITIZE_THREAD__)
constexpr bool looked_for = true;
#define SLEEPFM_NOT_WATCHED __attribute__((no_sanitize("thread")))
#else
constexpr bool looked_for = false;
#define SLEEPFM_NOT_WATCHED
#endif

constexpr std::uint32_t nobody = 0xffffffffu, several = 0xfffffffeu;

// A thread and the barriers that it had passed; `several` where more than one block, warp or lane read.
struct Access {
    std::uint32_t block, warp, lane;
    std::uint32_t grid_barriers, barriers, warp_syncs;  // passed before the access
};

struct Byte {
    Access write, read;
    bool atomic;     // the last write
    bool in_flight;  // an asynchronous copy will write it
};

constexpr Access none{nobody, nobody, nobody, 0, 0, 0};

SLEEPFM_NOT_WATCHED inline Byte* new_bytes(std::size_t n) {
    Byte* const bytes = static_cast<Byte*>(malloc((n > 0 ? n : 1) * sizeof(Byte)));
    for (std::size_t i = 0; i < n; ++i) {
        bytes[i] = {none, none, false, false};
    }
    return bytes;
}

// What is known of global memory, page by page of the arena.
inline Byte** pages = nullptr;
// While the emulator itself touches memory for a kernel.
inline bool quiet = false;

// The compiler does not know that the functions which it has loads and stores call read `quiet`.
struct Quiet {
    bool before = quiet;
    Quiet() {
        quiet = true;
        asm volatile("" ::: "memory");
    }
    Quiet(Quiet const&) = delete;
    Quiet& operator=(Quiet const&) = delete;
    ~Quiet() {
        asm volatile("" ::: "memory");
        quiet = before;
    }
};

SLEEPFM_NOT_WATCHED inline Byte& global_byte(std::size_t place) {
    constexpr std::size_t page = 4096;
    if (pages == nullptr) {
        pages = static_cast<Byte**>(calloc(arena_bytes / page + 1, sizeof(Byte*)));
    }
    Byte*& bytes = pages[place / page];
    if (bytes == nullptr) {
        bytes = new_bytes(page);
    }
    return bytes[place % page];
}

// True if nothing orders `earlier` before `now`.
SLEEPFM_NOT_WATCHED inline bool unordered(Access const& earlier, Access const& now) {
    if (earlier.block == nobody) {
        return false;
    }
    if (earlier.block != now.block) {
        return earlier.grid_barriers >= now.grid_barriers;
    }
    if (earlier.barriers != now.barriers) {
        return earlier.barriers > now.barriers;
    }
    if (earlier.warp != now.warp) {
        return true;
    }
    return earlier.lane != now.lane && earlier.warp_syncs >= now.warp_syncs;
}

// Makes `read` the last read, together with those before that it is not ordered with.
SLEEPFM_NOT_WATCHED inline void add_read(Access& last, Access const& read) {
    if (!unordered(last, read)) {
        last = read;
    } else if (last.block != read.block) {
        last.block = several;
    } else if (last.warp != read.warp) {
        last.warp = several;
    } else {
        last.lane = several;
    }
}

enum class Kind { read, write, atomic_read, atomic_write, copy_begins, copy_ends };
inline char const* const verbs[] = {"reads", "writes", "reads", "adds to", "begins a copy to", "ends a copy to"};

struct Race {
    Access const* with;  // null: a copy under way
    bool wrote;
};

// Takes an access to one byte into account. False, and `race`, if nothing orders it with another one.
SLEEPFM_NOT_WATCHED inline bool note(Byte& byte, Access const& now, Kind kind, Race& race) {
    if (byte.in_flight && kind != Kind::copy_ends) {
        race = {nullptr, true};
        return false;
    }
    bool const atomic = kind == Kind::atomic_read || kind == Kind::atomic_write;
    if (unordered(byte.write, now) && !(atomic && byte.atomic)) {
        race = {&byte.write, true};
        return false;
    }
    if (kind == Kind::read) {
        add_read(byte.read, now);
        return true;
    }
    if (kind == Kind::atomic_read) {
        return true;
    }
    if (unordered(byte.read, now)) {
        race = {&byte.read, false};
        return false;
    }
    byte.in_flight = kind == Kind::copy_begins;
    if (kind != Kind::copy_begins) {
        byte.write = now;
        byte.read = none;
        byte.atomic = atomic;
    }
    return true;
}

inline std::string who(Access const& a) {
    if (a.block == several) {
        return "threads of several blocks";
    }
    char text[96];
    if (a.warp == several || a.lane == several) {
        snprintf(text, sizeof text, "several threads of %s block number %u",
                 a.warp == several ? "" : ("warp " + std::to_string(a.warp) + " of").c_str(), a.block);
    } else {
        snprintf(text, sizeof text, "thread %u of block number %u", 32 * a.warp + a.lane, a.block);
    }
    return text;
}

}  // namespace cuda_on_cpu::races
