"""Features of respiratory flow, effort and snoring: rate, regularity, and amplitude against the recording's own median.

The gain of these sensors is arbitrary and differs from night to night, so amplitudes are ratios to the recording's
median clip (log2: -1 is half of it). An apnoea or a hypopnoea shows as a low 10-s amplitude, the breaths after it as a
high one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.signal

from sleepfm_fast.scoring.stages import EPOCH_S
from sleepfm_fast.store.native_runs import NativeRun
from sleepfm_fast.store.unplugged import plugged_in

__all__ = [
    "BREATHING_NAMES", "SNORE_NAMES", "Breaths", "against_median", "breathing_amplitudes", "breathing_features",
    "correlation", "snore_amplitudes",
]  # fmt: skip

Array = npt.NDArray[np.float64]

BREATHING_NAMES = (
    "rate_per_min",
    "regularity",
    "amplitude_log2_ratio",
    "lowest_10s_log2_ratio",
    "highest_10s_log2_ratio",
)
"""``rate``: highest peak of the spectrum between 6 and 42 a minute. ``regularity``: highest autocorrelation at a lag of
1.4 to 10 s, 1 for breaths that are all alike. ``amplitude``: rms between 0.1 and 1 Hz; of the whole clip, and of the
10 s of it with the lowest and the highest."""
SNORE_NAMES = ("level_log2_ratio", "loudest_1s_log2_ratio")

GRID_HZ = 8
BAND_HZ = (0.1, 1.0)
RATE_HZ = (0.1, 0.7)
LAG_S = (1.4, 10.0)
DECIMATED_HZ = 16.0
LOWEST_RATIO = 2.0**-10  # a sensor that shows nothing at all
APNOEA_CLIPS = 10  # five minutes; no apnoea lasts as long


class Breaths:
    """A respiratory signal between 0.1 and 1 Hz on a grid of 8 Hz.

    Parameters
    ----------
    run : NativeRun
        Any rate of 4 Hz or more; a lower one gives no values.
    """

    def __init__(self, run: NativeRun) -> None:
        n_mean = max(int(run.fs_hz / DECIMATED_HZ), 1)
        rate = run.fs_hz / n_mean
        n = len(run) // n_mean
        self.y = np.full(int(n / rate * GRID_HZ), np.nan)
        if rate < 4 or n < 10 * rate:
            return
        x = np.empty(n)
        step = 1 << 18
        for begin in range(0, n, step):
            end = min(begin + step, n)
            x[begin:end] = run.physical(begin * n_mean, end * n_mean).reshape(-1, n_mean).mean(axis=1)
        if x.min() == x.max():
            return
        sos = scipy.signal.butter(2, BAND_HZ, "bandpass", fs=rate, output="sos")
        filtered = scipy.signal.sosfiltfilt(sos, x)
        # The mean over n samples stands in their middle.
        middle = (np.arange(n) * n_mean + 0.5 * (n_mean - 1)) / run.fs_hz
        self.y = np.interp(np.arange(len(self.y)) / GRID_HZ, middle, filtered)

    def windows(self, onset_s: Array) -> Array:
        """Clips [n, 240]; NaN beyond the end."""
        places = np.rint(onset_s * GRID_HZ).astype(np.int64)[:, None] + np.arange(EPOCH_S * GRID_HZ)
        if not len(self.y):
            return np.full(places.shape, np.nan)
        # The grid may end a sample before the last clip does.
        inside = (places >= 0) & (places < len(self.y) + GRID_HZ // 4)
        return np.where(inside, self.y[np.clip(places, 0, len(self.y) - 1)], np.nan)


def breathing_features(x: Array) -> Array:
    """Measure clips on the grid, [n, 240] -> float64 [n, 5]; amplitudes are still in the unit of ``x``."""
    out = np.full((len(x), len(BREATHING_NAMES)), np.nan)
    use = np.isfinite(x).all(axis=1)
    if not use.any():
        return out
    x = x[use]
    n = x.shape[1]
    rms = np.sqrt(np.mean(x**2, axis=1))
    moving = np.sqrt(np.lib.stride_tricks.sliding_window_view(x**2, 10 * GRID_HZ, axis=1)[:, ::GRID_HZ].mean(axis=2))
    still = rms <= 1e-9 * rms.max()  # the filter's rounding, not a breath
    rms[still] = moving[still] = 0.0
    centred = x - x.mean(axis=1, keepdims=True)
    n_fft = 1024  # 0.47 a minute between bins; the parabola does the rest
    power = np.abs(np.fft.rfft(centred * np.hanning(n), n_fft, axis=1)) ** 2
    low, high = (round(f * n_fft / GRID_HZ) for f in RATE_HZ)
    peak = low + power[:, low : high + 1].argmax(axis=1)
    rows = np.arange(len(x))
    before, at, after = (np.log(np.maximum(power[rows, peak + k], 1e-300)) for k in (-1, 0, 1))
    curve = before - 2 * at + after
    shift = np.where(curve < 0, 0.5 * (before - after) / np.where(curve < 0, curve, 1.0), 0.0)
    rate = 60 * (peak + np.clip(shift, -0.5, 0.5)) * GRID_HZ / n_fft
    # Unbiased autocorrelation: every lag is divided by the number of products in it.
    acf = np.fft.irfft(np.abs(np.fft.rfft(centred, 2 * n, axis=1)) ** 2, axis=1)[:, :n] / (n - np.arange(n))
    lags = slice(round(LAG_S[0] * GRID_HZ), round(LAG_S[1] * GRID_HZ) + 1)
    regularity = np.clip(acf[:, lags].max(axis=1) / np.where(still, 1.0, np.maximum(acf[:, 0], 1e-300)), -1, 1)
    rate[still] = regularity[still] = np.nan
    out[use] = np.column_stack([rate, regularity, rms, moving.min(axis=1), moving.max(axis=1)])
    return out


def breathing_amplitudes(run: NativeRun, onset_s: Array) -> Array:
    """Measure the clips of one channel, amplitudes still in its unit; see :func:`against_median`."""
    return breathing_features(Breaths(run).windows(onset_s))


def snore_amplitudes(run: NativeRun, onset_s: Array) -> Array:
    """Standard deviation of each clip, and of its loudest second: float64 [n, 2] in the channel's unit."""
    out = np.full((len(onset_s), 2), np.nan)
    n = int(run.fs_hz)
    if n < 1:
        return out
    for rows, x in run.blocks(onset_s):
        seconds = x[:, : x.shape[1] // n * n].reshape(len(x), -1, n)
        loudest = seconds.std(axis=2).max(axis=1) if n > 1 else np.abs(x - x.mean(axis=1, keepdims=True)).max(axis=1)
        out[rows] = np.column_stack([x.std(axis=1), loudest])
    return out


def against_median(columns: Array, first: int, *, sensor: bool = False) -> Array:
    """Turn the columns from ``first`` on into log2 of their ratio to the recording's median of column ``first``.

    Parameters
    ----------
    columns : float64 [n, k]
        All clips of a recording.
    first : int
        The amplitude that the others are compared with.
    sensor : bool
        It is that of a sensor of breathing, which may have been unplugged (:mod:`sleepfm_fast.store.unplugged`).

    Returns
    -------
    float64 [n, k]
        NaN in clips in which the sensor was off; it does not count for the median either. A channel whose median is
        still 0 is off wherever it shows nothing.
    """
    amplitude = columns[:, first]
    off = unplugged(amplitude) if sensor else np.zeros(len(columns), np.bool_)
    known = np.isfinite(amplitude) & ~off
    typical = np.median(amplitude[known]) if known.any() else 0.0
    if not typical > 0:
        shows = known & (np.where(known, amplitude, 0.0) > 0)
        off, typical = ~shows, np.median(amplitude[shows]) if shows.any() else 1.0
    out = columns.copy()
    out[:, first:] = np.log2(np.maximum(columns[:, first:] / typical, LOWEST_RATIO))
    out[off] = np.nan
    return out


def unplugged(amplitude: Array) -> npt.NDArray[np.bool_]:
    """Tell the clips [n] of a recording in which a sensor of breathing was off from those that an apnoea fills.

    Off it was where it shows nothing for longer than any apnoea lasts. Where it shows nothing in half of the clips
    that are left, every one of them counts as off: they would be the median.
    """
    on = plugged_in(amplitude)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ~on, [0]]).astype(np.int8)))
    off = np.zeros(len(on), np.bool_)
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        off[begin:end] = end - begin >= APNOEA_CLIPS
    rest = np.isfinite(amplitude) & ~off
    return ~on if rest.any() and np.mean(on[rest]) <= 0.5 else off


def correlation(x: Array, y: Array) -> Array:
    """Correlation of two channels' clips on the grid, [n]: 1 breathing together, -1 chest against abdomen."""
    x, y = (z - z.mean(axis=1, keepdims=True) for z in (x, y))
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    product = (x * y).sum(axis=1)
    out: Array = np.divide(product, scale, out=np.full(len(x), np.nan), where=scale > 0)
    return out
