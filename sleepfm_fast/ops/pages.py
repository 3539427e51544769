"""Large tensors whose memory is used again: the first touch of a fresh page costs more than a pass over a used one."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sleepfm_fast import _C

__all__ = ["empty", "release_pages"]

# Below, glibc's malloc never asks the system for a single block. Above, it gives the end of its heap back whenever that
# is larger than twice the largest block it has asked for: three blocks of 1 MB in a loop were fresh pages every time.
SMALL_BYTES = 1 << 17


def empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised contiguous tensor on the device of ``like``, on the CPU from pages that were freed before.

    Its type is that of ``like`` unless another is named.

    The memory goes back to the pool when the last tensor that uses it is gone. The pool never holds more than 5/4 of
    what was in use at one time; :func:`release_pages` gives what is idle back to the system.
    """
    dtype = like.dtype if dtype is None else dtype
    if like.device.type != "cpu" or isinstance(like, FakeTensor):  # first: a traced size must not be asked about
        return like.new_empty(shape, dtype=dtype)
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes < SMALL_BYTES:
        return like.new_empty(shape, dtype=dtype)
    return torch.frombuffer(_C.Pages(n_bytes), dtype=dtype).view(shape)


def release_pages() -> int:
    """Give the memory that the ops keep for their next call back to the system; what tensors use stays.

    The commands call it when a training ends. A program of your own that goes on after training can do the same; the
    next step of a training takes a little longer, as it must ask for its memory again.

    Returns
    -------
    int
        Bytes that were given back.
    """
    return _C.release_pages()
