// In place of the .cu files in a build without nvcc: every call for a device is refused.
#include <cstdint>

#include "check.h"
#include "cuda/contrastive.h"
#include "cuda/contrastive_epilogue.h"
#include "cuda/contrastive_small.h"
#include "cuda/filter_resample.h"
#include "cuda/mbconv_evaluate.h"
#include "cuda/mbconv_train.h"
#include "params.h"

namespace sleepfm {

namespace {

void refuse(char const* op, char const* instead) {
    SLEEPFM_CHECK(
        false, op,
        ": this build has no CUDA kernels. Install the CUDA toolkit (nvcc) and run `pip install .` again, or ", instead,
        ".");
}

void refuse_filter() {
    refuse("filter_resample", "move the tensors to the CPU");
}

void refuse_loss() {
    refuse("contrastive_loss", "move the tensors to the CPU");
}

void refuse_evaluation() {
    refuse("mbconv_evaluate", "leave the blocks to torch");
}

void refuse_training() {
    refuse("mbconv_train", "leave the blocks to torch");
}

}  // namespace

void filter_resample_cuda(FilterResample const&, int, void*) {
    refuse_filter();
}

std::int64_t contrastive_forward_cuda_bytes(ContrastiveInput const&, ContrastiveCudaOptions const&) {
    refuse_loss();
    return 0;
}

std::int64_t contrastive_backward_cuda_bytes(ContrastiveInput const&, ContrastiveCudaOptions const&) {
    refuse_loss();
    return 0;
}

void contrastive_forward_cuda(ContrastiveForward const&, ContrastiveCudaOptions const&) {
    refuse_loss();
}

void contrastive_backward_cuda(ContrastiveBackward const&, ContrastiveCudaOptions const&) {
    refuse_loss();
}

void contrastive_small_cuda(ContrastiveSmall const&, int, void*) {
    refuse_loss();
}

void contrastive_gemm_cuda(GemmStep, ContrastiveGemm const&, int, void*) {
    refuse_loss();
}

void mbconv_evaluate_cuda_bf16(MBConvPacked const&, int, void*) {
    refuse_evaluation();
}

void mbconv_evaluate_cuda_f16(MBConvPacked const&, int, void*) {
    refuse_evaluation();
}

void mbconv_expansion_sums_cuda(MBConvExpansionSums const&, MBConvFinishExpansionSums const&, int, void*) {
    refuse_training();
}

void mbconv_depthwise_cuda(MBConvDepthwise const&, MBConvFinishDepthwise const&, int, void*) {
    refuse_training();
}

void mbconv_activate_cuda(MBConvActivate const&, int, int, void*) {
    refuse_training();
}

void mbconv_gradient_sums_cuda(MBConvGradientSums const&, MBConvFinishGradientSums const&, int, void*) {
    refuse_training();
}

void mbconv_depthwise_backward_cuda(MBConvDepthwiseBackward const&, MBConvFinishDepthwiseBackward const&, int, void*) {
    refuse_training();
}

}  // namespace sleepfm
