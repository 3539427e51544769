// A tile of a product of two float32 matrices, without tensor cores, by a block of 256 threads. Slabs of the summed
// dimension k pass through shared memory as [slab, tile + 4] for each operand; while one is multiplied the next one is
// already being loaded to registers. Four groups of 64 threads each take a quarter of every slab's k, and their partial
// sums meet in shared memory at the end.
#pragma once

#include "cuda/contrastive_small.h"
#include "cuda/ptx.h"
#include "host_device.h"

namespace sleepfm::cuda {

constexpr int small_threads = static_cast<int>(contrastive_small_threads);

template <int n>
struct alignas(4 * n) Consecutive {
    float value[n];
};

// Which element of a slab (k and the line of the tile) thread `index` loads, and where it stores it. by_row: k is the
// contiguous dimension in global memory, and a warp takes 8 neighbouring k of 4 lines: whole sectors of 32 bytes, which
// go to 32 different banks. Else lines are contiguous, and neighbouring threads take neighbouring lines.
template <int tile, bool by_row>
struct SlabPlace {
    static constexpr int slab = static_cast<int>(contrastive_small_slab(tile)), pitch = tile + 4;
    int k, line;

    SLEEPFM_HOST_DEVICE constexpr explicit SlabPlace(int index)
        : k(by_row ? index % 8 + index / 32 % (slab / 8) * 8 : index / tile),
          line(by_row ? index / 8 % 4 + index / (4 * slab) * 4 : index % tile) {}
    SLEEPFM_HOST_DEVICE constexpr int in_shared() const { return k * pitch + line; }

    // The largest number of a warp's lanes that store to the same bank.
    static constexpr int conflicts() {
        int lanes[32] = {}, most = 0;
        for (int index = 0; index < 32; ++index) {
            int const n = ++lanes[SlabPlace(index).in_shared() % 32];
            most = n > most ? n : most;
        }
        return most;
    }
};
static_assert(SlabPlace<16, true>::conflicts() == 1 && SlabPlace<32, true>::conflicts() == 1);
static_assert(SlabPlace<16, false>::conflicts() == 2 && SlabPlace<32, false>::conflicts() == 1);

// Calls store(row, column, sum) for every element of a tile x tile matrix with
//     sum = sum over k < n_k of convert(row, k, a(row, k)) b(k, column).
// a and b read global memory and are called ahead of time; convert is called when the value has arrived. A thread has
// (tile / 8)^2 of its group's sums. The order of a sum depends on n_k and `tile` only, not on where the element lies.
// Begins and ends so that calls can follow each other; all threads of the block call it.
template <int tile, bool a_by_row, bool b_by_row, typename A, typename Convert, typename B, typename Store>
__device__ void multiply_tile(int n_k, float* shared, A a, Convert convert, B b, Store store) {
    using PlaceA = SlabPlace<tile, a_by_row>;
    using PlaceB = SlabPlace<tile, b_by_row>;
    constexpr int slab = PlaceA::slab, quarter = slab / 4, pitch = PlaceA::pitch, edge = tile / 8;
    constexpr int n_loads = tile * slab / small_threads;
    float* const shared_a = shared;
    float* const shared_b = shared + slab * pitch;
    int const thread = static_cast<int>(threadIdx.x), group = thread / 64;
    int const row = thread % 64 / 8 * edge, column = thread % 8 * edge;
    float next_a[n_loads], next_b[n_loads];
    auto const load = [&](int k0) {
#pragma unroll
        for (int i = 0; i < n_loads; ++i) {
            PlaceA const of_a(thread + i * small_threads);
            PlaceB const of_b(thread + i * small_threads);
            next_a[i] = k0 + of_a.k < n_k ? a(of_a.line, k0 + of_a.k) : 0.0f;
            next_b[i] = k0 + of_b.k < n_k ? b(k0 + of_b.k, of_b.line) : 0.0f;
        }
    };
    float sums[edge][edge] = {};
    load(0);
    for (int k0 = 0; k0 < n_k; k0 += slab) {
        ptx::sync_threads();  // all have read the previous slab, or the previous call's partial sums
#pragma unroll
        for (int i = 0; i < n_loads; ++i) {
            PlaceA const of_a(thread + i * small_threads);
            PlaceB const of_b(thread + i * small_threads);
            shared_a[of_a.in_shared()] = k0 + of_a.k < n_k ? convert(of_a.line, k0 + of_a.k, next_a[i]) : 0.0f;
            shared_b[of_b.in_shared()] = next_b[i];
        }
        ptx::sync_threads();  // the slab is complete
        if (k0 + slab < n_k) {
            load(k0 + slab);
        }
#pragma unroll 2
        for (int k = group * quarter; k < (group + 1) * quarter; ++k) {
            auto const x = *reinterpret_cast<Consecutive<edge> const*>(shared_a + k * pitch + row);
            auto const y = *reinterpret_cast<Consecutive<edge> const*>(shared_b + k * pitch + column);
#pragma unroll
            for (int i = 0; i < edge; ++i) {
#pragma unroll
                for (int j = 0; j < edge; ++j) {
                    sums[i][j] += x.value[i] * y.value[j];
                }
            }
        }
    }
    ptx::sync_threads();  // all have read the last slab; the groups' sums take its memory
#pragma unroll
    for (int i = 0; i < edge; ++i) {
#pragma unroll
        for (int j = 0; j < edge; ++j) {
            shared[(group * tile + row + i) * tile + column + j] = sums[i][j];
        }
    }
    ptx::sync_threads();
    for (int index = thread; index < tile * tile; index += small_threads) {
        float const low = shared[index] + shared[tile * tile + index];
        float const high = shared[2 * tile * tile + index] + shared[3 * tile * tile + index];
        store(index / tile, index % tile, low + high);
    }
}

}  // namespace sleepfm::cuda
