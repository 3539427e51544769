"""Ctrl-C while a command is still being imported: one line and exit status 130 instead of Python's traceback."""

from __future__ import annotations

import os
import signal
from typing import Any

from sleepfm_fast.cli.program import is_a_command

__all__ = ["SENTENCE", "leave_to_python", "say_while_importing"]

SENTENCE = "interrupted before anything was done"


def _end(*_: Any) -> None:
    os.write(2, f"{SENTENCE}\n".encode())
    os._exit(130)  # nothing has begun that would have to be ended


def say_while_importing() -> None:
    """Answer Ctrl-C with a sentence until :func:`leave_to_python`, where this package is what Python was started for.

    A program that imports the package, or a shell that told it to ignore Ctrl-C, keeps its own answer.
    """
    if is_a_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def leave_to_python() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
