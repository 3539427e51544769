"""The error that a user can act on: commands print its sentence and exit with status 1, without a traceback."""

from __future__ import annotations

from pathlib import Path

__all__ = ["SleepfmError", "is_own_source", "refused_by_system"]


class SleepfmError(Exception):
    """A sentence for the user: what was given, what was expected, the choices, what to do."""


def is_own_source(file: str) -> bool:
    """Whether a traceback's file is of this package; a folder above others' files may have its name too."""
    return Path(file).is_relative_to(Path(__file__).parent)


def refused_by_system(error: OSError) -> str:
    """What the system refused, and why, without a full stop."""
    return f"{error.filename or 'reading or writing'}: {error.strerror or error}"
