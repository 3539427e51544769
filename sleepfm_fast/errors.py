"""The error that a user can act on: commands print its sentence and exit with status 1, without a traceback."""

from __future__ import annotations

__all__ = ["SleepfmError"]


class SleepfmError(Exception):
    """A sentence for the user: what was given, what was expected, the choices, what to do."""
