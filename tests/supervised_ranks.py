"""One process of tests/test_distributed_supervise.py: runs several supervised trainings in turn, with its rank."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import torch.distributed as dist

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


def main(store: str, folder: Path, first_port: int) -> None:
    rank = int(os.environ["RANK"])
    outcomes = []
    for number, (name, options) in enumerate(RUNS):
        if number:  # torchrun's own store serves one process group; the later ones meet at a port of theirs
            os.environ["MASTER_PORT"] = str(first_port + number)
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        output, errors = folder / f"{number}-{rank}.out", folder / f"{number}-{rank}.err"
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(output.open("w"))))
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(errors.open("w"))))
            status = supervise.cli([store, str(folder / name), *options])
        if dist.is_initialized():  # a command that fails leaves the group to torchrun
            dist.destroy_process_group()
        outcomes.append(status)
        if rank == 0 and name == "stopped":
            shutil.copytree(folder / name, folder / "copy")
    (folder / f"status-{rank}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
