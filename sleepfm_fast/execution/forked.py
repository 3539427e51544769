"""Work, one piece after another, in a copy of this process, which may die without this one.

A copy is there at once, with all that is imported; a process of its own would import it again, a second or more.
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

__all__ = ["CAN_FORK", "in_copy"]

Result = TypeVar("Result")

CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"  # Apple's libraries may crash in a copy
"""Whether a copy can be made, and works as the original does."""


def in_copy(work: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Result]:
    """Yield ``work(*arguments)`` in their order; the copy ends with the last, or with this process.

    Parameters
    ----------
    work : callable
        It uses no threads but those that it starts. What it raises is raised here.
    arguments : sequence of tuple

    Raises
    ------
    BrokenExecutor
        When the copy died.
    TypeError
        When what it returned or raised cannot be pickled, and so cannot leave the copy.
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
        os.kill(process, signal.SIGKILL)  # it has ended, or nobody waits for it any more
        os.waitpid(process, 0)


def copy() -> int:
    """Fork; 0 in the copy, which leaves Ctrl-C, as a terminal sends it to both, to the original."""
    alone = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if alone else None
    process = -1
    try:
        with warnings.catch_warnings():
            # Python warns where there are threads: those here renew claims and hold nothing that the work needs.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
    finally:
        if alone and process != 0:
            signal.signal(signal.SIGINT, before)
    return process


def report(work: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], writer: Connection) -> NoReturn:
    """Do the work in the copy and end it, without what the original would still do at its end."""
    try:
        for a in arguments:
            try:
                found = (True, work(*a))
            except BaseException as error:
                found = (False, error)
            writer.send_bytes(packed(found, work))
    finally:  # also where the original is gone
        os._exit(0)


def packed(found: tuple[bool, Any], work: Callable[..., Any]) -> memoryview:
    """Pickle what the work returned, or raised; where that cannot be, the error that says so."""
    try:
        message: memoryview = ForkingPickler.dumps(found)
    except Exception as error:
        message = ForkingPickler.dumps((False, stuck(found, work, error)))
    return message


def unpacked(message: bytes, work: Callable[..., Any]) -> tuple[bool, Any]:
    """Undo :func:`packed`; an error whose class wants other arguments than it keeps is pickled, and not read again."""
    try:
        found: tuple[bool, Any] = ForkingPickler.loads(message)
    except Exception as error:
        return False, stuck(None, work, error)
    return found


def stuck(found: tuple[bool, Any] | None, work: Callable[..., Any], error: Exception) -> TypeError:
    """Say what could not leave the copy, and why."""
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
