"""Plain twins of the ops of :mod:`sleepfm_fast.ops`: same signatures, slow, readable, and the law where they disagree."""

from __future__ import annotations

from sleepfm_fast.reference.contrastive_loss import contrastive_loss
from sleepfm_fast.reference.filter_resample import filter_resample

__all__ = ["contrastive_loss", "filter_resample"]
