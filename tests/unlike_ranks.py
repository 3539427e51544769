"""One process of a test in tests/test_distributed_training.py: the second process has another store or option."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from two_ranks import run_each

from sleepfm_fast import train

COMMON = ["--preset", "tiny", "--batch-size", "16", "--epochs", "1", "--patience", "0", "--threads", "1"]
# Names of what is unlike. The last one's store is the same and lacks a file, over which the second process fails.
RUNS = (("other-nights", COMMON), ("other-options", COMMON), ("lost", COMMON))


def cli(argv: list[str]) -> int:
    store, run, *options = argv
    if os.environ["RANK"] == "1":
        folder, name = Path(run).parent, Path(run).name
        store = str(folder / name) + "-store" if name != "other-options" else store
        options += ["--seed", "7"] if name == "other-options" else []
    return train.cli([store, run, *options])


if __name__ == "__main__":
    run_each(cli, RUNS, lambda *_: None, sys.argv[1:])
