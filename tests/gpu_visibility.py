"""Which tests see a GPU: those marked ``cuda``. For all others ``--device auto`` is the CPU, wherever they run."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

__all__ = ["gpu_is_here", "show_gpu"]

VARIABLE = "CUDA_VISIBLE_DEVICES"
_hidden: list[tuple[Callable[[], bool], str | None]] = []  # what stood there before, while it is hidden


def show_gpu(shown: bool) -> None:
    """Show or hide the GPU, in this process and in those that it starts. Without a GPU nothing changes."""
    if shown and _hidden:
        torch.cuda.is_available, visible = _hidden.pop()
        os.environ.pop(VARIABLE)
        if visible is not None:
            os.environ[VARIABLE] = visible
    elif not shown and not _hidden and torch.cuda.is_available():
        _hidden.append((torch.cuda.is_available, os.environ.get(VARIABLE)))
        torch.cuda.is_available = lambda: False
        os.environ[VARIABLE] = ""


def gpu_is_here() -> bool:
    """Whether this process could use a GPU, hidden or not."""
    return bool(_hidden) or torch.cuda.is_available()
