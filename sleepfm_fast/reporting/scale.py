"""Axes: from values to a fraction of the plot, and the round numbers to write beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Scale", "covering"]

N_MARKS = 5
N_DECIMALS = 5  # of a tick's text beside which there is no room
LEAST_SPAN = 1e-3  # of an axis, relative to its values: less is told apart by no text beside it, and by no reader
LARGEST = 1e100  # beyond, differences and margins overflow


@dataclass(frozen=True)
class Scale:
    """One axis.

    Attributes
    ----------
    low, high : float
        Values at its two ends, low < high; positive where ``log``.
    log : bool
        Equal ratios are equal lengths.
    ticks : tuple of (float, str)
        Values and their texts; chosen by :meth:`marks` when empty.
    """

    low: float
    high: float
    log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()

    def __post_init__(self) -> None:
        """Refuse an axis without length."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"an axis from {self.low} to {self.high} has no length")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic axis cannot start at {self.low}")

    def fraction(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Position from 0 (``low``) to 1 (``high``); NaN stays NaN, what lies outside is cut to the ends."""
        v = np.asarray(values, np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.log:
                position = (np.log(v) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
            else:
                position = (v - self.low) / (self.high - self.low)
        clipped: npt.NDArray[np.float64] = np.clip(position, 0.0, 1.0)
        return clipped

    def marks(self) -> tuple[tuple[float, str], ...]:
        """About five round values within the axis, with their texts."""
        if self.ticks:
            return self.ticks
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                values = [s * 10.0**d for d in decades for s in steps if self.low <= s * 10.0**d <= self.high]
                if len(values) <= N_MARKS:
                    break
            return tuple((v, tick_texts([v], v)[0]) for v in (values or [self.low, self.high]))
        step = round_step((self.high - self.low) / N_MARKS)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        values = [i * step for i in range(first, last + 1)]
        return tuple(zip(values, tick_texts(values, step), strict=True))


def round_step(rough: float) -> float:
    """Return the smallest of 1, 2, 2.5 and 5 times a power of ten that is not below ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * (1 - 1e-9))


def tick_texts(values: Sequence[float], step: float) -> list[str]:
    """Texts of ticks with as many digits as their step needs; all in powers of ten where that is shorter."""
    exact = math.floor(math.log10(step) + 1e-9) if step > 0 else 0  # the decimal place of the step's last digit
    if abs(round(step / 10.0**exact) * 10.0**exact - step) > 1e-9 * step:
        exact -= 1
    decimals = max(0, -exact)
    texts = [f"{value + 0.0:,.{decimals}f}".replace(",", "\u202f") for value in values]
    largest = max((abs(value) for value in values), default=0.0)
    if largest < 1e6 and (decimals < N_DECIMALS or largest >= 0.01):
        return texts
    powers = [power_text(value, exact) for value in values]
    return powers if sum(map(len, powers)) < sum(map(len, texts)) else texts


def power_text(value: float, exact: int) -> str:
    """A value in powers of ten, right to the decimal place ``exact``."""
    if not value:
        return "0"
    digits = max(0, math.floor(math.log10(abs(value)) + 1e-9) - exact)
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def covering(values: Sequence[float] | npt.NDArray[np.float64], *, log: bool = False, margin: float = 0.04) -> Scale:
    """Return the axis that holds all finite values with a margin; a single value gets room on both sides.

    Values that differ by less than a thousandth lie in the middle of an axis that is as long as that.
    """
    v = np.asarray(values, np.float64)
    v = np.clip(v[np.isfinite(v) & (v > 0)] if log else v[np.isfinite(v)], -LARGEST, LARGEST)
    if not v.size:
        return Scale(0.1, 1.0, log=True) if log else Scale(0.0, 1.0)
    low, high = float(v.min()), float(v.max())
    if log:
        pad = max((high / low) ** margin, 1.1)
        return Scale(low / pad, high * pad, log=True)
    pad = (high - low) * margin or abs(high) * 0.1 or 1.0
    pad = max(pad, (LEAST_SPAN * max(abs(low), abs(high)) - (high - low)) / 2)
    return Scale(low - pad, high + pad)
