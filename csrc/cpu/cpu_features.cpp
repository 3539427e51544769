#include "cpu/cpu_features.h"

#include <cstdlib>
#include <cstring>

#include "check.h"

namespace sleepfm {

namespace {

Isa detect() {
#if defined(__x86_64__)
    // Set by tests/emulated_avx512, whose emulator carries out what this processor lacks.
    char const* emulated = std::getenv("SLEEPFM_EMULATED_CPU");
    if (emulated != nullptr && std::strcmp(emulated, "avx512") == 0) {
        return Isa::avx512;
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
        return Isa::avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return Isa::avx2;
    }
#endif
    return Isa::portable;
}

}  // namespace

bool multiplies_bf16() {
#if defined(SLEEPFM_WITH_AVX512_BF16)
    char const* wanted = std::getenv("SLEEPFM_CPU");
    return (wanted == nullptr || *wanted == '\0') && std::getenv("SLEEPFM_EMULATED_CPU") == nullptr &&
           detect() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

char const* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512: return "avx512";
        case Isa::avx2: return "avx2";
        case Isa::portable: break;
    }
    return "portable";
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (int i = 0; i <= static_cast<int>(detect()); ++i) {
        names.emplace_back(isa_name(static_cast<Isa>(i)));
    }
    return names;
}

Isa best_isa() {
    Isa const detected = detect();
    char const* wanted = std::getenv("SLEEPFM_CPU");
    if (wanted == nullptr || *wanted == '\0') {
        return detected;
    }
    for (int i = 0; i <= static_cast<int>(detected); ++i) {
        if (std::strcmp(wanted, isa_name(static_cast<Isa>(i))) == 0) {
            return static_cast<Isa>(i);
        }
    }
    std::string choices;
    for (auto const& name : available_isas()) {
        choices += " " + name;
    }
    SLEEPFM_CHECK(false, "SLEEPFM_CPU is '", wanted,
                  "', which this processor or build does not offer; choose one of:", choices, ".");
    return detected;
}

}  // namespace sleepfm
