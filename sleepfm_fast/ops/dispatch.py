"""When an op may be called directly, without torch's dispatcher, which costs tens of microseconds a call."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["is_batched", "is_plain"]


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether torch's dispatcher would do nothing with these tensors but pass them on to the op.

    That is so where nothing traces or intercepts the call, the tensors are torch's own (no subclass), and their memory
    holds their values. The memory of a tensor with the negative bit holds the negated values; a zero tensor and a
    batched one (:func:`is_batched`) have no memory of their own.
    """
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
    """Whether a tensor stands for a batch of them, as ``torch.autograd.grad(..., is_grads_batched=True)`` passes on."""
    return not torch.compiler.is_compiling() and bool(torch._C._functorch.is_legacy_batchedtensor(tensor))
