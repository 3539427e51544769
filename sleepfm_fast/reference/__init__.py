"""The ops of `sleepfm_fast.ops` in plain float64, with the same signatures: what "right" means."""

from sleepfm_fast.reference.filter_resample import filter_resample

__all__ = ["filter_resample"]
