"""Command: trained model + clip store -> embeddings of every clip."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sleepfm_fast import __version__
from sleepfm_fast.cli import command
from sleepfm_fast.cli.bars import progress_bar
from sleepfm_fast.cli.command import say
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.option_ranges import refuse_not_positive
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import counted
from sleepfm_fast.reporting.following import after_embeddings

if TYPE_CHECKING:
    import torch

    from sleepfm_fast.batches import ClipInput
    from sleepfm_fast.clips import ClipStore
    from sleepfm_fast.evaluation.embedding_writer import EmbeddingWriter
    from sleepfm_fast.inference import Embed

__all__ = ["Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config(TakesPaths):
    """Embed every clip of a store with the best model of a run: one unit vector for each modality.

    After a kill or an interruption, the same command continues where it stopped and writes the same bytes. If the same
    command has already finished EMBEDDINGS, it says so and exits with status 0.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder written by train, one of its .safetensors checkpoints, or the authors' best.pt."""
    store: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
    """Clip store; its montage may differ from the one the model was trained on: channels are matched by name."""
    embeddings: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="EMBEDDINGS")]
    """Folder to write."""

    batch_size: int = 128
    """Clips in a batch; it changes the speed, and the embeddings by no more than rounding."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the encoders; embeddings are stored as float32 either way."""
    compile: bool = False
    """Run the encoders through torch.compile, for a GPU; compiling can take minutes at the start."""
    fused_blocks: bool = False
    """Run each of the published network's MBConv blocks as one kernel; needs CUDA and --precision bfloat16. What it
    saves has not been measured on a GPU yet."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto uses CUDA if it is available."""
    overwrite: bool = False
    """Replace an existing EMBEDDINGS folder once the new one is complete."""

    def places(self) -> list[Place]:
        """What its positionals take."""
        return [
            reads("RUN", self.run, Kind.RUN, Kind.SUPERVISED, Kind.CHECKPOINT),
            reads("STORE", self.store, Kind.STORE),
            writes("EMBEDDINGS", self.embeddings, Kind.EMBEDDINGS, Kind.FEATURES),
        ]


def main(config: Config) -> dict[str, Any]:
    """Embed; returns the results that end the command."""
    from sleepfm_fast.evaluation.described_clips import described_clips
    from sleepfm_fast.evaluation.embedding_writer import EmbeddingWriter, is_finished
    from sleepfm_fast.inference import embedder
    from sleepfm_fast.model.backends import encoder_backend, filter_backend, threads
    from sleepfm_fast.pretrained import SEED_SUFFIXES, UNITS, load_model
    from sleepfm_fast.rundir import RunDirectory
    from sleepfm_fast.runs.origin import UNKNOWN_SUBJECTS, seen_by
    from sleepfm_fast.runs.splits import Split
    from sleepfm_fast.training.world import choose_device

    started = time.monotonic()
    refuse_not_positive(config, ("batch_size",))
    device = choose_device(config.device)
    model, saved, weights = load_model(config.run, device)
    if config.run.suffix in SEED_SUFFIXES:
        say(f"notice: {UNITS}")
    seen = seen_by(saved)
    if not seen.complete:
        say(f"notice: {config.run}: {UNKNOWN_SUBJECTS}")
    clip_input = opened(config.store, saved, device)
    store, n, dim = clip_input.store, len(clip_input.store), model.config.dim
    presets = {
        "train": saved["config"],
        "input": saved["input"],
        "weights": weights,
        "precision": config.precision,
        "subjects_known": seen.complete,
    }
    columns, description = described_clips(store, Split(**saved["split"]), seen, run=str(config.run), presets=presets)
    if not n:
        raise SleepfmError(f"the store {config.store} has no clips; add recordings of 30 s or more with preprocess.")
    for notice in clip_input.read_amplitudes(RunDirectory(Path(weights["file"]).parent).amplitudes_path):
        say(f"notice: {notice}")
    embed = embedder(model, config.precision, compiled=config.compile, fused_blocks=config.fused_blocks)
    key = made_of(config, saved, weights, store.digest, device)
    if config.overwrite or not is_finished(config.embeddings, key, columns, description):
        encoders = encoder_backend(
            *(next(iter(model.encoders.values())), device, config.precision),
            through_compile=config.compile,
            fused_blocks=config.fused_blocks,
        )
        say(f"{counted(n, 'clip')} on {device} ({filter_backend(device)}; {encoders}; {threads()})")
        with EmbeddingWriter(
            config.embeddings, n, clip_input.modalities, dim, overwrite=config.overwrite, key=key
        ) as writer:
            write(store, clip_input, embed, writer, config.batch_size)
            writer.finish(columns, description)
    return {
        "embeddings": str(config.embeddings),
        "clips": n,
        "modalities": list(clip_input.modalities),
        "dim": dim,
        "weights": weights,
        "precision": config.precision,
        "overlap": description.overlap,
        "elapsed_s": round(time.monotonic() - started, 1),
    }


def opened(path: Path, saved: Mapping[str, Any], device: torch.device) -> ClipInput:
    """Open a store as the input of a run's network, and say in what it differs from the store of the training."""
    from sleepfm_fast.batches import ClipInput, InputConfig
    from sleepfm_fast.channels import Montage
    from sleepfm_fast.clips import ClipStore
    from sleepfm_fast.store.label_rules import say_label_rules

    store = ClipStore(path)
    clip_input = ClipInput(store, Montage.from_dict(saved["montage"]), InputConfig(**saved["input"]), device)
    if clip_input.renamed_slots:
        say(f"notice: the montages name some channels differently; taken: {', '.join(clip_input.renamed_slots)}")
    for notice in clip_input.lacking(saved.get("store_digest")):
        say(f"notice: {notice}")
    say_label_rules(store.path)
    return clip_input


def made_of(
    config: Config, saved: Mapping[str, Any], weights: Mapping[str, Any], store_digest: str, device: torch.device
) -> dict[str, Any]:
    """What the embeddings depend on."""
    return {
        "command": "embed",
        "version": __version__,
        "weights": weights["sha256"],
        "store": store_digest,
        "montage": saved["montage"],
        "input": saved["input"],
        # Batches of another size, or another device, round otherwise.
        "batch_size": config.batch_size,
        "precision": config.precision,
        "compile": config.compile,
        "device": device.type,
        **({"fused_blocks": True} if config.fused_blocks else {}),
    }


def write(store: ClipStore, clip_input: ClipInput, embed: Embed, writer: EmbeddingWriter, batch_size: int) -> None:
    """Embed the clips that are not written yet."""
    import numpy as np
    import torch

    done, n = writer.n_written, len(store)
    # One bar after the other: in a log, a bar below another one would begin a line whenever it moves.
    for notice in clip_input.measure(
        np.unique(np.asarray(store.recording)[done:]).astype(np.int64),
        lambda r: progress_bar(r, desc="measure amplitudes", unit="night"),
    ):
        say(f"notice: {notice}")
    with progress_bar(total=n, initial=done, unit="clip", desc="embed") as bar, torch.inference_mode():
        batches = (np.arange(i, min(i + batch_size, n), dtype=np.int64) for i in range(done, n, batch_size))
        for clips, batch in clip_input.batches(batches, lambda clips: clips):
            embeddings, mask = embed(batch)
            writer.append(embeddings.transpose(0, 1), mask.T)
            bar.update(len(clips))


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    kept = "finished clips are kept beside EMBEDDINGS; the same command continues from there"
    return command.run(Config, main, argv, interrupted=kept, following=after_embeddings)


if __name__ == "__main__":
    sys.exit(cli())
