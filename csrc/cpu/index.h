// Sizes and places, and the arithmetic on them that the kernels share. Not the standard library's: of a template that
// several instruction sets use the linker keeps one copy, which another processor may be unable to execute.
#pragma once

#include <cstdint>

namespace sleepfm::SLEEPFM_ISA {

using Index = std::int64_t;

inline Index round_up(Index value, Index multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

inline Index least(Index a, Index b) {
    return a < b ? a : b;
}

inline Index most(Index a, Index b) {
    return a > b ? a : b;
}

}  // namespace sleepfm::SLEEPFM_ISA
