"""Where an op may be called past torch's dispatcher, which costs tens of microseconds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["is_batched", "is_plain"]


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether the dispatcher would only pass the tensors on: nobody traces, they are torch's own, and their
    memory holds what they are worth. That of a tensor with the negative bit holds the opposite, a zero tensor has none,
    nor has one that stands for several (:func:`is_batched`).
    """  # noqa: D205
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or torch._C._is_tracing():  # type: ignore[attr-defined]
        return False
    return all(
        tensor is None
        or (
            (type(tensor) is Tensor or type(tensor) is torch.nn.Parameter)
            and not tensor.is_neg()
            and not tensor._is_zerotensor()
            and not torch._C._functorch.is_legacy_batchedtensor(tensor)
        )
        for tensor in tensors
    )


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor stands for several: what torch.autograd.grad(..., is_grads_batched=True) hands to a backward."""
    return not torch.compiler.is_compiling() and bool(torch._C._functorch.is_legacy_batchedtensor(tensor))
