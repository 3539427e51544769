"""The MBConv block of the encoder, as the sequence of torch operations that defines it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from numpy.typing import NDArray
from torch import Tensor

from sleepfm_fast.ops.mbconv import Precision
from sleepfm_fast.reference import mbconv_bfloat16

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
    residual: bool = False,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    precision: Precision = "float32",
) -> tuple[Tensor, Tensor]:
    """1x1 expansion, batch norm, ReLU6, depthwise convolution of 3, batch norm, ReLU6, 1x1 projection, residual.

    Arguments and results as in :func:`sleepfm_fast.ops.mbconv`, on any device. ``precision`` says what the factors of
    products are rounded to; everything else is computed in the arguments' own type.
    """
    if precision == "bfloat16":
        weights = (w1, b1, gamma0, beta0, wd, bd, gamma1, beta1, w3, b3)
        if running is None:
            y, statistics = mbconv_bfloat16.train(x, weights, stride, eps)
        else:
            y, statistics = mbconv_bfloat16.evaluate(x, weights, running, stride, eps), list(running)
        y = y + b3[:, None]
    else:
        y, statistics = exact(x, (w1, b1, gamma0, beta0, wd, bd, gamma1, beta1, w3, b3), stride, running, eps)
    if dropout > 0.0:
        drawn = int(torch.randint(1 << 62, (), device="cpu") if seed is None else seed) % 2**64
        kept = torch.from_numpy(hashes(y.shape, drawn) >= np.uint32(min(dropout * 2.0**32, 2.0**32 - 1.0)))
        y = torch.where(kept.to(x.device), y * (1.0 / (1.0 - dropout) if dropout < 1.0 else 0.0), 0.0)
    return x + y if residual else y, torch.stack(statistics).detach()


def exact(
    x: Tensor,
    weights: tuple[Tensor, ...],
    stride: int,
    running: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    eps: float,
) -> tuple[Tensor, list[Tensor]]:
    """Projection [B, n_out, S] and the four statistics, computed in the arguments' type without further rounding."""
    w1, b1, gamma0, beta0, wd, bd, gamma1, beta1, w3, b3 = weights
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
    return F.conv1d(y, w3[:, :, None], b3), statistics


def hashes(shape: torch.Size, seed: int) -> NDArray[np.uint32]:
    """32-bit hashes that decide what is dropped: SplitMix64 of the row, then a hash of its halves with the sample.

    The same as in csrc/cpu/mbconv_dropout.h, bit by bit.
    """
    n_clips, n_rows, n_samples = shape
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, n_clips * n_rows + 1, dtype=np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        low, high = z.astype(np.uint32), (z >> np.uint64(32)).astype(np.uint32)
        h = np.arange(n_samples, dtype=np.uint32)[None] + low[:, None]
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
        h = (h ^ (h >> np.uint32(16)) ^ high[:, None]) * np.uint32(0x9E3779B1)
        return (h ^ (h >> np.uint32(15))).reshape(n_clips, n_rows, n_samples)
