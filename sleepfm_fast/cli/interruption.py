"""Ctrl-C while a command is still being imported, and signals by which a batch system or a terminal stops a command.

Ctrl-C gives one line and exit status 130 instead of Python's traceback. SIGTERM and its like, which would end a process
at once, end the command as Ctrl-C does: it says what is kept, ends its worker processes and gives up its claims, for
which a job that is started again on another machine would have to wait.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sleepfm_fast.cli.program import is_a_command

__all__ = ["SENTENCE", "STOPS", "Stopped", "leave_to_python", "say_while_importing", "stops_raised"]

STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2)
"""Of a batch system or a container that stops, a terminal that closes, a limit of processor time, and two with which
batch systems announce the end of a job (``sbatch --signal=USR1@60``)."""

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


class Stopped(KeyboardInterrupt):
    """One of :data:`STOPS` came; its argument is the number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


def _raise_stop(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one does not wait for anything
    raise Stopped(number)


@contextmanager
def stops_raised() -> Iterator[None]:
    """Let :data:`STOPS` raise :class:`Stopped` during the block, those that would end this process.

    Ranks of a training, by torchrun or another launcher, are ended at once: it stops them all when one has failed, and
    one that waits for another could not answer.
    """
    ours: list[signal.Signals] = []
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1" and "TORCHELASTIC_RUN_ID" not in os.environ
    if threading.current_thread() is threading.main_thread() and is_alone:
        ours = [number for number in STOPS if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, _raise_stop)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
