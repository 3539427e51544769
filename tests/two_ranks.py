"""Commands run in turn by two processes that torchrun starts: the test's side, and each process's."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist
from process_trees import run_together

HERE = Path(__file__).resolve().parent

Runs = Sequence[tuple[str, Sequence[str]]]  # name of the run folder, options


def environment() -> dict[str, str]:
    """Of a process that imports what the tests import, and meets others on this machine only."""
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def free_ports(n: int) -> int:
    """First of n consecutive ports that nobody has at the moment."""
    for first in range(29600, 60000, 50):
        try:
            for port in range(first, first + n):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


def launch(script: str, runs: Runs, store: Path, folder: Path, timeout_s: float) -> None:
    """Run tests/``script`` in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(HERE / script), str(store), str(folder), str(free_ports(len(runs)))]
    run_together([command], environment(), timeout_s, folder)


def run_each(
    cli: Callable[[list[str]], int], runs: Runs, keep: Callable[[int, str, Path], object], arguments: Sequence[str]
) -> None:
    """Run the command in this process once for each of ``runs``: what ``script`` does with its ``arguments``.

    Output goes to ``<number>-<rank>.out`` and ``.err``, exit statuses to ``status-<rank>.json``. ``keep`` is called by
    rank 0 after each run, with its number, name and the folder of all.
    """
    store, folder, first_port = arguments[0], Path(arguments[1]), int(arguments[2])
    rank = int(os.environ["RANK"])
    outcomes = []
    for number, (name, options) in enumerate(runs):
        if number:  # torchrun's own store serves one process group; the later ones meet at a port of theirs
            os.environ["MASTER_PORT"] = str(first_port + number)
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        output, errors = folder / f"{number}-{rank}.out", folder / f"{number}-{rank}.err"
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(output.open("w"))))
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(errors.open("w"))))
            status = cli([store, str(folder / name), *options])
        if dist.is_initialized():  # a command that fails leaves the group to torchrun
            dist.destroy_process_group()
        outcomes.append(status)
        if rank == 0:
            keep(number, name, folder)
    (folder / f"status-{rank}.json").write_text(json.dumps(outcomes))
