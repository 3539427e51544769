"""The compiled ops, each with a plain PyTorch twin of the same signature in :mod:`sleepfm_fast.reference`."""

from __future__ import annotations

from sleepfm_fast.ops.contrastive_loss import ContrastiveStatistics as ContrastiveStatistics
from sleepfm_fast.ops.contrastive_loss import contrastive_loss as contrastive_loss
from sleepfm_fast.ops.contrastive_loss import problems as problems
