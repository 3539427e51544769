"""Zero-phase FIR building blocks: Kaiser designs, unit-gain polyphase tables, Butterworth forward-backward as an FIR.

Every impulse response here is symmetric, of odd length and centred: tap ``K = (len(h) - 1) // 2`` lies at time zero.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = [
    "butterworth_forward_backward",
    "grouped",
    "kaiser_bandpass",
    "kaiser_lowpass",
    "n_taps_for",
    "polyphase",
    "triangle",
    "unit_gain_per_phase",
]

FloatArray = npt.NDArray[np.float64]


def n_taps_for(fs_hz: float, transition_hz: float, attenuation_db: float) -> int:
    """Odd length of a Kaiser-windowed FIR with the given transition band (Kaiser 1974)."""
    width = 2.0 * math.pi * transition_hz / fs_hz
    return 2 * math.ceil((attenuation_db - 7.95) / (2.285 * width) / 2.0) + 1


def kaiser_lowpass(fs_hz: float, pass_hz: float, stop_hz: float, attenuation_db: float) -> FloatArray:
    """Low-pass with unit gain at 0 Hz.

    Parameters
    ----------
    fs_hz
        Rate of the grid that the taps lie on, Hz.
    pass_hz, stop_hz
        Edges of the pass band and of the stop band, Hz; the gain is -6 dB half-way between them.
    attenuation_db
        Attenuation from ``stop_hz`` on; the pass-band ripple has the same size.

    Returns
    -------
    ndarray, shape (odd,)
    """
    import scipy.signal

    n_taps = n_taps_for(fs_hz, stop_hz - pass_hz, attenuation_db)
    window = ("kaiser", scipy.signal.kaiser_beta(attenuation_db))
    taps = scipy.signal.firwin(n_taps, (pass_hz + stop_hz) / 2.0, window=window, fs=fs_hz)
    return np.asarray(taps, dtype=np.float64)


def kaiser_bandpass(
    fs_hz: float, center_hz: float, half_width_hz: float, transition_hz: float, attenuation_db: float
) -> FloatArray:
    """Band-pass of unit gain at ``center_hz``, -6 dB at ``center_hz +- half_width_hz``; shape (odd,)."""
    import scipy.signal

    n_taps = n_taps_for(fs_hz, transition_hz, attenuation_db)
    window = ("kaiser", scipy.signal.kaiser_beta(attenuation_db))
    edges = [center_hz - half_width_hz, center_hz + half_width_hz]
    return np.asarray(scipy.signal.firwin(n_taps, edges, window=window, fs=fs_hz, pass_zero=False), dtype=np.float64)


def triangle(half_width: float) -> FloatArray:
    """Triangle of peak 1 that reaches zero ``half_width`` grid steps from its centre; shape (odd,)."""
    reach = math.ceil(half_width) - 1
    return 1.0 - np.abs(np.arange(-reach, reach + 1, dtype=np.float64)) / half_width


def butterworth_forward_backward(order: int, cutoff: float) -> FloatArray:
    """FIR equivalent of a Butterworth low-pass run forwards and backwards (``scipy.signal.sosfiltfilt``).

    Running a filter both ways has the autocorrelation of its impulse response as impulse response, which decays
    exponentially; it is cut where it stays below 1e-9 of its peak.

    Parameters
    ----------
    order
        Order of the Butterworth filter (of one pass).
    cutoff
        Corner frequency over the Nyquist frequency, in (0, 1); the gain of both passes together is -6 dB there.

    Returns
    -------
    ndarray, shape (odd,)
    """
    import scipy.signal

    floor = 1e-9
    sos = scipy.signal.butter(order, cutoff, output="sos")
    n = 64
    while True:
        impulse = np.zeros(n)
        impulse[0] = 1.0
        response = scipy.signal.sosfilt(sos, impulse)
        if np.abs(response[n // 2 :]).max() < 1e-3 * floor * np.abs(response).max():
            break
        n *= 2
    taps = np.correlate(response, response, mode="full")
    significant = np.flatnonzero(np.abs(taps) >= floor * taps.max())
    half = (len(taps) - 1) // 2
    reach = int(np.abs(significant - half).max())
    taps = taps[half - reach : half + reach + 1]
    return np.asarray(taps / taps.sum(), dtype=np.float64)


def unit_gain_per_phase(taps: FloatArray, up: int) -> FloatArray:
    """Scale every polyphase component of ``taps`` to sum 1: a constant then stays exactly that constant.

    A constant sampled at ``fs`` has images at all multiples of ``fs``; this puts exact zeros there, where the window
    method alone leaves the stop-band attenuation (80 dB below a 24-bit electrode offset is still a lot).
    """
    half = (len(taps) - 1) // 2
    phase = (np.arange(len(taps)) - half) % up
    sums = np.bincount(phase, weights=taps, minlength=up)
    return np.asarray(taps / sums[phase], dtype=np.float64)


def polyphase(taps: FloatArray, up: int) -> tuple[FloatArray, int]:
    """Table of the taps that meet real samples, one row per output phase.

    With ``u = q * up + r``, output ``u`` of the ``up``-fold grid is ``sum_t table[r, t] * x[q - left + t]``.

    Parameters
    ----------
    taps : ndarray, shape (odd,)
        Centred impulse response on the ``up``-fold grid.
    up
        Upsampling factor.

    Returns
    -------
    table : ndarray, shape (up, n_taps)
    left : int
        Number of samples before ``x[q]`` that a row starts at.
    """
    half = (len(taps) - 1) // 2
    left = half // up
    right = (up - 1 + half) // up
    shift = (np.arange(left + right + 1) - left) * up
    index = half + np.arange(up)[:, None] - shift[None, :]
    inside = (index >= 0) & (index < len(taps))
    table = np.where(inside, taps[np.clip(index, 0, len(taps) - 1)], 0.0)
    return table, left


def grouped(table: FloatArray, down: int, group: int) -> tuple[FloatArray, int]:
    """Taps of ``group`` outputs side by side, for outputs at ``len(table) / down`` times the rate of their samples.

    Output ``i`` has row ``i * down % up`` of ``table`` and begins ``i * down // up`` samples after output 0. Groups of
    consecutive outputs begin at the samples of their first one; a period of ``repeats * up`` outputs, after which taps
    and places recur, is cut into groups, the last one filled up with zeros.

    Parameters
    ----------
    table : ndarray, shape (up, n_taps)
        As from `polyphase`.
    down
        Samples in which ``up`` outputs lie.
    group
        Outputs in a group.

    Returns
    -------
    groups : ndarray, shape (n_groups, n_taps + reach, group)
        ``groups[g, t, l]`` is the tap with which sample ``t`` of group ``g`` goes into its output ``l``.
    repeats
        Periods of ``up`` outputs that the groups hold: as few as leave at most 3 % of the last group empty.
    """
    up, n_taps = table.shape
    repeats = next(r for r in range(1, group + 1) if -(r * up) % group <= 0.03 * r * up)
    i = np.arange(repeats * up)
    i = np.concatenate([i, np.full(-len(i) % group, -1)]).reshape(-1, group)
    start = i * down // up - (i[:, :1] * down // up)
    start[i < 0] = 0
    groups = np.zeros((len(i), n_taps + int(start.max()), group))
    taps = np.where((i >= 0)[..., None], table[i * down % up], 0.0)
    g, lane = np.indices(i.shape)
    for t in range(n_taps):
        groups[g, start + t, lane] = taps[..., t]
    return groups, repeats
