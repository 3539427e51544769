"""The optimiser of a run. Parameters, gradients and moments are float32 on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sleepfm_fast.model.compilation import settle_compiler_cache

if TYPE_CHECKING:
    from sleepfm_fast.training.settings import Settings

__all__ = ["build_optimiser"]


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Let weight decay act on kernels and matrices only; it would pull the temperature and batch norms' gains to 0."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    other = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}]


def keep_momentum_of_all(optimiser: torch.optim.Optimizer) -> None:
    """Give every parameter a momentum buffer of zeros before its first gradient, as torch's fused SGD needs.

    An encoder whose modality is missing from the first batches has no gradients there, and fused SGD fails in a step in
    which only some parameters have a buffer. The result is the same: 0 times the momentum, plus the gradient.
    """
    for group in optimiser.param_groups:
        for p in group["params"]:
            if optimiser.state[p].get("momentum_buffer") is None:
                optimiser.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)


def build_optimiser(model: torch.nn.Module, config: Settings) -> torch.optim.Optimizer:
    """Build SGD with momentum or AdamW, as ``config.optimiser`` says; on a CPU in torch's fused form.

    The published networks have 577 parameters, most of them small, so that an unfused step's time is that of its calls.
    """
    parameters = list(model.parameters())
    lower = sorted({str(p.dtype) for p in parameters if p.dtype in (torch.float16, torch.bfloat16)})
    if lower:
        raise TypeError(f"the model has parameters of {', '.join(lower)}; small updates would be lost. Use float32.")
    groups = parameter_groups(model, config.weight_decay)
    settle_compiler_cache()
    # None leaves the choice to torch, which on CUDA makes one call for many parameters.
    fused = True if all(p.device.type == "cpu" for p in parameters) else None
    if config.optimiser == "sgd":
        optimiser = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
        if fused and config.momentum != 0.0:
            keep_momentum_of_all(optimiser)
            optimiser.register_load_state_dict_post_hook(keep_momentum_of_all)
        return optimiser
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)
