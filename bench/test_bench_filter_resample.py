"""Filtering and resampling a night of EEG, from integers in memory to float32 at 256 Hz."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import filter_rivals
import numpy as np

SETUP = """
import sys
sys.path.insert(0, {folder!r})
import filter_rivals
filter_rivals.{function}(filter_rivals.recording({channels}, 60))
x = filter_rivals.recording({channels}, {seconds})
"""
EDGE_S = 60
LIMITS_DB = {"ours": (100, 0), "PyTorch conv1d, same taps": (80, 0)}  # with all samples of the recording


def rows(result) -> np.ndarray:
    """[channel, sample] of either layout."""
    values = np.asarray(result)
    return values.transpose(1, 0, 2).reshape(values.shape[1], -1) if values.ndim == 3 else values


def snr_db(got: np.ndarray, truth: np.ndarray, edge: int = 0) -> float:
    """Worst channel; ``edge`` samples at both ends are left out."""
    span = slice(edge, got.shape[1] - edge)
    each = []
    for a, b in zip(got[:, span], truth[:, span], strict=True):
        error = (a - b).astype(np.float64)
        each.append(10 * np.log10(float(np.vdot(b, b)) / max(float(error @ error), 1e-300)))
    return min(each)


def test_filter_resample(versus, quick):
    n_channels, seconds = 9, 1800 if quick else 8 * 3600
    functions = {"ours": "ours", "SciPy sosfiltfilt + resample_poly": "scipy_sosfiltfilt"}
    functions["PyTorch conv1d, same taps"] = "torch_conv1d"
    if importlib.util.find_spec("soxr"):
        functions["SciPy sosfiltfilt + soxr VHQ"] = "soxr_vhq"
    if importlib.util.find_spec("mne"):
        functions["MNE FIR + polyphase"] = "mne_fir"
    x = filter_rivals.recording(n_channels, seconds)

    def agree(results):
        # The truth is SciPy's upfirdn with our taps in float64, rounded to float32 at the end. Other designs are
        # compared where all are flat (2-15 Hz), away from the edges, which each extends in its own way: within 1 %.
        truth = filter_rivals.scipy_upfirdn(x)
        for arm, result in results.items():
            values = rows(result)
            assert values.shape == truth.shape
            limit, edge = LIMITS_DB.get(arm, (40, EDGE_S * filter_rivals.FS_OUT_HZ))
            assert snr_db(values, truth, edge) > limit, arm

    peak = {}
    if not quick:
        folder = str(Path(__file__).parent)
        for arm, function in functions.items():
            setup = SETUP.format(folder=folder, function=function, channels=n_channels, seconds=seconds)
            peak[arm] = (setup, f"y = filter_rivals.{function}(x)")
    result = versus(
        f"filter 0.3-35 Hz and resample 200 to 256 Hz, {n_channels} channels, {seconds / 3600:g} h",
        {arm: partial(getattr(filter_rivals, function), x) for arm, function in functions.items()},
        agree=agree,
        rounds=4,
        peak=peak,
    )
    for rival in ("SciPy sosfiltfilt + resample_poly", "PyTorch conv1d, same taps"):
        result.require(rival, at_least=2.0)
