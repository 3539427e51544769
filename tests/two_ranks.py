"""Commands run in turn by two processes that torchrun starts: the test's side, and each process's."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist
from process_trees import run_together

from sleepfm_fast.storage.atomic import write_json

HERE = Path(__file__).resolve().parent

Runs = Sequence[tuple[str, Sequence[str]]]  # name of the run folder, options


def environment() -> dict[str, str]:
    """Of a process that imports what the tests import, and meets others on this machine only."""
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def meeting_places(number: int, rank: int, folder: Path) -> tuple[list[int], list[dist.TCPStore]]:
    """Ports of n stores where process groups meet, and, in rank 0, the stores.

    The system chooses the ports, and the stores hold them: of a port that is free when it is looked for, another test
    may be the first to use it.
    """
    file = folder / "ports.json"
    stores = []
    if rank == 0:
        stores = [dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False) for _ in range(number)]
        write_json(file, [store.port for store in stores])
    while not file.exists():  # the test ends who waits in vain
        time.sleep(0.02)
    return json.loads(file.read_text()), stores


def launch(script: str, runs: Runs, store: Path, folder: Path, timeout_s: float) -> None:
    """Run tests/``script`` in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run_together([[*launcher, str(HERE / script), str(store), str(folder)]], environment(), timeout_s, folder)


def run_each(
    cli: Callable[[list[str]], int], runs: Runs, keep: Callable[[int, str, Path], object], arguments: Sequence[str]
) -> None:
    """Run the command in this process once for each of ``runs``: what ``script`` does with its ``arguments``.

    Output goes to ``<number>-<rank>.out`` and ``.err``, exit statuses to ``status-<rank>.json``. ``keep`` is called by
    rank 0 after each run, with its number, name and the folder of all.
    """
    store, folder = arguments[0], Path(arguments[1])
    rank = int(os.environ["RANK"])
    ports, _stores = meeting_places(len(runs), rank, folder)
    outcomes = []
    for number, (name, options) in enumerate(runs):
        # torchrun's own store serves one process group. That a store is there already is what torchrun says of its own.
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(ports[number]), TORCHELASTIC_USE_AGENT_STORE="True")
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
