// What the processor that runs this process offers; kernels choose their variant by it once.
#pragma once

#include <string>
#include <vector>

namespace sleepfm {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2 };

// The best instruction set that both the processor and the build offer. SLEEPFM_CPU=portable|avx2|avx512 lowers it
// (tests run every variant that way); a value that the processor lacks is refused.
Isa best_isa();

// Whether the processor has AVX-512's instructions for products of bfloat16 and SLEEPFM_CPU names no set: they are no
// variant of their own, as only the encoder's blocks use them, where they are asked for bfloat16.
bool multiplies_bf16();

char const* isa_name(Isa isa);

// Names of all variants that can run here, slowest first.
std::vector<std::string> available_isas();

}  // namespace sleepfm
