"""Features of the oximeter: oxygen saturation and its falls, pulse rate; and of any other trend."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sleepfm_fast.store.native_runs import BLOCK, NativeRun

__all__ = ["PULSE_NAMES", "SPO2_NAMES", "TREND_NAMES", "pulse_features", "spo2_features", "trend_features"]

Array = npt.NDArray[np.float64]

SPO2_NAMES = ("mean_percent", "min_percent", "fall_percent", "below_120s_before_percent")
"""``fall``: largest fall within the clip. ``below_120s_before``: from the 90th percentile of the 120 s before the clip
to the clip's minimum."""
PULSE_NAMES = ("mean_per_min", "sd_per_min", "range_per_min")
TREND_NAMES = ("mean_log2_ratio",)
"""Against the recording's median, for trends whose meaning is not known."""

SPO2_PERCENT = (50.0, 100.0)  # beyond, the finger was out of the sensor
PULSE_PER_MIN = (20.0, 250.0)
BEFORE_S = 120.0
LEAST_SHARE = 0.5  # of a clip's samples must be plausible
LEAST_SHARE_BEFORE = 0.2  # 24 of the 120 s: the second clip of a recording has 30


def within(x: Array, limits: tuple[float, float], least_share: float = LEAST_SHARE) -> Array:
    """Samples outside the limits become NaN; so does a whole window [n, samples] with too few of them left."""
    with np.errstate(invalid="ignore"):
        kept = np.where((x >= limits[0]) & (x <= limits[1]), x, np.nan)
    kept[np.isfinite(kept).mean(axis=1) < least_share] = np.nan
    return kept


def spo2_features(run: NativeRun, onset_s: Array) -> Array:
    """Measure the clips of a saturation in percent: float64 [n, len(SPO2_NAMES)]."""
    out = np.full((len(onset_s), len(SPO2_NAMES)), np.nan)
    for begin in range(0, len(onset_s), BLOCK):
        rows = slice(begin, begin + BLOCK)
        x = within(run.windows(onset_s[rows]), SPO2_PERCENT)
        use = np.flatnonzero(np.isfinite(x).any(axis=1))
        if not len(use):
            continue
        x = x[use]
        highest = np.maximum.accumulate(np.where(np.isnan(x), -np.inf, x), axis=1)
        lowest = np.nanmin(x, axis=1)
        out[begin + use, :3] = np.column_stack([np.nanmean(x, axis=1), lowest, np.nanmax(highest - x, axis=1)])
        before = within(run.windows(onset_s[rows][use] - BEFORE_S, BEFORE_S), SPO2_PERCENT, LEAST_SHARE_BEFORE)
        known = np.isfinite(before).any(axis=1)
        if known.any():
            out[begin + use[known], 3] = np.nanpercentile(before[known], 90, axis=1) - lowest[known]
    return out


def pulse_features(run: NativeRun, onset_s: Array) -> Array:
    """Measure the clips of a pulse rate in beats a minute: float64 [n, len(PULSE_NAMES)]."""
    out = np.full((len(onset_s), len(PULSE_NAMES)), np.nan)
    for rows, windows in run.blocks(onset_s):
        x = within(windows, PULSE_PER_MIN)
        use = np.flatnonzero(np.isfinite(x).any(axis=1))
        if len(use):
            x = x[use]
            spread = np.nanmax(x, axis=1) - np.nanmin(x, axis=1)
            out[rows.start + use] = np.column_stack([np.nanmean(x, axis=1), np.nanstd(x, axis=1), spread])
    return out


def trend_features(run: NativeRun, onset_s: Array) -> Array:
    """Mean of each clip in the channel's unit, [n, 1]; to be compared with the recording's median."""
    return np.concatenate([x.mean(axis=1) for _, x in run.blocks(onset_s)])[:, None]
