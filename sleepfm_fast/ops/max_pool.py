"""Max pooling over three samples as a compiled op on the CPU; ties are decided as torch decides them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sleepfm_fast import _C
from sleepfm_fast.ops.arguments import refuse_no_tensors, refuse_other_types, refuse_unlike
from sleepfm_fast.ops.registry import LIBRARY
from sleepfm_fast.ops.unsupported import no_second_derivative, refuse_gradients, refuse_transforms

__all__ = ["max_pool"]


def max_pool(x: Tensor) -> Tensor:
    """``max_pool1d(x, 3, stride=1, padding=1)``, in value and gradient.

    The gradient of a maximum goes to the first of equal samples, and to the last NaN where there is one.

    Parameters
    ----------
    x : Tensor
        ``[..., T]`` float32 on the CPU, at least one sample.

    Returns
    -------
    Tensor
        Has the shape of x.

    Raises
    ------
    TypeError, ValueError
        For an x of the wrong type, device or shape.
    NotImplementedError
        For second derivatives, and inside the transforms of torch.func.
    """
    refuse_no_tensors("max_pool", [("x", x)])
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; max_pool needs at least one sample.")
    refuse_other_types("max_pool", [("x", x)])
    refuse_transforms("max_pool", x)
    if torch.is_grad_enabled() and x.requires_grad:
        return _MaxPool.apply(x)  # type: ignore[no-any-return, no-untyped-call]
    return torch.ops.sleepfm_fast.max_pool_forward(x)  # type: ignore[no-any-return]


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.ops.sleepfm_fast.max_pool_forward(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # type: ignore[override]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            raise no_second_derivative("max_pool")
        return torch.ops.sleepfm_fast.max_pool_backward(dy, *ctx.saved_tensors)  # type: ignore[no-any-return]


# ---- registration ----------------------------------------------------------------------------------------------------

LIBRARY.define("max_pool_forward(Tensor x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
LIBRARY.define("max_pool_backward(Tensor dy, Tensor x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.register_fake("sleepfm_fast::max_pool_forward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_forward(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("sleepfm_fast::max_pool_backward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_backward(dy: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _check(op: str, x: Tensor, *others: tuple[str, Tensor]) -> None:
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"torch.ops.sleepfm_fast.{op}: x has shape {tuple(x.shape)}; it needs at least one sample.")
    refuse_unlike(op, x.device, [(name, tensor, x.shape, torch.float32) for name, tensor in (("x", x), *others)])


def _forward(x: Tensor) -> Tensor:
    _check("max_pool_forward", x)
    x = x.contiguous()
    y = torch.empty_like(x)
    n_samples = x.shape[-1]
    _C.max_pool_forward(x.numel() // n_samples, n_samples, torch.get_num_threads(), x.data_ptr(), y.data_ptr())
    return y


def _backward(dy: Tensor, x: Tensor) -> Tensor:
    _check("max_pool_backward", x, ("dy", dy))
    x, dy = x.contiguous(), dy.contiguous()
    dx = torch.empty_like(x)
    n_samples = x.shape[-1]
    addresses = (x.data_ptr(), dy.data_ptr(), dx.data_ptr())
    _C.max_pool_backward(x.numel() // n_samples, n_samples, torch.get_num_threads(), *addresses)
    return dx


LIBRARY.impl("max_pool_forward", _forward, "CPU")
LIBRARY.impl("max_pool_backward", _backward, "CPU")
refuse_gradients("max_pool_forward", "sleepfm_fast.ops.max_pool")
refuse_gradients("max_pool_backward", "sleepfm_fast.reference.max_pool, whose gradient can be differentiated")
