"""few_shot and retrieve killed at every step that they take on the disk, and again: they end as unkilled ones do."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import sys
import time
from pathlib import Path

import forked_commands
import numpy as np
import pytest
from synthetic_embeddings import columns_of, write_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the names of open files are read from /proc")
KILLS = 6
OPTIONS = {
    "few_shot": ("--task", "stage", "--subjects", "1", "2", "--replicates", "2"),
    "retrieve": ("--bootstraps", "50"),
}
STEPS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(10), 40)
    stage = rng.integers(0, 5, subject.size)
    x = rng.standard_normal((subject.size, 3, 8))
    x[np.arange(subject.size), :, stage] += 1.2
    split = np.array([0] * 5 + [1] * 1 + [2] * 4)
    return write_folder(tmp_path_factory.mktemp("kills") / "emb", x, columns_of(subject, split[subject], stage=stage))


def killed_at(step: int, folder: Path, module: str, arguments: list[str], log: Path, claims: bool = True) -> None:
    """Run a command that is killed right before its ``step``-th change of what is in ``folder``; 0 only counts them.

    Where it would wait for the disk, half of what was written since it last did is lost, as by a power cut. It never
    does wait: the system keeps what a killed process wrote, and a disk may take a second each time. Without ``claims``
    what it does to take the place of a killed process, a dozen steps, is not counted.
    """
    n = 0
    on_the_disk = dict[int, int]()

    def counts(path: object) -> bool:
        inside = isinstance(path, str | Path) and f"{path}{os.sep}".startswith(f"{folder}{os.sep}")
        return inside and (claims or ".claim" not in Path(path).name)

    def watch(event: str, given: tuple[object, ...]) -> None:
        nonlocal n
        changes = event in STEPS or (event == "open" and isinstance(given[2], int) and given[2] & WRITES)
        if changes and any(map(counts, given[:2])):
            n += 1
            if n == step:
                os.kill(os.getpid(), signal.SIGKILL)

    def wait(descriptor: int) -> None:
        nonlocal n
        found, path = os.fstat(descriptor), str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if counts(path) and stat.S_ISREG(found.st_mode):
            n += 1
            kept = on_the_disk.get(found.st_ino, 0)
            if n == step:
                os.truncate(path, kept + (found.st_size - kept) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            on_the_disk[found.st_ino] = found.st_size

    os.fsync = wait
    sys.addaudithook(watch)
    try:
        forked_commands.run(module, arguments, log)
    finally:
        log.with_name("steps").write_text(str(n))


class Command:
    """A command with embeddings, whose results lie alone in their folders."""

    def __init__(self, name: str, embeddings: Path, folder: Path) -> None:
        self.name, self.embeddings, self.log = name, embeddings, folder / "log"
        self.result = folder / "results" / "result"
        self.result.parent.mkdir(parents=True)

    def start(self, step: int = 0, *, claims: bool = True):
        arguments = [str(self.embeddings), str(self.result), *OPTIONS[self.name]]
        process = forked_commands.fork_server().Process(
            target=killed_at, args=(step, self.result.parent, f"sleepfm_fast.{self.name}", arguments, self.log, claims)
        )
        process.start()
        return process

    def complete(self) -> int:
        """Let it end; returns how many steps it took."""
        process = self.start()
        process.join(120)
        assert process.exitcode == 0, self.log.read_text()
        return int(self.log.with_name("steps").read_text())

    def files(self):
        """What it has made, but for the time it took; nothing else may lie there."""
        assert [path.name for path in self.result.parent.iterdir()] == ["result"]
        files = {path.name: path.read_bytes() for path in self.result.iterdir()}
        record = json.loads(files.pop("result.json"))
        assert record.pop("seconds") >= 0
        return files, record


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def whole(request, embeddings, tmp_path_factory):
    """A command that was not killed, its steps and how long it took."""
    Command(request.param, embeddings, tmp_path_factory.mktemp("warm")).complete()  # compiles and imports what it needs
    command = Command(request.param, embeddings, tmp_path_factory.mktemp("whole"))
    began = time.monotonic()
    steps = command.complete()
    return command, steps, time.monotonic() - began


def test_killed_at_every_step(whole, embeddings, tmp_path):
    command, steps, _ = whole
    moments = random.Random(command.name)
    assert steps > 10, "the claim, what is kept, the result and its files"
    for step in range(1, steps + 1):
        killed = Command(command.name, embeddings, tmp_path / str(step))
        process = killed.start(step)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, killed.log.read_text()
        # What goes on has to leave all whole for the next one: a claim that it takes over, and a torn file to which it
        # adds, and is killed only then.
        claims = step % 2 == 1
        process = killed.start(moments.randrange(5, 12) if claims else moments.randrange(3, 9), claims=claims)
        process.join(120)
        killed.complete()
        assert killed.files() == command.files(), f"killed before step {step} of {steps}"


def test_killed_again_and_again(whole, embeddings, tmp_path):
    """What a kill leaves is what the next one is killed over."""
    command, steps, _ = whole
    killed, moments = Command(command.name, embeddings, tmp_path / "again"), random.Random(command.name)
    for _ in range(KILLS):
        process = killed.start(moments.randrange(1, steps))
        process.join(120)
    killed.complete()
    assert killed.files() == command.files()


def test_killed_at_random_moments(whole, embeddings, tmp_path):
    command, _, takes_s = whole
    killed, moments = Command(command.name, embeddings, tmp_path / "random"), random.Random(command.name)
    for _ in range(KILLS):
        process = killed.start()
        process.join(moments.uniform(0.1, 0.9) * takes_s)
        process.kill()
        process.join()
    killed.complete()
    assert killed.files() == command.files()
