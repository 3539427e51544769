// Rates of the machine that the kernels' design rests on, a line "name|value|unit" each: additions into global memory,
// L2 to shared memory with and without multicast to a cluster of two, and the latency of a grid-wide barrier.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace cg = cooperative_groups;

#define CHECK(call)                                                              \
    do {                                                                         \
        cudaError_t status = (call);                                             \
        if (status != cudaSuccess) {                                             \
            std::fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(status)); \
            std::exit(1);                                                        \
        }                                                                        \
    } while (0)

constexpr int THREADS = 256;
constexpr int TILE_FLOATS = 64 * 512;  // the gradient tile of one block: 64 samples of 512 dimensions
constexpr int STAGES = 8;
constexpr int CHUNK_BYTES = 16384;

// Every block adds a tile again and again to one of a few tiles: what a gradient by atomic additions does.
__global__ void __launch_bounds__(THREADS) add_scalars(float* target, int tiles, int repeats) {
    for (int r = 0; r < repeats; ++r) {
        float* tile = target + static_cast<size_t>((blockIdx.x + r) % tiles) * TILE_FLOATS;
        for (int i = threadIdx.x; i < TILE_FLOATS; i += THREADS) {
            atomicAdd(tile + i, 1.0f);
        }
    }
}

#if BULK  // compute capability 9.0 and newer
__device__ inline uint32_t shared_address(void const* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__global__ void __launch_bounds__(THREADS) add_bulk(float* target, int tiles, int repeats) {
    extern __shared__ __align__(128) unsigned char memory[];
    float* ones = reinterpret_cast<float*>(memory);
    for (int i = threadIdx.x; i < CHUNK_BYTES / 4; i += THREADS) {
        ones[i] = 1.0f;
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x != 0) {
        return;
    }
    constexpr int PARTS = TILE_FLOATS * 4 / CHUNK_BYTES;
    for (int r = 0; r < repeats; ++r) {
        float* tile = target + static_cast<size_t>((blockIdx.x + r) % tiles) * TILE_FLOATS;
        for (int part = 0; part < PARTS; ++part) {
            asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(
                             tile + part * (CHUNK_BYTES / 4)),
                         "r"(shared_address(ones)), "r"(CHUNK_BYTES)
                         : "memory");
        }
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        asm volatile("cp.async.bulk.wait_group.read 4;" ::: "memory");
    }
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

__device__ inline void wait_for(uint32_t barrier, uint32_t phase) {
    asm volatile(
        "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra AGAIN;\n}" ::
            "r"(barrier),
        "r"(phase)
        : "memory");
}

// Every block reads the whole source, which fits in L2, into shared memory. With multicast each block of a pair fetches
// half of every chunk for both. All stages are filled, waited for, and freed by a cluster barrier in either case.
template <bool MULTICAST>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS) read_l2(unsigned char const* source, int chunks) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) uint64_t barriers[STAGES];
    cg::cluster_group cluster = cg::this_cluster();
    unsigned const rank = cluster.block_rank();
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&barriers[s])));
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster.sync();
    uint32_t phase = 0;
    for (int first = 0; first < chunks; first += STAGES) {
        if (threadIdx.x == 0) {
            for (int s = 0; s < STAGES; ++s) {
                uint32_t const barrier = shared_address(&barriers[s]);
                uint32_t const slot = shared_address(memory + s * CHUNK_BYTES);
                unsigned char const* from = source + static_cast<size_t>((first + s) % chunks) * CHUNK_BYTES;
                asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(CHUNK_BYTES)
                             : "memory");
                if (MULTICAST) {
                    constexpr int HALF = CHUNK_BYTES / 2;
                    uint16_t const both = 3;
                    asm volatile(
                        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                        "[%0], [%1], %2, [%3], %4;" ::"r"(slot + rank * HALF),
                        "l"(from + rank * HALF), "r"(HALF), "r"(barrier), "h"(both)
                        : "memory");
                } else {
                    asm volatile(
                        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                            slot),
                        "l"(from), "r"(CHUNK_BYTES), "r"(barrier)
                        : "memory");
                }
            }
        }
        for (int s = 0; s < STAGES; ++s) {
            wait_for(shared_address(&barriers[s]), phase);
        }
        phase ^= 1;
        cluster.sync();
    }
}
#endif

__global__ void __launch_bounds__(THREADS) barriers(int repeats) {
    cg::grid_group grid = cg::this_grid();
    for (int r = 0; r < repeats; ++r) {
        grid.sync();
    }
}

// Milliseconds of the second of two launches.
template <typename Launch>
float timed_ms(Launch launch) {
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    float ms = 0;
    for (int pass = 0; pass < 2; ++pass) {
        CHECK(cudaEventRecord(begin));
        launch();
        CHECK(cudaGetLastError());
        CHECK(cudaEventRecord(end));
        CHECK(cudaEventSynchronize(end));
        CHECK(cudaEventElapsedTime(&ms, begin, end));
    }
    return ms;
}

int main() {
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    int const blocks = device.multiProcessorCount / 2 * 2;
    constexpr int TILES = 128, REPEATS = 200;
    float* target;
    CHECK(cudaMalloc(&target, sizeof(float) * TILES * TILE_FLOATS));
    CHECK(cudaMemset(target, 0, sizeof(float) * TILES * TILE_FLOATS));
    double const added_bytes = 4.0 * TILE_FLOATS * REPEATS * blocks;
    float ms = timed_ms([&] { add_scalars<<<blocks, THREADS>>>(target, TILES, REPEATS); });
    std::printf("fp32 additions into global memory, scalar|%.3f|TB/s\n", added_bytes / ms / 1e9);
#if BULK
    int const shared = STAGES * CHUNK_BYTES;
    CHECK(cudaFuncSetAttribute(add_bulk, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    ms = timed_ms([&] { add_bulk<<<blocks, THREADS, shared>>>(target, TILES, REPEATS); });
    std::printf("fp32 additions into global memory, bulk|%.3f|TB/s\n", added_bytes / ms / 1e9);
    int const chunks = 1024;  // 16 MiB
    unsigned char* source;
    CHECK(cudaMalloc(&source, static_cast<size_t>(chunks) * CHUNK_BYTES));
    CHECK(cudaMemset(source, 1, static_cast<size_t>(chunks) * CHUNK_BYTES));
    CHECK(cudaFuncSetAttribute(read_l2<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    CHECK(cudaFuncSetAttribute(read_l2<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    double const read_bytes = static_cast<double>(chunks) * CHUNK_BYTES * blocks;
    ms = timed_ms([&] { read_l2<false><<<blocks, THREADS, shared>>>(source, chunks); });
    std::printf("L2 to shared memory|%.3f|TB/s\n", read_bytes / ms / 1e9);
    ms = timed_ms([&] { read_l2<true><<<blocks, THREADS, shared>>>(source, chunks); });
    std::printf("L2 to shared memory, multicast to 2 blocks (as received)|%.3f|TB/s\n", read_bytes / ms / 1e9);
#endif
    int repeats = 1000;
    void* arguments[] = {&repeats};
    ms = timed_ms([&] {
        CHECK(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(barriers), dim3(blocks), dim3(THREADS), arguments, 0,
                                          nullptr));
    });
    std::printf("grid-wide barrier, %d blocks|%.3f|us\n", blocks, ms * 1e3 / repeats);
    return 0;
}
