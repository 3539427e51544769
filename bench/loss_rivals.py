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


class _ByHand(torch.autograd.Function):
    """`eager` as who knows its derivative writes it: both softmaxes from one matrix of exponentials, which becomes the
    gradient in place; three products a problem, as ours.
    """  # noqa: D205

    @staticmethod
    def forward(ctx, x: Tensor, log_temperature: Tensor) -> Tensor:
        n_modalities, n, _ = x.shape
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-12)
        e = x / length
        total, scale = e.sum(0), log_temperature.exp()
        share = scale / (2 * n_modalities * n)
        loss, slope = x.new_zeros(()), x.new_zeros(())
        d_e, d_total = torch.empty_like(e), torch.zeros_like(total)
        for i in range(n_modalities):
            others = total.sub(e[i]).div_(n_modalities - 1)
            matrix = e[i] @ others.T
            own = matrix.diagonal().clone()
            matrix.sub_(1).mul_(scale).exp_()  # a cosine is at most 1
            rows, columns = matrix.sum(1), matrix.sum(0)
            loss += rows.log().add_(columns.log()).sum() - 2 * scale * (own - 1).sum()
            matrix.mul_(rows.reciprocal_()[:, None] + columns.reciprocal_())
            matrix.diagonal().sub_(2)
            torch.mm(matrix, others, out=d_e[i])
            slope += torch.dot(d_e[i].view(-1), e[i].view(-1))
            d_others = (matrix.T @ e[i]).div_(n_modalities - 1)
            d_e[i].sub_(d_others)
            d_total += d_others
        d_e.add_(d_total).mul_(share)
        d_e.addcmul_(e, (e * d_e).sum(-1, keepdim=True), value=-1).div_(length)
        ctx.save_for_backward(d_e, slope * share)
        return loss / (2 * n_modalities * n)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, Tensor]:
        d_x, slope = ctx.saved_tensors
        return d_x * upstream, slope * upstream


def by_hand(x: Tensor, log_temperature: Tensor) -> Tensor:
    """Forward and backward written out in PyTorch's operations, for temperatures whose exponentials do not vanish."""
    return _ByHand.apply(x, log_temperature)


def compiled(loss: Callable[[Tensor, Tensor], Tensor] = eager) -> Callable[[Tensor, Tensor], Tensor]:
    """Compile a loss for one shape."""
    return torch.compile(loss, dynamic=False)


def compiled_by_hand() -> Callable[[Tensor, Tensor], Tensor]:
    """Compile `by_hand`: its passes over a matrix become few."""
    return compiled(by_hand)


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
