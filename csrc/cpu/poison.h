// Marks memory that must not be touched for the address sanitizer; does nothing in other builds.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)  // GCC
#define SLEEPFM_POISON 1
#elif defined(__has_feature)  // Clang
#if __has_feature(address_sanitizer)
#define SLEEPFM_POISON 1
#endif
#endif

#if defined(SLEEPFM_POISON)
#include <sanitizer/asan_interface.h>
#endif

namespace sleepfm {

// Unused bytes after every piece of a workspace, a multiple of 64, so that an overrun is seen and does not reach the
// next piece.
#if defined(SLEEPFM_POISON)
constexpr std::ptrdiff_t GAP = 128;
#else
constexpr std::ptrdiff_t GAP = 0;
#endif

// From now on the first n_bytes of the n_held bytes at `address` may be used, the others may not.
static inline void allow_only([[maybe_unused]] void* address, [[maybe_unused]] std::size_t n_bytes,
                              [[maybe_unused]] std::size_t n_held) {
#if defined(SLEEPFM_POISON)
    ASAN_UNPOISON_MEMORY_REGION(address, n_bytes);
    ASAN_POISON_MEMORY_REGION(static_cast<char*>(address) + n_bytes, n_held - n_bytes);
#endif
}

}  // namespace sleepfm
