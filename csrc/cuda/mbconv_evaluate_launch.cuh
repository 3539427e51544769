// How the evaluation of an MBConv block is checked and launched, the same on a device and in the emulator. The queue is
// that of cuda/contrastive_launch.h.
#pragma once

#include <cstdint>

#include "check.h"
#include "cuda/contrastive_launch.h"
#include "cuda/mbconv_evaluate.cuh"

namespace sleepfm::cuda {

// `type` is p.dtype, which the caller has looked at already; each type is compiled in a file of its own.
template <DType type, typename Queue>
void launch_mbconv_evaluate(Queue& queue, MBConvPacked const& p) {
    SLEEPFM_CHECK(p.n_clips >= 0 && p.n_samples >= 1 && p.n_samples <= (std::int64_t{1} << 30),
                  "mbconv_evaluate: ", p.n_clips, " clips of ", p.n_samples, " samples; expected 1 to 2^30 samples.");
    SLEEPFM_CHECK(!p.residual || (p.stride == 1 && p.n_in == p.n_out), "mbconv_evaluate: a residual from ", p.n_in,
                  " to ", p.n_out, " channels with stride ", p.stride, "; it needs as many out as in and stride 1.");
    for (void const* address : {p.x, p.packed, static_cast<void const*>(p.y)}) {
        SLEEPFM_CHECK(reinterpret_cast<std::uintptr_t>(address) % 16 == 0,
                      "mbconv_evaluate: x, packed and y must be aligned to 16 bytes.");
    }
    bool const known = for_mbconv_policy(p.n_in, p.width, p.n_out, p.stride, [&](auto policy) {
        using Policy = decltype(policy);
        std::int64_t const n_outputs = (p.n_samples - 1) / p.stride + 1;
        std::int64_t const n_stretches = (n_outputs + Policy::OUTPUTS - 1) / Policy::OUTPUTS;
        SLEEPFM_CHECK(p.n_clips <= ((std::int64_t{1} << 31) - 64) / n_stretches, "mbconv_evaluate: ", p.n_clips,
                      " clips are too many for one launch; split the batch.");
        std::int64_t const n_blocks = (p.n_clips * n_stretches + Policy::WARPS - 1) / Policy::WARPS;
        if (n_blocks > 0) {
            queue(&mbconv_evaluate_kernel<Policy, type>, Grid{static_cast<unsigned>(n_blocks), 1}, Policy::THREADS,
                  Policy::SHARED_BYTES, p, static_cast<int>(n_stretches));
        }
    });
    SLEEPFM_CHECK(known, "mbconv_evaluate: no kernel is compiled for ", p.n_in, " channels in, ", p.width, " inside, ",
                  p.n_out, " out and stride ", p.stride, ".");
}

}  // namespace sleepfm::cuda
