#include "cpu/contrastive.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "check.h"
#include "cpu/cpu_features.h"
#include "cpu/pages.h"

namespace sleepfm {

namespace {

ContrastiveKernels kernels() {
#if defined(SLEEPFM_WITH_AMX)
    if (best_isa() == Isa::amx) {
        return amx::contrastive_kernels();
    }
#endif
#if defined(SLEEPFM_WITH_AVX)
    switch (best_isa()) {
        case Isa::amx:
        case Isa::avx512_bf16:
        case Isa::avx512: return avx512::contrastive_kernels();
        case Isa::avx2: return avx2::contrastive_kernels();
        case Isa::portable: break;
    }
#endif
    return portable::contrastive_kernels();
}

void check(ContrastiveInput const& input) {
    SLEEPFM_CHECK(input.n_modalities >= 2 && input.n_modalities <= 8, "x has ", input.n_modalities,
                  " modalities; contrastive_loss takes 2 to 8.");
    SLEEPFM_CHECK(input.n_dim >= 1, "x has no dimensions; contrastive_loss takes D >= 1.");
    SLEEPFM_CHECK(input.n_samples >= 0 && input.n_samples < (std::int64_t{1} << 31), "x has ", input.n_samples,
                  " samples; ranks are counted in 32 bits.");
    SLEEPFM_CHECK(input.n_threads >= 1, "n_threads is ", input.n_threads, "; at least one is needed.");
    SLEEPFM_CHECK(reinterpret_cast<std::uintptr_t>(input.workspace) % 64 == 0 &&
                      reinterpret_cast<std::uintptr_t>(input.kept) % 64 == 0,
                  "the workspace is not aligned to 64 bytes.");
    SLEEPFM_CHECK(0 <= input.begin && input.begin <= input.end && input.end <= input.n_samples, "the range [",
                  input.begin, ", ", input.end, ") is not one of ", input.n_samples, " samples.");
}

// Asks for fresh memory in pages of 2 MiB: faulting in pages of 4 KiB takes a tenth of the time of the products.
void use_huge_pages(void* memory, std::int64_t n_bytes) {
#if defined(__linux__)
    constexpr std::uintptr_t page = std::uintptr_t{2} << 20;
    auto const first = (reinterpret_cast<std::uintptr_t>(memory) + page - 1) / page * page;
    auto const last = (reinterpret_cast<std::uintptr_t>(memory) + static_cast<std::uintptr_t>(n_bytes)) / page * page;
    if (memory != nullptr && last > first) {
        madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: refusal changes nothing
    }
#else
    static_cast<void>(memory);
    static_cast<void>(n_bytes);
#endif
}

void use_huge_pages(ContrastiveInput const& input, bool backward) {
    auto const bytes = contrastive_bytes(input.n_modalities, input.n_samples, input.n_dim, input.pairwise,
                                         input.dtype == DType::f64, backward, input.kept != nullptr, input.n_threads);
    use_huge_pages(input.workspace, bytes.workspace);
    use_huge_pages(input.kept, backward ? 0 : bytes.kept);
}

}  // namespace

void contrastive_forward(ContrastiveForward const& call) {
    check(call.input);
    use_huge_pages(call.input, false);
    auto const table = kernels();
    (call.input.dtype == DType::f64 ? table.forward_f64 : table.forward_f32)(call);
}

void contrastive_backward(ContrastiveBackward const& call) {
    check(call.input);
    use_huge_pages(call.input, true);
    auto const table = kernels();
    (call.input.dtype == DType::f64 ? table.backward_f64 : table.backward_f32)(call);
}

void contrastive_joint(ContrastiveJoint const& call) {
    auto const table = kernels();
    ContrastiveJoint own = call;
    ContrastiveInput& input = own.forward.input;
    input.begin = 0;
    input.end = input.n_samples;
    input.kept = nullptr;
    check(input);
    SLEEPFM_CHECK(call.gradient_x == nullptr || call.gradient_log_temperature != nullptr,
                  "the gradient of x comes with that of log_temperature.");
    Pages const workspace(static_cast<std::size_t>(table.joint_bytes(input)));
    input.workspace = workspace.data();
    table.joint(own);
}

ContrastiveBytes contrastive_bytes(std::int64_t n_modalities, std::int64_t n_samples, std::int64_t n_dim, bool pairwise,
                                   bool is_double, bool backward, bool kept, int n_threads) {
    return kernels().bytes(n_modalities, n_samples, n_dim, pairwise, is_double, backward, kept, n_threads);
}

void contrastive_exponential(void const* x, void* y, std::int64_t n, bool is_double) {
    kernels().exponential(x, y, n, is_double);
}

void pair_ranks(PairRanks const& call) {
    SLEEPFM_CHECK(call.n_dim >= 1, "the embeddings have no dimensions; pair_ranks takes D >= 1.");
    SLEEPFM_CHECK(call.n_threads >= 1, "n_threads is ", call.n_threads, "; at least one is needed.");
    SLEEPFM_CHECK(reinterpret_cast<std::uintptr_t>(call.workspace) % 64 == 0,
                  "the workspace is not aligned to 64 bytes.");
    kernels().pair_ranks(call);
}

void measure_rank_rows(RankRows const& call) {
    // With far more dimensions, rounding to integers could lengthen a vector beyond what 32-bit sums allow: factor_of.
    SLEEPFM_CHECK(call.n_dim <= (std::int64_t{1} << 30), "the embeddings have ", call.n_dim,
                  " dimensions; ranks take up to 2^30.");
    kernels().measure_rank_rows(call);
}

std::int64_t pair_ranks_bytes(std::int64_t n_rows, std::int64_t n_columns, std::int64_t n_dim, int n_threads) {
    return kernels().pair_ranks_bytes(n_rows, n_columns, n_dim, n_threads);
}

void own_inner_products(float const* a, float const* b, double* own, std::int64_t n_rows, std::int64_t n_dim) {
    kernels().own_inner_products(a, b, own, n_rows, n_dim);
}

}  // namespace sleepfm
