"""Products of float16 factors summed in float32, whatever the process allows its own products."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["float32_sums"]

# `torch.backends.cuda.matmul.allow_fp16_accumulation`, torch 2.7 on: one setting of the process, for all its threads.
SETTING = "allow_fp16_accumulation"

_lock = threading.Lock()
_users = 0  # threads that need it off
_wanted = False  # what the first of them found


@contextmanager
def float32_sums() -> Iterator[None]:
    """Turn sums in float16 off for a while; the last thread that leaves gives back what the first one found.

    With the setting on torch refuses to multiply float16 to float32, and cuBLAS would sum in float16, where products
    of operands that are scaled to fill its range overflow. Products of other threads are summed in float32 meanwhile.
    """
    global _users, _wanted
    matmul = torch.backends.cuda.matmul
    with _lock:
        if _users == 0:
            _wanted = bool(getattr(matmul, SETTING, False))
            if _wanted:
                setattr(matmul, SETTING, False)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _wanted:
                setattr(matmul, SETTING, True)
