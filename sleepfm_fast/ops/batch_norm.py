"""Batch norm in training as a compiled op on the CPU: statistics of the batch, and the gradients through them.

Where a clip's rows are short, torch's own spends its time on sums that it adds one value at a time.
Figures: ``docs/kernels/encoder-blocks.md``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sleepfm_fast import _C
from sleepfm_fast.ops.arguments import refuse_no_tensors, refuse_other_devices, refuse_other_types, refuse_unlike
from sleepfm_fast.ops.pages import empty
from sleepfm_fast.ops.registry import LIBRARY
from sleepfm_fast.ops.unsupported import no_second_derivative, refuse_gradients, refuse_transforms

__all__ = ["batch_norm"]


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, *, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """``torch.nn.functional.batch_norm(x, None, None, gamma, beta, training=True, eps=eps)`` and its statistics.

    Parameters
    ----------
    x : Tensor
        ``[B, C, T]`` float32 on the CPU.
    gamma, beta : Tensor
        ``[C]``, gain and shift of every channel.
    eps : float
        Added to the variances.

    Returns
    -------
    y : Tensor
        ``[B, C, T]``.
    statistics : Tensor
        ``[2, C]``, means and population variances over clips and samples, in float64; no gradient.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, device, shape or value.
    NotImplementedError
        For second derivatives, and inside the transforms of torch.func.

    Notes
    -----
    The same arguments give the same bits, for every number of threads.
    """
    named = [("x", x), ("gamma", gamma), ("beta", beta)]
    refuse_no_tensors("batch_norm", named)
    if x.ndim != 3 or x.shape[1] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; batch_norm takes [B, C, T] with at least one channel.")
    for name, tensor in named[1:]:
        if tuple(tensor.shape) != (x.shape[1],):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; with x {tuple(x.shape)} it has shape ({x.shape[1]},)."
            )
    refuse_other_types("batch_norm", named)
    refuse_other_devices(named)
    refuse_transforms("batch_norm", x, gamma, beta)
    if x.shape[0] * x.shape[2] < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; a batch norm needs more than one value a channel to train.")
    if torch.is_grad_enabled() and any(tensor.requires_grad for _, tensor in named):
        y, statistics = _BatchNorm.apply(x, gamma, beta, eps)  # type: ignore[no-untyped-call]
        return y, statistics
    y, statistics = torch.ops.sleepfm_fast.batch_norm_forward(x, gamma, beta, eps)
    return y, statistics


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y, statistics = torch.ops.sleepfm_fast.batch_norm_forward(x, gamma, beta, eps)
        ctx.save_for_backward(x, gamma, statistics)
        ctx.eps = eps
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            raise no_second_derivative("batch_norm")
        return *torch.ops.sleepfm_fast.batch_norm_backward(dy, *ctx.saved_tensors, ctx.eps), None


# ---- registration ----------------------------------------------------------------------------------------------------

LIBRARY.define(
    "batch_norm_forward(Tensor x, Tensor gamma, Tensor beta, float eps) -> (Tensor y, Tensor statistics)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "batch_norm_backward(Tensor dy, Tensor x, Tensor gamma, Tensor statistics, float eps) -> "
    "(Tensor dx, Tensor dgamma, Tensor dbeta)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake("sleepfm_fast::batch_norm_forward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _results_of_forward(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return empty(x, tuple(x.shape)), x.new_empty((2, gamma.shape[0]), dtype=torch.float64)


@torch.library.register_fake("sleepfm_fast::batch_norm_backward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _results_of_backward(
    dy: Tensor, x: Tensor, gamma: Tensor, statistics: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return empty(x, tuple(x.shape)), x.new_empty(gamma.shape), x.new_empty(gamma.shape)


def _call_arguments(x: Tensor) -> tuple[tuple[tuple[int, int, int], int, int], Tensor]:
    """Leading arguments of the compiled functions, and the workspace that must outlive the call."""
    B, C, T = x.shape
    n_threads = torch.get_num_threads()
    workspace = torch.empty(_C.batch_norm_workspace_bytes((B, C, T), n_threads), dtype=torch.uint8, device="cpu")
    return ((B, C, T), n_threads, workspace.data_ptr()), workspace


def _check(op: str, x: Tensor, *per_channel: tuple[str, Tensor]) -> None:
    if x.ndim != 3 or x.shape[1] < 1:
        raise ValueError(f"torch.ops.sleepfm_fast.{op}: x has shape {tuple(x.shape)}; expected [B, C, T].")
    expected = [(name, tensor, (x.shape[1],), torch.float32) for name, tensor in per_channel]
    refuse_unlike(op, x.device, [("x", x, x.shape, torch.float32), *expected])


def _forward(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    _check("batch_norm_forward", x, ("gamma", gamma), ("beta", beta))
    x, gamma, beta = x.contiguous(), gamma.contiguous(), beta.contiguous()
    y, statistics = _results_of_forward(x, gamma, beta, eps)
    leading, _workspace = _call_arguments(x)
    inputs = (x.data_ptr(), gamma.data_ptr(), beta.data_ptr())
    _C.batch_norm_forward(*leading, eps, *inputs, statistics.data_ptr(), y.data_ptr())
    return y, statistics


def _backward(dy: Tensor, x: Tensor, gamma: Tensor, statistics: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    _check("batch_norm_backward", x, ("gamma", gamma))
    kept = [("dy", dy, x.shape, torch.float32), ("statistics", statistics, (2, x.shape[1]), torch.float64)]
    refuse_unlike("batch_norm_backward", x.device, kept)
    dy, x, gamma, statistics = (tensor.contiguous() for tensor in (dy, x, gamma, statistics))
    dx, dgamma, dbeta = _results_of_backward(dy, x, gamma, statistics, eps)
    leading, _workspace = _call_arguments(x)
    inputs = (x.data_ptr(), gamma.data_ptr(), dy.data_ptr(), statistics.data_ptr())
    _C.batch_norm_backward(*leading, eps, *inputs, dx.data_ptr(), dgamma.data_ptr(), dbeta.data_ptr())
    return dx, dgamma, dbeta


LIBRARY.impl("batch_norm_forward", _forward, "CPU")
LIBRARY.impl("batch_norm_backward", _backward, "CPU")
refuse_gradients("batch_norm_forward", "sleepfm_fast.ops.batch_norm")
refuse_gradients("batch_norm_backward", "sleepfm_fast.reference.batch_norm, whose gradient can be differentiated")
