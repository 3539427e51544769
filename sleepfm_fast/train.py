"""Command: clip store -> trained model. Without arguments: the demo, from simulated EDF files to held-out figures."""

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
from sleepfm_fast.cli.command import say
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.option_effects import TRAINING_EFFECTS, Effect
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.reporting.following import after_training

if TYPE_CHECKING:
    from sleepfm_fast.training.settings import Settings
    from sleepfm_fast.training.world import World

__all__ = ["Config", "main"]


def decided(default: object, metavar: str) -> Any:
    """Help of an option that stays open, None, until ``--compat`` has been asked."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default}, or what --compat says)")


@dataclasses.dataclass(frozen=True)
class Config(TakesPaths):
    """Train one encoder for each modality by contrasting the modalities of each 30-second clip.

    With several processes: torchrun --nproc-per-node 8 -m sleepfm_fast.train STORE RUN (see docs/distributed.md).

    Without STORE and RUN: simulate a small cohort, preprocess it, train the tiny preset and report staging,
    sleep-disordered breathing and retrieval on held-out subjects (about two minutes on two CPU cores).
    """

    store: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[STORE]")] = None
    """Clip store written by preprocess."""
    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    """Folder to write: config.json, metrics.jsonl, checkpoints."""

    compat: Literal["none", "seed", "paper"] = "none"
    """Train as the authors' code does (seed) or as their paper describes it (paper); see docs/training.md."""
    preset: Literal["seed", "tiny"] = "seed"
    """Encoder: seed is SleepFM's 1-D EfficientNet; tiny trains in a minute on two cores."""
    init_from: Path | None = None
    """Start from these encoders: a run folder, its .safetensors, or the authors' best.pt."""
    modalities: tuple[Literal["respiratory", "brain", "ecg"], ...] = ()
    """Modalities to train; by default all of the montage. A single modality is contrasted with its own clip 30 seconds
    later."""
    mode: Literal["leave_one_out", "pairwise"] = "leave_one_out"
    """Contrast each modality with the mean of the others, or every pair of modalities."""
    directions: Annotated[Literal["both", "row"] | None, decided("both", "{both,row}")] = None
    """Take the softmax over rows and columns (the authors' code), or over rows only (the paper's equation)."""
    loss_scale: Annotated[Literal["mean", "sum"] | None, decided("mean", "{mean,sum}")] = None
    """Mean over clips, directions and modalities (the authors' code), or their sum (the paper's equation). The loss
    that is printed and logged is the mean either way."""
    epochs: Annotated[int | None, decided(20, "INT")] = None
    """Passes over the training clips."""
    batch_size: Annotated[int | None, decided(32, "INT")] = None
    """Clips in a batch (with a single modality, pairs of clips), over all processes; each has batch_size - 1
    negatives."""
    last_batch: Annotated[Literal["drop", "keep"] | None, decided("drop", "{drop,keep}")] = None
    """The shorter batch at the end of an epoch: leave it out, or train on it with fewer negatives."""
    shuffle_recordings: int = 0
    """Mix the clips of this many recordings at a time and read each recording as a whole, for a store that is larger
    than the memory; 0 mixes all clips (see docs/clip-store.md)."""
    micro_batch: int = 0
    """Clips that a process embeds at a time, to save memory; 0 for all. The negatives are still those of the whole
    batch."""
    batch_norm: Literal["local", "synchronised"] = "local"
    """Take batch norm statistics over each process's own clips (local), or over those of all
    processes (synchronised)."""
    dropout: float | None = None
    """Dropout of the encoder; by default the preset's own."""
    modality_dropout: float = 0.0
    """Probability that, in a step, a clip with three or more modalities goes without one of them, chosen evenly."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the encoders; the loss, the weights and the optimiser are float32 either way."""
    compile: bool = False
    """Run the encoders through torch.compile, for a GPU; compiling can take minutes at the start."""
    fused_blocks: bool = False
    """Train the published network's MBConv blocks with this package's own kernels; needs CUDA and --precision bfloat16.
    What it saves has not been measured on a GPU yet."""
    optimiser: Annotated[Literal["sgd", "adamw"] | None, decided("sgd", "{sgd,adamw}")] = None
    """SGD with momentum as in the paper, or AdamW."""
    schedule: Annotated[Literal["step", "cosine"] | None, decided("step", "{step,cosine}")] = None
    """step: multiply the learning rate by 0.1 every --step-epochs; cosine: warm up, then decay to zero along a
    cosine."""
    lr: Annotated[float | None, decided(0.001, "FLOAT")] = None
    """Learning rate."""
    step_epochs: Annotated[int | None, decided(5, "INT")] = None
    """Epochs between two steps of the step schedule."""
    momentum: Annotated[float | None, decided(0.9, "FLOAT")] = None
    """Momentum of SGD."""
    weight_decay: Annotated[float | None, decided(0, "FLOAT")] = None
    """Weight decay of matrices and convolution kernels; biases, BatchNorm and the temperature are never decayed."""
    log_temperature: Annotated[float | None, decided("0 or that of --init-from", "FLOAT")] = None
    """Initial log temperature; it is learned and kept between 0 and log(max-temperature)."""
    max_temperature: Annotated[float | None, decided(100, "FLOAT")] = None
    """Largest temperature, which multiplies the cosines in the softmax; 0 for no limit."""
    patience: Annotated[int | None, decided(5, "INT")] = None
    """Stop after this many epochs without a better validation loss; 0 never stops early."""
    max_steps: int = 0
    """Stop after this many steps; 0 for no limit."""
    skip_limit: int = 5
    """Skip a step whose loss or gradient is not finite; give up after more than this many in a row."""
    filters: Annotated[
        Literal["aasm", "seed", "clinical", "none"] | None, decided("aasm", "{aasm,seed,clinical,none}")
    ] = None
    """Filter preset: aasm (bands of the AASM manual), seed (resampling only, as the authors' code), clinical, or
    none."""
    notch_hz: Annotated[Literal[0, 50, 60] | None, decided(0, "{0,50,60}")] = None
    """Mains frequency to remove; 0 for none."""
    normalise: Annotated[Literal["recording", "clip", "none"] | None, decided("recording", "{recording,clip,none}")] = (
        None
    )
    """recording: scale by each recording's typical amplitude; clip: z-score every clip; none: keep physical units, as
    the authors' code does."""
    train_subjects: int = 0
    """Train on this many of the training subjects, drawn by a hash (nested: a smaller draw is part of a larger one); 0
    for all."""
    replicate: int = 0
    """Number of the draw of --train-subjects; another number gives another draw."""
    validation_share: float = 0.1
    """Expected share of subjects used for validation."""
    test_share: float = 0.2
    """Expected share of subjects kept for testing."""
    split_salt: str = "sleepfm_fast"
    """Text hashed with each subject's name; another text gives another split."""
    validation_block: Annotated[int | None, decided(256, "INT")] = None
    """Number of clips compared with each other in the validation loss."""
    checkpoint_steps: int = 200
    """Steps between checkpoints within an epoch (one is always written at the end of an epoch)."""
    seed: int = 0
    """Seed of weights, order of clips and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto uses CUDA if it is available."""
    threads: int = 0
    """CPU threads; 0 for all cores."""
    resume: bool = False
    """Continue the run in RUN exactly from its last checkpoint; --epochs and --max-steps may differ."""

    EFFECTS: ClassVar[tuple[Effect, ...]] = TRAINING_EFFECTS

    def places(self) -> list[Place]:
        """What its positionals take."""
        return [
            reads("STORE", self.store, Kind.STORE),
            writes("RUN", self.run, Kind.RUN, Kind.SUPERVISED),
        ]


def train(config: Config) -> dict[str, Any]:
    """Run or resume one training; returns the results that end the command."""
    from sleepfm_fast.training.settings import resolve, spelled
    from sleepfm_fast.training.world import claimed_run, joined

    if config.run is None:
        raise ValueError("train needs config.run")
    settings = resolve(config)
    with joined(config.device) as world, claimed_run(config.run, world):
        world.share_threads(config.threads)
        if world.main:
            say(f"resolved: {spelled(settings)}")
        return trained(settings, world)


def trained(settings: Settings, world: World) -> dict[str, Any]:
    """Train to the end."""
    from sleepfm_fast.training.contrastive import Trainer

    trainer = Trainer.prepare(settings, world)
    trainer.follow("train")
    return trainer.finish()


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
    return result


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    kept = "what was finished is kept; the same command with --resume continues from there (the demo without it)"
    rank = int(os.environ.get("RANK", "0"))
    return command.run(Config, main, argv, interrupted=kept, rank=rank, following=after_training)


if __name__ == "__main__":
    sys.exit(cli())
