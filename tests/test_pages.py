"""The pool of large blocks: little more idle than was once in use, also where the system refuses memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sleepfm_fast import _C, ops, supervise, train
from sleepfm_fast.ops.pages import empty
from sleepfm_fast.training import loop as training_loop

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20


@pytest.fixture(autouse=True)
def empty_pool():
    ops.release_pages()
    yield
    ops.release_pages()


def use_and_free(*sizes):
    for size in sizes:
        block = _C.Pages(size)
        del block


def test_a_block_is_used_again():
    first = empty(torch.empty(0), (MIB,))
    address = first.data_ptr()
    del first
    assert empty(torch.empty(0), (MIB,)).data_ptr() == address


def test_idle_blocks_stay_below_what_was_once_in_use():
    use_and_free(10 * MIB, 20 * MIB, 40 * MIB)
    assert ops.release_pages() == 40 * MIB
    assert ops.release_pages() == 0


def test_blocks_that_are_used_in_turns_stay_within_a_quarter_of_that():
    use_and_free(40 * MIB, 10 * MIB)
    assert ops.release_pages() == 50 * MIB
    use_and_free(40 * MIB, 10 * MIB, 20 * MIB)
    assert ops.release_pages() == 30 * MIB


def test_a_release_forgets_what_was_once_in_use():
    use_and_free(80 * MIB)
    assert ops.release_pages() == 80 * MIB
    use_and_free(10 * MIB, 20 * MIB, 40 * MIB)
    assert ops.release_pages() == 40 * MIB


def test_the_smallest_block_that_fits_is_taken():
    large, small = _C.Pages(22 * MIB), _C.Pages(20 * MIB)
    del large
    del small
    again = _C.Pages(20 * MIB)
    assert ops.release_pages() == 22 * MIB
    del again


def test_what_is_in_use_is_not_released():
    values = empty(torch.empty(0), (MIB,)).fill_(3.0)
    assert ops.release_pages() == 0
    assert bool((values == 3.0).all())


def test_a_refused_block_does_not_count_as_used():
    with pytest.raises(MemoryError):
        _C.Pages(1 << 48)  # more than there are addresses, also where the system promises any memory
    use_and_free(10 * MIB, 20 * MIB, 40 * MIB)
    assert ops.release_pages() == 40 * MIB


FRESH = """
import resource
import torch
from sleepfm_fast.ops.pages import empty
def loop(n_bytes, n):
    kept = [empty(torch.empty(0), (n_bytes // 4,)).fill_(1.0) for _ in range(n)]
def fresh_pages(n_bytes, n):
    for _ in range(5):
        loop(n_bytes, n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        loop(n_bytes, n)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20
sizes = (140_000, 200_000, 500_000, 1_000_000, 1_040_000, 1_100_000)
print(*[fresh_pages(n_bytes, 48) for n_bytes in sizes])
"""


def run_alone(script):
    """Output of a process of its own, where malloc has not learnt from anybody else's blocks."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="counts fresh pages as Linux does")
def test_blocks_of_every_size_are_used_again():
    """Smaller than a huge page too: malloc gives many of them back to the system, and asks for fresh ones."""
    assert max(map(float, run_alone(FRESH).split())) < 10


def test_small_blocks_take_little_more_than_their_size():
    use_and_free(130_000)
    assert ops.release_pages() == 128 << 10
    use_and_free(MIB)
    assert ops.release_pages() == MIB
    use_and_free(MIB + 1)
    assert ops.release_pages() == 2 * MIB


SCARCE = """
import resource
from sleepfm_fast import _C
MIB = 1 << 20
kept = [_C.Pages(400 * MIB), _C.Pages(400 * MIB)]
del kept  # 800 MiB may stay idle from here on
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() - 200 * MIB
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
block = _C.Pages(300 * MIB)  # one idle block goes because of the bound, the other because nothing else would fit
print(_C.release_pages())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits of memory as Linux has them")
def test_idle_blocks_go_where_the_system_has_no_more_memory():
    assert run_alone(SCARCE).strip() == "0"


RELEASED = """
import resource
import torch
from sleepfm_fast import ops
from sleepfm_fast.ops.pages import empty
MIB = 1 << 20
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
torch.ones(6 * MIB)  # 24 MiB: from here on malloc takes blocks up to that size from its heap
before = resident()
blocks = [empty(torch.empty(0), (2 * MIB,)).fill_(1.0) for _ in range(20)]
behind = torch.ones(25_000)  # keeps the end of the heap
del blocks
released, took = ops.release_pages(), resident() - before
print(released // MIB, took // MIB)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory as Linux shows it")
def test_what_is_released_goes_to_the_system_and_not_to_malloc():
    released, left = map(int, run_alone(RELEASED).split())
    assert released == 160
    assert left < 20


@pytest.mark.parametrize("command", [train, supervise])
def test_a_training_gives_its_memory_back_when_it_ends(cohort_store, tmp_path, capsys, monkeypatch, command):
    released = []
    monkeypatch.setattr(training_loop, "release_pages", lambda: released.append(ops.release_pages()))
    options = ["--preset", "seed", "--batch-size", "2", "--max-steps", "1"]
    options += ["--task", "stage", "--bootstraps", "0"] if command is supervise else ["--validation-block", "16"]
    assert command.cli([str(cohort_store), str(tmp_path / "run"), *options]) == 0, capsys.readouterr().err
    assert released[-1] > 0
    assert ops.release_pages() == 0
