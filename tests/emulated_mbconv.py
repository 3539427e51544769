"""MBConv blocks in evaluation: the CUDA kernel run by the emulator of tests/cuda_on_cpu on torch tensors."""

from __future__ import annotations

import torch
from emulated_cuda import Counts, Kernels, Run, compile_kernels
from torch import Tensor

from sleepfm_fast.ops.mbconv_evaluate import PackedMBConv, lane_channels, steps

__all__ = ["emulate", "kernels", "random_weights", "unpack"]

AHEAD = Run()


def kernels(dtype: torch.dtype) -> Kernels:
    """The kernels of one type, compiled for the host."""
    return compile_kernels("mbconv_evaluate.cpp", "TYPE=bf16" if dtype == torch.bfloat16 else "TYPE=f16")


def emulate(x: Tensor, block: PackedMBConv, run: Run = AHEAD, counts: list[Counts] | None = None) -> Tensor:
    """What the kernel makes of ``x`` [B, T, n_in]; appends what was counted."""
    B, T, n_in = x.shape
    y = torch.zeros(B, (T - 1) // block.stride + 1, block.n_out, dtype=x.dtype)
    with kernels(x.dtype).call(run) as (memory, call):
        given = [memory.read("x", x), memory.read("packed", block.packed), memory.read("bias", block.bias)]
        sizes = (B, T, n_in, block.width, block.n_out, block.stride, int(block.residual))
        counted = call("mbconv_evaluate", *given, memory.write("y", y), *sizes)
    if counts is not None:
        counts.append(counted)
    return y


def random_weights(n_in: int, width: int, n_out: int, seed: int = 0) -> list[Tensor]:
    """Folded weights of a block, float64, for which about a third of either ReLU6 is at 0 and a tenth at 6."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((width, n_in), (width,), (width, 3), (width,), (n_out, width), (n_out,))
    scales = (3.0 / n_in**0.5, 2.0, 0.7, 2.0, 0.5 / width**0.5, 1.0)
    w1, b1, wd, bd, w3, b3 = (
        scale * torch.randn(shape, generator=g, dtype=torch.float64)
        for scale, shape in zip(scales, shapes, strict=True)
    )
    return [w1, b1 + 1.0, wd, bd + 1.0, w3, b3]


def unpack(block: PackedMBConv) -> list[Tensor]:
    """The weights that were packed, float64, as they were rounded."""
    K, N, n_chunks = steps(block.n_in), steps(block.n_out), block.width // 16
    of_fragments, of_projection = 512 * (K + N), 512 * K
    halves = block.packed[:, :of_fragments].contiguous().view(block.dtype).double()
    expand, project = halves[:, : of_projection // 2], halves[:, of_projection // 2 :]
    w1 = torch.zeros(block.width, 16 * K, dtype=torch.float64)
    in_order = expand.view(n_chunks, K, 8, 4, 2, 4).permute(0, 4, 2, 1, 3, 5).reshape(block.width, -1)
    w1[:, lane_channels(K).flatten()] = in_order
    # project: chunk, pair of tiles, column g, lane t, tile, and rows 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of the chunk.
    project = project.view(n_chunks, N, 8, 4, 2, 2, 2).permute(1, 4, 2, 0, 5, 3, 6).reshape(N, 2, 4, 2, block.width)
    w3 = torch.zeros(16 * N, block.width, dtype=torch.float64)
    w3[lane_channels(N).view(N, 4, 2, 2).transpose(1, 2).flatten()] = project.reshape(16 * N, block.width)
    parameters = block.packed[:, of_fragments:].contiguous().view(torch.float32).double()
    parameters = parameters.view(n_chunks, 4, 2, 5, 2).permute(0, 2, 1, 4, 3).reshape(block.width, 5)
    b1, wd, bd = 6 * parameters[:, 0], parameters[:, 1:4], 6 * parameters[:, 4]
    return [6 * w1[:, : block.n_in], b1, wd, bd, w3[: block.n_out] / 6, block.bias[: block.n_out].double()]
