"""Command: clip store -> trained model. Without arguments: the demo, from simulated EDF files to held-out figures."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sleepfm_fast import command
from sleepfm_fast.command import say
from sleepfm_fast.errors import SleepfmError

if TYPE_CHECKING:
    from sleepfm_fast.training import Trainer
    from sleepfm_fast.world import World

__all__ = ["Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Train one encoder a modality by contrasting the modalities of each 30-second clip.

    In several processes: torchrun --nproc-per-node 8 -m sleepfm_fast.train STORE RUN (see docs/distributed.md).

    Without STORE and RUN: simulate a small cohort, preprocess it, train the tiny preset and report staging,
    sleep-disordered breathing and retrieval on held-out subjects (about two minutes on two CPU cores).
    """

    store: Annotated[Path | None, tyro.conf.Positional] = None
    """Clip store written by preprocess."""
    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder to write: config.json, metrics.jsonl, checkpoints."""

    preset: Literal["seed", "tiny"] = "seed"
    """Encoder: seed is SleepFM's 1-D EfficientNet, tiny trains in a minute on two cores."""
    mode: Literal["leave_one_out", "pairwise"] = "leave_one_out"
    """Each modality against the mean of the others, or every pair."""
    directions: Literal["both", "row"] = "both"
    """Softmax over rows and columns (the authors' code) or over rows only (the paper's equation)."""
    epochs: int = 20
    """Passes over the training clips."""
    batch_size: int = 32
    """Clips in a batch, over all processes together: each has batch_size - 1 negatives."""
    micro_batch: int = 0
    """Clips that a process embeds at a time, to save memory; 0 for all. Negatives stay those of the whole batch."""
    batch_norm: Literal["local", "synchronised"] = "local"
    """Statistics of batch norm over a process's own clips, or over those of all processes."""
    dropout: float | None = None
    """Dropout of the encoder; the preset's own by default."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum as in the paper, or AdamW."""
    schedule: Literal["step", "cosine"] = "step"
    """Learning rate times 0.1 every step-epochs, or warm-up and cosine decay to zero."""
    lr: float = 1e-3
    """Learning rate."""
    step_epochs: int = 5
    """Epochs between steps of the step schedule."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay of matrices and convolution kernels; biases, BatchNorm and the temperature are never decayed."""
    log_temperature: float = 0.0
    """Initial log temperature; it is learned and kept within [0, log 100]."""
    patience: int = 5
    """Stop after this many epochs without a better validation loss; 0 never stops early."""
    max_steps: int = 0
    """Stop after this many steps; 0 for no limit."""
    skip_limit: int = 5
    """Leave out a step whose loss or gradient is not finite; give up after more than this many in a row."""
    filters: Literal["aasm", "seed", "clinical", "none"] = "aasm"
    """Filter preset: aasm (bands of the AASM manual), seed (resampling only), clinical, none."""
    notch_hz: Literal[0, 50, 60] = 0
    """Mains frequency to remove; 0 for none."""
    normalise: Literal["recording", "clip", "none"] = "recording"
    """Scale by each recording's typical amplitude, z-score every clip, or leave physical units (as the seed)."""
    validation_share: float = 0.1
    """Expected share of subjects for validation."""
    test_share: float = 0.2
    """Expected share of subjects kept for testing."""
    split_salt: str = "sleepfm_fast"
    """Text hashed with each subject; another text is another split."""
    validation_block: int = 256
    """Clips that stand together in the validation loss."""
    checkpoint_steps: int = 200
    """Steps between checkpoints within an epoch (one is always written at an epoch's end)."""
    seed: int = 0
    """Seeds weights, order and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where it is available."""
    threads: int = 0
    """CPU threads; 0 for all cores."""
    resume: bool = False
    """Go on with the run in RUN, exactly where its last checkpoint stands; --epochs and --max-steps may differ."""


def check(config: Config) -> None:
    """Refuse values that cannot work, by name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise SleepfmError(f"--{field.name.replace('_', '-')} is {value}; expected a finite number.")
    for name in ("batch_size", "validation_block"):
        if getattr(config, name) < 2:
            raise SleepfmError(
                f"--{name.replace('_', '-')} is {getattr(config, name)}; expected 2 or more: a clip is contrasted with "
                "the others of its batch."
            )
    if config.micro_batch == 1 or config.micro_batch < 0:
        raise SleepfmError(f"--micro-batch is {config.micro_batch}; expected 2 or more (batch norm needs two), or 0.")
    if config.dropout is not None and not 0 <= config.dropout < 1:
        raise SleepfmError(f"--dropout is {config.dropout:g}; expected 0 or more and less than 1.")
    positive = ("epochs", "lr", "step_epochs", "checkpoint_steps")
    for name in positive:
        if getattr(config, name) <= 0:
            raise SleepfmError(f"--{name.replace('_', '-')} is {getattr(config, name)}; expected a number above 0.")
    for name in ("patience", "max_steps", "skip_limit", "weight_decay", "momentum", "threads", "seed"):
        if getattr(config, name) < 0:
            raise SleepfmError(f"--{name.replace('_', '-')} is {getattr(config, name)}; expected 0 or more.")
    if config.validation_share < 0 or config.test_share < 0 or config.validation_share + config.test_share >= 1:
        raise SleepfmError(
            f"--validation-share {config.validation_share:g} and --test-share {config.test_share:g} leave no subjects "
            "for training; expected two shares of 0 or more that sum to less than 1."
        )
    if not 0 <= config.log_temperature <= math.log(100):
        raise SleepfmError(
            f"--log-temperature is {config.log_temperature:g}; expected 0 to log(100) = {math.log(100):.3f}."
        )


def train(config: Config) -> dict[str, Any]:
    """Run or resume one training; returns the results that end the command."""
    from sleepfm_fast.world import joined

    check(config)
    with joined(config.device) as world:
        share_threads(config.threads, world.local_size)
        return follow(config, world)


def share_threads(threads: int, n_processes: int) -> None:
    """Set the number of CPU threads; without a wish, the processes of a machine share its cores."""
    import torch

    if not threads and n_processes > 1:
        threads = max(len(os.sched_getaffinity(0)) // n_processes, 1)
    if threads:
        torch.set_num_threads(threads)


def follow(config: Config, world: World) -> dict[str, Any]:
    """Train and show progress."""
    from tqdm import tqdm

    from sleepfm_fast.training import Trainer

    trainer = Trainer.prepare(config, world)
    with tqdm(
        total=trainer.total_steps,
        initial=trainer.progress.step,
        unit="step",
        desc="train",
        file=sys.stderr,
        mininterval=0.5,
        disable=not world.main,
    ) as bar:
        for row in trainer.steps():
            clips_per_s = trainer.clips_per_s
            bar.update()
            bar.set_postfix_str(
                f"epoch {row['epoch'] + 1}/{config.epochs} loss {row['loss']:.3f} "
                f"temperature {row['temperature']:.1f} {clips_per_s:.0f} clips/s",
                refresh=False,
            )
            if row["validated"] is not None and world.main:
                bar.write(epoch_line(trainer, row["validated"]), file=sys.stderr)
    return trainer.finish()


def epoch_line(trainer: Trainer, row: dict[str, Any]) -> str:
    """One readable line an epoch."""
    best = " (best)" if row["epoch"] == trainer.progress.best_epoch else ""
    return (
        f"epoch {row['epoch'] + 1}: training loss {row['training_loss']:.4f}, validation loss "
        f"{row['validation_loss']:.4f}{best}, validation top-1 {100 * row['validation_top1']:.1f} %"
    )


def main(config: Config) -> dict[str, Any]:
    """Train, or run the demo when no store is named."""
    if config.store is None:
        from sleepfm_fast.demo import demo

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise SleepfmError("the demo runs in one process; name a STORE and a RUN to train in several.")
        if config != Config(device=config.device, seed=config.seed, threads=config.threads):
            raise SleepfmError(
                "options were given without a STORE and a RUN. The demo (no positionals) takes only --device, --seed "
                "and --threads; to train on your own clips: python -m sleepfm_fast.train STORE RUN [options]"
            )
        return demo(config)
    if config.run is None:
        raise SleepfmError("STORE was given without RUN, the folder to write: python -m sleepfm_fast.train STORE RUN")
    started = time.monotonic()
    result = train(config)
    result["elapsed_s"] = round(time.monotonic() - started, 1)
    if os.environ.get("RANK", "0") == "0":
        say(f"next: python -m sleepfm_fast.embed {config.run} {config.store} EMBEDDINGS")
    return result


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    kept = (
        "what was finished is kept; with --resume the same command goes on from the last checkpoint (the demo as it is)"
    )
    rank = int(os.environ.get("RANK", "0"))
    return command.run(Config, main, argv, interrupted=kept, rank=rank)


if __name__ == "__main__":
    sys.exit(cli())
