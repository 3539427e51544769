"""Where work runs and how far it is: in this process or others, how many workers, and the lines that say so."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from sleepfm_fast.execution import parallel
from sleepfm_fast.execution.parallel import Engine, Progress, dispatched, in_parallel, pool
from sleepfm_fast.system import processors


def process_of(_: int) -> int:
    return os.getpid()


def test_as_many_workers_as_tasks_and_at_least_one():
    assert [Engine("loky", 3).width(n) for n in (0, 1, 2, 3, 99)] == [1, 1, 2, 3, 3]
    assert Engine("threading").width(10**6) == processors()
    assert Engine("threading", 5).width(2) == 2


def test_only_a_forked_copy_spares_this_process(monkeypatch):
    for can_fork in (True, False):
        monkeypatch.setattr(parallel, "CAN_FORK", can_fork)
        assert Engine("loky", 1).spares_this_process is can_fork
        assert Engine("threading", 1).spares_this_process is False


def test_no_work_needs_no_workers():
    for backend in ("loky", "threading", "dask", "ray"):
        assert list(in_parallel(process_of, [], Engine(backend))) == []


@pytest.mark.parametrize(
    ("backend", "workers", "own_process", "can_fork", "here"),
    [
        ("threading", 1, False, True, True),
        ("threading", 2, False, True, True),
        ("loky", 1, False, True, True),
        ("loky", 2, False, True, False),
        ("loky", 1, True, True, False),
        ("loky", 1, True, False, False),
        ("threading", 2, True, True, False),
    ],
)
def test_where_work_runs(monkeypatch, backend, workers, own_process, can_fork, here):
    monkeypatch.setattr(parallel, "CAN_FORK", can_fork and parallel.CAN_FORK)
    arguments = [(i,) for i in range(4)]
    found = set(in_parallel(process_of, arguments, Engine(backend, workers), own_process=own_process))
    assert (found == {os.getpid()}) is here
    assert (os.getpid() in found) is here


def test_a_pool_of_several_is_no_copy_of_this_process(monkeypatch):
    def fail(*_):
        raise AssertionError("a copy works one after the other")

    monkeypatch.setattr(parallel, "in_copy", fail)
    assert len(list(in_parallel(process_of, [(1,), (2,), (3,)], Engine("loky", 2), own_process=True))) == 3


def test_a_pool_shares_no_arrays_through_files(monkeypatch):
    monkeypatch.setattr("joblib.Parallel", lambda **options: options)
    assert pool(2, backend="loky") == {"n_jobs": 2, "backend": "loky", "max_nbytes": None, "temp_folder": os.devnull}


def test_ctrl_c_is_answered_again_after_work_that_failed():
    def fail(_):
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        raise ValueError("broken")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(ValueError, match="broken"):
            dispatched(fail, [])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with ThreadPoolExecutor(1) as threads:  # which can set no handlers
            assert threads.submit(dispatched, lambda _: signal.getsignal(signal.SIGINT), []).result() is (
                signal.default_int_handler
            )
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not parallel.CAN_FORK, reason="this system makes no copies of processes")
def test_a_single_worker_is_a_copy_of_this_process(monkeypatch):
    monkeypatch.setattr(parallel, "in_copy", lambda work, arguments: iter(["copy"]))
    assert list(in_parallel(process_of, [(1,), (2,)], Engine("loky", 1), own_process=True)) == ["copy"]


def test_a_line_of_progress_now_and_then_and_at_the_end(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(parallel.time, "monotonic", lambda: now[0])
    progress = Progress("nights", 4)
    for seconds, failed in ((29.0, False), (31.0, True), (59.0, False), (59.5, False)):
        now[0] = 100.0 + seconds
        progress.step(failed=failed)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "nights: 2 of 4, 1 failed, 0.0645 nights/s, 0:00:31 left",
        "nights: 4 of 4, 1 failed, 0.0672 nights/s, in 0:01:00",
    ]
    progress = Progress("files", 3)
    now[0] += 4000.0
    progress.step()
    assert capsys.readouterr().err == "files: 1 of 3, 0.00025 files/s, 2:13:20 left\n"


def test_nothing_to_do_draws_no_bar(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert Progress("nights", 0).bar is None
    progress = Progress("nights", 2)
    assert progress.bar is not None
    progress.step(failed=True)
    assert progress.bar.postfix == "1 failed"
    progress.close()
