"""CUDA implementation of the contrastive loss."""

from __future__ import annotations

from torch import Tensor

from sleepfm_fast.ops import contrastive_chunked

__all__ = ["backward", "forward"]


def forward(
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    mode: str,
    directions: str,
    precision: str,
    begin: int,
    end: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Forward of the op on a CUDA device: loss, losses, correct, ranks, n_valid, state."""
    return contrastive_chunked.forward(x, log_temperature, mask, mode, directions, begin, end)


def backward(
    gradient_loss: Tensor,
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    n_valid: Tensor,
    state: Tensor,
    mode: str,
    directions: str,
    precision: str,
    begin: int,
    end: int,
) -> tuple[Tensor, Tensor]:
    """Backward of the op on a CUDA device: gradients of x and of log_temperature."""
    return contrastive_chunked.backward(
        gradient_loss, x, log_temperature, mask, n_valid, state, mode, directions, begin, end
    )
