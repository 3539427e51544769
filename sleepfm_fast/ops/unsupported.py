"""What the ops cannot be asked for, said where it is asked: gradients of registered ops, and torch.func's transforms.

The functions of :mod:`sleepfm_fast.ops` have gradients; the registered ops below them (``torch.ops.sleepfm_fast``) are
their parts and have none. torch's own answer would be a result that silently has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sleepfm_fast.ops.registry import LIBRARY

__all__ = ["no_second_derivative", "refuse_gradients", "refuse_transforms"]


def refuse_gradients(op: str, instead: str) -> None:
    """Let a registered op raise where it is called with a tensor that requires grad and gradients are recorded.

    Parameters
    ----------
    op : str
        Its name in ``torch.ops.sleepfm_fast``.
    instead : str
        What to use, at the end of the sentence.
    """
    overload = getattr(torch.ops.sleepfm_fast, op).default

    def below(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        # While it is traced, torch.compile itself calls what our functions' forward and backward consist of.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and wants_gradient((*args, *kwargs.values())):
            raise NotImplementedError(
                f"torch.ops.sleepfm_fast.{op} has no gradient, and an argument requires one. Call it under "
                f"torch.no_grad() if none is wanted, or use {instead}."
            )
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

    LIBRARY.impl(op, below, "Autograd", with_keyset=True)
    # Of several gradients at once torch hands one after the other to an op, but not to one that takes a list.
    takes_list = any(str(argument.type) == "List[Tensor]" for argument in overload._schema.arguments)
    if takes_list and op.endswith("_backward"):
        LIBRARY.impl(op, refusal_of_batches(op.removesuffix("_backward")), "Batched")


def refusal_of_batches(function: str) -> Callable[..., Any]:
    """What a backward does with several gradients at once."""

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
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None


def refuse_transforms(function: str, *tensors: Tensor, twin: str | None = None) -> None:
    """Refuse to work inside vmap, grad, jvp and the other transforms of torch.func, and on forward-mode derivatives.

    Parameters
    ----------
    function : str
        Its name.
    *tensors : Tensor
        Its differentiable arguments.
    twin : str, optional
        What does it; sleepfm_fast.reference's function of the same name if None.

    Raises
    ------
    NotImplementedError
        Naming what to use.
    """
    if torch.compiler.is_compiling():
        return
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
    """What is raised where a gradient itself is to be differentiated; ``twin`` as in :func:`refuse_transforms`."""
    return NotImplementedError(
        f"{function} has no second derivative. Use {twin or f'sleepfm_fast.reference.{function}'}, which is made of "
        "differentiable torch operations, where one is needed."
    )
