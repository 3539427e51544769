"""Heart beats in an ECG and what their intervals say: rate, variability in time and in frequency, QRS amplitude.

Beats are found as Pan and Tompkins (1985) do: band-pass, derivative, square, moving integration, a threshold that
follows the signal. Intervals are used where both beats are plausible (0.3 to 2 s, within 20 % of the median of their
neighbours). Definitions of the variability: Task Force of the ESC and NASPE (1996). Low frequencies need more than a
clip: LF and HF are those of the 120 s around it, by Welch's method from a cubic spline through the intervals.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.interpolate
import scipy.ndimage
import scipy.signal

from sleepfm_fast.scoring.stages import EPOCH_S
from sleepfm_fast.store.native_runs import NativeRun

__all__ = ["ECG_NAMES", "Beats", "beat_features", "ecg_features", "find_beats"]

Array = npt.NDArray[np.float64]

ECG_NAMES = (
    "heart_rate_per_min",
    "sdnn_ms",
    "rmssd_ms",
    "rejected_percent",
    "lf_120s_log10_ms2",
    "hf_120s_log10_ms2",
    "lf_to_hf_120s_log10",
    "qrs_peak_to_peak_mv",
    "qrs_variation_percent",
)
"""``rejected``: intervals between beats that were not used. ``qrs_variation``: coefficient of variation of the QRS
amplitude within the clip."""

LOWEST_RATE_HZ = 50.0
PIECE_S, OVERLAP_S = 1800.0, 10.0
SHORTEST_S, LONGEST_S = 0.3, 2.0
LARGEST_CHANGE = 0.2  # of the median of the five intervals around
LEAST_INTERVALS = 5
WINDOW_S, TACHOGRAM_HZ = 120.0, 4.0
LF_HZ, HF_HZ = (0.04, 0.15), (0.15, 0.4)
LEAST_COVERAGE = 0.8  # of the 120 s
SMALLEST_MS2 = 1e-2  # a tenth of a millisecond, squared


class Beats(NamedTuple):
    """Beats of a run: times in seconds from its start, ascending, and peak-to-peak amplitude in the signal's unit."""

    time_s: Array
    amplitude: Array


def find_beats(run: NativeRun) -> Beats:
    """Find the R peaks of an ECG, half an hour at a time.

    Parameters
    ----------
    run : NativeRun
        Polarity and unit do not matter. Below 50 Hz no beats are found.
    """
    fs = run.fs_hz
    if fs < LOWEST_RATE_HZ or len(run) < 2 * fs:
        return Beats(np.empty(0), np.empty(0))
    times, amplitudes = [], []
    step, overlap = int(PIECE_S * fs), int(OVERLAP_S * fs)
    for begin in range(0, len(run), step):
        start = max(begin - overlap, 0)
        found = beats_of_piece(run.physical(start, begin + step + overlap), fs)
        place = found.time_s + start / fs
        mine = (place >= begin / fs) & (place < (begin + step) / fs)
        times.append(place[mine])
        amplitudes.append(found.amplitude[mine])
    return Beats(np.concatenate(times), np.concatenate(amplitudes))


def beats_of_piece(x: Array, fs: float) -> Beats:
    """Find the beats of a few minutes of signal."""
    if len(x) < 2 * fs or x.min() == x.max():
        return Beats(np.empty(0), np.empty(0))
    sos = scipy.signal.butter(2, (5.0, min(18.0, 0.45 * fs)), "bandpass", fs=fs, output="sos")
    y = scipy.signal.sosfiltfilt(sos, x)
    energy = scipy.ndimage.uniform_filter1d(np.gradient(y) ** 2, max(round(0.12 * fs), 1))
    # The largest energy of 1.5 s holds a beat above 40 a minute; their median over 10 s ignores a movement.
    block = round(1.5 * fs)
    n_blocks = max(len(energy) // block, 1)
    largest = np.array([part.max() for part in np.array_split(energy, n_blocks)])
    level = scipy.ndimage.median_filter(largest, min(7, n_blocks), mode="nearest")
    if not level.max() > 0:
        return Beats(np.empty(0), np.empty(0))
    centre = (np.arange(n_blocks) + 0.5) * (len(energy) / n_blocks)
    threshold = 0.25 * np.interp(np.arange(len(energy)), centre, np.maximum(level, 1e-6 * level.max()))
    peaks, _ = scipy.signal.find_peaks(energy, height=threshold, distance=max(round(0.28 * fs), 1))
    reach = max(round(0.08 * fs), 1)
    peaks = peaks[(peaks >= reach + 1) & (peaks < len(x) - reach - 1)]
    if not len(peaks):
        return Beats(np.empty(0), np.empty(0))
    around = peaks[:, None] + np.arange(-reach, reach + 1)
    size = np.abs(y[around])
    r = around[np.arange(len(peaks)), size.argmax(axis=1)]
    # A parabola through the three largest samples: at 100 Hz the grid alone would add 3 ms of variability.
    before, at, after = np.abs(y[r - 1]), np.abs(y[r]), np.abs(y[r + 1])
    curve = before - 2 * at + after
    shift = np.where(curve < 0, 0.5 * (before - after) / np.where(curve < 0, curve, 1.0), 0.0)
    qrs = x[np.clip(r[:, None] + np.arange(-reach, reach + 1), 0, len(x) - 1)]
    time_s, first = np.unique((r + np.clip(shift, -0.5, 0.5)) / fs, return_index=True)
    return Beats(time_s, (qrs.max(axis=1) - qrs.min(axis=1))[first])


def plausible(rr_s: Array) -> npt.NDArray[np.bool_]:
    """Which intervals are those between sinus beats that were all found."""
    if not len(rr_s):
        return np.zeros(0, np.bool_)
    local = scipy.ndimage.median_filter(rr_s, min(5, len(rr_s)), mode="nearest")
    return np.asarray(
        (rr_s >= SHORTEST_S) & (rr_s <= LONGEST_S) & (np.abs(rr_s - local) <= LARGEST_CHANGE * local), np.bool_
    )


def beat_features(beats: Beats, onset_s: Array, duration_s: float, mv: float) -> Array:
    """Measure clips by their beats.

    Parameters
    ----------
    beats : Beats
        Of the whole run.
    onset_s : float64 [n]
        Onsets of the clips, 30 s long, from the start of the run.
    duration_s : float
        Of the run.
    mv : float
        Millivolts in one of the signal's unit; NaN where that is not known.

    Returns
    -------
    float64 [n, len(ECG_NAMES)]
        NaN where a clip has fewer than five usable intervals.
    """
    out = np.full((len(onset_s), len(ECG_NAMES)), np.nan)
    rr = np.diff(beats.time_s)
    good = plausible(rr)
    for i, onset in enumerate(onset_s):
        a, b = np.searchsorted(beats.time_s, (onset, onset + EPOCH_S))
        within = slice(a, max(b - 1, a))  # intervals with both beats in the clip
        nn, use = 1000 * rr[within], good[within]
        if use.sum() < LEAST_INTERVALS:
            continue
        both = use[1:] & use[:-1]
        amplitude = beats.amplitude[a:b]
        out[i, :4] = (
            60000 / nn[use].mean(),
            nn[use].std(ddof=1),
            np.sqrt(np.mean(np.diff(nn)[both] ** 2)) if both.any() else np.nan,
            100 * (1 - use.mean()),
        )
        out[i, 7:] = np.median(amplitude) * mv, 100 * amplitude.std() / max(amplitude.mean(), 1e-30)
    out[:, 4:7] = frequency_features(beats.time_s[1:][good], rr[good], onset_s, duration_s)
    return out


def tachogram(time_s: Array, nn_s: Array) -> scipy.interpolate.CubicSpline:
    """Cubic spline through the intervals that count, each at the beat that ends it.

    Straight lines would take a quarter of the power at 0.25 Hz and 70 beats a minute, the spline takes a hundredth.
    Where intervals were left out, a spline would swing far beyond its ends: there it runs along a straight line,
    through as many points as beats are missing.
    """
    lost_s = time_s[1:] - nn_s[1:] - time_s[:-1]
    n_lost = np.rint(np.maximum(lost_s, 0.0) / (0.5 * (nn_s[1:] + nn_s[:-1]))).astype(np.int64)
    gap = np.repeat(np.arange(len(n_lost)), n_lost)
    nth = np.arange(len(gap)) - np.repeat(np.cumsum(n_lost) - n_lost, n_lost) + 1
    share = nth / (n_lost[gap] + 1)
    filled_s = time_s[gap] + share * (time_s[gap + 1] - time_s[gap])
    at_s = np.concatenate([time_s, filled_s])
    order = np.argsort(at_s, kind="stable")
    values = np.concatenate([nn_s, nn_s[gap] + share * (nn_s[gap + 1] - nn_s[gap])])
    return scipy.interpolate.CubicSpline(at_s[order], values[order])


def frequency_features(time_s: Array, nn_s: Array, onset_s: Array, duration_s: float) -> Array:
    """LF, HF and their ratio of the 120 s around each clip, moved inwards at the ends of the run: [n, 3]."""
    out = np.full((len(onset_s), 3), np.nan)
    if duration_s < WINDOW_S or len(nn_s) < LEAST_INTERVALS:
        return out
    start = np.clip(onset_s + EPOCH_S / 2 - WINDOW_S / 2, 0, duration_s - WINDOW_S)
    covered = np.concatenate([[0.0], np.cumsum(nn_s)])
    a, b = (np.searchsorted(time_s, t) for t in (start, start + WINDOW_S))
    use = np.flatnonzero(covered[b] - covered[a] >= LEAST_COVERAGE * WINDOW_S)
    grid = np.arange(int(WINDOW_S * TACHOGRAM_HZ)) / TACHOGRAM_HZ
    nn_at = tachogram(time_s, nn_s)
    for begin in range(0, len(use), 1024):
        rows = use[begin : begin + 1024]
        nn_ms = 1000 * nn_at(np.clip(start[rows, None] + grid, time_s[0], time_s[-1]))
        f, density = scipy.signal.welch(nn_ms, TACHOGRAM_HZ, nperseg=len(grid) // 2, detrend="linear")
        lf, hf = (
            np.log10(np.maximum(density[:, (f >= low) & (f < high)].sum(axis=1) * f[1], SMALLEST_MS2))
            for low, high in (LF_HZ, HF_HZ)
        )
        out[rows] = np.column_stack([lf, hf, lf - hf])
    return out


def ecg_features(run: NativeRun, onset_s: Array) -> Array:
    """Measure the clips of one ECG channel: float64 [n, len(ECG_NAMES)]."""
    mv = {"uV": 1e-3, "mV": 1.0}.get(run.unit, np.nan)
    return beat_features(find_beats(run), onset_s, len(run) / run.fs_hz, mv)
