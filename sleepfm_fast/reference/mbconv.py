"""The MBConv block of the encoder, as the sequence of torch operations that defines it."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

__all__ = ["mbconv"]


def mbconv(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    gamma0: Tensor,
    beta0: Tensor,
    wd: Tensor,
    bd: Tensor,
    gamma1: Tensor,
    beta1: Tensor,
    w3: Tensor,
    b3: Tensor,
    *,
    stride: int = 1,
    running: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """1x1 expansion, batch norm, ReLU6, depthwise convolution of 3, batch norm, ReLU6, 1x1 projection.

    Arguments and results as in :func:`sleepfm_fast.ops.mbconv`.
    """
    statistics = []
    y = F.conv1d(x, w1[:, :, None], b1)
    for gamma, beta, kernel, bias, position in ((gamma0, beta0, wd, bd, 0), (gamma1, beta1, None, None, 2)):
        if running is None:
            mean = y.mean((0, 2))
            variance = (y - mean[:, None]).square().mean((0, 2))
        else:
            mean, variance = running[position], running[position + 1]
        statistics += [mean, variance]
        y = (y - mean[:, None]) / (variance + eps).sqrt()[:, None] * gamma[:, None] + beta[:, None]
        y = F.hardtanh(y, 0.0, 6.0)
        if kernel is not None:
            y = F.conv1d(y, kernel[:, None, :], bias, stride=stride, padding=1, groups=len(kernel))
    return F.conv1d(y, w3[:, :, None], b3), torch.stack(statistics).detach()
