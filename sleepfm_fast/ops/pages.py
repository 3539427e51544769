"""Large tensors from a pool of memory: the first touch of a fresh page costs more than a whole pass over a used one."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sleepfm_fast import _C
from sleepfm_fast.system import return_freed_memory

__all__ = ["empty", "release_pages"]

# Smaller tensors come from malloc, where glibc never asks the system for a block of their own (M_MMAP_THRESHOLD). For
# larger ones it does, and it gives the end of its heap back whenever that exceeds twice the largest such block: a loop
# with three blocks of 1 MB had fresh pages in every turn.
SMALL_BYTES = 1 << 17


def empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised contiguous tensor on the device of ``like``; on the CPU, if large, with memory from the pool.

    Its type is that of ``like`` unless another is given. The memory goes back to the pool when the last tensor that
    uses it is gone. The pool never holds more than 5/4 of the most memory that was in use at one time;
    :func:`release_pages` gives its idle part back to the system.
    """
    dtype = like.dtype if dtype is None else dtype
    # FakeTensors are handled before any size is compared: a comparison would fix a symbolic size while tracing.
    if like.device.type != "cpu" or isinstance(like, FakeTensor):
        return like.new_empty(shape, dtype=dtype)
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes < SMALL_BYTES:
        return like.new_empty(shape, dtype=dtype)
    return torch.frombuffer(_C.Pages(n_bytes), dtype=dtype).view(shape)


def release_pages() -> int:
    """Give the memory that the ops keep for their next calls back to the system; memory of live tensors stays.

    The commands call it when training ends. A program of your own that goes on after training can do the same. The next
    training step then takes a little longer, since it has to get its memory from the system again.

    Returns
    -------
    int
        How many bytes were given back.
    """
    n_bytes = _C.release_pages()
    return_freed_memory()
    return n_bytes
