"""Plain twins of :mod:`sleepfm_fast.ops`: same signatures, slow and readable; they define what the ops compute."""

from __future__ import annotations

from sleepfm_fast.reference.batch_norm import batch_norm
from sleepfm_fast.reference.contrastive_loss import contrastive_loss
from sleepfm_fast.reference.encoder_evaluate import encoder_evaluate
from sleepfm_fast.reference.filter_resample import filter_resample
from sleepfm_fast.reference.max_pool import max_pool
from sleepfm_fast.reference.mbconv import mbconv
from sleepfm_fast.reference.mbconv_evaluate import mbconv_evaluate
from sleepfm_fast.reference.mbconv_train import mbconv_train
from sleepfm_fast.reference.stem import stem

__all__ = [
    "batch_norm",
    "contrastive_loss",
    "encoder_evaluate",
    "filter_resample",
    "max_pool",
    "mbconv",
    "mbconv_evaluate",
    "mbconv_train",
    "stem",
]
