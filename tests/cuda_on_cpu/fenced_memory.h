// Memory for emulated kernels: each buffer lies against a page that cannot be touched, so that an access beyond it
// becomes a sentence. Buffers of global memory lie in an arena, a file that this process, the forked child that runs
// the kernel and tests/emulated_cuda.py, which chooses the places, have in common.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace cuda_on_cpu {

constexpr unsigned char poison_byte = 0xff;  // NaN as float64, float32, float16 and bfloat16

struct Buffer {
    std::string name;
    char* begin;  // of what the kernel may touch
    std::size_t bytes;
    char* map;  // with a page before and a page behind that cannot be touched
    std::size_t map_bytes;
    bool writable;
};
inline std::vector<Buffer> buffers;
inline char* arena = nullptr;
inline std::size_t arena_bytes = 0;

inline std::size_t page_bytes() {
    return static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

// Maps `bytes` between two pages that cannot be touched: at the end of its own pages (`at_end`; up to alignment - 1
// bytes lie between it and the page behind) or at their beginning.
inline Buffer map_fenced(char const* name, std::size_t bytes, std::size_t alignment, bool at_end) {
    std::size_t const page = page_bytes(), inner = (bytes + page - 1) / page * page;
    Buffer buffer{name, nullptr, bytes, nullptr, inner + 2 * page, true};
    void* const map = mmap(nullptr, buffer.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED || (inner > 0 && mprotect(static_cast<char*>(map) + page, inner, PROT_READ | PROT_WRITE))) {
        return buffer;
    }
    buffer.map = static_cast<char*>(map);
    buffer.begin = buffer.map + page + (at_end ? (inner - bytes) / alignment * alignment : 0);
    memset(buffer.map + page, poison_byte, inner);
    return buffer;
}

// Where `address` lies with respect to a buffer, as a sentence's end; empty if no buffer is near.
inline std::string place_of_address(char const* address) {
    for (Buffer const& b : buffers) {
        if (address >= b.map && address < b.map + b.map_bytes) {
            long long const offset = address - b.begin;
            char text[256];
            if (offset < 0) {
                snprintf(text, sizeof text, "%lld bytes before buffer '%s'", -offset, b.name.c_str());
            } else if (offset >= static_cast<long long>(b.bytes)) {
                snprintf(text, sizeof text, "%lld bytes behind the end of buffer '%s' (%zu bytes)",
                         offset - static_cast<long long>(b.bytes), b.name.c_str(), b.bytes);
            } else {
                snprintf(text, sizeof text, "byte %lld of buffer '%s', which the kernel may only read", offset,
                         b.name.c_str());
            }
            return text;
        }
    }
    return "";
}

inline Buffer const* buffer_of(void const* address) {
    for (Buffer const& b : buffers) {
        if (address >= b.begin && address < b.begin + b.bytes) {
            return &b;
        }
    }
    return nullptr;
}

}  // namespace cuda_on_cpu

// For tests/cuda_on_cpu/server.py. The address of the arena, null where the system gives no memory.
extern "C" __attribute__((used)) inline void* emulator_open(int file, std::size_t bytes) {
    void* const map = mmap(nullptr, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (map == MAP_FAILED) {
        return nullptr;
    }
    cuda_on_cpu::arena = static_cast<char*>(map);
    cuda_on_cpu::arena_bytes = bytes;
    return map;
}

// A buffer at `begin` of the arena, within pages of `map_bytes` at `map` whose first and last cannot be touched.
extern "C" __attribute__((used)) inline void emulator_place(char const* name, std::size_t begin, std::size_t bytes,
                                                            std::size_t map, std::size_t map_bytes, int writable) {
    using namespace cuda_on_cpu;
    buffers.push_back({name, arena + begin, bytes, arena + map, map_bytes, writable != 0});
    mprotect(arena + map + page_bytes(), map_bytes - 2 * page_bytes(), PROT_READ | PROT_WRITE);
}

extern "C" __attribute__((used)) inline void emulator_forget_all() {
    mprotect(cuda_on_cpu::arena, cuda_on_cpu::arena_bytes, PROT_NONE);
    cuda_on_cpu::buffers.clear();
}
