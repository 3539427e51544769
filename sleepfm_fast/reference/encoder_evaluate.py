"""The published encoder in evaluation up to its average over time, as the sequence of operations that defines it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from sleepfm_fast.ops.encoder_evaluate import Block, Norm, Stem
from sleepfm_fast.ops.mbconv import Precision
from sleepfm_fast.reference.max_pool import max_pool
from sleepfm_fast.reference.mbconv import mbconv

__all__ = ["encoder_evaluate"]


def encoder_evaluate(x: Tensor, stem: Stem, blocks: Sequence[Block], *, precision: Precision = "float32") -> Tensor:
    """Stem, batch norm, MBConv blocks with what follows each, average over time.

    Arguments and results as in :func:`sleepfm_fast.ops.encoder_evaluate`.
    """
    x = normalise(F.conv1d(x, stem.weight, stem.bias, stride=2, padding=1), stem.norm)
    for block in blocks:
        x, _ = mbconv(
            x,
            *block.weights,
            stride=block.stride,
            running=block.running,
            eps=block.eps,
            residual=block.residual,
            precision=precision,
        )
        if block.after is not None:
            x = normalise(x, block.after)
        if block.pool:
            x = max_pool(x)
    return x.mean(2)


def normalise(x: Tensor, norm: Norm) -> Tensor:
    """A batch norm with running statistics."""
    scale = norm.gamma / (norm.variance + norm.eps).sqrt()
    return (x - norm.mean[:, None]) * scale[:, None] + norm.beta[:, None]
