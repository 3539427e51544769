"""One process of tests/test_distributed_supervise.py: runs several supervised trainings in turn, with its rank."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from two_ranks import run_each

from sleepfm_fast import supervise

COMMON = [
    "--task", "stage", "--preset", "tiny", "--batch-size", "15", "--epochs", "2", "--checkpoint-steps", "3",
    "--patience", "0", "--threads", "1", "--bootstraps", "20",
]  # fmt: skip
# 15 clips make unequal shares. SGD, no dropout and a small learning rate: what is left between one process and two is
# the order of sums (at 0.01 it grows to 8e-5 of the validation loss in ten steps).
SYNCHRONISED = [*COMMON, "--lr", "0.002", "--batch-norm", "synchronised", "--dropout", "0"]
LOCAL = [*COMMON, "--optimiser", "adamw", "--class-weights", "balanced"]
# Name and options, in the order in which they run. The last three are refused, or diverge.
RUNS = (
    ("whole", [*SYNCHRONISED, "--max-steps", "10"]),
    ("stopped", [*SYNCHRONISED, "--max-steps", "4"]),
    ("local", [*LOCAL, "--max-steps", "8"]),
    ("resumed", [*LOCAL, "--max-steps", "3"]),
    ("resumed", [*LOCAL, "--max-steps", "8", "--resume"]),
    ("whole", SYNCHRONISED),
    ("few", [*LOCAL, "--batch-size", "3"]),
    ("diverged", [*COMMON, "--lr", "1e30", "--skip-limit", "2"]),
)
N_REFUSED = 3


def keep(number: int, name: str, folder: Path) -> None:
    if name == "stopped":
        shutil.copytree(folder / name, folder / "copy")


if __name__ == "__main__":
    run_each(supervise.cli, RUNS, keep, sys.argv[1:])
