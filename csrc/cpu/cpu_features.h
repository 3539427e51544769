// Which variants of the kernels the processor that runs this process can execute.
#pragma once

#include <string>
#include <vector>

// Whether the build has the variants avx2 and avx512. Tests build with tiles in software (tiles_in_software.h): then
// there are portable and amx, on every processor.
#if defined(__x86_64__) && !defined(SLEEPFM_TILES_IN_SOFTWARE)
#define SLEEPFM_WITH_AVX
#endif

namespace sleepfm {

// The last two are AVX-512 with instructions for products of bfloat16: of vectors, and of tiles (AMX) too. Kernels that
// do not use them have the variant avx512.
enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, amx = 4 };

// The best instruction set that processor, system and build offer. The environment variable SLEEPFM_CPU chooses a lower
// one by its name, by which the tests run every variant; one that is not offered is refused (std::invalid_argument).
// Linux gives the process permission for tiles only where they are the choice.
Isa best_isa();

char const* isa_name(Isa isa);

// Names of all variants that can run here, slowest first.
std::vector<std::string> available_isas();

}  // namespace sleepfm
