// Every instruction with hardware semantics that the kernels use, one inline function each. The device body is PTX or
// an intrinsic; the host body (SLEEPFM_ON_HOST) calls the emulator of tests/cuda_on_cpu, which runs threads as fibers.
// Kernels use such instructions through this header only, so that the same source runs where there is no GPU.
//
// All 32 lanes of a warp must reach a "warp-collective" function together, whatever their arguments. Call everything as
// ptx::name: CUDA's own headers also have an `any` and a `ballot`.
#pragma once

#include <string.h>

#include <cstdint>

#if defined(SLEEPFM_ON_HOST)
#include "emulator.h"  // also defines __global__, __device__, threadIdx, blockIdx, blockDim, gridDim

#include <cmath>

#include "half_precision.h"

// An array in shared memory: SLEEPFM_SHARED(float, tile, [16][33]);
#define SLEEPFM_SHARED(type, name, extents)                               \
    using name##_type = type extents;                                     \
    static char const name##_key = 0;                                     \
    [[maybe_unused]] name##_type& name = *reinterpret_cast<name##_type*>( \
        cuda_on_cpu::static_shared(&name##_key, sizeof(name##_type), alignof(name##_type)))
// The launch's dynamic shared memory, aligned to 128 bytes: SLEEPFM_DYNAMIC_SHARED(float, workspace);
#define SLEEPFM_DYNAMIC_SHARED(type, name) \
    [[maybe_unused]] type* const name = static_cast<type*>(cuda_on_cpu::dynamic_shared())
#else
#define SLEEPFM_SHARED(type, name, extents) __shared__ type name extents
#define SLEEPFM_DYNAMIC_SHARED(type, name)                                   \
    extern __shared__ __align__(128) unsigned char sleepfm_dynamic_shared[]; \
    type* const name = reinterpret_cast<type*>(sleepfm_dynamic_shared)
#endif

namespace sleepfm::ptx {

#if defined(__CUDACC__)
__device__ __forceinline__ unsigned shared_address(void const* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}
#endif

// threadIdx.x, read anew at every call (asm volatile), so that the compiler does not keep values computed from it in
// registers across the loops of a long kernel.
__device__ __forceinline__ int thread_index() {
#if defined(SLEEPFM_ON_HOST)
    return static_cast<int>(threadIdx.x);
#else
    int index;
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(index));
    return index;
#endif
}

// ---- tensor cores ---------------------------------------------------------------------------------------------------

// Loads four (x2: two) 8 x 8 matrices of 16-bit elements from shared memory. Lane i passes the address of row i % 8 of
// matrix i / 8, 16 bytes aligned to 16; x2 ignores the addresses of lanes 16 to 31. In r[j] lane i receives elements
// 2 (i % 4) and 2 (i % 4) + 1 of row i / 4 of matrix j; with _trans, of the transposed matrix j. Warp-collective.
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&r)[4], void const* smem_row) {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::ldmatrix<4, false>(r, smem_row);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(smem_row))
                 : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x4_trans(std::uint32_t (&r)[4], void const* smem_row) {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::ldmatrix<4, true>(r, smem_row);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(smem_row))
                 : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x2(std::uint32_t (&r)[2], void const* smem_row) {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::ldmatrix<2, false>(r, smem_row);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(smem_row))
                 : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x2_trans(std::uint32_t (&r)[2], void const* smem_row) {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::ldmatrix<2, true>(r, smem_row);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(smem_row))
                 : "memory");
#endif
}

// d [16, 8] += a [16, 16] b [16, 8] with float16 (or bfloat16) factors and float32 sums, which compute capabilities 8.x
// and 9.0 truncate rather than round. The fragments of a lane, with g = lane / 4 and t = lane % 4:
//   a[0]: row g,     columns 2t, 2t + 1     a[1]: row g + 8, columns 2t, 2t + 1
//   a[2]: row g,     columns 2t + 8, 2t + 9 a[3]: row g + 8, columns 2t + 8, 2t + 9
//   b[0]: rows 2t, 2t + 1, column g         b[1]: rows 2t + 8, 2t + 9, column g
//   d[0], d[1]: row g, columns 2t, 2t + 1   d[2], d[3]: row g + 8, columns 2t, 2t + 1
// Of the two halves of a register, the lower one has the lower index. Warp-collective.
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], std::uint32_t const (&a)[4],
                                                 std::uint32_t const (&b)[2]) {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::mma_m16n8k16<cuda_on_cpu::Half::f16>(d, a, b);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], std::uint32_t const (&a)[4],
                                                  std::uint32_t const (&b)[2]) {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::mma_m16n8k16<cuda_on_cpu::Half::bf16>(d, a, b);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// ---- 16-bit numbers -------------------------------------------------------------------------------------------------

// Two floats, rounded to nearest even, in one register; `low` is the lower half.
__device__ __forceinline__ std::uint32_t pack_f16(float low, float high) {
#if defined(SLEEPFM_ON_HOST)
    return static_cast<std::uint32_t>(to_f16(low)) | static_cast<std::uint32_t>(to_f16(high)) << 16;
#else
    std::uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
}

__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
#if defined(SLEEPFM_ON_HOST)
    return static_cast<std::uint32_t>(to_bf16(low)) | static_cast<std::uint32_t>(to_bf16(high)) << 16;
#else
    std::uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
}

__device__ __forceinline__ float from_f16(std::uint16_t bits) {
#if defined(SLEEPFM_ON_HOST)
    return cuda_on_cpu::float_of<cuda_on_cpu::Half::f16>(bits);
#else
    float value;
    asm("cvt.f32.f16 %0, %1;\n" : "=f"(value) : "h"(bits));
    return value;
#endif
}

__device__ __forceinline__ float from_bf16(std::uint16_t bits) {
    std::uint32_t const wide = static_cast<std::uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

// ---- copies ---------------------------------------------------------------------------------------------------------

// Copies 16 bytes from global to shared memory, both aligned to 16, asynchronously and past registers and L1 cache. If
// not valid, zeros are written and `global` is not read. The issuing thread sees the bytes after its own cp_async_wait;
// other threads see them after a barrier which that thread reaches after its wait.
__device__ __forceinline__ void cp_async_16(void* smem, void const* global, bool valid) {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::cp_async_16(smem, global, valid);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(smem)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
#endif
}

// Closes this thread's group of the copies that it issued since its last commit; the group may be empty.
__device__ __forceinline__ void cp_async_commit() {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::cp_async_commit();
#else
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until all groups of this thread but the newest `pending` ones have arrived.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::cp_async_wait(pending);
#else
    asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
#endif
}

struct alignas(16) Words4 {
    std::uint32_t word[4];
};

// 16 bytes of global memory, aligned to 16. The read_only and streaming forms may be used only on memory that no thread
// writes while the kernel runs (the non-coherent path); streaming is for data read once, and leaves no copy in L1.
__device__ __forceinline__ Words4 load_16(void const* global) {
#if defined(SLEEPFM_ON_HOST)
    return cuda_on_cpu::load_16<Words4>(global, false);
#else
    Words4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(global)
                 : "memory");
    return v;
#endif
}

__device__ __forceinline__ Words4 load_16_read_only(void const* global) {
#if defined(SLEEPFM_ON_HOST)
    return cuda_on_cpu::load_16<Words4>(global, true);
#else
    Words4 v;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n"
        : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
        : "l"(global));
    return v;
#endif
}

__device__ __forceinline__ Words4 load_16_streaming(void const* global) {
#if defined(SLEEPFM_ON_HOST)
    return cuda_on_cpu::load_16<Words4>(global, true);
#else
    Words4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
        : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
        : "l"(global));
    return v;
#endif
}

// 4 (8) bytes by the read-only path. As inline assembly the compiler does not merge neighbouring loads into a wider
// one, whose words would have to arrive in consecutive registers.
__device__ __forceinline__ std::uint32_t load_4_read_only(void const* global) {
    std::uint32_t word;
#if defined(SLEEPFM_ON_HOST)
    word = cuda_on_cpu::load_word<std::uint32_t>(global);
#else
    asm("ld.global.nc.u32 %0, [%1];\n" : "=r"(word) : "l"(global));
#endif
    return word;
}

__device__ __forceinline__ std::uint64_t load_8_read_only(void const* global) {
    std::uint64_t word;
#if defined(SLEEPFM_ON_HOST)
    word = cuda_on_cpu::load_word<std::uint64_t>(global);
#else
    asm("ld.global.nc.u64 %0, [%1];\n" : "=l"(word) : "l"(global));
#endif
    return word;
}

__device__ __forceinline__ void store_16(void* global, Words4 v) {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::store_16(global, v);
#else
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"l"(global), "r"(v.word[0]), "r"(v.word[1]),
                 "r"(v.word[2]), "r"(v.word[3])
                 : "memory");
#endif
}

// ---- arithmetic -----------------------------------------------------------------------------------------------------

// 2^x to about 2 units in the last place; subnormal arguments and results are flushed to 0.
__device__ __forceinline__ float ex2(float x) {
#if defined(SLEEPFM_ON_HOST)
    float const y = static_cast<float>(std::exp2(static_cast<double>(x)));
    return y < 1.17549435e-38f ? 0.0f : y;
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
#endif
}

// x + y and x y + z, rounded once and clamped to [0, 1]; NaN becomes 0.
__device__ __forceinline__ float add_saturated(float x, float y) {
    float sum;
#if defined(SLEEPFM_ON_HOST)
    sum = x + y;
    sum = sum > 0.0f ? (sum < 1.0f ? sum : 1.0f) : 0.0f;
#else
    asm("add.rn.sat.f32 %0, %1, %2;\n" : "=f"(sum) : "f"(x), "f"(y));
#endif
    return sum;
}

__device__ __forceinline__ float multiply_add_saturated(float x, float y, float z) {
    float sum;
#if defined(SLEEPFM_ON_HOST)
    sum = static_cast<float>(static_cast<double>(x) * static_cast<double>(y) + static_cast<double>(z));
    sum = sum > 0.0f ? (sum < 1.0f ? sum : 1.0f) : 0.0f;
#else
    asm("fma.rn.sat.f32 %0, %1, %2, %3;\n" : "=f"(sum) : "f"(x), "f"(y), "f"(z));
#endif
    return sum;
}

// ---- exchange within a warp -----------------------------------------------------------------------------------------

// The value that lane (lane ^ mask), (lane + delta) or `source` passes. shuffle_down gives lanes that would read beyond
// the warp their own value. T has 4 or 8 bytes. Warp-collective.
template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
#if defined(SLEEPFM_ON_HOST)
    return cuda_on_cpu::shuffle(value, cuda_on_cpu::Collective::shuffle_xor, mask);
#else
    return __shfl_xor_sync(0xffffffffu, value, mask);
#endif
}

template <typename T>
__device__ __forceinline__ T shuffle_down(T value, int delta) {
#if defined(SLEEPFM_ON_HOST)
    return cuda_on_cpu::shuffle(value, cuda_on_cpu::Collective::shuffle_down, delta);
#else
    return __shfl_down_sync(0xffffffffu, value, static_cast<unsigned>(delta));
#endif
}

template <typename T>
__device__ __forceinline__ T shuffle_idx(T value, int source) {
#if defined(SLEEPFM_ON_HOST)
    return cuda_on_cpu::shuffle(value, cuda_on_cpu::Collective::shuffle_idx, source);
#else
    return __shfl_sync(0xffffffffu, value, source);
#endif
}

// ballot: bit i is lane i's predicate. any: true if at least one lane's predicate is. Warp-collective.
__device__ __forceinline__ unsigned ballot(bool predicate) {
#if defined(SLEEPFM_ON_HOST)
    return cuda_on_cpu::ballot(predicate);
#else
    return __ballot_sync(0xffffffffu, predicate);
#endif
}

__device__ __forceinline__ bool any(bool predicate) {
#if defined(SLEEPFM_ON_HOST)
    return cuda_on_cpu::ballot(predicate) != 0;
#else
    return __any_sync(0xffffffffu, predicate) != 0;
#endif
}

// ---- barriers -------------------------------------------------------------------------------------------------------

// Waits for all lanes of the warp and makes what each wrote to memory visible to the others.
__device__ __forceinline__ void sync_warp() {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::sync_warp();
#else
    __syncwarp();
#endif
}

// Waits for all threads of the block and makes what each wrote to memory visible to the others.
__device__ __forceinline__ void sync_threads() {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::sync_threads();
#else
    __syncthreads();
#endif
}

// The same for n_threads threads (whole warps) of the block, those that come to barrier `id`, 1 to 15 (0 is
// sync_threads). bar_arrive counts as having come but does not wait.
__device__ __forceinline__ void bar_sync(int id, int n_threads) {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::bar_sync(id, n_threads);
#else
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(n_threads) : "memory");
#endif
}

__device__ __forceinline__ void bar_arrive(int id, int n_threads) {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::bar_arrive(id, n_threads);
#else
    asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(n_threads) : "memory");
#endif
}

// ---- between blocks -------------------------------------------------------------------------------------------------

// Returns the value before the addition. A thread that reads the sum, or a later one, with load_acquire then sees
// everything that this thread wrote before it, and also what this thread had been shown of other threads' writes, by a
// block's barrier for example.
__device__ __forceinline__ unsigned atomic_add_release_u32(unsigned* global, unsigned value) {
#if defined(SLEEPFM_ON_HOST)
    return cuda_on_cpu::atomic_add(global, value);
#else
    unsigned before;
    asm volatile("atom.release.gpu.global.add.u32 %0, [%1], %2;\n" : "=r"(before) : "l"(global), "r"(value) : "memory");
    return before;
#endif
}

// Atomic addition to a word of shared memory, unordered with other accesses. For integers only: their sums do not
// depend on the order.
__device__ __forceinline__ void add_shared_u32(unsigned* shared, unsigned value) {
#if defined(SLEEPFM_ON_HOST)
    cuda_on_cpu::atomic_add(shared, value);
#else
    atomicAdd(shared, value);
#endif
}

// Reads a word that other blocks add to; what they wrote before their additions is visible after it.
__device__ __forceinline__ unsigned load_acquire(unsigned const* global) {
#if defined(SLEEPFM_ON_HOST)
    return cuda_on_cpu::load_acquire(global);
#else
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];\n" : "=r"(value) : "l"(global) : "memory");
    return value;
#endif
}

// Waits for all threads of all n_blocks blocks of a cooperative launch and makes what each wrote to global memory
// visible to all. Every thread of every block calls it. Memory that was written before it must not be read by
// load_*_read_only or load_16_streaming after it.
//
// One thread a block does the waiting. Its addition releases and its polling acquires, as in cooperative groups; the
// block's own barriers before and after extend that to the block's other threads. *state is 0 before its first use and
// is never reset: block 0 adds 2^31 - (n_blocks - 1) and every other block 1, together 2^31, so that the highest bit
// flips when the last block arrives, and the lower bits are 0 again for the next barrier.
__device__ __forceinline__ void grid_barrier(unsigned* state, unsigned n_blocks) {
#if defined(SLEEPFM_ON_HOST)
    if (cuda_on_cpu::skips_grid_barrier()) {
        return;
    }
#endif
    sync_threads();
    if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
        bool const first = blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0;
        unsigned const before = atomic_add_release_u32(state, first ? 0x80000000u - (n_blocks - 1) : 1u);
        while (((before ^ load_acquire(state)) & 0x80000000u) == 0) {
        }
    }
    sync_threads();
}

}  // namespace sleepfm::ptx
