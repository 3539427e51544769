"""Peak memory of a piece of code, measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

RELEASE = """
_gc.collect()
# What our ops keep for their next call is memory of the body that uses it, not of the set-up.
if "sleepfm_fast.ops.pages" in _sys.modules:
    _sys.modules["sleepfm_fast.ops.pages"].release_pages()
"""

# Writing 5 to clear_refs sets the peak (VmHWM) back to what is resident now; where the kernel lacks that file the peak
# of the set-up counts as well, and the difference is a lower bound.
PROGRAM = """
import gc as _gc, sys as _sys

def _peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

{setup}
{release}
try:
    with open("/proc/self/clear_refs", "w") as _refs:
        _refs.write("5")
except OSError:
    pass
_before = _peak_kib()
{body}
print("peak_kib", _peak_kib() - _before)
"""

# Pages of a mapped file are resident while nobody needs the memory; what a program cannot give back is anonymous. There
# is no peak of it to read, so a thread looks every 2 ms.
ANONYMOUS_PROGRAM = """
import gc as _gc, sys as _sys, threading as _threading, time as _time

def _held_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))

{setup}
{release}
_before = _peak = _held_kib()
_done = _threading.Event()

def _watch():
    global _peak
    while not _done.wait(0.002):
        _peak = max(_peak, _held_kib())

_watcher = _threading.Thread(target=_watch)
_watcher.start()
{body}
_done.set()
_watcher.join()
print("peak_kib", _peak - _before)
"""


def peak_rss_mib(setup: str, body: str) -> float:
    """Return how far the resident memory of ``body`` rises above what ``setup`` left, in MiB.

    Both are Python source at module level; ``body`` sees the names of ``setup``. A failure of either is raised as a
    RuntimeError with its traceback.
    """
    return _measured(PROGRAM, setup, body)


def peak_anonymous_mib(setup: str, body: str) -> float:
    """Like :func:`peak_rss_mib`, without the pages of mapped files."""
    return _measured(ANONYMOUS_PROGRAM, setup, body)


def _measured(program: str, setup: str, body: str) -> float:
    # A fixed threshold makes glibc hand what the set-up frees back to the system, instead of keeping it for the body.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "-c", program.format(setup=setup, release=RELEASE, body=body)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the measured process failed:\n{done.stderr}")
    return int(done.stdout.rsplit("peak_kib", 1)[1]) / 1024
