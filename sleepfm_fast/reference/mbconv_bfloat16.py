"""The MBConv block whose products have bfloat16 factors: rounds where the op rounds, and is exact elsewhere."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

__all__ = ["evaluate", "train"]


class _Rounded(torch.autograd.Function):
    """Rounds x to the nearest bfloat16; its gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.float().bfloat16().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class _GradientRounded(torch.autograd.Function):
    """Leaves x unchanged; rounds its gradient to the nearest bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.float().bfloat16().to(gradient.dtype)


def rounded(x: Tensor) -> Tensor:
    """Round to the nearest bfloat16, by way of float32; the gradient passes unchanged."""
    y: Tensor = _Rounded.apply(x)  # type: ignore[no-untyped-call]
    return y


def gradient_rounded(x: Tensor) -> Tensor:
    """Leave x as it is, and round its gradient, which is a factor of products."""
    y: Tensor = _GradientRounded.apply(x)  # type: ignore[no-untyped-call]
    return y


class _Variance(torch.autograd.Function):
    """Variances of w x over clips and samples, for x without its mean; their gradient by x has rounded factors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        n = x.shape[0] * x.shape[2]
        covariance = torch.einsum("bit,bkt->ik", x, x) / n
        ctx.save_for_backward(x, w, covariance)
        ctx.n = n
        return ((w @ covariance) * w).sum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, w, covariance = ctx.saved_tensors
        square = 2.0 / ctx.n * (w.T * gradient) @ w
        return rounded(square) @ x, 2.0 * gradient[:, None] * (w @ covariance)


def train(
    x: Tensor,
    weights: tuple[Tensor, ...],
    stride: int,
    eps: float,
) -> tuple[Tensor, list[Tensor]]:
    """Projection [B, n_out, S] without its bias, and the four statistics of the batch.

    The input is rounded less its mean, and so is the expansion; the first batch norm's variance is that of the rounded
    input and exact weights. The second batch norm sees, and its statistics are of, what was rounded to wait in memory.
    """
    w1, b1, gamma0, beta0, wd, bd, gamma1, beta1, w3, _ = weights
    mean_in = x.mean((0, 2))
    mean0 = w1 @ mean_in + b1
    narrow = rounded(x - mean_in[:, None])
    variance0: Tensor = _Variance.apply(narrow, w1)  # type: ignore[no-untyped-call]
    scale = gamma0 / (variance0 + eps).sqrt()
    c1 = rounded(F.conv1d(narrow.detach(), rounded(w1)[:, :, None]))
    # In backward the op rounds the product of weights and batch norm's scale. `to_x` minus itself is zero, and gives x
    # that gradient.
    to_x = F.conv1d(narrow, rounded(w1 * scale[:, None]).detach()[:, :, None])
    c1 = c1 + (b1 - b1)[:, None]  # the batch norm removes b1; its gradient is zero
    u = gradient_rounded(c1 * scale[:, None] + beta0[:, None] + (to_x - to_x.detach()))
    c2 = rounded(F.conv1d(relu6(u), wd[:, None, :], bd, stride=stride, padding=1, groups=len(wd)))
    mean1 = c2.mean((0, 2))
    variance1 = (c2 - mean1[:, None]).square().mean((0, 2))
    scale = gamma1 / (variance1 + eps).sqrt()
    u = gradient_rounded(c2 * scale[:, None] + (beta1 - mean1 * scale)[:, None])
    projected = gradient_rounded(F.conv1d(rounded(relu6(u)), rounded(w3)[:, :, None]))
    return projected, [mean0, variance0, mean1, variance1]


def evaluate(
    x: Tensor,
    weights: tuple[Tensor, ...],
    running: tuple[Tensor, Tensor, Tensor, Tensor],
    stride: int,
    eps: float,
) -> Tensor:
    """Projection [B, n_out, S] without its bias; batch norms are folded into the weights before these are rounded."""
    w1, b1, gamma0, beta0, wd, bd, gamma1, beta1, w3, _ = weights
    mean0, variance0, mean1, variance1 = running
    factor0, factor1 = gamma0 / (variance0 + eps).sqrt(), gamma1 / (variance1 + eps).sqrt()
    c1 = F.conv1d(rounded(x), rounded(w1 * factor0[:, None])[:, :, None])
    h = relu6(c1 + (beta0 + (b1 - mean0) * factor0)[:, None])
    c2 = F.conv1d(h, (wd * factor1[:, None])[:, None, :], stride=stride, padding=1, groups=len(wd))
    return F.conv1d(rounded(relu6(c2 + (beta1 + (bd - mean1) * factor1)[:, None])), rounded(w3)[:, :, None])


def relu6(x: Tensor) -> Tensor:
    """Minimum of 6 and maximum of 0."""
    return F.hardtanh(x, 0.0, 6.0)
