"""Settings of torch that are global to the process, changed for as long as an op needs them and then restored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["ProcessSetting", "float32_factors", "float32_sums"]


class ProcessSetting:
    """A context manager that changes a setting while any thread is inside it.

    The first thread that enters calls ``change``, which returns a function that restores the setting, or None if there
    is nothing to restore; the last thread that leaves calls that function.
    """

    def __init__(self, change: Callable[[], Callable[[], None] | None]) -> None:
        self._change = change
        self._give_back: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._users = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the setting; meanwhile all threads of the process compute with it."""
        with self._lock:
            if self._users == 0:
                self._give_back = self._change()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0 and self._give_back is not None:
                    self._give_back()


def _forbid_float16_sums() -> Callable[[], None] | None:
    # The setting exists from torch 2.7 on.
    matmul = torch.backends.cuda.matmul
    if not getattr(matmul, "allow_fp16_accumulation", False):
        return None
    matmul.allow_fp16_accumulation = False

    def give_back() -> None:
        matmul.allow_fp16_accumulation = True

    return give_back


# Turns float16 sums off. While they are on, torch refuses products of float16 factors with a float32 result, and others
# are summed in float16 by cuBLAS, where operands that are scaled to fill float16's range would overflow.
float32_sums = ProcessSetting(_forbid_float16_sums)


def _keep_float32_factors() -> Callable[[], None] | None:
    matmul = torch.backends.cuda.matmul
    try:
        before = torch.get_float32_matmul_precision()
    # From torch 2.9 on, once a program has set `fp32_precision`, the older function raises.
    except RuntimeError:
        newer = matmul.fp32_precision
        matmul.fp32_precision = "ieee"

        def give_newer_back() -> None:
            matmul.fp32_precision = newer

        return give_newer_back
    if before == "highest":
        return None
    torch.set_float32_matmul_precision("highest")

    def give_back() -> None:
        torch.set_float32_matmul_precision(before)

    return give_back


# Products of float32 factors with all 24 bits of them. A process may allow TF32 on CUDA, which drops 13.
float32_factors = ProcessSetting(_keep_float32_factors)
