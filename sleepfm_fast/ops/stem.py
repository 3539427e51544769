"""The encoder's stem in training as one compiled op on the CPU: convolution of 3 with stride 2, batch norm.

What torch's convolution and batch norm do is memory traffic: few channels, long clips.
Figures: ``docs/kernels/encoder-blocks.md``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sleepfm_fast import _C
from sleepfm_fast.ops.arguments import (
    Expected,
    refuse_no_tensors,
    refuse_other_devices,
    refuse_other_types,
    refuse_unlike,
)
from sleepfm_fast.ops.pages import empty
from sleepfm_fast.ops.registry import LIBRARY
from sleepfm_fast.ops.unsupported import no_second_derivative, refuse_gradients, refuse_transforms

__all__ = ["stem"]


def stem(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """``batch_norm(conv1d(x, weight, bias, stride=2, padding=1))`` with the batch's own statistics.

    Parameters
    ----------
    x : Tensor
        ``[B, n_in, T]`` float32 on the CPU; data, which has no gradient.
    weight, bias : Tensor
        ``[n_out, n_in, 3]``, ``[n_out]`` of the convolution.
    gamma, beta : Tensor
        ``[n_out]`` of the batch norm.
    eps : float
        Added to the variances.

    Returns
    -------
    y : Tensor
        ``[B, n_out, (T - 1) // 2 + 1]``.
    statistics : Tensor
        ``[2, n_out]``, means and population variances of what the batch norm saw, in float64; no gradient.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, device, shape or value.
    NotImplementedError
        When x requires a gradient, for second derivatives, and inside the transforms of torch.func.

    Notes
    -----
    The same arguments give the same bits, for every number of threads. The gradient of ``bias`` is exactly zero: the
    batch norm takes constants away.
    """
    weights = (weight, bias, gamma, beta)
    named = list(zip(("x", "weight", "bias", "gamma", "beta"), (x, *weights), strict=True))
    refuse_no_tensors("stem", named)
    if x.ndim != 3 or x.shape[2] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; stem takes [B, n_in, T], clips of at least one sample.")
    n_out = len(weight) if weight.ndim else 0
    shapes = [(n_out, x.shape[1], 3), *[(n_out,)] * 3]
    for name, tensor, shape in zip(("weight", "bias", "gamma", "beta"), weights, shapes, strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; with x {tuple(x.shape)} and {n_out} channels out it has "
                f"shape {shape}."
            )
    refuse_other_types("stem", named)
    refuse_other_devices(named)
    refuse_transforms("stem", x, *weights)
    if x.shape[0] * ((x.shape[2] - 1) // 2 + 1) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; a batch norm needs more than one value a channel to train.")
    if torch.is_grad_enabled():
        if x.requires_grad:
            raise NotImplementedError("stem has no gradient for its input; use sleepfm_fast.reference.stem.")
        if any(tensor.requires_grad for tensor in weights):
            y, statistics = _Stem.apply(x, *weights, eps)  # type: ignore[no-untyped-call]
            return y, statistics
    y, _, statistics = torch.ops.sleepfm_fast.stem_forward(x, *weights, eps)
    return y, statistics


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        y, c, statistics = torch.ops.sleepfm_fast.stem_forward(x, weight, bias, gamma, beta, eps)
        ctx.save_for_backward(x, c, gamma, statistics)
        ctx.eps = eps
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            raise no_second_derivative("stem")
        dw, dgamma, dbeta = torch.ops.sleepfm_fast.stem_backward(dy, *ctx.saved_tensors, ctx.eps)
        return None, dw, torch.zeros_like(dbeta), dgamma, dbeta, None


# ---- registration ----------------------------------------------------------------------------------------------------

LIBRARY.define(
    "stem_forward(Tensor x, Tensor weight, Tensor bias, Tensor gamma, Tensor beta, float eps) -> "
    "(Tensor y, Tensor c, Tensor statistics)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "stem_backward(Tensor dy, Tensor x, Tensor c, Tensor gamma, Tensor statistics, float eps) -> "
    "(Tensor dw, Tensor dgamma, Tensor dbeta)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def results_of_forward(x: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised y, c, statistics."""
    shape = (x.shape[0], gamma.shape[0], (x.shape[2] - 1) // 2 + 1)
    return empty(x, shape), empty(x, shape), x.new_empty((2, gamma.shape[0]), dtype=torch.float64)


@torch.library.register_fake("sleepfm_fast::stem_forward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_forward(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return results_of_forward(x, gamma)


@torch.library.register_fake("sleepfm_fast::stem_backward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_backward(
    dy: Tensor, x: Tensor, c: Tensor, gamma: Tensor, statistics: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    n_out = gamma.shape[0]
    return x.new_empty((n_out, x.shape[1], 3)), x.new_empty(n_out), x.new_empty(n_out)


def call_arguments(x: Tensor, n_out: int) -> tuple[tuple[tuple[int, int, int, int], int, int], Tensor]:
    """Leading arguments of the compiled functions, and the workspace that must outlive the call."""
    dims = (x.shape[0], x.shape[1], n_out, x.shape[2])
    n_threads = min(torch.get_num_threads(), max(x.shape[0], 1))
    workspace = torch.empty(_C.stem_workspace_bytes(dims, n_threads), dtype=torch.uint8, device="cpu")
    return (dims, n_threads, workspace.data_ptr()), workspace


def _check_clips(op: str, x: Tensor) -> None:
    if x.ndim != 3 or x.shape[2] < 1 or x.dtype != torch.float32:
        raise ValueError(
            f"torch.ops.sleepfm_fast.{op}: x is {x.dtype} of shape {tuple(x.shape)}; expected torch.float32 "
            "[B, n_in, T], T >= 1."
        )


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    _check_clips("stem_forward", x)
    n_out = gamma.numel()
    named = (("bias", bias), ("gamma", gamma), ("beta", beta))
    expected = [(name, tensor, (n_out,), torch.float32) for name, tensor in named]
    weights = ("weight", weight, (n_out, x.shape[1], 3), torch.float32)
    refuse_unlike("stem_forward", x.device, [weights, *expected])
    x, weight, bias, gamma, beta = (tensor.contiguous() for tensor in (x, weight, bias, gamma, beta))
    y, c, statistics = results_of_forward(x, gamma)
    leading, _workspace = call_arguments(x, len(gamma))
    inputs = (x.data_ptr(), weight.data_ptr(), bias.data_ptr(), gamma.data_ptr(), beta.data_ptr())
    _C.stem_forward(*leading, eps, *inputs, c.data_ptr(), statistics.data_ptr(), y.data_ptr())
    return y, c, statistics


def _backward(
    dy: Tensor, x: Tensor, c: Tensor, gamma: Tensor, statistics: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    _check_clips("stem_backward", x)
    n_out = gamma.numel()
    narrow = (x.shape[0], n_out, (x.shape[2] - 1) // 2 + 1)
    expected: list[Expected] = [("dy", dy, narrow, torch.float32), ("c", c, narrow, torch.float32)]
    expected += [("gamma", gamma, (n_out,), torch.float32), ("statistics", statistics, (2, n_out), torch.float64)]
    refuse_unlike("stem_backward", x.device, expected)
    x, c, gamma, dy, statistics = (tensor.contiguous() for tensor in (x, c, gamma, dy, statistics))
    dw, dgamma, dbeta = x.new_empty((n_out, x.shape[1], 3)), x.new_empty(n_out), x.new_empty(n_out)
    leading, _workspace = call_arguments(x, n_out)
    inputs = (x.data_ptr(), c.data_ptr(), gamma.data_ptr(), dy.data_ptr(), statistics.data_ptr())
    _C.stem_backward(*leading, eps, *inputs, dw.data_ptr(), dgamma.data_ptr(), dbeta.data_ptr())
    return dw, dgamma, dbeta


LIBRARY.impl("stem_forward", _forward, "CPU")
LIBRARY.impl("stem_backward", _backward, "CPU")
refuse_gradients("stem_forward", "sleepfm_fast.ops.stem")
refuse_gradients("stem_backward", "sleepfm_fast.reference.stem, whose gradient can be differentiated")
