"""Work that runs, one piece after another, in a forked copy of this process, whose death this process survives.

A copy starts at once, with everything imported; a new process would import it all again, which takes a second or more.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NoReturn, TypeVar

from sleepfm_fast.cli.interruption import STOPS

__all__ = ["CAN_FORK", "in_copy"]

Result = TypeVar("Result")

CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"  # Apple's libraries may crash in a forked process
"""Whether this process can be forked, and the copy works as the original does."""


def in_copy(work: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Result]:
    """Yield ``work(*a)`` for each ``a`` of ``arguments``, in their order, computed in one copy of this process.

    The copy ends after the last result, when the caller closes the iterator early, or when this process ends. Where the
    system refuses a copy, the work is done in this process.

    Parameters
    ----------
    work : callable
        It may use only threads that it starts itself, since those of this process do not run in the copy. What it
        raises is raised here.
    arguments : sequence of tuple

    Raises
    ------
    BrokenExecutor
        When the copy died.
    TypeError
        When what the work returned or raised cannot be pickled, and so cannot leave the copy.
    """
    reader, writer = Pipe(duplex=False)
    try:
        process = copy()
    except OSError:  # no memory for a copy, or no process left to this user
        reader.close()
        writer.close()
        yield from (work(*a) for a in arguments)
        return
    if process == 0:
        reader.close()
        report(work, arguments, writer)
    writer.close()
    try:
        for _ in arguments:
            try:
                message = reader.recv_bytes()
            except (EOFError, OSError):
                raise BrokenExecutor("the copy of this process died") from None
            done, value = unpacked(message, work)
            if not done:
                raise value
            yield value
    finally:
        reader.close()
        os.kill(process, signal.SIGKILL)  # harmless if it has ended: its number stays taken until waitpid
        os.waitpid(process, 0)


def copy() -> int:
    """Fork; return 0 in the copy and its process number in the original.

    A terminal sends Ctrl-C to both; the copy ignores it, and the original decides what to do.
    """
    alone = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if alone else None
    process = -1
    try:
        with warnings.catch_warnings():
            # Python warns about forking a process with threads, as their locks stay locked in the copy. The threads of
            # this program renew claims, and hold no lock that the work needs.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
            if process == 0 and alone:
                for number in STOPS:  # they end the copy, and the original decides what to do
                    if callable(signal.getsignal(number)):
                        signal.signal(number, signal.SIG_DFL)
    finally:
        if alone and process != 0:
            signal.signal(signal.SIGINT, before)
    return process


def report(work: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], writer: Connection) -> NoReturn:
    """Do the work in the copy and end the copy at once, without the exit handlers that it inherited."""
    try:
        for a in arguments:
            try:
                found = (True, work(*a))
            except BaseException as error:
                found = (False, error)
            writer.send_bytes(packed(found, work))
    finally:  # also where the original is gone, and sending failed
        os._exit(0)


def packed(found: tuple[bool, Any], work: Callable[..., Any]) -> memoryview:
    """Pickle what the work returned or raised; where it cannot be pickled, an error that says so."""
    try:
        message: memoryview = ForkingPickler.dumps(found)
    except Exception as error:
        message = ForkingPickler.dumps((False, stuck(found, work, error)))
    return message


def unpacked(message: bytes, work: Callable[..., Any]) -> tuple[bool, Any]:
    """Undo :func:`packed`.

    An exception whose class takes other arguments than it passes to its base can be pickled but not unpickled: it is
    replaced by an error that says so.
    """
    try:
        found: tuple[bool, Any] = ForkingPickler.loads(message)
    except Exception as error:
        return False, stuck(None, work, error)
    return found


def stuck(found: tuple[bool, Any] | None, work: Callable[..., Any], error: Exception) -> TypeError:
    """Make the error that says what could not leave the copy, and why."""
    name = getattr(work, "__qualname__", type(work).__name__)
    what = "returned or raised a value"
    if found is not None:
        done, value = found
        what = f"returned a value of type {type(value).__qualname__}" if done else f"raised {value!r}"
    return TypeError(
        f"{name} {what} that cannot leave the copy of this process in which it ran ({type(error).__name__}: {error}). "
        "It must be picklable: return plain values, arrays or dataclasses of a module, and raise errors whose "
        "arguments are what their class takes."
    )
