"""Building blocks of zero-phase FIRs: Kaiser designs, polyphase tables, a forward-backward Butterworth as an FIR.

Every impulse response here is symmetric, of odd length and centred: tap ``(len(h) - 1) // 2`` lies at time zero.
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
    """Design a Kaiser-windowed low-pass of unit gain at 0 Hz.

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
    """Design a band-pass of unit gain at ``center_hz``, -6 dB at ``center_hz +- half_width_hz``; shape (odd,)."""
    import scipy.signal

    n_taps = n_taps_for(fs_hz, transition_hz, attenuation_db)
    window = ("kaiser", scipy.signal.kaiser_beta(attenuation_db))
    edges = [center_hz - half_width_hz, center_hz + half_width_hz]
    return np.asarray(scipy.signal.firwin(n_taps, edges, window=window, fs=fs_hz, pass_zero=False), dtype=np.float64)


def triangle(half_width: float) -> FloatArray:
    """Return a triangle of peak 1 that reaches zero ``half_width`` grid steps from its centre; shape (odd,)."""
    reach = math.ceil(half_width) - 1
    return 1.0 - np.abs(np.arange(-reach, reach + 1, dtype=np.float64)) / half_width


def butterworth_forward_backward(order: int, cutoff: float) -> FloatArray:
    """Design the FIR equivalent of a Butterworth low-pass run forwards and backwards (``scipy.signal.sosfiltfilt``).

    The impulse response of running a filter both ways is the autocorrelation of the filter's own. It decays
    exponentially, and is cut off from where on it stays below 1e-9 of its peak.

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
    """Scale every polyphase component of ``taps`` to sum 1, so that a constant stays exactly that constant.

    On the ``up``-fold grid a constant sampled at ``fs`` has images at all multiples of ``fs``. This puts exact zeros
    there, where the window method alone leaves the stop-band attenuation: an electrode's offset may fill the range of
    24 bits, and 80 dB below it is still larger than an EEG.
    """
    half = (len(taps) - 1) // 2
    phase = (np.arange(len(taps)) - half) % up
    sums = np.bincount(phase, weights=taps, minlength=up)
    return np.asarray(taps / sums[phase], dtype=np.float64)


def polyphase(taps: FloatArray, up: int) -> tuple[FloatArray, int]:
    """Arrange taps by output phase, without those that would meet the zeros between the samples.

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
        How many samples before ``x[q]`` the first tap of a row lies.
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
    """Lay the taps of ``group`` consecutive outputs side by side, for the output rate ``len(table) / down``.

    Output ``i`` uses row ``i * down % up`` of ``table`` and begins ``i * down // up`` samples after output 0. A period
    of ``repeats * up`` outputs, after which rows and relative places recur, is cut into groups; all outputs of a group
    read from the first sample of its first output on, and the last group is filled up with zero taps. One sample times
    ``group`` adjacent taps is then one vector multiply-add.

    Parameters
    ----------
    table : ndarray, shape (up, n_taps)
        As from `polyphase`.
    down
        Samples that ``up`` outputs span.
    group
        Outputs in a group: lanes of a vector.

    Returns
    -------
    groups : ndarray, shape (n_groups, n_taps + reach, group)
        ``groups[g, t, l]`` is the weight of sample ``t`` of group ``g`` in its output ``l``.
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
