"""Whether a signal shows heartbeats: repeated waves of one shape at a heart's rate, and which way they point."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import signal as dsp

__all__ = ["Heartbeat", "heartbeat"]

Floats = NDArray[np.float64]

QRS_BAND_HZ = (5.0, 25.0)
"""Band of the QRS complex's energy (Thakor et al. 1984 place its peak at 10 to 15 Hz), above T waves and breathing."""
REFRACTORY_S = 0.33
"""No two beats lie closer: 180 a minute."""
BEAT_S = 0.15
"""Half the stretch that is compared from beat to beat; holds a QRS complex."""
MIN_BEATS = 15
"""In a minute: half the slowest sinus rhythm of sleep."""


class Heartbeat(NamedTuple):
    """What one window shows.

    ``rate`` beats a minute; ``match`` median correlation of a beat with the median beat; ``contrast`` how far the beats
    stand out, as a ratio of amplitudes to the median of the window; ``upward`` share of beats whose largest deflection
    is positive.
    """

    rate: float
    match: float
    contrast: float
    upward: float


@lru_cache(maxsize=64)
def qrs_filter(fs_hz: float) -> Floats:
    """Second-order sections, kept: to design them takes longer than to filter a window."""
    return np.asarray(dsp.butter(2, QRS_BAND_HZ, "bandpass", fs=fs_hz, output="sos"))


def heartbeat(x: NDArray[Any], fs_hz: float) -> Heartbeat | None:
    """Look for beats in a window of a few tens of seconds.

    Parameters
    ----------
    x : ndarray [n]
        Samples in any unit.
    fs_hz : float
        At least 64 Hz.

    Returns
    -------
    Heartbeat or None
        None where there are too few candidates to tell.
    """
    values: Floats = np.asarray(x, np.float64)
    if fs_hz < 64 or values.size < 10 * fs_hz:
        return None
    y = dsp.sosfiltfilt(qrs_filter(fs_hz), values - np.median(values))
    width = max(1, round(0.1 * fs_hz))
    energy = np.convolve(y * y, np.full(width, 1 / width), "same")
    # A tenth of the largest waves: an artefact may be much larger than the beats beside it.
    height = 0.1 * float(np.percentile(energy, 98))
    if height <= 0:
        return None
    peaks, _ = dsp.find_peaks(energy, height=height, distance=max(1, round(REFRACTORY_S * fs_hz)))
    half, near, far = (max(1, round(s * fs_hz)) for s in (BEAT_S, 0.06, 0.25))
    peaks = peaks[(peaks >= far + near) & (peaks < values.size - far - near)]
    if peaks.size < MIN_BEATS * values.size / fs_hz / 60:
        return None
    # Aligned on the largest wave of the filtered signal; of its sign in most beats, so that all align on one wave.
    reach = np.arange(-near, near + 1)
    around = y[peaks[:, None] + reach]
    rows = np.arange(peaks.size)
    at = np.argmax(np.abs(around), axis=1)
    sign = 1.0 if np.median(around[rows, at]) >= 0 else -1.0
    peaks = peaks + reach[np.argmax(sign * around, axis=1)]
    beats = y[peaks[:, None] + np.arange(-half, half + 1)]
    beats = beats - beats.mean(axis=1, keepdims=True)
    template = np.median(beats, axis=0)
    norms = np.linalg.norm(beats, axis=1) * np.linalg.norm(template)
    if not np.any(norms > 0):
        return None
    match = float(np.median((beats @ template)[norms > 0] / norms[norms > 0]))
    level = float(np.median(energy))
    contrast = float(np.sqrt(np.median(energy[peaks]) / level)) if level > 0 else np.inf
    wide = values[peaks[:, None] + np.arange(-far, far + 1)]
    core = values[peaks[:, None] + reach] - np.median(wide, axis=1, keepdims=True)
    upward = float(np.mean(core.max(axis=1) > -core.min(axis=1)))
    rr_s = np.median(np.diff(np.sort(peaks))) / fs_hz if peaks.size > 1 else np.inf
    return Heartbeat(float(60 / rr_s), match, contrast, upward)
