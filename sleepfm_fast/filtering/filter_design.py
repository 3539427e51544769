"""From a channel's kind and rate to its filter: the bands of the presets and the FIRs that realise them.

A channel is processed by one zero-phase linear filter whose output rate is ``L / M`` times the native rate:
``y = resample(h_main, x - low(x))``. ``h_main`` is the anti-alias and the low-pass filter in one; high-passes from 5 Hz
on and notches are folded into it. High-passes below 5 Hz are the complement ``x - low(x)`` instead, where ``low``
decimates by ``D`` to a rate of about 26 times the edge, low-passes there and interpolates back. For EEG at 256 Hz the
whole filter then takes a twentieth of the multiply-adds of a direct FIR of the same edge, and unlike a recursive filter
it has no state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.filtering import fir

__all__ = ["PRESETS", "FilterDesign", "design_filter", "padded"]

PRESETS = ("seed", "clinical", "aasm", "none")

FloatArray = npt.NDArray[np.float64]

# Pass band in Hz per kind, after the AASM manual, version 2.6 and later: (high-pass edge or None, low-pass edge or None
# for up to the Nyquist frequency).
_AASM_BANDS_HZ: dict[str, tuple[float | None, float | None]] = {
    "eeg": (0.3, 35.0),
    "eog": (0.3, 35.0),
    "emg": (10.0, 100.0),
    "ecg": (0.3, 70.0),
    "respiration": (0.1, 15.0),
    "snore": (None, None),
}
# 6 dB more than the 80 dB that are promised: scaling the phases to unit gain may double a stop-band lobe.
_MAIN_DB = 86.0
# 66 dB leave a ripple of 0.005 dB above the high-pass edge. The gain at 0 Hz is exactly zero whatever this is, because
# `low` passes a constant exactly.
_LOW_DB = 66.0
_LOW_PASS_TRANSITION = 0.25  # of the pass edge, as MNE-Python's default
_ANTI_ALIAS_PASS = {"seed": 0.95, "clinical": 0.9, "aasm": 0.9, "none": 0.9}  # of the lower Nyquist frequency
_FOLDED_HIGH_PASS_HZ = 5.0
_LOW_RATE_OVER_EDGE = 26.0
_NOTCH_REJECT_HZ, _NOTCH_FLAT_HZ = 0.5, 4.0
# A polyphase table beyond this many floats (16 MiB) falls back to fewer phases; below _MIN_PHASES it is refused.
_MAX_TABLE = 1 << 22
_MIN_PHASES = 4096
# The CUDA kernel keeps one output's inputs in shared memory (csrc/launch.h, workspace).
_MAX_TAPS_PER_OUTPUT = 6000
PAD = 16  # filter_tap_padding in csrc/params.h


def padded(n: int) -> int:
    """Round a number of taps up to a multiple of :data:`PAD`, the row length of the tables."""
    return -(-n // PAD) * PAD


@dataclass(frozen=True, eq=False)
class FilterDesign:
    """The filter of one channel kind at one native rate; impulse responses are float64, centred and of odd length.

    Attributes
    ----------
    kind, fs_hz
        The channel kind and native rate (Hz) that it was designed for.
    up, down
        Output rate over native rate in lowest terms.
    phases
        Rows of the polyphase table: ``up``, or fewer where ``up`` rows would take too much memory; the output time is
        then rounded to ``1 / phases`` of a native sample.
    main
        Impulse response on a grid of ``phases`` times the native rate; the taps of every phase sum to ``dc``.
    dc
        Gain of ``main`` at 0 Hz: 1, or 0 where a high-pass is folded in. (The zero of a low branch is not in ``main``.)
    step
        True for step-like trends: the taps are positive, and the op does not z-score the channel.
    decimation
        ``D`` of the low branch; 0 where there is none.
    decimator, low, interpolator
        FIRs of the low branch, at the native rate, at 1 / ``D`` of it, and at the native rate again; empty where there
        is none.
    pass_hz
        (high-pass edge or None, low-pass edge): the band of gain 1.
    stop_hz
        (upper end of the high-pass's stop band or None, start of the low-pass's stop band or None).
    notches_hz
        Mains frequency and its multiples that are removed, Hz.
    issues
        A remark on each part of the preset that the native or the output rate does not allow.
    """

    kind: str
    fs_hz: Fraction
    up: int
    down: int
    phases: int
    main: FloatArray
    dc: int
    step: bool
    decimation: int
    decimator: FloatArray
    low: FloatArray
    interpolator: FloatArray
    pass_hz: tuple[float | None, float | None]
    stop_hz: tuple[float | None, float | None]
    notches_hz: tuple[int, ...] = ()
    issues: tuple[str, ...] = ()

    @property
    def main_table(self) -> tuple[FloatArray, int]:
        """Polyphase table [phases, taps] of ``main`` and its left reach in native samples."""
        return fir.polyphase(self.main, self.phases)

    @property
    def interpolator_table(self) -> tuple[FloatArray, int]:
        """Polyphase table [decimation, taps] of ``interpolator`` and its left reach in decimated samples."""
        return fir.polyphase(self.interpolator, self.decimation)

    @property
    def context(self) -> int:
        """Native samples that an output may need on either side of its own time; an upper bound."""
        half = (len(self.main) - 1) // 2
        reach = (self.phases - 1 + half) // self.phases + 1
        if self.decimation:
            taps = self.interpolator_table[0].shape[1] + (len(self.low) - 1) // 2 + 1
            reach += taps * self.decimation + (len(self.decimator) - 1) // 2
        return reach

    def gain(self, frequency_hz: npt.ArrayLike) -> FloatArray:
        """Gain (linear, signed as the filter has zero phase) for a tone of ``frequency_hz``, ignoring its images."""
        omega = 2.0 * np.pi * np.asarray(frequency_hz, dtype=np.float64) / float(self.fs_hz)

        def response(taps: FloatArray, steps_per_sample: float) -> FloatArray:
            half = (len(taps) - 1) // 2
            one_sided = np.where(np.arange(half + 1) == 0, 1.0, 2.0) * taps[half:]
            cosines = np.cos(np.multiply.outer(omega, np.arange(half + 1) / steps_per_sample))
            return np.asarray(cosines @ one_sided)

        total = response(self.main, self.phases) / self.phases
        if self.decimation:
            low = response(self.decimator, 1.0) * response(self.low, 1.0 / self.decimation)
            total = total * (1.0 - low * response(self.interpolator, 1.0) / self.decimation)
        return total


def _phases(up: int, taps_per_output: float, kind: str, fs_hz: Fraction, fs_out_hz: Fraction) -> int:
    """Rows of the polyphase table: ``up``, or the largest power of two that keeps the table below its limit."""
    taps = padded(math.ceil(taps_per_output) + 2)
    if taps_per_output > _MAX_TAPS_PER_OUTPUT:
        raise SleepfmError(
            f"a '{kind}' channel of {float(fs_hz):g} Hz needs {math.ceil(taps_per_output)} taps an output at "
            f"{float(fs_out_hz):g} Hz; at most {_MAX_TAPS_PER_OUTPUT} are supported. Check the channel's rate, or "
            "lower it before (2,048 Hz is fine in every preset)."
        )
    if up * taps <= _MAX_TABLE:
        return up
    phases = 1 << int(math.log2(_MAX_TABLE / taps))
    if phases < _MIN_PHASES:
        raise SleepfmError(
            f"a '{kind}' channel of {fs_hz} Hz to {fs_out_hz} Hz is the ratio of {up} to its native rate and needs "
            f"{taps} taps for each of {_MIN_PHASES} phases or more; that is too large a table. Choose an output rate "
            "with a simpler ratio to the native rate."
        )
    return phases


def design_filter(preset: str, kind: str, fs_hz: Fraction, fs_out_hz: Fraction, notch_hz: int | None) -> FilterDesign:
    """Design the filter of one channel kind at one native rate.

    Parameters
    ----------
    preset, kind
        One of `PRESETS`, one of `montage.slots.KINDS`.
    fs_hz, fs_out_hz
        Native and output rate, Hz.
    notch_hz
        Mains frequency to remove, Hz, or None.

    Raises
    ------
    SleepfmError
        Where the filter would need absurdly many taps or phases.
    """
    ratio = fs_out_hz / fs_hz
    up, down = ratio.numerator, ratio.denominator
    fs, fs_out = float(fs_hz), float(fs_out_hz)
    nothing = np.zeros(0)
    if kind == "step":
        phases = _phases(up, 2.0 * max(1.0, fs / fs_out), kind, fs_hz, fs_out_hz)
        main = fir.unit_gain_per_phase(fir.triangle(phases * max(1.0, fs / fs_out)), phases)
        return FilterDesign(
            kind, fs_hz, up, down, phases, main, 1, True, 0, nothing, nothing, nothing, (None, None), (None, None)
        )
    if preset == "clinical":
        from scipy.signal import oaconvolve

        smooth = np.ones(1)
        if fs_out < 0.98 * fs:
            smooth = fir.butterworth_forward_backward(4, fs_out / fs)
        phases = _phases(up, len(smooth) + 1, kind, fs_hz, fs_out_hz)
        upsampled = np.zeros((len(smooth) - 1) * phases + 1)
        upsampled[::phases] = smooth
        main = fir.unit_gain_per_phase(oaconvolve(upsampled, fir.triangle(phases)), phases)
        corner = min(fs, fs_out) / 2.0
        return FilterDesign(
            kind, fs_hz, up, down, phases, main, 1, False, 0, nothing, nothing, nothing, (None, corner), (None, None)
        )
    return _band_design(preset, kind, fs_hz, fs_out_hz, notch_hz)


def _band_design(preset: str, kind: str, fs_hz: Fraction, fs_out_hz: Fraction, notch_hz: int | None) -> FilterDesign:
    ratio = fs_out_hz / fs_hz
    up, down = ratio.numerator, ratio.denominator
    fs = float(fs_hz)
    nyquist = min(fs, float(fs_out_hz)) / 2.0
    high_hz, low_hz = _AASM_BANDS_HZ[kind] if preset == "aasm" else (None, None)
    issues: list[str] = []

    pass_hz, stop_hz = _low_pass_edges(_ANTI_ALIAS_PASS[preset] * nyquist, low_hz, nyquist, issues)
    pass_hz, stop_hz, notches = _notched(pass_hz, stop_hz, notch_hz, issues)
    if high_hz is not None and high_hz > 0.5 * pass_hz:
        issues.append(f"no {high_hz:g} Hz high-pass: at {fs:g} Hz it would leave nothing of the channel")
        high_hz = None
    folded_hz = high_hz if high_hz is not None and high_hz >= _FOLDED_HIGH_PASS_HZ else None

    identity = up == down and low_hz is None and not notches
    if identity:
        main, phases = np.ones(1), 1
    else:
        narrowest = min(
            stop_hz - pass_hz,
            folded_hz / 2.0 if folded_hz else math.inf,
            _NOTCH_FLAT_HZ - _NOTCH_REJECT_HZ if notches else math.inf,
        )
        phases = _phases(up, fir.n_taps_for(fs, narrowest, _MAIN_DB), kind, fs_hz, fs_out_hz)
        main = _main(fs, phases, pass_hz, stop_hz, folded_hz, notches)

    decimation, decimator, low, interpolator = 0, np.zeros(0), np.zeros(0), np.zeros(0)
    if high_hz is not None and folded_hz is None:
        decimation, decimator, low, interpolator = _low_branch(fs, high_hz)
    stop_low = None if high_hz is None else high_hz / 2.0 if folded_hz else 0.0
    return FilterDesign(
        kind,
        fs_hz,
        up,
        down,
        phases,
        main,
        0 if folded_hz else 1,
        False,
        decimation,
        decimator,
        low,
        interpolator,
        (high_hz, nyquist if identity else pass_hz),
        (stop_low, None if identity else stop_hz),
        tuple(notches),
        tuple(issues),
    )


def _low_pass_edges(flat_hz: float, low_hz: float | None, nyquist: float, issues: list[str]) -> tuple[float, float]:
    """Edges of the pass and the stop band: the preset's low-pass where it fits, else what the rates leave."""
    if low_hz is not None and low_hz * (1.0 + _LOW_PASS_TRANSITION) <= nyquist:
        return low_hz, low_hz * (1.0 + _LOW_PASS_TRANSITION)
    if low_hz is None:
        return flat_hz, nyquist
    pass_hz = min(flat_hz, low_hz)
    issues.append(f"the {low_hz:g} Hz low-pass does not fit below {nyquist:g} Hz: flat to {pass_hz:g} Hz")
    return pass_hz, nyquist


def _notched(pass_hz: float, stop_hz: float, notch_hz: int | None, issues: list[str]) -> tuple[float, float, list[int]]:
    """Edges of the bands, and the multiples of the mains that are notched."""
    notches: list[int] = []
    for multiple_hz in range(notch_hz, math.ceil(stop_hz), notch_hz) if notch_hz is not None else ():
        if multiple_hz + _NOTCH_FLAT_HZ <= pass_hz:
            notches.append(multiple_hz)
        elif multiple_hz - _NOTCH_REJECT_HZ < stop_hz:
            # A notch needs a flat band on either side, which it does not have here: end the pass band below the mains.
            stop_hz = multiple_hz - _NOTCH_REJECT_HZ
            pass_hz = min(pass_hz, 0.95 * stop_hz)
            issues.append(f"the low-pass ends below {multiple_hz} Hz mains: flat to {pass_hz:g} Hz")
            break
    return pass_hz, stop_hz, notches


def _main(
    fs: float, phases: int, pass_hz: float, stop_hz: float, folded_hz: float | None, notches: list[int]
) -> FloatArray:
    grid = fs * phases

    def unit(taps: FloatArray) -> FloatArray:
        return fir.unit_gain_per_phase(taps, phases)

    low_pass = unit(fir.kaiser_lowpass(grid, pass_hz, stop_hz, _MAIN_DB))
    parts = [(1.0, low_pass)]
    if folded_hz is not None:
        parts.append((-1.0, unit(fir.kaiser_lowpass(grid, folded_hz / 2.0, folded_hz, _MAIN_DB))))
    for center_hz in notches:
        width = (_NOTCH_FLAT_HZ + _NOTCH_REJECT_HZ) / 2.0
        band = phases * fir.kaiser_bandpass(grid, center_hz, width, _NOTCH_FLAT_HZ - _NOTCH_REJECT_HZ, _MAIN_DB)
        # A constant must pass the notch unchanged at every phase, so the band-pass that is subtracted must have gain 0
        # at 0 Hz in each phase: what a phase of it leaks is taken back with the low-pass, whose phases sum to 1.
        half = (len(band) - 1) // 2
        phase = (np.arange(len(band)) - half) % phases
        leak = np.bincount(phase, weights=band, minlength=phases)
        reach = (len(low_pass) - 1) // 2
        low_phase = (np.arange(len(low_pass)) - reach) % phases
        parts += [(-1.0, band), (1.0, low_pass * leak[low_phase])]
    longest = max(len(taps) for _, taps in parts)
    main = np.zeros(longest)
    for sign, taps in parts:
        margin = (longest - len(taps)) // 2
        main[margin : longest - margin] += sign * taps
    return main


def _low_branch(fs: float, high_hz: float) -> tuple[int, FloatArray, FloatArray, FloatArray]:
    """Return ``D`` and the decimator, low-pass and interpolator of the low branch of a high-pass at ``high_hz``."""
    decimation = max(1, int(fs / (_LOW_RATE_OVER_EDGE * high_hz)))
    low_rate = fs / decimation
    low = fir.kaiser_lowpass(low_rate, 0.0, high_hz, _LOW_DB)
    if decimation == 1:
        return 1, np.ones(1), low, np.ones(1)
    # From here on a frequency aliases into the band up to high_hz when decimated, and is an image of it interpolated.
    image_hz = low_rate - high_hz
    guard = fir.unit_gain_per_phase(fir.kaiser_lowpass(fs, high_hz, image_hz, _MAIN_DB), decimation)
    return decimation, guard / decimation, low, guard
