// Threads as fibers, warps, blocks, barriers and the schedules that set them against each other.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "fenced_memory.h"
#include "races.h"

namespace cuda_on_cpu {

// Which warp runs when. A warp that runs goes on to its next barrier, except where said. `seed` permutes the warps.
enum class Schedule : int {
    run_ahead = 0,    // always the first warp (of a permutation) that can: it is ahead of the others by a barrier
    reversed = 1,     // as run_ahead, from the last warp and the last lane to the first
    round_robin = 2,  // the next warp after every warp-collective instruction
    shuffled = 3,     // any warp after every warp-collective instruction, lanes in any order
};

// When the bytes of cp.async arrive: at once, or at the wait, the destination being poison until then.
enum class Copies : int { eager = 0, deferred = 1 };

enum class Collective : int { none, shuffle_xor, shuffle_down, shuffle_idx, ballot, ldmatrix, mma, sync_warp };
inline char const* const collective_names[] = {"no instruction", "shuffle_xor", "shuffle_down", "shuffle_idx",
                                               "ballot",         "ldmatrix",    "mma",          "sync_warp"};

// What a test asks of a launch and what it gets back; tests/emulated_cuda.py holds the same structure.
struct Options {
    int schedule, copies, sums;
    std::uint32_t seed;
    std::int32_t time_limit_s;
    // Planted faults: every thread runs through its n-th barrier, ...; -1: none.
    std::int64_t skipped_barrier, skipped_wait, skipped_warp_sync, skipped_grid_barrier;
    // Largest count of a thread, over all launches of this call.
    std::int64_t barriers, waits, warp_syncs, grid_barriers;
    // Sums over all warps and launches. An ldmatrix without bank conflicts takes one wavefront a matrix.
    std::int64_t mma, ldmatrix_matrices, ldmatrix_wavefronts, copies_issued;
    char message[1024];
};

struct Copy {
    void* to;
    void const* from;
    bool valid;
};

struct Warp;
struct Fiber {
    jmp_buf point;
    bool started = false;
    Warp* warp = nullptr;
    unsigned lane = 0;
    Dim3 thread;
    int barrier = -1;  // that it waits at
    Collective collective = Collective::none;
    long parameter = 0;
    void* argument = nullptr;
    std::int64_t barriers = 0, waits = 0, warp_syncs = 0, grid_barriers = 0;
    races::Access passed{};  // where it is, and the barriers behind it
    std::vector<Copy> open_copies;
    std::vector<std::vector<Copy>> groups;  // oldest first
};

struct Block;
struct Warp {
    Block* block = nullptr;
    unsigned n_lanes = 0;
    std::vector<Fiber*> lanes;
    std::uint32_t ready = 0, at_collective = 0, spinning = 0, ended = 0;
};

struct Barrier {
    int expected = 0, arrived = 0;
    std::vector<Fiber*> waiting;
};

struct StaticShared {
    void const* key;
    std::size_t bytes;
    char* memory;
    char* map;
    std::size_t map_bytes;
    races::Byte* accesses;  // to each byte; null where races are not looked for
};

struct Block {
    Dim3 index;
    std::vector<Warp> warps;
    Barrier barriers[16];
    Buffer shared;
    races::Byte* accesses = nullptr;  // to each byte of `shared`
    std::vector<StaticShared> statics;
    std::size_t static_bytes = 0, most_static_bytes = 0;  // of `statics`, and what the launch leaves them
};

struct Machine {
    Options* options = nullptr;
    std::function<void()> kernel;
    std::vector<Block> blocks;  // alive
    std::vector<Fiber> fibers;  // of the blocks alive
    std::vector<Warp*> order;   // of the warps alive
    std::vector<char*> stacks;  // one a fiber
    Fiber* current = nullptr;
    std::size_t turn = 0;  // in order
    std::size_t n_alive = 0;
    std::int64_t progress = 0, progress_when_spinning = 0, idle_rounds = 0;
    jmp_buf done;
    std::mt19937 random;
};
inline Machine* machine = nullptr;

// Ends the child process that runs the kernel; the sentence becomes the test's failure.
[[noreturn]] inline void fault(char const* format, ...) {
    char what[768];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    Options& o = *machine->options;
    if (Fiber const* const f = machine->current; f != nullptr) {
        Dim3 const& b = f->warp->block->index;
        snprintf(o.message, sizeof o.message, "thread %u (warp %u, lane %u) of block (%u, %u, %u): %s", f->thread.x,
                 f->thread.x / 32, f->lane, b.x, b.y, b.z, what);
    } else {
        snprintf(o.message, sizeof o.message, "%s", what);
    }
    _exit(3);
}

inline std::string lanes_text(std::uint32_t mask) {
    std::string text;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if ((mask >> lane & 1u) != 0) {
            unsigned end = lane;
            while (end < 31 && (mask >> (end + 1) & 1u) != 0) {
                ++end;
            }
            text += (text.empty() ? "" : ", ") + std::to_string(lane) + (end > lane ? "-" + std::to_string(end) : "");
            lane = end;
        }
    }
    return text;
}

// What each lane of a warp waits for.
inline std::string warp_text(Warp const& w) {
    std::string text;
    auto const add = [&](std::uint32_t mask, std::string const& what) {
        if (mask != 0) {
            text += (text.empty() ? "lanes " : "; lanes ") + lanes_text(mask) + " " + what;
        }
    };
    for (int c = 1; c <= static_cast<int>(Collective::sync_warp); ++c) {
        std::uint32_t mask = 0;
        for (unsigned i = 0; i < w.n_lanes; ++i) {
            mask |=
                (w.at_collective >> i & 1u) != 0 && w.lanes[i]->collective == static_cast<Collective>(c) ? 1u << i : 0u;
        }
        add(mask, std::string("wait at ") + collective_names[c]);
    }
    for (int id = 0; id < 16; ++id) {
        std::uint32_t mask = 0;
        for (unsigned i = 0; i < w.n_lanes; ++i) {
            mask |= w.lanes[i]->barrier == id ? 1u << i : 0u;
        }
        add(mask, "wait at barrier " + std::to_string(id));
    }
    add(w.spinning, "wait for another block");
    add(w.ended, "have ended");
    return text;
}

[[noreturn]] inline void deadlock() {
    machine->current = nullptr;
    for (Warp const* w : machine->order) {
        std::uint32_t const all = w->n_lanes == 32 ? 0xffffffffu : (1u << w->n_lanes) - 1u;
        if (w->ended != all) {
            Dim3 const& b = w->block->index;
            fault("no thread can go on. Block (%u, %u, %u), warp %u: %s", b.x, b.y, b.z, w->lanes[0]->thread.x / 32,
                  warp_text(*w).c_str());
        }
    }
    fault("no thread can go on");
}

// The next warp with a lane that can run.
inline Warp* choose_warp() {
    Machine& m = *machine;
    std::size_t const n = m.order.size();
    Schedule const schedule = static_cast<Schedule>(m.options->schedule);
    std::size_t start = 0;
    if (schedule == Schedule::round_robin) {
        start = m.turn + 1;
    } else if (schedule == Schedule::shuffled) {
        start = m.random() % n;
    }
    for (int attempt = 0; attempt < 2; ++attempt) {
        for (std::size_t i = 0; i < n; ++i) {
            std::size_t const k = (start + i) % n;
            if (m.order[k]->ready != 0) {
                m.turn = k;
                return m.order[k];
            }
        }
        // Only threads that wait for another block are left: let them look again, as long as anything changes.
        bool woken = false;
        m.idle_rounds = m.progress == m.progress_when_spinning ? m.idle_rounds + 1 : 0;
        m.progress_when_spinning = m.progress;
        for (Warp* w : m.order) {
            woken = woken || w->spinning != 0;
            w->ready |= w->spinning;
            w->spinning = 0;
        }
        if (!woken || m.idle_rounds > 100) {
            if (woken) {  // say it of the lanes as they were
                for (Warp* w : m.order) {
                    w->spinning = w->ready;
                }
            }
            deadlock();
        }
    }
    deadlock();
}

inline Fiber& choose_lane(Warp& w) {
    unsigned lane;
    switch (static_cast<Schedule>(machine->options->schedule)) {
        case Schedule::reversed: lane = 31u - static_cast<unsigned>(__builtin_clz(w.ready)); break;
        case Schedule::shuffled: {
            unsigned const turn = machine->random() % 32u;
            std::uint32_t const turned =
                w.ready >> turn | static_cast<std::uint32_t>(std::uint64_t{w.ready} << (32 - turn));
            lane = (static_cast<unsigned>(__builtin_ctz(turned)) + turn) % 32u;
            break;
        }
        default: lane = static_cast<unsigned>(__builtin_ctz(w.ready)); break;
    }
    return *w.lanes[lane];
}

inline void run_fiber();

constexpr std::size_t stack_bytes = 64 * 1024;

__attribute__((noinline)) inline void start_fiber(Fiber& f) {
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = machine->stacks[static_cast<std::size_t>(&f - machine->fibers.data())];
    context.uc_stack.ss_size = stack_bytes;
    context.uc_link = nullptr;
    makecontext(&context, &run_fiber, 0);
    setcontext(&context);
}

[[noreturn]] inline void enter(Fiber& f) {
    machine->current = &f;
    threadIdx = f.thread;
    blockIdx = f.warp->block->index;
    if (!f.started) {
        f.started = true;
        start_fiber(f);
    }
    _longjmp(f.point, 1);
}

// A lane at one barrier while another one of its warp is at a different one.
inline bool split_by_barriers(Warp const& w) {
    int seen = -1;
    for (unsigned i = 0; i < w.n_lanes; ++i) {
        int const id = w.lanes[i]->barrier;
        if (id >= 0 && seen >= 0 && id != seen) {
            return true;
        }
        seen = id >= 0 ? id : seen;
    }
    return false;
}

// Leaves the current fiber for the next one. gives_turn: the warp loses its turn even if it could go on.
__attribute__((noinline)) inline void leave(bool gives_turn) {
    Machine& m = *machine;
    if (_setjmp(m.current->point) != 0) {
        return;
    }
    Warp* w = m.current->warp;
    if (w->ready == 0) {
        if (w->at_collective != 0 || split_by_barriers(*w)) {
            fault("not all lanes of the warp are at this instruction: %s", warp_text(*w).c_str());
        }
    }
    if (w->ready == 0 || gives_turn) {
        w = choose_warp();
    }
    enter(choose_lane(*w));
}

inline void run_fiber() {
    machine->kernel();
    Machine& m = *machine;
    Fiber& f = *m.current;
    if (!f.open_copies.empty() || !f.groups.empty()) {
        fault("the thread ends without having waited for its asynchronous copies");
    }
    f.warp->ready &= ~(1u << f.lane);
    f.warp->ended |= 1u << f.lane;
    ++m.progress;
    Options& o = *m.options;
    o.barriers = std::max(o.barriers, f.barriers);
    o.waits = std::max(o.waits, f.waits);
    o.warp_syncs = std::max(o.warp_syncs, f.warp_syncs);
    o.grid_barriers = std::max(o.grid_barriers, f.grid_barriers);
    if (--m.n_alive == 0) {
        m.current = nullptr;
        _longjmp(m.done, 1);
    }
    leave(false);
    __builtin_unreachable();
}

// ---- barriers -------------------------------------------------------------------------------------------------------

inline void release(Barrier& barrier) {
    for (Fiber* f : barrier.waiting) {
        ++f->passed.barriers;
        f->warp->ready |= 1u << f->lane;
        f->barrier = -1;
    }
    barrier = Barrier{};
    ++machine->progress;
}

inline void arrive(int id, int n_threads, bool waits) {
    Fiber& f = *machine->current;
    Block& block = *f.warp->block;
    if (id < 0 || id > 15) {
        fault("barrier %d; there are barriers 0 to 15", id);
    }
    if (n_threads <= 0 || (id != 0 && n_threads % 32 != 0)) {
        fault("barrier %d is for %d threads; expected whole warps", id, n_threads);
    }
    if (races::looked_for && (!waits || n_threads != static_cast<int>(blockDim.x * blockDim.y * blockDim.z))) {
        fault("barrier %d is not for all threads to wait at: races.h does not know what it orders", id);
    }
    Barrier& barrier = block.barriers[id];
    if (barrier.arrived > 0 && barrier.expected != n_threads) {
        fault("barrier %d is for %d threads here and for %d where others wait", id, n_threads, barrier.expected);
    }
    barrier.expected = n_threads;
    ++barrier.arrived;
    if (waits) {
        barrier.waiting.push_back(&f);
        f.barrier = id;
        f.warp->ready &= ~(1u << f.lane);
    }
    bool const last = barrier.arrived == barrier.expected;
    if (last) {
        release(barrier);
    }
    if (waits) {
        leave(last);
    }
}

inline void sync_threads() {
    Fiber& f = *machine->current;
    if (f.barriers++ != machine->options->skipped_barrier) {
        arrive(0, static_cast<int>(blockDim.x * blockDim.y * blockDim.z), true);
    }
}

inline void bar_sync(int id, int n_threads) {
    Fiber& f = *machine->current;
    if (f.barriers++ != machine->options->skipped_barrier) {
        arrive(id, n_threads, true);
    }
}

inline void bar_arrive(int id, int n_threads) {
    arrive(id, n_threads, false);
}

inline bool skips_grid_barrier() {
    Fiber& f = *machine->current;
    bool const skips = f.grid_barriers++ == machine->options->skipped_grid_barrier;
    f.passed.grid_barriers += skips ? 0 : 1;
    return skips;
}

// ---- shared memory --------------------------------------------------------------------------------------------------

inline void* dynamic_shared() {
    return machine->current->warp->block->shared.begin;
}

// As on a device, an array is aligned as its type asks and no further: with every second seed it lies at an odd
// multiple of that, with the others against the page behind it.
inline void* static_shared(void const* key, std::size_t bytes, std::size_t alignment) {
    Block& block = *machine->current->warp->block;
    for (StaticShared const& s : block.statics) {
        if (s.key == key) {
            return s.memory;
        }
    }
    races::Quiet const quiet;
    block.static_bytes = (block.static_bytes + alignment - 1) / alignment * alignment + bytes;
    if (block.static_bytes > block.most_static_bytes) {
        fault("%zu bytes of shared arrays beside %zu bytes of dynamic shared memory; the launch leaves them %zu",
              block.static_bytes, block.shared.bytes, block.most_static_bytes);
    }
    std::size_t const odd = machine->options->seed % 2 == 1 && alignment < 128 ? alignment : 0;
    Buffer const memory = map_fenced("shared", bytes + odd, 2 * alignment, true);
    if (memory.begin == nullptr) {
        fault("no memory for %zu bytes of shared memory", bytes);
    }
    char* const begin =
        odd > 0 ? memory.begin + odd
                : memory.map + memory.map_bytes - page_bytes() - (bytes + alignment - 1) / alignment * alignment;
    block.statics.push_back(
        {key, bytes, begin, memory.map, memory.map_bytes, races::looked_for ? races::new_bytes(bytes) : nullptr});
    return begin;
}

// ---- races ----------------------------------------------------------------------------------------------------------

[[noreturn]] inline void race_found(races::Race const& race, races::Kind kind, std::string const& place) {
    char const* const verb = races::verbs[static_cast<int>(kind)];
    if (race.with == nullptr) {
        fault("a race: %s %s while an asynchronous copy to it is under way", verb, place.c_str());
    }
    fault("a race: %s %s, which %s %s with no barrier between", verb, place.c_str(), races::who(*race.with).c_str(),
          race.wrote ? "wrote" : "read");
}

SLEEPFM_NOT_WATCHED inline void note_bytes(races::Byte* bytes, std::size_t first, std::size_t n, races::Kind kind,
                                           bool global, char const* address) {
    races::Access const& now = machine->current->passed;
    for (std::size_t i = 0; i < n; ++i) {
        races::Race race{};
        races::Byte& byte = global ? races::global_byte(first + i) : bytes[first + i];
        if (races::note(byte, now, kind, race)) {
            continue;
        }
        races::quiet = true;
        char text[128];
        if (Buffer const* const buffer = global ? buffer_of(address + i) : nullptr; buffer != nullptr) {
            snprintf(text, sizeof text, "byte %lld of buffer '%s'", static_cast<long long>(address + i - buffer->begin),
                     buffer->name.c_str());
        } else {
            snprintf(text, sizeof text, "byte %zu of %s", first + i,
                     bytes == machine->current->warp->block->accesses ? "the block's dynamic shared memory"
                                                                      : "a shared array");
        }
        race_found(race, kind, text);
    }
}

// Takes an access of the current thread into account; memory that is neither global nor shared is its own.
SLEEPFM_NOT_WATCHED inline void note_access(void const* address, std::size_t n, races::Kind kind) {
    if (!races::looked_for || machine == nullptr || machine->current == nullptr) {
        return;
    }
    char const* const p = static_cast<char const*>(address);
    if (p >= arena && p < arena + arena_bytes) {
        note_bytes(nullptr, static_cast<std::size_t>(p - arena), n, kind, true, p);
        return;
    }
    Block const& block = *machine->current->warp->block;
    if (p >= block.shared.begin && p < block.shared.begin + block.shared.bytes) {
        note_bytes(block.accesses, static_cast<std::size_t>(p - block.shared.begin), n, kind, false, p);
        return;
    }
    StaticShared const* s = block.statics.data();
    for (StaticShared const* const end = s + block.statics.size(); s != end; ++s) {
        if (p >= s->memory && p < s->memory + s->bytes) {
            note_bytes(s->accesses, static_cast<std::size_t>(p - s->memory), n, kind, false, p);
            return;
        }
    }
}

SLEEPFM_NOT_WATCHED inline void note_unless_quiet(void const* address, std::size_t n, races::Kind kind) {
    if (!races::quiet) {
        races::quiet = true;
        note_access(address, n, kind);
        races::quiet = false;
    }
}

}  // namespace cuda_on_cpu

#if defined(__SANITIZE_THREAD__)
// What the compiler has every load and store call.
#define SLEEPFM_WATCHED(name, n, kind)                                                              \
    extern "C" __attribute__((used)) SLEEPFM_NOT_WATCHED inline void __tsan_##name(void* address) { \
        cuda_on_cpu::note_unless_quiet(address, n, cuda_on_cpu::races::Kind::kind);                 \
    }
#define SLEEPFM_WATCHED_BOTH(size)                   \
    SLEEPFM_WATCHED(read##size, size, read)          \
    SLEEPFM_WATCHED(write##size, size, write)        \
    SLEEPFM_WATCHED(volatile_read##size, size, read) \
    SLEEPFM_WATCHED(volatile_write##size, size, write)
SLEEPFM_WATCHED_BOTH(1)
SLEEPFM_WATCHED_BOTH(2)
SLEEPFM_WATCHED_BOTH(4)
SLEEPFM_WATCHED_BOTH(8)
SLEEPFM_WATCHED_BOTH(16)
#undef SLEEPFM_WATCHED_BOTH
#undef SLEEPFM_WATCHED
extern "C" {
__attribute__((used)) SLEEPFM_NOT_WATCHED inline void __tsan_read_range(void* address, unsigned long n) {
    cuda_on_cpu::note_unless_quiet(address, n, cuda_on_cpu::races::Kind::read);
}
__attribute__((used)) SLEEPFM_NOT_WATCHED inline void __tsan_write_range(void* address, unsigned long n) {
    cuda_on_cpu::note_unless_quiet(address, n, cuda_on_cpu::races::Kind::write);
}
__attribute__((used)) SLEEPFM_NOT_WATCHED inline void __tsan_func_entry(void*) {}
__attribute__((used)) SLEEPFM_NOT_WATCHED inline void __tsan_func_exit(void*) {}
__attribute__((used)) SLEEPFM_NOT_WATCHED inline void __tsan_vptr_update(void*, void*) {}
__attribute__((used)) SLEEPFM_NOT_WATCHED inline void __tsan_vptr_read(void*) {}
__attribute__((used)) SLEEPFM_NOT_WATCHED inline void __tsan_init() {}
// Of the guards of static variables in the emulator itself.
__attribute__((used)) SLEEPFM_NOT_WATCHED inline unsigned char __tsan_atomic8_load(unsigned char const* address, int) {
    return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}
}
#endif
