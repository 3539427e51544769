"""What every op checks of its arguments first: that they are dense tensors on one device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["refuse_no_tensors", "refuse_other_devices"]


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
