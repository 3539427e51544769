// Dropout of the projection, before the residual is added. Whether an element is dropped follows from a hash of seed,
// row and sample, so that backward needs no mask from forward, and neither threads nor instruction sets change the
// choice.
#pragma once

#include "cpu/mbconv_factors.h"
#include "params.h"

namespace sleepfm::SLEEPFM_ISA {

namespace {

struct Dropout {
    bool active;
    std::uint32_t threshold;
    float scale;
    std::uint64_t seed;

    explicit Dropout(MBConvResidual const& residual) : active(residual.dropout > 0.0), seed(residual.seed) {
        double const p = residual.dropout;
        threshold = p >= 1.0 ? 0xffffffffu : static_cast<std::uint32_t>(p * 4294967296.0);
        scale = p >= 1.0 ? 0.0f : static_cast<float>(1.0 / (1.0 - p));
    }

    // SplitMix64 (Steele, Lea and Flood) of the row's number, clip * n_out + channel.
    std::uint64_t key(Index row) const {
        std::uint64_t z = seed + 0x9e3779b97f4a7c15u * (static_cast<std::uint64_t>(row) + 1);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }

    // v for the samples from t on of the row with this key, each dropped or scaled. Sample and lower half of the key go
    // through MurmurHash3's finaliser, the result and the upper half through a shorter one.
    Vector operator()(Vector v, std::uint64_t row_key, Index t) const {
        if (!active) {
            return v;
        }
        Words h;
        for (int i = 0; i < SLEEPFM_LANES; ++i) {
            h[i] = static_cast<std::uint32_t>(i);
        }
        h += static_cast<std::uint32_t>(t) + static_cast<std::uint32_t>(row_key);
        h ^= h >> 16;
        h *= 0x85ebca6bu;
        h ^= h >> 13;
        h *= 0xc2b2ae35u;
        h ^= h >> 16;
        h ^= static_cast<std::uint32_t>(row_key >> 32);
        h *= 0x9e3779b1u;
        h ^= h >> 15;
        return h < threshold ? Vector{} : v * scale;
    }
};

}  // namespace

}  // namespace sleepfm::SLEEPFM_ISA
