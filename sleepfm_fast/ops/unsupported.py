"""Refusals of what the ops do not support: gradients of the registered ops, torch.func, forward-mode derivatives.

The functions of :mod:`sleepfm_fast.ops` have gradients. The registered ops that they are made of
(``torch.ops.sleepfm_fast``) have none, and without a refusal torch would return a result that silently has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sleepfm_fast.ops.registry import LIBRARY

__all__ = ["is_transforming", "no_second_derivative", "refuse_gradients", "refuse_transforms"]


def refuse_gradients(op: str, instead: str) -> None:
    """Make a registered op raise if it is called with a tensor that requires grad while gradients are recorded.

    Parameters
    ----------
    op : str
        Name of the op in ``torch.ops.sleepfm_fast``.
    instead : str
        What to use instead; the end of the message.
    """
    overload = getattr(torch.ops.sleepfm_fast, op).default

    def below(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        # While torch.compile traces one of our functions, it calls the ops of its forward and backward itself.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and wants_gradient((*args, *kwargs.values())):
            raise NotImplementedError(
                f"torch.ops.sleepfm_fast.{op} has no gradient, and an argument requires one. Call it under "
                f"torch.no_grad() if none is wanted, or use {instead}."
            )
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

    LIBRARY.impl(op, below, "Autograd", with_keyset=True)
    # Given a batch of gradients, torch calls an op for one after the other, unless the op takes a list of tensors.
    takes_list = any(str(argument.type) == "List[Tensor]" for argument in overload._schema.arguments)
    if takes_list and op.endswith("_backward"):
        LIBRARY.impl(op, refusal_of_batches(op.removesuffix("_backward")), "Batched")


def refusal_of_batches(function: str) -> Callable[..., Any]:
    """Return what takes a backward's place for a batch of gradients: a function that refuses it."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{function} takes one gradient at a time, not is_grads_batched=True of torch.autograd.grad or "
            "vectorize=True of torch.autograd.functional. Leave that out and loop over the gradients, or use "
            f"sleepfm_fast.reference.{function}, which is made of torch's own operations."
        )

    return refuse


def wants_gradient(arguments: Sequence[Any]) -> bool:
    """Whether a tensor among the arguments, or in a list of them, requires grad or carries a forward derivative."""
    for value in arguments:
        if isinstance(value, list | tuple):
            if wants_gradient(value):
                return True
        elif isinstance(value, Tensor) and (value.requires_grad or has_tangent(value)):
            return True
    return False


def has_tangent(value: Tensor) -> bool:
    """Whether a tensor carries a derivative of torch.autograd.forward_ad."""
    if forward_ad._current_level < 0:
        return False
    # The tensors that torch.compile traces with have no derivatives of their own.
    return torch.compiler.is_compiling() or forward_ad.unpack_dual(value).tangent is not None


def is_transforming() -> bool:
    """Whether torch.func's transforms or forward-mode derivatives are under way, which the ops refuse."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def refuse_transforms(function: str, *tensors: Tensor, twin: str | None = None) -> None:
    """Refuse calls inside vmap, grad, jvp and the other transforms of torch.func, and forward-mode derivatives.

    Parameters
    ----------
    function : str
        Name of the function that was called.
    *tensors : Tensor
        Its differentiable arguments.
    twin : str, optional
        Name of what supports it; by default the function of the same name in ``sleepfm_fast.reference``.

    Raises
    ------
    NotImplementedError
        With a message that names ``twin``.
    """
    twin = twin or f"sleepfm_fast.reference.{function}"
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            f"{function} does not work inside the transforms of torch.func (vmap, grad, vjp, jvp, hessian). Use "
            f"{twin}, which is made of torch's own operations, or take gradients with torch.autograd.grad and loop "
            "over batches."
        )
    if any(has_tangent(tensor) for tensor in tensors):
        raise NotImplementedError(
            f"{function} has no forward-mode derivative (torch.autograd.forward_ad). Use {twin}, which is "
            "made of torch's own operations, or backward."
        )


def no_second_derivative(function: str, twin: str | None = None) -> NotImplementedError:
    """Return the exception for a gradient that is to be differentiated; ``twin`` as in :func:`refuse_transforms`."""
    return NotImplementedError(
        f"{function} has no second derivative. Use {twin or f'sleepfm_fast.reference.{function}'}, which is made of "
        "differentiable torch operations, where one is needed."
    )
