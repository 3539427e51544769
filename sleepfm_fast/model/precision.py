"""Arithmetic of the encoders. Weights, gradients, loss, temperature and optimiser stay float32 in all of them."""

from __future__ import annotations

import torch

from sleepfm_fast.ops.mbconv import Precision

__all__ = ["Precision", "arithmetic", "cpu_precision"]


def arithmetic(precision: Precision, device: torch.device) -> torch.autocast:
    """Context in which encoders run: convolutions and matrices in ``precision``, sums of batch norm in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def cpu_precision() -> Precision | None:
    """Precision in which the compiled ops are asked to run here; None where they have none of that kind (float16)."""
    if not torch.is_autocast_enabled("cpu"):
        return "float32"
    return "bfloat16" if torch.get_autocast_dtype("cpu") == torch.bfloat16 else None
