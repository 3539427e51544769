"""Batch norm in training, as the sequence of torch operations that defines it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["batch_norm"]


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, *, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Batch norm with the batch's statistics; arguments and results as in :func:`sleepfm_fast.ops.batch_norm`."""
    mean = x.mean((0, 2))
    variance = (x - mean[:, None]).square().mean((0, 2))
    y = (x - mean[:, None]) / (variance + eps).sqrt()[:, None] * gamma[:, None] + beta[:, None]
    return y, torch.stack([mean, variance]).detach()
