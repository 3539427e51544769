"""Range checks that the options of several commands share; a refusal names the option, its value, and the range."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from sleepfm_fast.errors import SleepfmError

__all__ = [
    "option", "refuse_dropout", "refuse_negative", "refuse_negative_workers", "refuse_not_finite",
    "refuse_not_positive",
]  # fmt: skip


def option(name: str) -> str:
    """Return a field's name as the user types the option."""
    return f"--{name.replace('_', '-')}"


def refuse_not_finite(config: Any) -> None:
    """Refuse NaN and infinity in any field of a configuration."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise SleepfmError(f"{option(field.name)} is {value}; expected a finite number.")


def refuse_not_positive(config: Any, names: Iterable[str]) -> None:
    """Refuse a value of 0 or below in the named fields."""
    for name in names:
        if getattr(config, name) <= 0:
            raise SleepfmError(f"{option(name)} is {getattr(config, name)}; expected a number above 0.")


def refuse_negative(config: Any, names: Iterable[str]) -> None:
    """Refuse a value below 0 in the named fields."""
    for name in names:
        if getattr(config, name) < 0:
            raise SleepfmError(f"{option(name)} is {getattr(config, name)}; expected 0 or more.")


def refuse_negative_workers(workers: int) -> None:
    """Refuse a number of workers below 0."""
    if workers < 0:
        raise SleepfmError(f"--workers {workers} is negative; 0 means one for every core.")


def refuse_dropout(dropout: float | None) -> None:
    """Refuse a dropout outside [0, 1); None stands for the preset's own."""
    if dropout is not None and not 0 <= dropout < 1:
        raise SleepfmError(f"--dropout is {dropout:g}; expected 0 or more and less than 1.")
