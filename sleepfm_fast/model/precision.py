"""The encoders' precision. Weights, gradients, loss, temperature and optimiser stay float32 whatever it is."""

from __future__ import annotations

import torch

from sleepfm_fast.ops.mbconv import Precision

__all__ = ["Precision", "arithmetic", "cpu_precision"]


def arithmetic(precision: Precision, device: torch.device) -> torch.autocast:
    """Context in which encoders run: convolutions and products in ``precision``, batch norms' sums in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def cpu_precision() -> Precision | None:
    """Precision that autocast asks of the compiled ops on the CPU; None for one that they do not have (float16)."""
    if not torch.is_autocast_enabled("cpu"):
        return "float32"
    return "bfloat16" if torch.get_autocast_dtype("cpu") == torch.bfloat16 else None
