"""Arithmetic of the encoders. Weights, gradients, loss, temperature and optimiser stay float32 in all of them."""

from __future__ import annotations

from typing import Literal

import torch

__all__ = ["Precision", "arithmetic"]

Precision = Literal["float32", "bfloat16"]


def arithmetic(precision: Precision, device: torch.device) -> torch.autocast:
    """Context in which encoders run: convolutions and matrices in ``precision``, sums of batch norm in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
