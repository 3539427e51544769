"""What the samples of a recording are like: a few minutes of every channel, spread over the night.

Reading is bounded: :data:`N_WINDOWS` windows of :data:`WINDOW_S` seconds, 12 minutes of every night, all channels in
one pass each.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import signal as dsp

from sleepfm_fast.doctor.extremes import extremes_of, packed
from sleepfm_fast.doctor.heartbeat import Heartbeat, heartbeat
from sleepfm_fast.edf import Recording, Segment, Signal
from sleepfm_fast.epochs import read_digital
from sleepfm_fast.store.unplugged import plugged_in

__all__ = ["ChannelMeasures", "NightMeasures", "beginning_digest", "begins_like", "identical_samples", "measure_night"]

WINDOW_S = 60
"""Long enough for ten breaths and sixty heartbeats."""
N_WINDOWS = 12
"""Every 40 min of an eight-hour night: a sensor that is off for a quarter of it is seen off about three times."""

POTENTIALS = ("eeg", "eog", "emg", "ecg")
BLOCK_S = 2
"""Amplitudes are taken around the mean of as long a block: slow drifts of electrodes do not count, slow waves do."""
CLIP_RUN = 4
"""Equal samples in a row at an extreme: noise seldom repeats one value as often, an amplifier at its limit does."""
CLIP_STEPS = 64
"""Coarser signals repeat their extremes by chance."""
BREATHING_HZ = (0.1, 0.7)
"""6 to 42 breaths a minute."""
SLOWEST_BELT_HZ = 4.0
"""Below, the fastest breathing has fewer than six samples a breath."""
MAINS_HZ = (50.0, 60.0)
NO_BEAT = Heartbeat(*[math.nan] * 4)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ChannelMeasures:
    """One channel over the windows that were read.

    Attributes
    ----------
    index : int
        In the header.
    flat, railed : int
        Windows that hold one value (to one step, of trends exactly); windows that stand at the header's digital limit
        half of the time.
    unplugged : int
        Windows of respiration, other than those, that hold only noise (:mod:`sleepfm_fast.store.unplugged`).
    clipped : float
        Share of samples, of the live windows (neither flat nor railed), that lie in runs at the signal's own extremes.
    amplitude : float
        In the header's unit, median over the live windows: of an ECG the peak-to-peak value in 2 s, otherwise the
        standard deviation that the central 95 % would have if they were Gaussian. NaN without a live window.
    level : float
        Median over all windows, in the header's unit.
    levels : tuple of float
        Median of each window.
    low, high : float
        1st and 99th percentile, in the header's unit.
    mains_hz, mains : float
        Line frequency, and the share of the power above 0.5 Hz that lies within 1 Hz of it; NaN where it is beyond the
        band.
    rate, match, contrast, upward : float
        Of :class:`Heartbeat`, median over the live windows, of ``upward`` their mean; NaN where there is none.
    digest : str
        Of all samples read; equal in two channels that are one.
    """

    index: int
    flat: int
    railed: int
    unplugged: int
    clipped: float
    amplitude: float
    level: float
    levels: tuple[float, ...]
    low: float
    high: float
    mains_hz: float
    mains: float
    rate: float
    match: float
    contrast: float
    upward: float
    digest: str


@dataclass(frozen=True)
class NightMeasures:
    """All channels; ``belts`` is the median correlation of breathing in two channels, and the share of windows below 0.

    ``digest`` is that of every sample read and of the layout, whatever the header says of names and units; ``extremes``
    are those of potentials and respiration, by :func:`~sleepfm_fast.doctor.extremes.packed`.
    """

    n_windows: int
    minutes: float
    channels: dict[int, ChannelMeasures]
    belts: tuple[float, float] | None
    digest: str
    extremes: bytes


def windows_of(recording: Recording) -> list[Segment]:
    """Stretches of records to read, in order, none twice."""
    if recording.record_s <= 0 or recording.n_records == 0:
        return []
    length = max(1, math.ceil(Fraction(WINDOW_S) / recording.record_s))
    if recording.n_records <= N_WINDOWS * length:
        firsts = list(range(0, recording.n_records, length))
    else:
        firsts = [round((k + 0.5) * recording.n_records / N_WINDOWS - length / 2) for k in range(N_WINDOWS)]
    found = []
    for first in firsts:
        # A window lies in the segment of its first record, and is moved back where that ends too early.
        segment = next(s for s in recording.segments if s.first_record <= first < s.first_record + s.n_records)
        end = segment.first_record + segment.n_records
        begin = max(segment.first_record, min(first, end - length))
        found.append(Segment(begin, min(length, end - begin), Fraction(0)))
    return list(dict.fromkeys(found))


def measure_night(
    recording: Recording, kinds: dict[int, str | None], belts: tuple[int, int] | None = None
) -> NightMeasures:
    """Read the windows and measure every signal.

    Parameters
    ----------
    recording : Recording
    kinds : dict of int to str
        Kind of each signal by its index.
    belts : (int, int), optional
        Indices of the chest's and the abdomen's belt.
    """
    windows = windows_of(recording)
    signals = list(recording.signals)
    samples: dict[int, list[NDArray[Any]]] = {s.index: [] for s in signals}
    digest = hashlib.sha256(f"{recording.n_records} {recording.record_s}".encode())
    for window in windows:
        for signal, values in zip(signals, read_digital(recording, signals, window), strict=True):
            samples[signal.index].append(values)
            digest.update(f"{signal.samples_per_record}".encode())
            # the same integers in 16 and in 24 bits are the same recording
            digest.update(values.astype("<i4").tobytes())
    channels = {s.index: measure(s, samples[s.index], kinds.get(s.index)) for s in signals} if windows else {}
    extremes = packed(
        extremes_of(window.first_record * s.samples_per_record, values, float(s.fs_hz))
        for s in signals
        if kinds.get(s.index) in (*POTENTIALS, "respiration")
        for window, values in zip(windows, samples[s.index], strict=True)
    )
    together = None
    if belts is not None and windows:
        by_index = {s.index: s for s in signals}
        pair = [(by_index[i], samples[i]) for i in belts]
        together = breathing_together(pair[0], pair[1])
    # A window that was moved back repeats records of the one before it.
    ends = [0, *(w.first_record + w.n_records for w in windows)]
    n_read = sum(end - max(w.first_record, before) for w, before, end in zip(windows, ends, ends[1:], strict=False))
    minutes = float(n_read * recording.record_s) / 60
    return NightMeasures(len(windows), minutes, channels, together, digest.hexdigest()[:16], extremes)


def measure(signal: Signal, windows: Sequence[NDArray[Any]], kind: str | None) -> ChannelMeasures:
    """Measure one channel."""
    fs_hz = float(signal.fs_hz)
    limits = (signal.digital_min, signal.digital_max)
    railed = [bool(np.mean((w <= limits[0]) | (w >= limits[1])) >= 0.5) for w in windows]
    # A trend in whole percent swings between two values for minutes.
    steps = 0 if kind == "step" else 1
    flat = [int(w.max()) - int(w.min()) <= steps for w in windows]
    live_digital = [w for w, f, r in zip(windows, flat, railed, strict=True) if not f and not r]
    live = [w * signal.gain + signal.offset for w in live_digital]
    everything = np.concatenate(windows)
    low, level, high = np.percentile(everything, [1, 50, 99]) * signal.gain + signal.offset
    amplitudes = [peak_to_peak(x, fs_hz) if kind == "ecg" else spread(x, fs_hz) for x in live]
    on = plugged_in(np.array(amplitudes)) if kind == "respiration" else np.ones(len(amplitudes), np.bool_)
    lines = [share for x in live if (share := mains(x, fs_hz)) is not None] if kind in POTENTIALS else []
    by_line = np.median(lines, axis=0) if lines else np.empty(0)
    mains_hz, mains_share = math.nan, math.nan
    if by_line.size and np.any(np.isfinite(by_line)):
        strongest = int(np.argmax(by_line))
        mains_hz, mains_share = MAINS_HZ[strongest], float(by_line[strongest])
    beats = [b for x in live if (b := heartbeat(x, fs_hz)) is not None] if kind in POTENTIALS else []
    # A window without enough candidates shows no heartbeat: where that is the rule, there is none.
    beat = NO_BEAT
    if len(beats) * 2 > len(live):
        beat = Heartbeat(*np.median(np.array(beats), axis=0).tolist())
        # A lead that was exchanged during the night points down in a part of it.
        beat = beat._replace(upward=float(np.mean([b.upward for b in beats])))
    return ChannelMeasures(
        index=signal.index,
        flat=sum(f and not r for f, r in zip(flat, railed, strict=True)),
        railed=sum(railed),
        unplugged=int((~on).sum()),
        clipped=clipped(live_digital),
        amplitude=float(np.median(amplitudes)) if amplitudes else math.nan,
        level=float(level),
        levels=tuple(float(np.median(w)) * signal.gain + signal.offset for w in windows),
        low=float(min(low, high)),
        high=float(max(low, high)),
        mains_hz=mains_hz,
        mains=mains_share,
        rate=beat.rate,
        match=beat.match,
        contrast=beat.contrast,
        upward=beat.upward,
        digest=hashlib.sha256(everything.tobytes()).hexdigest()[:16],
    )


def blocks(x: Floats, fs_hz: float) -> Floats:
    """Blocks of 2 s, each less its mean, [block, sample]; the whole where it is shorter or slower than that."""
    n = round(BLOCK_S * fs_hz)
    if n < 4 or x.size < n:
        return np.asarray(x - x.mean())[None, :]
    cut = x[: x.size // n * n].reshape(-1, n)
    return np.asarray(cut - cut.mean(axis=1, keepdims=True))


def spread(x: Floats, fs_hz: float) -> float:
    low, high = np.percentile(blocks(x, fs_hz), [2.5, 97.5])
    return float(high - low) / 3.92  # of a Gaussian, 2 * 1.96 standard deviations


def peak_to_peak(x: Floats, fs_hz: float) -> float:
    return float(np.median(np.ptp(blocks(x, fs_hz), axis=1)))


def clipped(windows: Sequence[NDArray[Any]]) -> float:
    """Share of samples in runs of :data:`CLIP_RUN` or more at the largest or smallest value of all windows."""
    if not windows:
        return 0.0
    top, bottom = max(int(w.max()) for w in windows), min(int(w.min()) for w in windows)
    if top - bottom < CLIP_STEPS:
        return 0.0
    n_clipped = 0
    for w in windows:
        for extreme in (top, bottom):
            edges = np.flatnonzero(np.diff(np.concatenate(([0], (w == extreme).astype(np.int8), [0]))))
            lengths = edges[1::2] - edges[::2]
            n_clipped += int(lengths[lengths >= CLIP_RUN].sum())
    return n_clipped / sum(w.size for w in windows)


def mains(x: Floats, fs_hz: float) -> tuple[float, ...] | None:
    """Share of the power within 1 Hz of each line frequency; NaN beyond the band, None where none is within it."""
    if x.size < 2 * fs_hz or fs_hz / 2 <= MAINS_HZ[0] + 2:
        return None
    f, power = dsp.welch(x, fs_hz, nperseg=round(2 * fs_hz), detrend="constant")
    total = float(power[f >= 0.5].sum())
    if total <= 0:
        return None
    return tuple(
        float(power[np.abs(f - line) <= 1].sum()) / total if fs_hz / 2 > line + 2 else math.nan for line in MAINS_HZ
    )


def breathing(x: Floats, fs_hz: float) -> Floats:
    """Movements at breathing's rates."""
    sos = dsp.butter(2, BREATHING_HZ, "bandpass", fs=fs_hz, output="sos")
    return np.asarray(dsp.sosfiltfilt(sos, x - np.mean(x)))


def breathing_together(
    chest: tuple[Signal, list[NDArray[Any]]], abdomen: tuple[Signal, list[NDArray[Any]]]
) -> tuple[float, float] | None:
    """Correlation of the breathing movements in two belts, window by window.

    Of belts at two rates the faster one is read, between its filtered samples, at the times of the slower one.
    """
    correlations = []
    (a, a_windows), (b, b_windows) = sorted((chest, abdomen), key=lambda belt: belt[0].fs_hz)
    slow, fast = float(a.fs_hz), float(b.fs_hz)
    if slow < SLOWEST_BELT_HZ:
        return None
    for x, y in zip(a_windows, b_windows, strict=True):
        if np.ptp(x) <= 1 or np.ptp(y) <= 1 or x.size < 20 * slow:
            continue
        u, v = (breathing(w * s.gain, float(s.fs_hz)) for w, s in ((x, a), (y, b)))
        if slow != fast:
            v = np.interp(np.arange(u.size) / slow, np.arange(v.size) / fast, v)
        norm = float(np.linalg.norm(u) * np.linalg.norm(v))
        if norm > 0:
            correlations.append(float(u @ v) / norm)
    if len(correlations) < 3:
        return None
    return float(np.median(correlations)), float(np.mean(np.array(correlations) < 0))


def beginning_digest(recording: Recording) -> str:
    """Digest of the first minute's samples and of the layout; empty where there are none."""
    if recording.record_s <= 0 or recording.n_records == 0:
        return ""
    n_records = min(recording.n_records, math.ceil(Fraction(WINDOW_S) / recording.record_s))
    digest = hashlib.sha256(f"{recording.record_s} {n_records}".encode())
    samples = read_digital(recording, recording.signals, Segment(0, n_records, Fraction(0)))
    for signal, values in zip(recording.signals, samples, strict=True):
        digest.update(f"{signal.samples_per_record}".encode())
        digest.update(values.astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def identical_samples(a: Recording, b: Recording) -> bool:
    """Whether two recordings hold the same samples from beginning to end, whatever their headers say."""
    return a.n_records == b.n_records and begins_like(a, b)


def begins_like(a: Recording, b: Recording) -> bool:
    """Whether the shorter of two recordings holds the samples with which the other begins, whatever headers say."""
    layout = [[(s.samples_per_record) for s in r.signals] for r in (a, b)]
    if layout[0] != layout[1] or a.record_s != b.record_s:
        return False
    n, step = min(a.n_records, b.n_records), 600
    return all(
        np.array_equal(x, y)
        for first in range(0, n, step)
        for window in [Segment(first, min(step, n - first), Fraction(0))]
        for x, y in itertools.zip_longest(read_digital(a, a.signals, window), read_digital(b, b.signals, window))
    )
