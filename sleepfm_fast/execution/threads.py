"""Blocks of work in plain threads, for compiled functions that hold no lock.

Unlike Numba's own thread pool they also work in forked and in threaded programs. ``NUMBA_NUM_THREADS`` sets how many.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba

__all__ = ["in_threads", "thread_limit"]

THREAD_BYTES = 1 << 20  # starting a thread costs what copying about 1 MB does


def thread_limit() -> int:
    """Return ``NUMBA_NUM_THREADS``, by default the processors; read without starting Numba's thread pool."""
    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def in_threads(work: Callable[[int, int], None], n_items: int, n_bytes: int) -> None:
    """Run ``work(begin, end)`` over blocks of items, in as many threads as the bytes are worth, this one among them."""
    n_threads = max(1, min(thread_limit(), n_items, n_bytes // THREAD_BYTES))
    if n_threads == 1:
        work(0, n_items)
        return
    bounds = [n_items * i // n_threads for i in range(n_threads + 1)]
    with ThreadPoolExecutor(n_threads - 1) as pool:
        others = [pool.submit(work, *block) for block in itertools.pairwise(bounds[1:])]
        work(*bounds[:2])
        for other in others:
            other.result()
