"""Blocks of work in plain threads, for compiled functions that release Python's lock.

Unlike Numba's thread pool they also work in forked processes and when several threads call them at once.
``NUMBA_NUM_THREADS`` limits their number.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache

import numba

__all__ = ["in_threads", "start_numba_threads", "thread_limit"]

THREAD_BYTES = 1 << 20  # a further thread for each MiB: starting one takes about as long as copying that much


def thread_limit() -> int:
    """Return ``NUMBA_NUM_THREADS``, by default the number of processors, without starting Numba's thread pool."""
    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def start_numba_threads() -> None:
    """Start Numba's thread pool, once a process, by a thread of its own; to be called before a parallel function.

    Where the pool is OpenMP's, starting it sets the number of threads of the thread that starts it, and that number is
    torch's too: a process with fewer (``OMP_NUM_THREADS``, ``--threads``, ``torch.set_num_threads``) would go on with
    as many as there are processors.
    """

    def start() -> None:
        with suppress(Exception):  # the parallel function will raise it
            numba.get_num_threads()  # type: ignore[no-untyped-call]

    starter = threading.Thread(target=start, name="sleepfm_fast-numba")
    starter.start()
    starter.join()


def in_threads(work: Callable[[int, int], None], n_items: int, n_bytes: int) -> None:
    """Run ``work(begin, end)`` over blocks of the items, one in this thread and the others in as many as pay off.

    ``n_bytes`` is the memory that all items move: there is at most one thread for each :data:`THREAD_BYTES`.
    """
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
