"""MBConv blocks in evaluation: the CUDA kernel run by the emulator of tests/cuda_on_cpu on torch tensors."""

from __future__ import annotations

import torch
from emulated_cuda import Counts, Run, compile_kernels
from torch import Tensor

from sleepfm_fast.ops.mbconv_evaluate import PackedMBConv
from sleepfm_fast.ops.registry import DTYPE_CODES

__all__ = ["emulate", "random_weights"]

AHEAD = Run()


def emulate(x: Tensor, block: PackedMBConv, run: Run = AHEAD, counts: list[Counts] | None = None) -> Tensor:
    """What the kernel makes of ``x`` [B, T, n_in]; appends what was counted."""
    B, T, n_in = x.shape
    y = torch.zeros(B, (T - 1) // block.stride + 1, block.n_out, dtype=x.dtype)
    with compile_kernels("mbconv_evaluate.cpp").call(run) as (memory, call):
        given = [memory.read("x", x), memory.read("packed", block.packed), memory.read("bias", block.bias)]
        sizes = (B, T, n_in, block.width, block.n_out, block.stride, int(block.residual))
        counted = call("mbconv_evaluate", *given, memory.write("y", y), DTYPE_CODES[x.dtype], *sizes)
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
