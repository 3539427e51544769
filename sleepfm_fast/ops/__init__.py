"""The fused ops, registered under ``torch.ops.sleepfm_fast``; :mod:`sleepfm_fast.reference` holds their plain twins."""

from __future__ import annotations

from sleepfm_fast.ops.batch_norm import batch_norm
from sleepfm_fast.ops.contrastive_cpu import keep_at_most
from sleepfm_fast.ops.contrastive_loss import ContrastiveStatistics, contrastive_loss, problems
from sleepfm_fast.ops.encoder_evaluate import encoder_evaluate
from sleepfm_fast.ops.filter_resample import filter_resample
from sleepfm_fast.ops.max_pool import max_pool
from sleepfm_fast.ops.mbconv import mbconv
from sleepfm_fast.ops.mbconv_evaluate import mbconv_evaluate
from sleepfm_fast.ops.mbconv_train import mbconv_train
from sleepfm_fast.ops.pages import release_pages
from sleepfm_fast.ops.stem import stem

__all__ = [
    "ContrastiveStatistics",
    "batch_norm",
    "contrastive_loss",
    "encoder_evaluate",
    "filter_resample",
    "keep_at_most",
    "max_pool",
    "mbconv",
    "mbconv_evaluate",
    "mbconv_train",
    "problems",
    "release_pages",
    "stem",
]
