"""The published encoder in evaluation as one compiled op on the CPU: stem, MBConv blocks, pooling, average over time.

A clip goes through all layers on one thread, between two buffers of that thread; activations of a whole batch never
exist. Figures: ``docs/kernels/encoder-blocks.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sleepfm_fast import _C
from sleepfm_fast.ops.arguments import refuse_no_tensors, refuse_other_devices, refuse_other_types, refuse_unlike
from sleepfm_fast.ops.dispatch import is_plain
from sleepfm_fast.ops.mbconv import Precision, expected_weights, is_bfloat16, validate
from sleepfm_fast.ops.pages import empty
from sleepfm_fast.ops.registry import LIBRARY
from sleepfm_fast.ops.unsupported import refuse_gradients, refuse_transforms

__all__ = ["Block", "Norm", "Stem", "encoder_evaluate"]


NORM = ("gamma", "beta", "mean", "variance")


@dataclass(frozen=True)
class Norm:
    """A batch norm with running statistics."""

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    variance: Tensor
    eps: float = 1e-5

    def tensors(self) -> list[Tensor]:
        """Return the tensors in the compiled op's order."""
        return [self.gamma, self.beta, self.mean, self.variance]


@dataclass(frozen=True)
class Stem:
    """Convolution of 3 with stride 2 (weight ``[n_stem, n_in, 3]``, bias ``[n_stem]``), and the batch norm after it."""

    weight: Tensor
    bias: Tensor
    norm: Norm


@dataclass(frozen=True)
class Block:
    """An MBConv block as :func:`sleepfm_fast.ops.mbconv` takes it, and what follows it."""

    weights: tuple[Tensor, ...]
    """w1, b1, gamma0, beta0, wd, bd, gamma1, beta1, w3, b3."""
    running: tuple[Tensor, Tensor, Tensor, Tensor]
    """mean0, variance0, mean1, variance1."""
    stride: int = 1
    eps: float = 1e-5
    residual: bool = False
    after: Norm | None = None
    """Batch norm after the block; not with ``residual``."""
    pool: bool = False
    """Whether max pooling over three samples follows, last."""


def encoder_evaluate(x: Tensor, stem: Stem, blocks: Sequence[Block], *, precision: Precision = "float32") -> Tensor:
    """Run a stem and MBConv blocks with running statistics on clips, and average the result over time.

    Parameters
    ----------
    x : Tensor
        ``[B, n_in, T]`` float32 on the CPU.
    stem : Stem
        The first layer.
    blocks : sequence of Block
        In order; each takes as many channels as come out of the one before.
    precision : {"float32", "bfloat16"}
        As :func:`sleepfm_fast.ops.mbconv` takes it, for the blocks.

    Returns
    -------
    Tensor
        ``[B, n_out of the last block]``.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, device, shape or value.
    NotImplementedError
        Where a gradient is wanted, and inside the transforms of torch.func.

    Notes
    -----
    A clip's result is the same bits in every batch and for every number of threads. One clip runs on one thread.
    """
    own = [("x", x), ("stem.weight", stem.weight), ("stem.bias", stem.bias)]
    for name, norm in [("stem.norm", stem.norm), *[(f"blocks[{i}].after", b.after) for i, b in enumerate(blocks)]]:
        own += [(f"{name}.{field}", getattr(norm, field)) for field in NORM] if norm is not None else []
    refuse_no_tensors("encoder_evaluate", own)
    if x.ndim != 3 or x.shape[2] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; encoder_evaluate takes [B, n_in, T], at least one sample.")
    n = len(stem.weight) if stem.weight.ndim else 0
    named = [("stem.weight", stem.weight, (n, x.shape[1], 3)), ("stem.bias", stem.bias, (n,))]
    named += norm_shapes("stem.norm", stem.norm, n)
    here = x.new_empty((x.shape[0], n, (x.shape[2] - 1) // 2 + 1), device="meta")
    for i, block in enumerate(blocks):
        own += [
            (f"blocks[{i}], {name}", t) for name, t in validate(here, block.weights, block.stride, block.running)[1:]
        ]
        n_in, n = n, len(block.weights[8])
        if block.residual and (block.stride != 1 or n_in != n):
            raise ValueError(
                f"a residual needs stride 1 and as many channels out as in; block {i} has stride {block.stride}, "
                f"{n_in} channels in and {n} out."
            )
        if block.residual and block.after is not None:
            raise ValueError(f"block {i} adds its input and has a batch norm after it, which cannot be folded then.")
        if block.after is not None:
            named += norm_shapes(f"blocks[{i}].after", block.after, n)
        here = here.new_empty((x.shape[0], n, (here.shape[2] - 1) // block.stride + 1))
    for name, tensor, shape in named:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; with x {tuple(x.shape)} it has shape {shape}.")
    refuse_other_types("encoder_evaluate", [("x", x), *[(name, tensor) for name, tensor, _ in named]])
    refuse_other_devices(own)
    tensors = [stem.weight, stem.bias, *stem.norm.tensors()]
    for block in blocks:
        tensors += [*block.weights, *block.running, *(block.after.tensors() if block.after else [])]
    refuse_transforms("encoder_evaluate", x, *tensors)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *tensors)):
        raise NotImplementedError(
            "encoder_evaluate has no gradient; call it under torch.no_grad(), or use "
            "sleepfm_fast.reference.encoder_evaluate."
        )
    bf16 = is_bfloat16(precision)
    strides = [block.stride for block in blocks]
    kinds = [4 * block.residual + 2 * (block.after is not None) + block.pool for block in blocks]
    eps = [stem.norm.eps]
    for block in blocks:
        eps += [block.eps, block.after.eps if block.after else 0.0]
    is_watched = torch._C._autograd._profiler_enabled()  # it lists what passes through the dispatcher
    if x.device.type == "cpu" and is_plain(x, *tensors) and not is_watched:  # and all has been checked
        return _run(x, tensors, strides, kinds, eps, bf16)
    y: Tensor = torch.ops.sleepfm_fast.encoder_evaluate(x, tensors, strides, kinds, eps, bf16)
    return y


def norm_shapes(name: str, norm: Norm, n: int) -> list[tuple[str, Tensor, tuple[int, ...]]]:
    """Return name, tensor and expected shape of each part of a batch norm of n channels."""
    return [(f"{name}.{field}", tensor, (n,)) for field, tensor in zip(NORM, norm.tensors(), strict=True)]


# ---- registration ----------------------------------------------------------------------------------------------------

# kinds: for each block the sum of 4 (residual), 2 (batch norm after it) and 1 (pooling after it).
LIBRARY.define(
    "encoder_evaluate(Tensor x, Tensor[] tensors, int[] strides, int[] kinds, float[] eps, bool bf16) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)

STEM_TENSORS = 6  # weight, bias and the four of the batch norm


def widths(tensors: list[Tensor], kinds: list[int]) -> list[tuple[int, int]]:
    """Return the channels inside and the channels out of every block."""
    found, place = [], STEM_TENSORS
    for kind in kinds:
        found.append((tensors[place].shape[0], tensors[place + 8].shape[0]))
        place += 18 if kind & 2 else 14
    return found


@torch.library.register_fake("sleepfm_fast::encoder_evaluate", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake(
    x: Tensor, tensors: list[Tensor], strides: list[int], kinds: list[int], eps: list[float], bf16: bool
) -> Tensor:
    shapes = widths(tensors, kinds)
    return x.new_empty((x.shape[0], shapes[-1][1] if shapes else tensors[0].shape[0]))


def _check(x: Tensor, tensors: list[Tensor], strides: list[int], kinds: list[int], eps: list[float]) -> None:
    op = "encoder_evaluate"
    n_tensors = STEM_TENSORS + sum(18 if kind & 2 else 14 for kind in kinds)
    given = (len(tensors), len(strides), len(eps))
    if given != (n_tensors, len(kinds), 1 + 2 * len(kinds)) or any(not 0 <= kind < 8 for kind in kinds):
        raise ValueError(
            f"torch.ops.sleepfm_fast.{op}: {given[0]} tensors, {given[1]} strides and {given[2]} eps for {len(kinds)} "
            f"blocks of the kinds {kinds}; expected {n_tensors}, {len(kinds)} and {1 + 2 * len(kinds)}, and kinds from "
            "0 to 7."
        )
    if x.ndim != 3 or x.shape[2] < 1:
        raise ValueError(f"torch.ops.sleepfm_fast.{op}: x has shape {tuple(x.shape)}; expected [B, n_in, T], T >= 1.")
    n = tensors[1].numel()
    expected = [("x", x, x.shape, torch.float32), ("tensors[0]", tensors[0], (n, x.shape[1], 3), torch.float32)]
    expected += [(f"tensors[{k}]", tensors[k], (n,), torch.float32) for k in range(1, STEM_TENSORS)]
    place = STEM_TENSORS
    for kind, stride in zip(kinds, strides, strict=True):
        if kind & 4 and kind & 2:
            raise ValueError(f"torch.ops.sleepfm_fast.{op}: a block adds its input and has a batch norm after it.")
        weights = tensors[place : place + 10]
        expected += expected_weights(op, weights, n, stride, bool(kind & 4))
        width, n = weights[1].numel(), weights[9].numel()
        expected += [(f"tensors[{k}]", tensors[k], (width,), torch.float32) for k in range(place + 10, place + 14)]
        place += 14
        if kind & 2:
            expected += [(f"tensors[{k}]", tensors[k], (n,), torch.float32) for k in range(place, place + 4)]
            place += 4
    refuse_unlike(op, x.device, expected)


def _run(
    x: Tensor, tensors: list[Tensor], strides: list[int], kinds: list[int], eps: list[float], bf16: bool
) -> Tensor:
    y: Tensor = _fake(x, tensors, strides, kinds, eps, bf16)
    x, tensors = x.contiguous(), [tensor.contiguous() for tensor in tensors]
    dims = (x.shape[0], x.shape[1], tensors[0].shape[0], x.shape[2])
    layout = [
        (width, n_out, stride, bool(kind & 4), bool(kind & 1), eps[1 + 2 * i], eps[2 + 2 * i])
        for i, ((width, n_out), stride, kind) in enumerate(zip(widths(tensors, kinds), strides, kinds, strict=True))
    ]
    addresses = [x.data_ptr(), y.data_ptr()]
    rest = iter([tensor.data_ptr() for tensor in tensors])
    addresses += [next(rest) for _ in range(STEM_TENSORS)]
    for kind in kinds:
        addresses += [next(rest) for _ in range(14)]
        addresses += [next(rest) if kind & 2 else 0 for _ in range(4)]
    n_threads = min(torch.get_num_threads(), max(x.shape[0], 1))
    n_bytes = _C.encoder_workspace_bytes(dims, bf16, n_threads, layout)
    workspace = empty(x, (n_bytes // x.element_size(),))
    _C.encoder_evaluate(dims, bf16, n_threads, workspace.data_ptr(), eps[0], layout, addresses)
    return y


def _checked_run(
    x: Tensor, tensors: list[Tensor], strides: list[int], kinds: list[int], eps: list[float], bf16: bool
) -> Tensor:
    _check(x, tensors, strides, kinds, eps)
    return _run(x, tensors, strides, kinds, eps, bf16)


LIBRARY.impl("encoder_evaluate", _checked_run, "CPU")
refuse_gradients("encoder_evaluate", "sleepfm_fast.reference.encoder_evaluate")
