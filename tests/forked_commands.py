"""Commands in processes of their own, forked from one that has imported what they import and has done nothing else.

A process that starts from nothing takes longer to import torch than a small training takes.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import sys
from collections.abc import Sequence
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@cache
def fork_server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["imported_by_commands"])
    before = Path.cwd()
    os.chdir(Path(__file__).parent)  # where it finds that module: not every Python gives a fork server its sys.path
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.chdir(before)
    return context


def start(module: str, arguments: Sequence[str], log: Path) -> BaseProcess:
    """Start ``python -m <module> <arguments>`` with its output in ``log``."""
    process = fork_server().Process(target=run, args=(module, arguments, log), daemon=True)
    process.start()
    return process


def run(module: str, arguments: Sequence[str], log: Path) -> None:
    """What the process does."""
    os.chdir(ROOT)
    with log.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
