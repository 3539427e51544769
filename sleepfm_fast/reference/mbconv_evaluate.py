"""An MBConv block in evaluation with its batch norms folded, channels last: defines the op of the same name."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

__all__ = ["mbconv_evaluate"]


def mbconv_evaluate(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    wd: Tensor,
    bd: Tensor,
    w3: Tensor,
    b3: Tensor,
    *,
    stride: int = 1,
    residual: bool = False,
    rounded: torch.dtype | None = None,
) -> Tensor:
    """1x1 expansion, ReLU6, depthwise convolution of 3, ReLU6, 1x1 projection, residual.

    Parameters
    ----------
    x : Tensor
        ``[B, T, n_in]``, channels last; computed in its precision.
    w1, b1, wd, bd, w3, b3 : Tensor
        As in :func:`sleepfm_fast.ops.mbconv`, with the batch norms folded into them.
    stride : {1, 2}
        Stride of the depthwise convolution.
    residual : bool
        Whether x is added.
    rounded : dtype, optional
        bfloat16 or float16: round where the op rounds, that is both matrices (the first divided by 6, the second
        multiplied by 6), the projection's other factor, and the result. By default nothing is rounded.

    Returns
    -------
    Tensor
        ``[B, (T - 1) // stride + 1, n_out]`` of the precision of x. A result that sees a sample of x that is not
        finite is NaN.
    """

    def rounding(y: Tensor) -> Tensor:
        return y if rounded is None else y.to(rounded).to(y.dtype)

    w1, b1, wd, bd, w3, b3 = (weight.to(x.dtype) for weight in (w1, b1, wd, bd, w3, b3))
    y = F.conv1d(x.transpose(1, 2), rounding(w1 / 6)[:, :, None], b1 / 6).clamp(0, 1)
    y = F.conv1d(y, wd[:, None], bd / 6, stride=stride, padding=1, groups=len(wd)).clamp(0, 1)
    y = F.conv1d(rounding(y), rounding(6 * w3)[:, :, None], b3).transpose(1, 2)
    if residual:
        y = x + y
    unknown = 1.0 - x.isfinite().all(dim=2).to(x.dtype)
    spoilt = F.max_pool1d(unknown[:, None], 3, stride=stride, padding=1)[:, 0, :, None] > 0
    return rounding(torch.where(spoilt, torch.nan, y))
