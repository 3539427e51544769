// Product of two matrices of float32 in small tiles, without tensor cores, by 256 threads.
#pragma once

#include "cuda/contrastive_small.h"
#include "cuda/ptx.h"

namespace sleepfm::cuda {

constexpr int small_threads = static_cast<int>(contrastive_small_threads);

template <int n>
struct alignas(4 * n) Consecutive {
    float value[n];
};

// store(row, column, sum over k < n_k of convert(row, k, a(row, k)) b(k, column)) for a tile x tile matrix. Threads are
// four groups, each with a quarter of every slab of k; a thread of a group has (tile / 8)^2 sums. by_row: neighbouring
// threads load
// neighbouring k of a (of b), else neighbouring rows (columns). Every sum has the same order wherever it lies.
template <int tile, bool a_by_row, bool b_by_row, typename A, typename Convert, typename B, typename Store>
__device__ void multiply_tile(int n_k, float* shared, A a, Convert convert, B b, Store store) {
    constexpr int slab = static_cast<int>(contrastive_small_slab(tile)), quarter = slab / 4;
    constexpr int pitch = tile + 4, edge = tile / 8;
    constexpr int n_loads = tile * slab / small_threads;
    float* const shared_a = shared;
    float* const shared_b = shared + slab * pitch;
    int const thread = static_cast<int>(threadIdx.x), group = thread / 64;
    int const row = thread % 64 / 8 * edge, column = thread % 8 * edge;
    auto const k_of = [&](bool by_row, int i) {
        int const index = thread + i * small_threads;
        return by_row ? index % slab : index / tile;
    };
    auto const line_of = [&](bool by_row, int i) {
        int const index = thread + i * small_threads;
        return by_row ? index / slab : index % tile;
    };
    float next_a[n_loads], next_b[n_loads];
    auto const load = [&](int k0) {
#pragma unroll
        for (int i = 0; i < n_loads; ++i) {
            int const ka = k0 + k_of(a_by_row, i), kb = k0 + k_of(b_by_row, i);
            next_a[i] = ka < n_k ? a(line_of(a_by_row, i), ka) : 0.0f;
            next_b[i] = kb < n_k ? b(kb, line_of(b_by_row, i)) : 0.0f;
        }
    };
    float sums[edge][edge] = {};
    load(0);
    for (int k0 = 0; k0 < n_k; k0 += slab) {
        ptx::sync_threads();  // the last slab, or the last tile's sums, have been read
#pragma unroll
        for (int i = 0; i < n_loads; ++i) {
            int const k = k_of(a_by_row, i), line = line_of(a_by_row, i);
            shared_a[k * pitch + line] = k0 + k < n_k ? convert(line, k0 + k, next_a[i]) : 0.0f;
            shared_b[k_of(b_by_row, i) * pitch + line_of(b_by_row, i)] = next_b[i];
        }
        ptx::sync_threads();
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
    ptx::sync_threads();  // the slab has been read; its memory takes the sums of the groups
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
