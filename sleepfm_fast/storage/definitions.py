"""Numbers of what commands compute, by which folders of earlier definitions are told from those of this version.

The release cannot tell them: it is raised for other reasons too, and not whenever a definition changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["DEFINITIONS", "ENTRY", "FIRST", "definitions_of", "recorded_definitions"]

ENTRY = "definitions"
"""The entry of a record, and of its ``made_of``, that holds the number."""
FIRST = 1
"""Of a record without the entry, which is from before there was one; and of commands that are not named below."""
DEFINITIONS: dict[str, int] = {
    "features": 2,
    "probe": 3,
    "supervise": 2,
    "classify": 2,
    "few_shot": 3,
    "compare": 2,
    "retrieve": 2,
}
"""To be raised for every command that computes other numbers of the same inputs than before, with an entry in the
changelog. A finished folder of earlier ones then counts as another, and commands that read it say so. ``features`` 2:
LF and HF from a cubic spline through the intervals between beats, not from straight lines. The others 2: no interval
for a class that one test subject has, nor where all resamples agree; figures over nights for age and sex. ``probe`` and
``few_shot`` 3: fitted until the gradient is 1e-5 instead of 1e-4."""


def definitions_of(command: str) -> int:
    """Return the number of a command's present definitions."""
    return DEFINITIONS.get(command, FIRST)


def recorded_definitions(record: Mapping[str, Any]) -> int:
    """Return the number of the definitions that a record, or its ``made_of``, was computed by; 0 if it is none."""
    found = record.get(ENTRY, FIRST)
    return found if type(found) is int else 0
