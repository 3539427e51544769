"""Units of physical signals: what a header states, and whether its own range allows it."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sleepfm_fast.edf import Signal

__all__ = ["MICROVOLTS_OF_UNIT", "microvolts", "unit_of"]

MICROVOLTS = {
    **dict.fromkeys(("uv", "microv", "microvolt", "microvolts", "uvolt", "uvolts", "mcv", "mkv"), 1.0),
    **dict.fromkeys(("mv", "millivolt", "millivolts", "mvolt", "mvolts"), 1e3),
    **dict.fromkeys(("v", "volt", "volts"), 1e6),
    **dict.fromkeys(("nv", "nanovolt", "nanovolts"), 1e-3),
}
"""Microvolts in one of the header's unit."""
MICROVOLTS_OF_UNIT = {"uV": 1.0, "mV": 1e3, "V": 1e6}
"""The units that potentials are mistaken for one another."""
POTENTIALS = frozenset(("eeg", "eog", "emg", "ecg"))
LARGEST_RANGE_UV = 1e6
"""No biopotential amplifier resolves microvolts over a range of more than a volt."""
SMALLEST_RANGE_UV = {"eeg": 10.0, "eog": 10.0, "ecg": 10.0, "emg": 1.0}
"""No electrode's potential fits a range as narrow: scalp EEG spans ten times as much. An EMG may be an envelope."""


def microvolts(unit: str) -> float | None:
    """Microvolts in one of a header's unit of potential; None where the text is none."""
    return MICROVOLTS.get(unicodedata.normalize("NFKC", unit).replace("μ", "u").casefold().strip(" ."))


def unit_of(signal: Signal, kind: str, *, trusted: bool = False) -> tuple[str, float, tuple[str, ...]]:
    """Tell the unit in which a signal is kept, the factor to it, and what is doubtful about the header's unit.

    Potentials (EEG, EOG, EMG, ECG) are converted to microvolts from V, mV, uV or nV. Where the header states no unit,
    an unknown one, or one that its own range contradicts, the factor is 1, the header's unit is kept, and the issue
    says which unit would fit. With ``trusted`` a known unit is converted whatever the range.
    """
    unit = signal.unit.strip()
    if not signal.calibrated:
        return "", 1.0, (f"signal '{signal.label}' is not calibrated: its numbers are the recorder's own, of no unit.",)
    if kind not in POTENTIALS:
        return unit, 1.0, ()
    scale = microvolts(unit)
    low, high = signal.physical_min, signal.physical_max
    largest = max(abs(float(low)), abs(float(high)))
    where = f"signal '{signal.label}'"
    if scale is None:
        given = f"the unit '{unit}'" if unit else "no unit"
        return (
            unit,
            1.0,
            (
                f"{where} is a potential with {given} and a range of {low:g} to {high:g}; expected uV, mV, V or nV. "
                "Its numbers are kept as they are.",
            ),
        )
    range_uv = largest * scale
    if not trusted and largest > 0 and not SMALLEST_RANGE_UV[kind] <= range_uv <= LARGEST_RANGE_UV:
        fitting = [
            name
            for name, factor in (("uV", 1.0), ("mV", 1e3), ("V", 1e6))
            if 50.0 <= largest * factor <= LARGEST_RANGE_UV
        ]
        suggestion = f" Most likely it is {fitting[0]}." if fitting else ""
        return (
            unit,
            1.0,
            (
                f"{where} states a range of {low:g} to {high:g} {unit}, which no electrode gives.{suggestion} Its "
                "numbers are kept as they are; state the unit with --overrides to have them converted.",
            ),
        )
    return "uV", scale, ()
