"""The contrastive loss as PyTorch users write it; every function gives one scalar from ``[M, N, D]`` embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from sleepfm_fast import ops, reference

LOG_TEMPERATURE = 2.659  # exp of it is 14.3, where CLIP starts
M, D = 3, 512


def fused(x: Tensor, log_temperature: Tensor) -> Tensor:
    return ops.contrastive_loss(x, log_temperature)[0]


def by_definition(x: Tensor, log_temperature: Tensor) -> Tensor:
    return reference.contrastive_loss(x, log_temperature)[0]


def eager(x: Tensor, log_temperature: Tensor) -> Tensor:
    """Leave-one-out, symmetric, without ranks or accuracies: nothing but the loss."""
    n_modalities, n, _ = x.shape
    e = F.normalize(x, dim=-1)
    total, scale, target = e.sum(0), log_temperature.exp(), torch.arange(n)
    loss = x.new_zeros(())
    for i in range(n_modalities):
        logits = scale * (e[i] @ ((total - e[i]) / (n_modalities - 1)).T)
        loss = loss + F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    return loss / (2 * n_modalities)


def linear_cross_entropy(x: Tensor, log_temperature: Tensor) -> Tensor:
    """The same in PyTorch's own chunked form (2.13 and later): one call a direction, gradients made in forward."""
    n_modalities, n, _ = x.shape
    options = torch.nn.LinearCrossEntropyOptions()
    e = F.normalize(x, dim=-1)
    total, scale, target = e.sum(0), log_temperature.exp(), torch.arange(n)
    loss = x.new_zeros(())
    for i in range(n_modalities):
        rows, columns = scale * e[i], (total - e[i]) / (n_modalities - 1)
        loss = loss + F.linear_cross_entropy(rows, columns, target, options=options)
        loss = loss + F.linear_cross_entropy(columns, rows, target, options=options)
    return loss / (2 * n_modalities)


def compiled() -> Callable[[Tensor, Tensor], Tensor]:
    """Compile `eager` for one shape."""
    return torch.compile(eager, dynamic=False)


def inputs(n: int) -> tuple[Tensor, Tensor]:
    """Embeddings whose modalities have a part in common, and a temperature; both want gradients."""
    generator = torch.Generator().manual_seed(n)
    shared = torch.randn(n, D, generator=generator)
    x = shared + 2.0 * torch.randn(M, n, D, generator=generator)
    return x.requires_grad_(), torch.tensor(LOG_TEMPERATURE, requires_grad=True)


def step(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, log_temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Forward and backward: loss and both gradients."""
    x.grad = log_temperature.grad = None
    value = loss(x, log_temperature)
    value.backward()
    return value.detach(), x.grad, log_temperature.grad
