"""Processes that end with the test that started them, however it ends, and say where they were.

torchrun gives every rank a session of its own: ending the process group of what a test started does not reach them. A
mark in the environment does, which all descendants inherit.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

MARK = "SLEEPFM_TEST_PROCESSES"
PATIENCE_S = 3.0  # for stacks to be written


def marked(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with a mark of its own; a Python process that is aborted writes its stacks."""
    return {**environment, MARK: uuid.uuid4().hex, "PYTHONFAULTHANDLER": "1"}


def members(environment: Mapping[str, str]) -> list[int]:
    """Ids of the running processes with the mark of ``environment``."""
    wanted = f"{MARK}={environment[MARK]}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def is_running(pid: int) -> bool:
    """Whether a process has not ended. One that has, and whose exit status nobody has asked for yet, is not running."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def stop(environment: Mapping[str, str]) -> None:
    """End all processes with the mark of ``environment``. None is left on return."""
    stopped = set()
    patient_until = time.monotonic() + PATIENCE_S
    while left := members(environment):
        number = signal.SIGABRT if time.monotonic() < patient_until else signal.SIGKILL
        for pid in left:
            if number == signal.SIGKILL or pid not in stopped:
                with contextlib.suppress(OSError):
                    resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
                    os.kill(pid, number)
        stopped.update(left)
        time.sleep(0.02)
    # The kernel takes a process's memory, and with it the mark, some time before the process has ended. The bound is
    # for an id that another process has been given meanwhile.
    bound = time.monotonic() + PATIENCE_S
    while any(map(is_running, stopped)) and time.monotonic() < bound:
        time.sleep(0.02)


def run_together(
    commands: Sequence[Sequence[str]], environment: Mapping[str, str], timeout_s: float, folder: Path
) -> None:
    """Run commands side by side. Output goes to ``process-<number>.log`` in ``folder``.

    Raises
    ------
    AssertionError
        Where one fails, or not all are done in time: with the end of all output, that of ``*.err`` files of ``folder``
        included.
    """
    environment = marked(environment)
    processes = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"process-{number}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        deadline = time.monotonic() + timeout_s
        statuses = [process.poll() for process in processes]
        while None in statuses and not any(statuses) and time.monotonic() < deadline:
            time.sleep(0.05)
            statuses = [process.poll() for process in processes]
    finally:
        stop(environment)
        for process in processes:
            process.wait()
    if any(status != 0 for status in statuses):
        outcome = "a process failed" if any(statuses) else f"not done within {timeout_s:g} s"
        raise AssertionError(f"{outcome} (exit statuses {statuses})\n{last_words(folder)}")


def last_words(folder: Path) -> str:
    """The end of the processes' logs, and of the files of standard error that were written last."""
    errors = sorted(folder.glob("*.err"), key=lambda path: path.stat().st_mtime)[-4:]
    paths = [*sorted(folder.glob("process-*.log")), *errors]
    return "\n".join(f"---- {path.name}\n{path.read_text(errors='replace')[-6000:]}" for path in paths)
