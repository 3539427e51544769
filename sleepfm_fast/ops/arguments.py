"""What every op asks of its arguments before it looks at them more closely: dense tensors on one device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["refuse_no_tensors", "refuse_other_devices"]


def refuse_no_tensors(op: str, named: Iterable[tuple[str, Any]]) -> None:
    """Refuse what is no tensor, and tensors that do not hold all of their values.

    Parameters
    ----------
    op : str
        Its name, for the sentence.
    named : iterable of (str, object)
        The arguments by their names.

    Raises
    ------
    TypeError
        For the first that is none.
    """
    for name, value in named:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; {op} takes a tensor there.")
        if value.layout != torch.strided:
            raise TypeError(f"{name} has the layout {value.layout}; {op} takes dense tensors: {name}.to_dense().")


def refuse_other_devices(named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse tensors that lie elsewhere than the first: of one on "meta" there is nothing to read.

    Raises
    ------
    ValueError
        For the first that does.
    """
    (first, reference), *others = named
    for name, tensor in others:
        if tensor.device != reference.device:
            raise ValueError(f"{name} is on {tensor.device}, {first} on {reference.device}; move both to one device.")
