#include "cpu/narrow.h"

#include "check.h"
#include "cpu/cpu_features.h"

namespace sleepfm {

namespace {

NarrowKernels kernels() {
#if defined(SLEEPFM_WITH_AVX)
    switch (best_isa()) {
        case Isa::amx:
        case Isa::avx512_bf16:
        case Isa::avx512: return avx512::narrow_kernels();
        case Isa::avx2: return avx2::narrow_kernels();
        case Isa::portable: break;
    }
#endif
    return portable::narrow_kernels();
}

void check(StemShape const& shape) {
    SLEEPFM_CHECK(shape.n_clips >= 0 && shape.n_samples >= 1, "stem: ", shape.n_clips, " clips of ", shape.n_samples,
                  " samples; at least one sample is needed.");
    SLEEPFM_CHECK(shape.n_in >= 1 && shape.n_out >= 1, "stem: ", shape.n_in, " channels in, ", shape.n_out,
                  " out; at least one of each is needed.");
    SLEEPFM_CHECK(shape.n_threads >= 1, "stem: n_threads is ", shape.n_threads, "; at least one is needed.");
    SLEEPFM_CHECK(reinterpret_cast<std::uintptr_t>(shape.workspace) % 64 == 0,
                  "stem: the workspace is not aligned to 64 bytes.");
}

void check(BatchNormShape const& shape) {
    SLEEPFM_CHECK(shape.n_clips >= 0 && shape.n_channels >= 1 && shape.n_samples >= 1, "batch_norm: ", shape.n_clips,
                  " clips of ", shape.n_channels, " channels and ", shape.n_samples,
                  " samples; at least one channel and one sample are needed.");
    SLEEPFM_CHECK(shape.n_clips * shape.n_samples > 1, "batch_norm: more than one value a channel is needed to train.");
    SLEEPFM_CHECK(shape.n_threads >= 1, "batch_norm: n_threads is ", shape.n_threads, "; at least one is needed.");
    SLEEPFM_CHECK(reinterpret_cast<std::uintptr_t>(shape.workspace) % 64 == 0,
                  "batch_norm: the workspace is not aligned to 64 bytes.");
}

void check(MaxPool const& call) {
    SLEEPFM_CHECK(call.n_rows >= 0 && call.n_samples >= 1, "max_pool: ", call.n_rows, " rows of ", call.n_samples,
                  " samples; at least one sample is needed.");
    SLEEPFM_CHECK(call.n_threads >= 1, "max_pool: n_threads is ", call.n_threads, "; at least one is needed.");
}

}  // namespace

void stem_forward(StemForward const& call) {
    check(call.shape);
    SLEEPFM_CHECK(call.shape.n_clips * ((call.shape.n_samples - 1) / 2 + 1) > 1,
                  "stem: a batch norm needs more than one value a channel to train.");
    kernels().stem_forward(call);
}

void stem_backward(StemBackward const& call) {
    check(call.shape);
    kernels().stem_backward(call);
}

void batch_norm_forward(BatchNormForward const& call) {
    check(call.shape);
    kernels().batch_norm_forward(call);
}

void batch_norm_backward(BatchNormBackward const& call) {
    check(call.shape);
    kernels().batch_norm_backward(call);
}

void max_pool_forward(MaxPool const& call) {
    check(call);
    kernels().max_pool_forward(call);
}

void max_pool_backward(MaxPool const& call) {
    check(call);
    kernels().max_pool_backward(call);
}

std::int64_t stem_workspace_bytes(StemShape const& shape) {
    return kernels().stem_workspace_bytes(shape);
}

std::int64_t batch_norm_workspace_bytes(BatchNormShape const& shape) {
    return kernels().batch_norm_workspace_bytes(shape);
}

}  // namespace sleepfm
