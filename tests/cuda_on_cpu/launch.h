// Launches a kernel in a forked child; what goes wrong there becomes a sentence in Options::message.
#pragma once

#include <signal.h>
#include <sys/wait.h>

#include <cerrno>
#include <functional>
#include <numeric>

#include "machine.h"

namespace cuda_on_cpu {

struct Launch {
    Dim3 grid;
    Dim3 block;
    std::size_t shared_bytes = 0;  // dynamic
    bool cooperative = false;      // all blocks alive at once, as grid_barrier needs
    // cudaFuncAttributeMaxDynamicSharedMemorySize was set; else static and dynamic together are 48 KiB at most.
    bool more_shared = false;
    std::size_t most_shared_bytes = 227 * 1024;  // that a block may have on the device; by default, of 9.0
};

inline void on_signal(int number, siginfo_t* info, void* context) {
    if (number == SIGALRM) {
        fault("the launch did not end within %d s", machine->options->time_limit_s);
    }
    if (number == SIGILL || number == SIGTRAP) {
        fault(
            "undefined behaviour in the sense of C++ (overflow, shift, misaligned access, index; "
            "-fsanitize=undefined)");
    }
    char const* access = "access";
#if defined(__x86_64__)
    access = (static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2) != 0 ? "write" : "read";
#else
    static_cast<void>(context);
#endif
    char const* const address = static_cast<char const*>(info->si_addr);
    for (Block const& block : machine->blocks) {
        if (address >= block.shared.map && address < block.shared.map + block.shared.map_bytes) {
            fault("out of bounds: %s %lld bytes from the beginning of the block's dynamic shared memory of %zu bytes",
                  access, static_cast<long long>(address - block.shared.begin), block.shared.bytes);
        }
        for (StaticShared const& s : block.statics) {
            if (address >= s.memory - 4096 && address < s.memory + s.bytes + 4096) {
                fault("out of bounds: %s %lld bytes from the beginning of a shared array of %zu bytes", access,
                      static_cast<long long>(address - s.memory), s.bytes);
            }
        }
    }
    std::string const place = place_of_address(address);
    if (!place.empty()) {
        fault("out of bounds: %s %s", access, place.c_str());
    }
    fault("out of bounds: %s at an address that belongs to no buffer", access);
}

inline void catch_signals(std::int32_t time_limit_s) {
    static char alternative[64 * 1024];
    stack_t stack{};
    stack.ss_sp = alternative;
    stack.ss_size = sizeof alternative;
    sigaltstack(&stack, nullptr);
    struct sigaction action{};
    action.sa_sigaction = &on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int number : {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGALRM}) {
        sigaction(number, &action, nullptr);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    alarm(static_cast<unsigned>(time_limit_s));
}

constexpr std::size_t without_asking_bytes = 48 * 1024;

inline void fill_block(Block& block, Dim3 index, Launch const& launch) {
    block.index = index;
    block.shared = map_fenced("dynamic shared memory", launch.shared_bytes, 128, true);
    if (block.shared.begin == nullptr) {
        fault("no memory for %zu bytes of shared memory", launch.shared_bytes);
    }
    block.accesses = races::looked_for ? races::new_bytes(launch.shared_bytes) : nullptr;
    block.most_static_bytes =
        (launch.more_shared ? launch.most_shared_bytes : without_asking_bytes) - launch.shared_bytes;
}

inline void check_slack(Block const& block) {
    char const* const end = block.shared.map + block.shared.map_bytes - page_bytes();
    for (char const* p = block.shared.begin + block.shared.bytes; p < end; ++p) {
        if (static_cast<unsigned char>(*p) != poison_byte) {
            fault("out of bounds: a write %lld bytes behind the block's dynamic shared memory of %zu bytes",
                  static_cast<long long>(p - block.shared.begin - static_cast<long long>(block.shared.bytes)),
                  block.shared.bytes);
        }
    }
}

// Runs the given blocks together until all their threads have ended.
inline void run_blocks(std::vector<Dim3> const& indices, Launch const& launch) {
    Machine& m = *machine;
    unsigned const n_threads = launch.block.x * launch.block.y * launch.block.z, n_warps = (n_threads + 31) / 32;
    m.blocks.assign(indices.size(), Block{});
    m.fibers.assign(indices.size() * n_threads, Fiber{});
    m.order.clear();
    while (m.stacks.size() < m.fibers.size()) {
        void* const stack =
            mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) {
            fault("no memory for the stacks of %zu threads", m.fibers.size());
        }
        m.stacks.push_back(static_cast<char*>(stack));
    }
    for (std::size_t b = 0; b < indices.size(); ++b) {
        Block& block = m.blocks[b];
        fill_block(block, indices[b], launch);
        unsigned const number = indices[b].x + launch.grid.x * (indices[b].y + launch.grid.y * indices[b].z);
        block.warps.resize(n_warps);
        for (unsigned t = 0; t < n_threads; ++t) {
            Fiber& fiber = m.fibers[b * n_threads + t];
            Warp& warp = block.warps[t / 32];
            fiber.warp = &warp;
            fiber.lane = t % 32;
            fiber.thread = {t % launch.block.x, t / launch.block.x % launch.block.y,
                            t / launch.block.x / launch.block.y};
            fiber.passed = {number, t / 32, fiber.lane, 0, 0, 0};
            warp.block = &block;
            warp.lanes.push_back(&fiber);
            warp.ready |= 1u << fiber.lane;
            ++warp.n_lanes;
        }
        for (Warp& warp : block.warps) {
            m.order.push_back(&warp);
        }
    }
    if (static_cast<Schedule>(m.options->schedule) == Schedule::reversed) {
        std::reverse(m.order.begin(), m.order.end());
    } else if (m.options->seed != 0) {
        std::shuffle(m.order.begin(), m.order.end(), m.random);
    }
    m.turn = 0;
    m.n_alive = m.fibers.size();
    if (_setjmp(m.done) == 0) {
        enter(choose_lane(*choose_warp()));
    }
    for (Block const& block : m.blocks) {
        check_slack(block);
        munmap(block.shared.map, block.shared.map_bytes);
        free(block.accesses);
        for (StaticShared const& s : block.statics) {
            munmap(s.map, s.map_bytes);
            free(s.accesses);
        }
    }
    m.blocks.clear();
}

// What a device refuses to launch: cudaErrorInvalidConfiguration, an empty grid among it, and cudaErrorInvalidValue.
inline void check_launch(Launch const& launch) {
    Dim3 const grid = launch.grid, block = launch.block;
    std::uint64_t const n_threads = std::uint64_t{block.x} * block.y * block.z;
    if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
        fault("a grid of %u x %u x %u blocks; a device takes 1 to 2^31 - 1, 1 to 65535, 1 to 65535", grid.x, grid.y,
              grid.z);
    }
    if (n_threads < 1 || n_threads > 1024) {
        fault("a block of %llu threads; a device takes 1 to 1024", static_cast<unsigned long long>(n_threads));
    }
    if (launch.shared_bytes > launch.most_shared_bytes) {
        fault("%zu bytes of dynamic shared memory; the device gives a block at most %zu", launch.shared_bytes,
              launch.most_shared_bytes);
    }
    if (launch.shared_bytes > without_asking_bytes && !launch.more_shared) {
        fault("%zu bytes of dynamic shared memory; more than %zu must be asked for (allow_shared_bytes)",
              launch.shared_bytes, without_asking_bytes);
    }
}

inline void run_grid(Launch const& launch) {
    check_launch(launch);
    gridDim = launch.grid;
    blockDim = launch.block;
    std::vector<Dim3> indices;
    for (unsigned z = 0; z < launch.grid.z; ++z) {
        for (unsigned y = 0; y < launch.grid.y; ++y) {
            for (unsigned x = 0; x < launch.grid.x; ++x) {
                indices.push_back({x, y, z});
            }
        }
    }
    Machine& m = *machine;
    if (launch.cooperative) {
        run_blocks(indices, launch);
        return;
    }
    if (static_cast<Schedule>(m.options->schedule) == Schedule::reversed) {
        std::reverse(indices.begin(), indices.end());
    } else if (m.options->seed != 0) {
        std::shuffle(indices.begin(), indices.end(), m.random);
    }
    for (Dim3 const& index : indices) {
        run_blocks({index}, launch);
    }
}

// 0 if the kernel ran, else 1 and options.message says why not. The kernel writes to buffers of emulator_place;
// whatever else it writes is lost with the child.
inline int launch(Options& options, Launch const& launch, std::function<void()> kernel) {
    void* const shared = mmap(nullptr, sizeof(Options), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        snprintf(options.message, sizeof options.message, "no memory for the launch");
        return 1;
    }
    Options& reported = *static_cast<Options*>(shared);
    reported = options;
    pid_t const child = fork();
    if (child == 0) {
        Machine m;
        m.options = &reported;
        m.kernel = std::move(kernel);
        m.random.seed(options.seed);
        machine = &m;
        catch_signals(options.time_limit_s);
        for (Buffer const& b : buffers) {
            if (!b.writable) {
                mprotect(b.map + page_bytes(), b.map_bytes - 2 * page_bytes(), PROT_READ);
            }
        }
        run_grid(launch);
        _exit(0);
    }
    int status = 0;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    options = reported;
    munmap(shared, sizeof(Options));
    if (child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        return 0;
    }
    if (options.message[0] == '\0') {
        snprintf(options.message, sizeof options.message,
                 child < 0 ? "no process for the launch" : "the process that ran the kernel ended with status %d",
                 status);
    }
    return 1;
}

}  // namespace cuda_on_cpu
