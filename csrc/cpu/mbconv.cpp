#include "cpu/mbconv.h"

#include "check.h"
#include "cpu/cpu_features.h"

namespace sleepfm {

namespace {

MBConvKernels kernels(bool bf16) {
    [[maybe_unused]] Isa const isa = best_isa();
#if defined(SLEEPFM_WITH_AMX)
    if (bf16 && isa == Isa::amx) {
        return amx::mbconv_bf16_kernels();
    }
#endif
#if defined(SLEEPFM_WITH_AVX)
#if defined(SLEEPFM_WITH_AVX512_BF16)
    if (bf16 && isa >= Isa::avx512_bf16) {
        return avx512_bf16::mbconv_bf16_kernels();
    }
#endif
    switch (isa) {
        case Isa::amx:
        case Isa::avx512_bf16:
        case Isa::avx512: return bf16 ? avx512::mbconv_bf16_kernels() : avx512::mbconv_kernels();
        case Isa::avx2: return bf16 ? avx2::mbconv_bf16_kernels() : avx2::mbconv_kernels();
        case Isa::portable: break;
    }
#endif
    return bf16 ? portable::mbconv_bf16_kernels() : portable::mbconv_kernels();
}

void check(MBConvShape const& shape, MBConvResidual const& residual) {
    SLEEPFM_CHECK(!residual.add || (shape.n_in == shape.n_out && shape.stride == 1), "mbconv: a residual from ",
                  shape.n_in, " to ", shape.n_out, " channels with stride ", shape.stride,
                  "; it needs as many out as in and stride 1.");
    SLEEPFM_CHECK(residual.dropout >= 0.0 && residual.dropout <= 1.0 && (residual.add || residual.dropout == 0.0),
                  "mbconv: dropout is ", residual.dropout, "; between 0 and 1, and 0 without a residual.");
    SLEEPFM_CHECK(shape.n_clips >= 0 && shape.n_samples >= 1, "mbconv: ", shape.n_clips, " clips of ", shape.n_samples,
                  " samples; at least one sample is needed.");
    SLEEPFM_CHECK(shape.n_in >= 1 && shape.width >= 1 && shape.n_out >= 1, "mbconv: ", shape.n_in, " channels in, ",
                  shape.width, " inside, ", shape.n_out, " out; at least one of each is needed.");
    SLEEPFM_CHECK(shape.stride == 1 || shape.stride == 2, "mbconv: stride is ", shape.stride, "; 1 or 2.");
    SLEEPFM_CHECK(shape.n_threads >= 1, "mbconv: n_threads is ", shape.n_threads, "; at least one is needed.");
    SLEEPFM_CHECK(reinterpret_cast<std::uintptr_t>(shape.workspace) % 64 == 0,
                  "mbconv: the workspace is not aligned to 64 bytes.");
}

void check(EncoderEvaluate const& call) {
    SLEEPFM_CHECK(call.n_clips >= 0 && call.n_samples >= 1, "encoder: ", call.n_clips, " clips of ", call.n_samples,
                  " samples; at least one sample is needed.");
    SLEEPFM_CHECK(call.n_in >= 1 && call.n_stem >= 1 && call.n_blocks >= 0, "encoder: ", call.n_in, " channels in, ",
                  call.n_stem, " after the stem; at least one of each is needed.");
    SLEEPFM_CHECK(call.n_threads >= 1, "encoder: n_threads is ", call.n_threads, "; at least one is needed.");
    SLEEPFM_CHECK(reinterpret_cast<std::uintptr_t>(call.workspace) % 64 == 0,
                  "encoder: the workspace is not aligned to 64 bytes.");
    std::int64_t n_channels = call.n_stem, n_samples = (call.n_samples - 1) / 2 + 1;
    for (std::int64_t i = 0; i < call.n_blocks; ++i) {
        MBConvShape const& shape = call.blocks[i].block.shape;
        check(shape, call.blocks[i].block.residual);
        SLEEPFM_CHECK(shape.n_in == n_channels && shape.n_samples == n_samples && shape.n_clips == call.n_clips,
                      "encoder: block ", i, " takes ", shape.n_in, " channels of ", shape.n_samples, " samples, after ",
                      n_channels, " of ", n_samples, ".");
        SLEEPFM_CHECK(!call.blocks[i].block.residual.add || call.blocks[i].after.gamma == nullptr, "encoder: block ", i,
                      " adds its input and has a batch norm after it, which cannot be folded then.");
        n_channels = shape.n_out;
        n_samples = (n_samples - 1) / shape.stride + 1;
    }
}

}  // namespace

void mbconv_forward(MBConvForward const& call) {
    check(call.shape, call.residual);
    SLEEPFM_CHECK(call.shape.n_clips * call.shape.n_samples > 1,
                  "mbconv: a batch norm needs more than one value a channel to train.");
    kernels(call.shape.bf16).forward(call);
}

void mbconv_evaluate(MBConvEvaluate const& call) {
    check(call.shape, call.residual);
    kernels(call.shape.bf16).evaluate(call);
}

void mbconv_backward(MBConvBackward const& call) {
    check(call.shape, call.residual);
    kernels(call.shape.bf16).backward(call);
}

void encoder_evaluate(EncoderEvaluate const& call) {
    check(call);
    kernels(call.bf16).encode(call);
}

std::int64_t mbconv_workspace_bytes(MBConvShape const& shape, bool backward) {
    return kernels(shape.bf16).workspace_bytes(shape, backward);
}

std::int64_t mbconv_evaluate_workspace_bytes(MBConvShape const& shape) {
    return kernels(shape.bf16).evaluate_workspace_bytes(shape);
}

std::int64_t encoder_workspace_bytes(EncoderEvaluate const& call) {
    check(call);
    return kernels(call.bf16).encoder_workspace_bytes(call);
}

}  // namespace sleepfm
