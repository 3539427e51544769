"""Plain PyTorch twins of the compiled ops: same signatures, slow, readable, and the law where the two disagree."""

from __future__ import annotations

from sleepfm_fast.reference.contrastive_loss import contrastive_loss as contrastive_loss
