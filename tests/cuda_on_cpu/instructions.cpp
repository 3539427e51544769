// Kernels of one instruction or one exchange each, right and with a planted fault, for tests/test_emulator.py.
#include "cuda/ptx.h"

using cuda_on_cpu::Options;
namespace ptx = sleepfm::ptx;

namespace {

// ---- the tensor cores' own tables -----------------------------------------------------------------------------------

// fragments: [32][4] a, [32][2] b, [32][4] d as every lane holds them.
template <bool bfloat16>
void mma_kernel(std::uint32_t const* a, std::uint32_t const* b, float const* c, float* d) {
    unsigned const lane = threadIdx.x;
    std::uint32_t fragment_a[4], fragment_b[2];
    float sums[4];
    for (int i = 0; i < 4; ++i) {
        fragment_a[i] = a[4 * lane + i];
        sums[i] = c[4 * lane + i];
    }
    fragment_b[0] = b[2 * lane];
    fragment_b[1] = b[2 * lane + 1];
    if (bfloat16) {
        ptx::mma_m16n8k16_bf16(sums, fragment_a, fragment_b);
    } else {
        ptx::mma_m16n8k16_f16(sums, fragment_a, fragment_b);
    }
    for (int i = 0; i < 4; ++i) {
        d[4 * lane + i] = sums[i];
    }
}

// matrices: [8 n][8] rows of 16-bit numbers -> [32][n] registers.
template <int n, bool transposed>
void ldmatrix_kernel(std::uint16_t const* matrices, std::uint32_t* registers) {
    SLEEPFM_SHARED(std::uint16_t, tile, [32 * 8]);
    unsigned const lane = threadIdx.x;
    for (unsigned i = lane; i < 64 * n; i += 32) {
        tile[i] = matrices[i];
    }
    ptx::sync_warp();
    std::uint32_t r[n];
    std::uint16_t const* const row = tile + 8 * (lane % (8 * n));
    if constexpr (n == 4) {
        transposed ? ptx::ldmatrix_x4_trans(r, row) : ptx::ldmatrix_x4(r, row);
    } else {
        transposed ? ptx::ldmatrix_x2_trans(r, row) : ptx::ldmatrix_x2(r, row);
    }
    for (int i = 0; i < n; ++i) {
        registers[n * lane + i] = r[i];
    }
}

// ---- a product of matrices: c [16, 8] = a [16, k] b [8, k]^T, through shared memory, ldmatrix and mma
// ----------------

enum Fault {
    none,
    no_barrier,
    no_wait,
    wrong_fragment,
    out_of_bounds_read,
    out_of_bounds_write,
    write_to_input,
    divergent_shuffle,
    lanes_apart,
    ended_lanes,
    barrier_in_branch,
    streaming_from_output,
    unaligned,
    unaligned_word,
    word_from_output,
    overrun_shared,
    no_warp_sync,
    early_overwrite,
    no_grid_barrier,
    wrong_mask,
    endless,
    wide_shared,
    large_shared
};

// Two warps; each loads half of every 16-column slab by asynchronous copies, two slabs ahead, and computes every other
// slab.
void product_kernel(std::uint16_t const* a, std::uint16_t const* b, float* c, int k, Fault fault) {
    SLEEPFM_DYNAMIC_SHARED(std::uint16_t, stages);  // 2 x [24][16]: rows of a, rows of b
    SLEEPFM_SHARED(float, halves, [2][128]);
    unsigned const thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    int const n_slabs = k / 16;
    auto const load = [&](int slab) {
        std::uint16_t* const stage = stages + 24 * 16 * (slab % 2);
        if (slab < n_slabs && thread < 48) {
            unsigned const row = thread / 2, part = thread % 2;
            std::uint16_t const* const from = row < 16 ? a + row * k : b + (row - 16) * k;
            ptx::cp_async_16(stage + 16 * row + 8 * part, from + 16 * slab + 8 * part, true);
        }
        ptx::cp_async_commit();
    };
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    load(0);
    for (int slab = 0; slab < n_slabs; ++slab) {
        load(slab + 1);
        if (fault != no_wait) {
            ptx::cp_async_wait<1>();
        }
        if (fault != no_barrier) {
            ptx::sync_threads();
        }
        if (slab % 2 == static_cast<int>(warp)) {
            std::uint16_t const* const stage = stages + 24 * 16 * (slab % 2);
            std::uint32_t fragment_a[4], fragment_b[2];
            ptx::ldmatrix_x4(fragment_a, stage + 16 * (lane % 16) + 8 * (lane / 16));
            ptx::ldmatrix_x2(fragment_b, stage + 16 * (16 + lane % 8) + 8 * (lane / 8 % 2));
            if (fault == wrong_fragment) {
                std::uint32_t const swapped = fragment_a[1];
                fragment_a[1] = fragment_a[2];
                fragment_a[2] = swapped;
            }
            ptx::mma_m16n8k16_f16(sums, fragment_a, fragment_b);
        }
        if (fault != early_overwrite) {
            ptx::sync_threads();
        }
    }
    ptx::cp_async_wait<0>();
    for (unsigned i = 0; i < 4; ++i) {
        halves[warp][8 * (lane / 4 + 8 * (i / 2)) + 2 * (lane % 4) + i % 2] = sums[i];
    }
    ptx::sync_threads();
    for (unsigned i = thread; i < 128; i += 64) {
        c[i] = halves[0][i] + halves[1][i];
    }
}

// ---- sums over a block: y[0] = sum of x[0 .. n)
// ----------------------------------------------------------------------

void sum_kernel(float* x, int n, float* y, Fault fault) {
    SLEEPFM_SHARED(float, partial, [4]);
    SLEEPFM_DYNAMIC_SHARED(float, spare);
    int const thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    float sum = 0.0f;
    for (int i = thread; i < (fault == out_of_bounds_read ? n + 1 : n); i += static_cast<int>(blockDim.x)) {
        sum += x[i];
    }
    if (fault == write_to_input) {
        x[thread % n] = sum;
    }
    if (fault == streaming_from_output) {
        sum += static_cast<float>(ptx::load_16_streaming(y).word[0]);
    }
    if (fault == unaligned) {
        sum += static_cast<float>(ptx::load_16(x + 1).word[0]);
    }
    if (fault == unaligned_word) {
        sum += static_cast<float>(ptx::load_4_read_only(reinterpret_cast<char const*>(x) + 2));
    }
    if (fault == word_from_output) {
        sum += static_cast<float>(ptx::load_4_read_only(y));
    }
    if (fault == wide_shared) {
        sum += static_cast<float>(reinterpret_cast<ptx::Words4 const*>(partial)->word[0]);
    }
    if (fault == large_shared) {
        SLEEPFM_SHARED(float, large, [48 * 256]);
        large[thread] = sum;
    }
    if (fault == overrun_shared) {
        spare[thread] = sum;
    }
    if (fault == ended_lanes && lane == 7) {
        return;
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        if (fault == divergent_shuffle && lane >= 16) {
            continue;
        }
        if (fault == lanes_apart && lane < 4) {
            sum += ptx::shuffle_down(sum, mask);
        } else {
            sum += ptx::shuffle_xor(sum, fault == wrong_mask && lane == 9 ? 1 : mask);
        }
    }
    if (lane == 0) {
        partial[thread / 32] = sum;
    }
    if (fault != barrier_in_branch || thread < 64) {
        ptx::sync_threads();
    }
    if (thread == 0) {
        y[0] = partial[0] + partial[1] + partial[2] + partial[3];
        if (fault == out_of_bounds_write) {
            y[1] = 0.0f;
        }
    }
}

// y[i] = x[31 - i] within a warp, through shared memory.
void reverse_kernel(float const* x, float* y, Fault fault) {
    SLEEPFM_SHARED(float, row, [32]);
    row[threadIdx.x] = x[threadIdx.x];
    if (fault != no_warp_sync) {
        ptx::sync_warp();
    }
    y[threadIdx.x] = row[31 - threadIdx.x];
}

// ---- between blocks: y[b] = sum over all blocks of x[i] (b + 1), three times
// -----------------------------------------

void grid_kernel(float const* x, float* partial, float* y, unsigned* state, Fault fault) {
    SLEEPFM_SHARED(float, mine, [1]);
    unsigned const block = blockIdx.x, n_blocks = gridDim.x;
    for (unsigned round = 0; round < 3; ++round) {
        if (threadIdx.x == 0) {
            mine[0] = x[block] * static_cast<float>(round + 1);
        }
        ptx::sync_threads();
        if (threadIdx.x == blockDim.x - 1) {
            partial[block] = mine[0];
        }
        if (fault != no_grid_barrier) {
            ptx::grid_barrier(state, n_blocks);
        }
        if (threadIdx.x == 0) {
            float sum = 0.0f;
            for (unsigned b = 0; b < n_blocks; ++b) {
                sum += partial[b];
            }
            y[round * n_blocks + block] = sum;
        }
        if (fault != no_grid_barrier) {
            ptx::grid_barrier(state, n_blocks);
        }
        if (fault == endless && block == 1) {
            while (ptx::load_acquire(state) != 12345u) {
            }
        }
    }
}

// Warp 0 fills two slots in turn for warp 1: full[s] is barrier 1 + s, empty[s] barrier 3 + s.
void hand_over_kernel(float const* x, float* y, int n, Fault fault) {
    SLEEPFM_SHARED(float, slot, [2][32]);
    unsigned const lane = threadIdx.x % 32;
    for (int i = 0; i < n; ++i) {
        int const s = i % 2;
        if (threadIdx.x < 32) {
            if (i >= 2 && fault != no_barrier) {
                ptx::bar_sync(3 + s, 64);
            }
            slot[s][lane] = x[32 * i + lane];
            ptx::bar_arrive(1 + s, 64);
        } else {
            ptx::bar_sync(1 + s, 64);
            y[32 * i + lane] = 2.0f * slot[s][lane];
            if (i + 2 < n && fault != no_barrier) {
                ptx::bar_arrive(3 + s, 64);
            }
        }
    }
}

void exchange_kernel(double const* x, double* y, std::uint32_t* votes) {
    int const lane = static_cast<int>(threadIdx.x);
    y[lane] = ptx::shuffle_xor(x[lane], 5);
    y[32 + lane] = ptx::shuffle_down(x[lane], 7);
    y[64 + lane] = ptx::shuffle_idx(x[lane], lane / 8);
    votes[lane] = ptx::ballot(x[lane] > 0.0) + (ptx::any(x[lane] > 1e9) ? 1u : 0u);
}

}  // namespace

extern "C" int mma(Options* options, std::uint32_t const* a, std::uint32_t const* b, float const* c, float* d,
                   std::int64_t bfloat16) {
    return cuda_on_cpu::launch(*options, {{1}, {32}},
                               [=] { bfloat16 != 0 ? mma_kernel<true>(a, b, c, d) : mma_kernel<false>(a, b, c, d); });
}

extern "C" int ldmatrix(Options* options, std::uint16_t const* matrices, std::uint32_t* registers, std::int64_t n,
                        std::int64_t transposed) {
    return cuda_on_cpu::launch(*options, {{1}, {32}}, [=] {
        if (n == 4) {
            transposed != 0 ? ldmatrix_kernel<4, true>(matrices, registers)
                            : ldmatrix_kernel<4, false>(matrices, registers);
        } else {
            transposed != 0 ? ldmatrix_kernel<2, true>(matrices, registers)
                            : ldmatrix_kernel<2, false>(matrices, registers);
        }
    });
}

extern "C" int product(Options* options, std::uint16_t const* a, std::uint16_t const* b, float* c, std::int64_t k,
                       std::int64_t fault) {
    return cuda_on_cpu::launch(*options, {{1}, {64}, 2 * 24 * 16 * 2},
                               [=] { product_kernel(a, b, c, static_cast<int>(k), static_cast<Fault>(fault)); });
}

extern "C" int sum(Options* options, float* x, std::int64_t n, float* y, std::int64_t fault) {
    return cuda_on_cpu::launch(*options, {{1}, {128}, 4 * 100},
                               [=] { sum_kernel(x, static_cast<int>(n), y, static_cast<Fault>(fault)); });
}

// A kernel that does nothing, launched as asked for.
extern "C" int launch_of(Options* options, std::int64_t n_blocks, std::int64_t rows, std::int64_t n_threads,
                         std::int64_t shared_bytes, std::int64_t more_shared) {
    cuda_on_cpu::Launch launch{{static_cast<unsigned>(n_blocks), static_cast<unsigned>(rows)},
                               {static_cast<unsigned>(n_threads)},
                               static_cast<std::size_t>(shared_bytes)};
    launch.more_shared = more_shared != 0;
    return cuda_on_cpu::launch(*options, launch, [] {});
}

extern "C" int reverse(Options* options, float const* x, float* y, std::int64_t fault) {
    return cuda_on_cpu::launch(*options, {{1}, {32}}, [=] { reverse_kernel(x, y, static_cast<Fault>(fault)); });
}

extern "C" int grid_sum(Options* options, float const* x, float* partial, float* y, unsigned* state,
                        std::int64_t n_blocks, std::int64_t n_threads, std::int64_t fault) {
    cuda_on_cpu::Launch const launch{{static_cast<unsigned>(n_blocks)}, {static_cast<unsigned>(n_threads)}, 0, true};
    return cuda_on_cpu::launch(*options, launch, [=] { grid_kernel(x, partial, y, state, static_cast<Fault>(fault)); });
}

extern "C" int hand_over(Options* options, float const* x, float* y, std::int64_t n, std::int64_t fault) {
    return cuda_on_cpu::launch(*options, {{1}, {64}},
                               [=] { hand_over_kernel(x, y, static_cast<int>(n), static_cast<Fault>(fault)); });
}

extern "C" int exchange(Options* options, double const* x, double* y, std::uint32_t* votes) {
    return cuda_on_cpu::launch(*options, {{1}, {32}}, [=] { exchange_kernel(x, y, votes); });
}

// n products in a row, to see what one costs.
extern "C" int many_products(Options* options, std::int64_t n, float* y) {
    return cuda_on_cpu::launch(*options, {{1}, {32}}, [=] {
        float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        std::uint32_t const a[4] = {0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u};
        std::uint32_t const b[2] = {0x3c003c00u, 0x3c003c00u};
        for (std::int64_t i = 0; i < n; ++i) {
            ptx::mma_m16n8k16_f16(sums, a, b);
        }
        y[threadIdx.x] = sums[0];
    });
}
