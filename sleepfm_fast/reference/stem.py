"""The stem of the encoder, as the sequence of torch operations that defines it."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from sleepfm_fast.reference.batch_norm import batch_norm

__all__ = ["stem"]


def stem(
    x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Convolution of 3 with stride 2, batch norm with the batch's statistics.

    Arguments and results as in :func:`sleepfm_fast.ops.stem`.
    """
    c = F.conv1d(x, weight, bias, stride=2, padding=1)
    return batch_norm(c, gamma, beta, eps=eps)
