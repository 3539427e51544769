#include "cpu/cpu_features.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#if defined(SLEEPFM_WITH_AMX) && defined(SLEEPFM_WITH_AVX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "check.h"

namespace sleepfm {

namespace {

// What the user chose; empty: nothing.
std::string wanted_isa() {
    char const* wanted = std::getenv("SLEEPFM_CPU");
    return wanted == nullptr ? "" : wanted;
}

#if defined(SLEEPFM_WITH_AMX) && defined(SLEEPFM_WITH_AVX)
bool multiplies_tiles() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned AMX_BF16 = 1U << 22, AMX_TILE = 1U << 24, AMX_INT8 = 1U << 25;  // of edx
    constexpr unsigned NEEDED = AMX_BF16 | AMX_TILE | AMX_INT8;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & NEEDED) == NEEDED;
}

// Whether the processor multiplies tiles of bfloat16 and of bytes, and Linux lets this process use them, which it has
// to be asked for (Linux 5.16 and later): a thread's tiles are 8 KB of state that would else be saved for everyone. For
// a user who chose another instruction set Linux is not asked, only whether it grants tiles at all.
bool may_use_tiles() {
    constexpr long OFFERED = 0x1021, REQUEST = 0x1023;  // ARCH_GET_XCOMP_SUPP, ARCH_REQ_XCOMP_PERM
    constexpr long TILE_DATA = 18;                      // XFEATURE_XTILEDATA
    std::string const wanted = wanted_isa();
    if (wanted.empty() || wanted == "amx") {
        static bool const granted = multiplies_tiles() && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
        return granted;
    }
    static bool const offered = [] {
        std::uint64_t features = 0;
        return multiplies_tiles() && syscall(SYS_arch_prctl, OFFERED, &features) == 0 &&
               (features >> TILE_DATA & 1U) != 0;
    }();
    return offered;
}
#endif

Isa detect() {
#if defined(SLEEPFM_TILES_IN_SOFTWARE)
    return Isa::amx;
#elif defined(SLEEPFM_WITH_AVX)
    // Set by tests/emulated_avx512, whose emulator carries out what this processor lacks.
    char const* emulated = std::getenv("SLEEPFM_EMULATED_CPU");
    if (emulated != nullptr && std::strcmp(emulated, "avx512") == 0) {
        return Isa::avx512;
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
#if defined(SLEEPFM_WITH_AVX512_BF16)
        if (__builtin_cpu_supports("avx512bf16")) {
#if defined(SLEEPFM_WITH_AMX)
            if (may_use_tiles()) {
                return Isa::amx;
            }
#endif
            return Isa::avx512_bf16;
        }
#endif
        return Isa::avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return Isa::avx2;
    }
    return Isa::portable;
#else
    return Isa::portable;
#endif
}

// Calls body(isa) for every variant that can run here, slowest first.
template <typename Body>
void for_available(Isa best, Body body) {
    for (int i = 0; i <= static_cast<int>(best); ++i) {
#if defined(SLEEPFM_TILES_IN_SOFTWARE)
        if (i > 0 && i < static_cast<int>(best)) {
            continue;
        }
#endif
        body(static_cast<Isa>(i));
    }
}

}  // namespace

char const* isa_name(Isa isa) {
    switch (isa) {
        case Isa::amx: return "amx";
        case Isa::avx512_bf16: return "avx512_bf16";
        case Isa::avx512: return "avx512";
        case Isa::avx2: return "avx2";
        case Isa::portable: break;
    }
    return "portable";
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for_available(detect(), [&](Isa isa) { names.emplace_back(isa_name(isa)); });
    return names;
}

Isa best_isa() {
    Isa const detected = detect();
    std::string const wanted = wanted_isa();
    if (wanted.empty()) {
        return detected;
    }
    Isa chosen = Isa::portable;
    bool is_available = false;
    std::string choices;
    for_available(detected, [&](Isa isa) {
        choices += std::string(" ") + isa_name(isa);
        if (wanted == isa_name(isa)) {
            chosen = isa;
            is_available = true;
        }
    });
    SLEEPFM_CHECK(is_available, "SLEEPFM_CPU is '", wanted,
                  "', which this processor or build does not offer; choose one of:", choices, ".");
    return chosen;
}

}  // namespace sleepfm
