"""Command: a checkpoint of the authors' code -> run folder (safetensors and JSON)."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from sleepfm_fast.cli import command
from sleepfm_fast.cli.command import say
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.reporting.following import after_checkpoint

__all__ = ["Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config(TakesPaths):
    """Turn the authors' best.pt into a run folder that embed, probe and retrieve work with.

    The file is read without running any code in it. The montage follows from the numbers of channels: 7, 10 and 2 are
    those of paper; 3, 5 and 1 those of cinc2018. Filters and scaling are those of the authors' preprocessing:
    resampling only, no normalisation. If RUN already holds this checkpoint, the command says so and exits with
    status 0.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """best.pt or checkpoint.pt, as written by the authors' pretraining."""
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder to write: config.json and best.safetensors."""

    def places(self) -> list[Place]:
        """What its positionals take."""
        return [
            reads("CHECKPOINT", self.checkpoint, Kind.CHECKPOINT),
            writes("RUN", self.run, Kind.RUN),
        ]


def main(config: Config) -> dict[str, Any]:
    """Import; returns the results that end the command."""
    from sleepfm_fast.model.seed_checkpoint import read_seed_checkpoint, write_run
    from sleepfm_fast.pretrained import UNITS
    from sleepfm_fast.rundir import RunDirectory

    checkpoint = read_seed_checkpoint(config.checkpoint)
    if not write_run(checkpoint, RunDirectory(config.run)):
        say(f"{config.run} is already finished: this same command wrote it.")
    say(f"notice: {UNITS}")
    return {
        "run": str(config.run),
        "montage": checkpoint.montage,
        "modalities": dict(checkpoint.model.modalities),
        "parameters": checkpoint.model.n_parameters(),
        "epoch": checkpoint.epoch,
    }


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return command.run(Config, main, argv, following=after_checkpoint)


if __name__ == "__main__":
    sys.exit(cli())
