// Which variants of the kernels the processor that runs this process can execute.
#pragma once

#include <string>
#include <vector>

namespace sleepfm {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2 };

// The best instruction set that both processor and build offer. The environment variable SLEEPFM_CPU = portable, avx2
// or avx512 chooses a lower one, by which the tests run every variant; one that is not offered is refused
// (std::invalid_argument).
Isa best_isa();

// Whether the processor has AVX-512's products of bfloat16 and SLEEPFM_CPU is not set. These instructions are no
// variant of their own: only the encoder's blocks use them, if asked for bfloat16.
bool multiplies_bf16();

char const* isa_name(Isa isa);

// Names of all variants that can run here, slowest first.
std::vector<std::string> available_isas();

}  // namespace sleepfm
