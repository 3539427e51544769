"""One process of tests/test_distributed_training.py: runs several trainings one after the other, with its rank."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from two_ranks import run_each

from sleepfm_fast import train

COMMON = [
    "--preset", "tiny", "--optimiser", "adamw", "--batch-size", "16", "--epochs", "2", "--validation-block", "24",
    "--checkpoint-steps", "3", "--patience", "0", "--threads", "1",
]  # fmt: skip
# SGD: AdamW's first steps have the size of the learning rate even where a gradient is nothing but rounding. At five
# times this learning rate training itself is chaotic: of the same cohort, 1e-7 after two steps were 2e-4 after six.
SYNCHRONISED = [
    *COMMON,
    "--optimiser",
    "sgd",
    "--lr",
    "0.002",
    "--log-temperature",
    "2",
    "--batch-norm",
    "synchronised",
    "--dropout",
    "0",
]
LOCAL = [*COMMON, "--micro-batch", "4"]
NEIGHBOURS = [*SYNCHRONISED, "--modalities", "brain", "--max-steps", "3"]
LEFT_OUT = [*SYNCHRONISED, "--modality-dropout", "0.4", "--max-steps", "3"]
# Name and options, in the order in which they run. The last but one starts anew where a run stands, the last diverges.
RUNS = (
    ("whole", [*SYNCHRONISED, "--max-steps", "10"]),
    ("resumed", [*SYNCHRONISED, "--max-steps", "4"]),
    ("resumed", [*SYNCHRONISED, "--max-steps", "10", "--resume"]),
    ("parts", [*LOCAL, "--max-steps", "6"]),
    ("parts-resumed", [*LOCAL, "--max-steps", "3"]),
    ("parts-resumed", [*LOCAL, "--max-steps", "6", "--resume"]),
    ("neighbours", NEIGHBOURS),
    ("left-out", LEFT_OUT),
    ("whole", SYNCHRONISED),
    ("diverged", [*COMMON, "--optimiser", "sgd", "--lr", "1e30", "--skip-limit", "2"]),
)


def keep(number: int, name: str, folder: Path) -> None:
    if (number, name) == (1, "resumed"):
        shutil.copytree(folder / name, folder / "stopped")  # to be resumed by one process


if __name__ == "__main__":
    run_each(train.cli, RUNS, keep, sys.argv[1:])
