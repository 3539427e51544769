"""Work in a copy of this process: results, errors, deaths, and that nothing is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor  # noqa: F401 - for scripts
from pathlib import Path

import pytest

from sleepfm_fast.cli.interruption import stops_raised
from sleepfm_fast.execution import forked
from sleepfm_fast.execution.forked import in_copy
from sleepfm_fast.execution.parallel import Engine, WorkersLost, in_parallel

pytestmark = pytest.mark.skipif(not forked.CAN_FORK, reason="this system makes no copies of processes")
ROOT = Path(__file__).resolve().parents[1]


def number_and_process(i: int) -> tuple[int, int]:
    return i, os.getpid()


def die_at_two(i: int) -> int:
    if i == 2:
        os.kill(os.getpid(), signal.SIGBUS)
    return i


def fail_at_two(i: int) -> int:
    if i == 2:
        raise ValueError("two")
    return i


class WantsTwoError(ValueError):
    """It is pickled with the one argument that it keeps."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a + b)


def not_picklable_at_two(i: int) -> object:
    return (lambda: i) if i == 2 else i


def fail_unreadably(i: int) -> int:
    raise WantsTwoError(i, i)


def fail_unpicklably(i: int) -> int:
    error = ValueError("three")
    error.held = lambda: i
    raise error


def no_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def in_fresh_process(script: str) -> None:
    """Where no other child is about, such as a fork server's."""
    head = "import os, signal, sys; sys.path.insert(0, 'tests')\nfrom test_forked import *\n"
    done = subprocess.run([sys.executable, "-c", head + script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_all_is_done_in_one_other_process():
    found = list(in_parallel(number_and_process, [(i,) for i in range(5)], Engine("loky", 1), own_process=True))
    assert [i for i, _ in found] == list(range(5))
    assert len({process for _, process in found}) == 1
    assert found[0][1] != os.getpid()


def test_what_came_before_a_death_is_there():
    work = in_parallel(die_at_two, [(i,) for i in range(5)], Engine("loky", 1), own_process=True)
    assert [next(work), next(work)] == [0, 1]
    with pytest.raises(WorkersLost):
        next(work)


def test_an_error_is_raised_here():
    work = in_copy(fail_at_two, [(i,) for i in range(5)])
    assert [next(work), next(work)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(work)


def test_what_cannot_be_pickled_is_no_death():
    work = in_parallel(not_picklable_at_two, [(i,) for i in range(5)], Engine("loky", 1), own_process=True)
    assert [next(work), next(work)] == [0, 1]
    with pytest.raises(
        TypeError, match=r"^not_picklable_at_two returned a value of type function that cannot leave .*pickle"
    ):
        next(work)
    with pytest.raises(TypeError, match=r"^fail_unpicklably raised ValueError\('three'\) that cannot leave"):
        list(in_copy(fail_unpicklably, [(3,)]))
    with pytest.raises(
        TypeError, match=r"^fail_unreadably returned or raised a value .* missing 1 required positional"
    ):
        list(in_copy(fail_unreadably, [(3,)]))


def test_nothing_is_left_of_it():
    in_fresh_process("""
before = signal.getsignal(signal.SIGINT)  # a shell's background job ignores it
for n in (5, 2):  # to the end, and given up on the way
    work = in_copy(number_and_process, [(i,) for i in range(5)])
    for _ in range(n):
        next(work)
    work.close()
    assert no_children()
    assert signal.getsignal(signal.SIGINT) is before
try:
    list(in_copy(die_at_two, [(2,)]))
except BrokenExecutor:
    assert no_children()
""")


def test_what_stops_a_copy_is_not_raised_in_it():
    with stops_raised():
        assert list(in_copy(signal.getsignal, [(signal.SIGTERM,)])) == [signal.SIG_DFL]
        assert callable(signal.getsignal(signal.SIGTERM))


def test_without_memory_for_a_copy_it_is_done_here(monkeypatch):
    def refuse() -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", refuse)
    assert list(in_copy(number_and_process, [(7,)])) == [(7, os.getpid())]


def append_slowly(path: str, i: int) -> None:
    time.sleep(0.05)
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")


def test_the_copy_of_a_killed_process_ends(tmp_path):
    log = tmp_path / "log"
    script = f"""
import sys; sys.path.insert(0, 'tests')
from test_forked import *
list(in_copy(append_slowly, [({str(log)!r}, i) for i in range(400)]))
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    until = time.monotonic() + 30
    while not log.exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    time.sleep(0.5)
    n = len(log.read_text())
    time.sleep(0.5)
    assert len(log.read_text()) == n, "it goes on for nobody"
