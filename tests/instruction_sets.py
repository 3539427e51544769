"""What a process computes that is told which instruction set of the processor to use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sleepfm_fast

TESTS = Path(__file__).resolve().parent


def results_with(instruction_set: str, script: str, folder: Path) -> Any:
    """Run a script that saves to ``sys.argv[1]`` with :func:`torch.save`; returns what it has saved.

    It may import the modules of this folder.
    """
    path = folder / "results.pt"
    found = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    environment = {**os.environ, "SLEEPFM_CPU": instruction_set, "PYTHONPATH": found, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(path)]
    subprocess.run(command, env=environment, check=True, cwd=TESTS.parent, timeout=300)
    return torch.load(path, weights_only=True)


def passed_with(instruction_set: str, *arguments: str) -> int:
    """Run tests of this folder; returns how many have passed. Skips where the processor lacks the instruction set."""
    if instruction_set not in sleepfm_fast.build_info()["cpu_instruction_sets"]:
        pytest.skip(f"this processor has no {instruction_set}")
    environment = {
        **os.environ,
        "SLEEPFM_CPU": instruction_set,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = (sys.executable, *arguments)
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TESTS, check=False)

    shown = run("-c", "import sleepfm_fast; print(sleepfm_fast.build_info()['cpu_instruction_set_in_use'])")
    assert shown.stdout.strip() == instruction_set, shown.stderr
    tests = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
    assert tests.returncode == 0, tests.stdout[-4000:]
    return int(re.search(r"(\d+) passed", tests.stdout)[1])
