"""The fused ops, registered under ``torch.ops.sleepfm_fast``; `sleepfm_fast.reference` holds their plain twins."""

from sleepfm_fast.ops.filter_resample import filter_resample

__all__ = ["filter_resample"]
