"""Standard streams that are closed or full: what they do not take is lost, and the work goes on."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

__all__ = ["Unbroken", "occupy"]

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def occupy() -> None:
    """Open the null device in place of standard streams that are closed, as after ``command >&-``.

    Otherwise the next file that is opened gets the number of such a stream, and what others print goes into it; and
    Python's own object for it is None.
    """
    for descriptor, (name, mode) in enumerate(STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(opened, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115


class Unbroken:
    """A stream whose disk may be full, or whose reader may have gone."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """All but writing is the stream's own."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as far as the stream takes it."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush as far as the stream takes it."""
        with suppress(OSError):
            self._stream.flush()
