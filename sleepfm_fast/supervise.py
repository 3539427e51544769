"""Command: clip store -> a network trained end to end on labels, and its figures on held-out subjects."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from sleepfm_fast.cli import command
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.option_effects import TRAINING_EFFECTS, Effect, refuse_without_effect
from sleepfm_fast.cli.option_ranges import refuse_dropout, refuse_negative, refuse_not_finite, refuse_not_positive
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.reporting.following import after_supervised

if TYPE_CHECKING:
    from sleepfm_fast.training.world import World

__all__ = ["Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config(TakesPaths):
    """Train one network from signals to labels: the paper's supervised baseline.

    It is train's encoder applied to the channels of all modalities stacked (or of one modality), with an output for
    each class. Subjects are split as in train. The epoch with the lowest validation loss is tested, and its figures are
    written to RUN/results/TASK in the layout of probe's. Clips without a label are left out and counted; a missing
    channel is masked, and only a clip without any channel is left out.

    With several processes: torchrun --nproc-per-node 8 -m sleepfm_fast.supervise STORE RUN (see docs/distributed.md).
    """

    store: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
    """Clip store written by preprocess."""
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder to write: config.json, metrics.jsonl, checkpoints, results/TASK."""
    task: Literal["stage", "sdb", "age", "sex"]
    """Sleep stage (W, N1, N2, N3, R), respiratory event (event, none), age group (0-18, 18-35, 35-50, 50+) or sex."""

    modality: Literal["all", "respiratory", "brain", "ecg"] = "all"
    """Channels the network sees: those of every modality, stacked, or those of one."""
    train_subjects: int = 0
    """Train on this many of the training subjects (draws are nested: 4 subjects are among the 8 of a larger draw); 0
    for all."""
    replicate: int = 0
    """Number of the draw of --train-subjects; another number gives another draw."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weight of a clip in the loss: 1 (the paper states no weights), or inversely proportional to its class's
    frequency."""
    preset: Literal["seed", "tiny"] = "seed"
    """Network: seed is SleepFM's 1-D EfficientNet; tiny trains in a minute on two cores."""
    epochs: int = 20
    """Passes over the training clips."""
    batch_size: int = 32
    """Clips in a batch, over all processes."""
    shuffle_recordings: int = 0
    """Mix the clips of this many recordings at a time and read each recording as a whole, for a store that is larger
    than the memory; 0 mixes all clips (see docs/clip-store.md)."""
    batch_norm: Literal["local", "synchronised"] = "local"
    """Take batch norm statistics over each process's own clips (local), or over those of all
    processes (synchronised)."""
    dropout: float | None = None
    """Dropout of the network; by default the preset's own."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum as in the paper, or AdamW."""
    schedule: Literal["step", "cosine"] = "step"
    """step: multiply the learning rate by 0.1 every --step-epochs; cosine: warm up, then decay to zero along a
    cosine."""
    lr: float = 1e-3
    """Learning rate."""
    step_epochs: int = 5
    """Epochs between two steps of the step schedule."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay of matrices and convolution kernels; biases and BatchNorm are never decayed."""
    patience: int = 5
    """Stop after this many epochs without a better validation loss; 0 never stops early."""
    max_steps: int = 0
    """Stop after this many steps; 0 for no limit."""
    skip_limit: int = 5
    """Skip a step whose loss or gradient is not finite; give up after more than this many in a row."""
    filters: Literal["aasm", "seed", "clinical", "none"] = "aasm"
    """Filter preset: aasm (bands of the AASM manual), seed (resampling only, as the authors' code), clinical, or
    none."""
    notch_hz: Literal[0, 50, 60] = 0
    """Mains frequency to remove; 0 for none."""
    normalise: Literal["recording", "clip", "none"] = "recording"
    """recording: scale by each recording's typical amplitude; clip: z-score every clip; none: keep physical units, as
    the authors' code does."""
    validation_share: float = 0.1
    """Expected share of subjects used for validation."""
    test_share: float = 0.2
    """Expected share of subjects kept for testing."""
    split_salt: str = "sleepfm_fast"
    """Text hashed with each subject's name; another text gives another split."""
    checkpoint_steps: int = 200
    """Steps between checkpoints within an epoch (one is always written at the end of an epoch)."""
    bootstraps: int = 1000
    """Resamples of test subjects for the intervals; 0 for none."""
    seed: int = 0
    """Seed of weights, order of clips, dropout and resamples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto uses CUDA if it is available."""
    threads: int = 0
    """CPU threads; 0 for all cores."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network; weights, loss and optimiser are float32 either way."""
    resume: bool = False
    """Continue the run in RUN exactly from its last checkpoint; --epochs and --max-steps may differ."""

    EFFECTS: ClassVar[tuple[Effect, ...]] = TRAINING_EFFECTS

    def places(self) -> list[Place]:
        """What its positionals take."""
        return [
            reads("STORE", self.store, Kind.STORE),
            writes("RUN", self.run, Kind.RUN, Kind.SUPERVISED),
        ]


def check(config: Config) -> None:
    """Refuse values that cannot work, by name."""
    refuse_without_effect(config)
    refuse_not_finite(config)
    if config.batch_size < 2:
        raise SleepfmError(f"--batch-size is {config.batch_size}; expected 2 or more: batch norm needs two clips.")
    refuse_dropout(config.dropout)
    refuse_not_positive(config, ("epochs", "lr", "step_epochs", "checkpoint_steps"))
    natural = ("patience", "max_steps", "skip_limit", "weight_decay", "momentum", "threads", "seed", "bootstraps")
    refuse_negative(config, (*natural, "train_subjects", "replicate", "shuffle_recordings"))
    if config.validation_share < 0 or config.test_share <= 0 or config.validation_share + config.test_share >= 1:
        raise SleepfmError(
            f"--validation-share {config.validation_share:g} and --test-share {config.test_share:g} do not leave "
            "subjects for training and testing; expected a test share above 0 and a sum below 1."
        )


def main(config: Config) -> dict[str, Any]:
    """Train or resume, test the best epoch; the result is what the command prints as JSON."""
    check(config)
    from sleepfm_fast.training.world import claimed_run, joined

    started = time.monotonic()
    with joined(config.device) as world, claimed_run(config.run, world):
        world.share_threads(config.threads)
        result = trained(config, world)
    result["elapsed_s"] = round(time.monotonic() - started, 1)
    return result


def trained(config: Config, world: World) -> dict[str, Any]:
    """Train to the end, and test the best epoch."""
    from sleepfm_fast.baselines.supervised_training import SupervisedTrainer
    from sleepfm_fast.ops.pages import release_pages

    trainer = SupervisedTrainer.prepare(config, world)
    trainer.follow("supervise")
    result = trainer.finish()
    release_pages()  # of the test
    return result


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    kept = "what was finished is kept; with --resume the same command continues from the last checkpoint"
    rank = int(os.environ.get("RANK", "0"))
    return command.run(Config, main, argv, interrupted=kept, rank=rank, following=after_supervised)


if __name__ == "__main__":
    sys.exit(cli())
