"""The optimiser of a run. Parameters, gradients and moments are float32 on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sleepfm_fast.training.settings import Settings

__all__ = ["build_optimiser"]


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay kernels and matrices only: a decayed temperature or BatchNorm gain would be pulled towards 0."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    other = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}]


def build_optimiser(model: torch.nn.Module, config: Settings) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW, as ``config.optimiser`` says."""
    lower = sorted({str(p.dtype) for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)})
    if lower:
        raise TypeError(f"the model has parameters of {', '.join(lower)}; small updates would be lost. Use float32.")
    groups = parameter_groups(model, config.weight_decay)
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr)
