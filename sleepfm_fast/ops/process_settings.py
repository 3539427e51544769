"""Settings that torch has one of for the whole process, held where an op needs them while it computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["ProcessSetting", "float32_factors", "float32_sums"]


class ProcessSetting:
    """A context manager: the first thread that needs it calls ``change``, the last one that leaves what that returned.

    ``change`` returns what gives the setting back, or None where there is nothing to do.
    """

    def __init__(self, change: Callable[[], Callable[[], None] | None]) -> None:
        self._change = change
        self._give_back: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._users = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the setting for a while; other threads compute with it meanwhile."""
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
    # torch 2.7 on
    matmul = torch.backends.cuda.matmul
    if not getattr(matmul, "allow_fp16_accumulation", False):
        return None
    matmul.allow_fp16_accumulation = False

    def give_back() -> None:
        matmul.allow_fp16_accumulation = True

    return give_back


# Sums in float16 off. With them on, torch refuses to multiply float16 to float32, and cuBLAS would sum in float16:
# operands that are scaled to fill its range would overflow.
float32_sums = ProcessSetting(_forbid_float16_sums)


def _keep_float32_factors() -> Callable[[], None] | None:
    matmul = torch.backends.cuda.matmul
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by `fp32_precision`, torch 2.9 on, after which the older function does not answer
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


# Float32 factors with all of their bits; a process may allow their products on CUDA in TF32, which drops 13 of 24.
float32_factors = ProcessSetting(_keep_float32_factors)
