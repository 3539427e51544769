"""Results prepared ahead of their use, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

__all__ = ["prefetch"]

Item = TypeVar("Item")
Result = TypeVar("Result")

DEPTH = 2  # items that wait prepared, beside the one that is used and the one being prepared


def prefetch(items: Iterable[Item], prepare: Callable[[Item], Result]) -> Generator[tuple[Item, Result], None, None]:
    """Yield (item, prepare(item)) in order, preparing :data:`DEPTH` items ahead in a thread.

    An exception in the thread is raised here. The thread stops when the generator is closed, as by leaving a loop that
    holds its only reference.
    """
    done = object()
    results: queue.Queue[Any] = queue.Queue(maxsize=DEPTH)
    stop = threading.Event()

    def put(value: Any) -> bool:
        while not stop.is_set():
            try:
                results.put(value, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if stop.is_set() or not put((item, prepare(item))):
                    return
            put(done)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="sleepfm_fast-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            value = results.get()
            if value is done:
                return
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stop.set()
        # An abandoned generator in a cycle ends wherever the garbage collector runs, which may be that very thread.
        if thread is not threading.current_thread():
            thread.join()
