// The contrastive loss on a CUDA device: the operands that its kernels multiply, and the two entry points of the fused
// tensor-core path (`mma` in docs/kernels/contrastive-loss-cuda.md). The contract is that of params.h with all pointers
// on the device, except that ContrastiveCudaOptions gives the range of samples, and n_threads and kept are not used.
// Calls return without waiting for the device.
#pragma once

#include <cstdint>

#include "params.h"

namespace sleepfm {

// The number of an operand's rows is padded with zeros to a multiple of the largest tile's.
constexpr std::int64_t contrastive_row_padding = 128;
// Unit rows are stored times 2^8, so that elements down to 2^-22 have all 11 bits of a normal float16.
constexpr float contrastive_operand_scale = 256.0f;
// The most dimensions that the tensor-core path takes; D is padded with zeros to 64, 128, 256 or this.
constexpr std::int64_t contrastive_largest_dim = 512;

struct ContrastiveCudaOptions {
    bool split;               // precision "highest": each operand is the sum of two float16 numbers
    std::int64_t begin, end;  // results are for these samples, as rows and as columns, each against all N
    int device;
    void* stream;  // cudaStream_t
};

// Cuts one buffer into pieces that begin at multiples of 256 bytes. A piece of no elements is null. From a null base it
// only counts the bytes.
class DeviceArena {
  public:
    explicit DeviceArena(void* base) : base_(static_cast<char*>(base)) {}
    template <typename T>
    T* take(std::int64_t n) {
        char* const piece = base_ == nullptr || n == 0 ? nullptr : base_ + used_;
        used_ += (n * static_cast<std::int64_t>(sizeof(T)) + 255) / 256 * 256;
        return reinterpret_cast<T*>(piece);
    }
    std::int64_t used() const { return used_; }

  private:
    char* base_;
    std::int64_t used_ = 0;
};

// What the tensor cores multiply: unit rows e and, for leave-one-out, means of the other modalities' unit rows, times
// contrastive_operand_scale, in float16. split: an element is the sum of two float16 numbers, of which *_low has the
// second. What is absent, and the padding of N and D, is zero.
struct ContrastiveOperands {
    std::int64_t n_modalities, n_problems, n_samples, n_dim;
    std::int64_t n_padded;  // N, rounded up to a multiple of contrastive_row_padding
    std::int64_t d_padded;  // D, rounded up by contrastive_padded_dim
    bool pairwise, split;
    std::uint16_t* unit;      // [M, n_padded, d_padded]
    std::uint16_t* unit_low;  // split only
    std::uint16_t* mean;      // [M, n_padded, d_padded]; leave-one-out only
    std::uint16_t* mean_low;
    double* own;  // [P, n_padded] cosine of the sample's own pair, from rows before their rounding; 0 where not valid
    std::uint8_t* valid;  // [P, n_padded] 1 where the sample takes part in the problem
};

inline std::int64_t contrastive_n_problems(std::int64_t n_modalities, bool pairwise) {
    return pairwise ? n_modalities * (n_modalities - 1) / 2 : n_modalities;
}

inline std::int64_t contrastive_padded_dim(std::int64_t n_dim) {
    for (std::int64_t d : {std::int64_t{64}, std::int64_t{128}, std::int64_t{256}}) {
        if (n_dim <= d) {
            return d;
        }
    }
    return n_dim <= contrastive_largest_dim ? contrastive_largest_dim : (n_dim + 63) / 64 * 64;
}

inline ContrastiveOperands contrastive_operands(DeviceArena& arena, std::int64_t n_modalities, std::int64_t n_samples,
                                                std::int64_t n_dim, bool pairwise, bool split) {
    ContrastiveOperands o{};
    o.n_modalities = n_modalities;
    o.n_problems = contrastive_n_problems(n_modalities, pairwise);
    o.n_samples = n_samples;
    o.n_dim = n_dim;
    o.n_padded = (n_samples + contrastive_row_padding - 1) / contrastive_row_padding * contrastive_row_padding;
    o.d_padded = contrastive_padded_dim(n_dim);
    o.pairwise = pairwise;
    o.split = split;
    std::int64_t const matrix = o.n_modalities * o.n_padded * o.d_padded;
    o.unit = arena.take<std::uint16_t>(matrix);
    o.unit_low = arena.take<std::uint16_t>(split ? matrix : 0);
    o.mean = arena.take<std::uint16_t>(pairwise ? 0 : matrix);
    o.mean_low = arena.take<std::uint16_t>(!pairwise && split ? matrix : 0);
    o.own = arena.take<double>(o.n_problems * o.n_padded);
    o.valid = arena.take<std::uint8_t>(o.n_problems * o.n_padded);
    return o;
}

// Bytes of workspace for these sizes. sizes.workspace must be null; no address is looked at.
std::int64_t contrastive_forward_cuda_bytes(ContrastiveInput const& sizes, ContrastiveCudaOptions const& options);
std::int64_t contrastive_backward_cuda_bytes(ContrastiveInput const& sizes, ContrastiveCudaOptions const& options);

// gradient_x is written for samples [begin, end) only.
void contrastive_forward_cuda(ContrastiveForward const& call, ContrastiveCudaOptions const& options);
void contrastive_backward_cuda(ContrastiveBackward const& call, ContrastiveCudaOptions const& options);

}  // namespace sleepfm
