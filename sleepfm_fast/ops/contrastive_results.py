"""Shapes and types of the contrastive loss's results, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["STATE_ROWS", "allocate_forward", "n_problems"]

STATE_ROWS = 7  # CONTRASTIVE_STATE_ROWS in csrc/params.h


def n_problems(n_modalities: int, mode: str) -> int:
    """P, the number of :func:`~sleepfm_fast.ops.problems` of a mode."""
    return n_modalities * (n_modalities - 1) // 2 if mode == "pairwise" else n_modalities


def allocate_forward(x: Tensor, mode: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate the results of forward: loss, losses, correct, ranks, n_valid, state (layout: csrc/params.h)."""
    P, N = n_problems(x.shape[0], mode), x.shape[1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    device = x.device
    return (
        torch.empty((), dtype=dtype, device=device),
        torch.empty((P, 2), dtype=dtype, device=device),
        torch.empty((P, 2), dtype=torch.int64, device=device),
        torch.empty((P, 2, N), dtype=torch.int32, device=device),
        torch.empty((P,), dtype=torch.int64, device=device),
        torch.empty((P, STATE_ROWS, N), dtype=torch.float64, device=device),
    )
