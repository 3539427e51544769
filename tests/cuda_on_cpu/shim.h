// Enough of CUDA C++ to run a kernel on the host: the threads of a block are fibers, each run up to its next
// __syncthreads() before the next one starts, in a chosen order. A thread that reads what another one has not written
// yet, because a barrier is missing, then reads poison (NaN) or stale values in at least one of the orders.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define SLEEPFM_DYNAMIC_SHARED(name) float* const name = cuda_on_cpu::dynamic_shared

struct Dim3 {
    unsigned x = 0, y = 0, z = 0;
};
inline Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

inline float* dynamic_shared = nullptr;

enum class Order : int { forward = 0, backward = 1, shuffled = 2 };
enum class Outcome : int { done = 0, divergent_barrier = 1, shared_overrun = 2 };

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool finished = false;
    int barriers = 0;
};

struct Machine {
    ucontext_t scheduler;
    std::vector<Fiber> fibers;
    std::size_t current = 0;
    std::function<void()> kernel;
    int skipped_barrier = -1;  // every thread runs through this one: a planted fault
    int barriers = 0;          // of the longest block so far
};
inline Machine* machine = nullptr;

inline void enter() {
    machine->kernel();
    machine->fibers[machine->current].finished = true;
}

// Runs one block; `shared_floats` of poisoned dynamic shared memory with a guard behind them.
inline Outcome run_block(Machine& m, unsigned n_threads, Order order, std::size_t shared_floats, std::mt19937& random) {
    constexpr std::size_t stack_bytes = 64 * 1024, guard = 256;
    std::vector<float> shared(shared_floats + guard, std::numeric_limits<float>::quiet_NaN());
    std::vector<float> const poison(guard, std::numeric_limits<float>::quiet_NaN());
    dynamic_shared = shared.data();
    machine = &m;
    m.fibers.resize(n_threads);
    blockDim = {n_threads, 1, 1};
    for (Fiber& fiber : m.fibers) {
        if (!fiber.stack) {
            fiber.stack.reset(new char[stack_bytes]);
        }
        fiber.finished = false;
        fiber.barriers = 0;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = stack_bytes;
        fiber.context.uc_link = &m.scheduler;
        makecontext(&fiber.context, &enter, 0);
    }
    std::vector<unsigned> sequence(n_threads);
    for (unsigned i = 0; i < n_threads; ++i) {
        sequence[i] = order == Order::backward ? n_threads - 1 - i : i;
    }
    for (;;) {
        if (order == Order::shuffled) {
            std::shuffle(sequence.begin(), sequence.end(), random);
        }
        std::size_t n_finished = 0;
        for (unsigned const i : sequence) {
            m.current = i;
            threadIdx = {i, 0, 0};
            swapcontext(&m.scheduler, &m.fibers[i].context);
            n_finished += m.fibers[i].finished;
        }
        if (n_finished == n_threads) {
            break;
        }
        if (n_finished != 0) {
            return Outcome::divergent_barrier;
        }
    }
    m.barriers = std::max(m.barriers, m.fibers[0].barriers);
    bool const intact = std::memcmp(shared.data() + shared_floats, poison.data(), guard * sizeof(float)) == 0;
    return intact ? Outcome::done : Outcome::shared_overrun;
}

}  // namespace cuda_on_cpu

inline void __syncthreads() {
    cuda_on_cpu::Machine& m = *cuda_on_cpu::machine;
    cuda_on_cpu::Fiber& fiber = m.fibers[m.current];
    if (fiber.barriers++ == m.skipped_barrier) {
        return;
    }
    swapcontext(&fiber.context, &m.scheduler);
}
