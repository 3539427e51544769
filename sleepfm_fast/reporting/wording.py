"""Numbers in words: values with intervals, hours, counts, and what a figure means in a sentence."""

from __future__ import annotations

import math
import numbers
from typing import Any

from sleepfm_fast.plurals import agreeing

__all__ = ["count", "hours", "interval", "number_of", "share", "value_of", "with_interval"]

NARROW = "\u202f"  # narrow space that does not break


def count(n: Any) -> str:
    """A whole number with narrow spaces; a dash for what is no number."""
    if value_of(n) is None:
        return "-"
    return f"{round(n):,}".replace(",", NARROW)


def number_of(n: Any, one: str, many: str | None = None) -> str:
    """Such a number with the form of a noun that goes with it."""
    return f"{count(n)} {agreeing(value_of(n) or 0, one, many)}"


def hours(value: float) -> str:
    """Hours, with a decimal below a hundred."""
    return f"{value:.1f} h" if value < 100 else f"{count(value)} h"


def share(part: float, whole: float) -> str:
    """A part of a whole in percent: never 0 or 100 where it is not none or all."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    if 0 < percent < 0.05 or 99.95 <= percent < 100:
        return f"{'<0.1' if percent < 1 else '>99.9'}{NARROW}%"
    digits = 0 if percent in (0, 100) or 10 <= percent < 99.5 else 1
    return f"{percent:.{digits}f}{NARROW}%"


def value_of(figure: Any) -> float | None:
    """The point estimate of a figure as results store it, a number or a dict with ``value``; None where it has none."""
    value = figure.get("value") if isinstance(figure, dict) else figure
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON has integers beyond any float
        return None


def interval(figure: Any) -> tuple[float, float] | None:
    """The limits of a figure, None where it has none."""
    if not isinstance(figure, dict):
        return None
    low, high = value_of(figure.get("low")), value_of(figure.get("high"))
    return None if low is None or high is None else (low, high)


def with_interval(figure: Any, digits: int = 3) -> str:
    """A value and its limits; a dash where there is no value."""
    value = value_of(figure)
    if value is None:
        return "-"
    limits = interval(figure)
    text = f"{value:.{digits}f}"
    return text if limits is None else f"{text} [{limits[0]:.{digits}f}, {limits[1]:.{digits}f}]"
