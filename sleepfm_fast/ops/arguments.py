"""What every op checks of its arguments first: dense tensors on one device, of the shapes and types that it reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Expected", "refuse_no_tensors", "refuse_other_devices", "refuse_other_types", "refuse_unlike"]

Expected = tuple[str, Tensor, tuple[int, ...], torch.dtype]
"""Name, tensor, and the shape and type that it must have."""


def refuse_no_tensors(op: str, named: Iterable[tuple[str, Any]]) -> None:
    """Refuse arguments that are not tensors, and sparse or other tensors that are not dense.

    Parameters
    ----------
    op : str
        Name of the op, for the message.
    named : iterable of (str, object)
        The arguments with their names.

    Raises
    ------
    TypeError
        For the first argument that is not a dense tensor.
    """
    for name, value in named:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; {op} takes a tensor there.")
        if value.layout != torch.strided:
            raise TypeError(f"{name} has the layout {value.layout}; {op} takes dense tensors: {name}.to_dense().")


def refuse_other_types(op: str, named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse tensors that are not float32, or not on the CPU: of such an op only its reference takes others.

    Raises
    ------
    TypeError, ValueError
        For the first tensor of another type, or on another device.
    """
    for name, tensor in named:
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name} is {tensor.dtype}; {op} takes float32. sleepfm_fast.reference.{op} takes any.")
        if tensor.device.type not in ("cpu", "meta"):
            raise ValueError(f"{name} is on {tensor.device}; {op} runs on cpu. Use sleepfm_fast.reference.{op}.")


def refuse_other_devices(named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse tensors that are on another device than the first one, "meta" included, where there is nothing to read.

    Raises
    ------
    ValueError
        For the first tensor on another device.
    """
    (first, reference), *others = named
    for name, tensor in others:
        if tensor.device != reference.device:
            raise ValueError(f"{name} is on {tensor.device}, {first} on {reference.device}; move both to one device.")


def refuse_unlike(op: str, device: torch.device, expected: Iterable[Expected]) -> None:
    """Refuse arguments of a registered op that are not as it reads them at their addresses.

    The functions in ``sleepfm_fast.ops`` check what they are given. But the registered ops can be called without them,
    and hooks on saved tensors may hand a backward other tensors than forward kept.

    Parameters
    ----------
    op : str
        Name of the op in ``torch.ops.sleepfm_fast``, for the message.
    device : torch.device
        Where all of the tensors are expected.
    expected : iterable of (str, Tensor, tuple of int, torch.dtype)
        The arguments with their names, and the shapes and types that they must have.

    Raises
    ------
    ValueError
        For the first tensor of another shape, type or device.
    """
    for name, tensor, shape, dtype in expected:
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
            raise ValueError(
                f"torch.ops.sleepfm_fast.{op}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)} on "
                f"{tensor.device}; expected {dtype} of shape {tuple(shape)} on {device}."
            )
