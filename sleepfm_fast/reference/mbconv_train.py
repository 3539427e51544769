"""The MBConv block in training, channels last: defines the op of the same name."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from sleepfm_fast.reference.mbconv import exact
from sleepfm_fast.reference.mbconv_bfloat16 import gradient_rounded, relu6
from sleepfm_fast.reference.mbconv_bfloat16 import rounded as to_bfloat16

__all__ = ["mbconv_train"]


def mbconv_train(
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
    eps: float = 1e-5,
    rounded: bool = False,
) -> tuple[Tensor, Tensor]:
    """1x1 expansion, batch norm, ReLU6, depthwise convolution of 3, batch norm, ReLU6, 1x1 projection.

    Arguments and results as in :func:`sleepfm_fast.ops.mbconv_train`, in the arguments' type and on their device.
    ``rounded``: round to bfloat16 where the op does, except for the gradient of x; by default nothing is rounded.
    """
    first = x.transpose(1, 2)
    if not rounded:
        weights = (w1, b1, gamma0, beta0, wd, bd, gamma1, beta1, w3, b3)
        y, statistics = exact(first, weights, stride, None, eps)
        return y.transpose(1, 2), torch.stack(statistics).detach()
    bias = to_bfloat16(-(w1 @ first.mean((0, 2)))).detach()  # its gradient is that of a constant
    c1 = to_bfloat16(F.conv1d(first, to_bfloat16(w1)[:, :, None], bias))
    mean0 = c1.mean((0, 2))
    variance0 = (c1 - mean0[:, None]).square().mean((0, 2))
    scale0 = gamma0 / (variance0 + eps).sqrt()
    shift0 = beta0 - mean0 * scale0 + (b1 - b1)  # the batch norm removes b1; its gradient is zero
    u = gradient_rounded(c1 * scale0[:, None] + shift0[:, None])
    c2 = to_bfloat16(F.conv1d(relu6(u), wd[:, None, :], bd, stride=stride, padding=1, groups=len(wd)))
    mean1 = c2.mean((0, 2))
    variance1 = (c2 - mean1[:, None]).square().mean((0, 2))
    scale1 = gamma1 / (variance1 + eps).sqrt()
    u = c2 * scale1[:, None] + (beta1 - mean1 * scale1)[:, None]
    a2 = to_bfloat16(relu6(gradient_rounded(u)))
    y = to_bfloat16(gradient_rounded(F.conv1d(a2, to_bfloat16(w3)[:, :, None], to_bfloat16(b3))))
    statistics = [mean0 - bias + b1, variance0, mean1, variance1]
    return y.transpose(1, 2), torch.stack(statistics).detach()
