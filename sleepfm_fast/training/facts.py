"""What a training reports about itself: in ``config.json``, at its start, and at its end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sleepfm_fast.cli.command import plain
from sleepfm_fast.model.backends import encoder_backend, filter_backend, loss_backend, threads
from sleepfm_fast.plurals import counted
from sleepfm_fast.training.sampler import shard_sizes

if TYPE_CHECKING:
    from sleepfm_fast.training.contrastive import Trainer

__all__ = ["announcement", "description", "results"]


def description(trainer: Trainer) -> dict[str, Any]:
    """Return the contents of ``config.json``: everything that embed needs to treat other clips in the same way."""
    return {
        "config": plain(trainer.config),
        "model": trainer.model.describe(),
        "montage": trainer.montage.to_dict(),
        "input": plain(trainer.input.config),
        "split": plain(trainer.split),
        "overlap": trainer.clips.overlap,
        "subjects": trainer.clips.subjects,
        "trained_subjects": list(trainer.clips.trained),
        "recordings": trainer.clips.recordings.plain(),
        "initialised_from": trainer.origin,
        "store_digest": trainer.store.digest,
        "ranks": trainer.world.size,
        "changes": [],
    }


def announcement(trainer: Trainer) -> str:
    """Say in one sentence what is trained, on which clips, and what runs it."""
    n = sum(p.numel() for p in trainer.model.parameters())
    config, model = trainer.config, trainer.model
    sizes = shard_sizes(trainer.sampler.batch_sizes[0], trainer.world.size)
    item = "pairs of neighbouring clips" if len(trainer.input.modalities) == 1 else "clips"
    together = f", {trainer.world.size} processes of {sizes[0]} {item}" if trainer.world.size > 1 else ""
    parts = f", embedded in {trainer.n_parts} parts" if trainer.n_parts > 1 else ""
    subjects = len(trainer.clips.trained)
    # A clip that is contrasted with its neighbour is one of two modalities.
    of_loss = (sum(sizes), model.config.dim, max(len(trainer.input.modalities), 2), config.mode)
    backends = (
        filter_backend(trainer.device),
        encoder_backend(
            *(next(iter(model.encoders.values())), trainer.device, config.precision),
            through_compile=config.compile,
            fused_blocks=config.fused_blocks,
        ),
        loss_backend(trainer.device, *of_loss),
        threads(),
    )
    return (
        f"{counted(len(trainer.clips.train), 'training clip')} of {counted(subjects, 'subject')} and "
        f"{counted(len(trainer.clips.validation), 'validation clip')}, {', '.join(trainer.input.modalities)}, {n:,} "
        f"parameters, {counted(trainer.total_steps, 'step')} of {sum(sizes)} {item} on {trainer.device}"
        f"{together}{parts} ({'; '.join(backends)})"
    )


def results(trainer: Trainer) -> dict[str, Any]:
    """Return the results that the command prints last."""
    return {
        "run": str(trainer.run.path),
        "steps": trainer.progress.step,
        "epochs": trainer.sampler.epoch,
        "stopped_early": trainer.progress.stopped_early,
        "skipped_steps": trainer.progress.skipped,
        "best_epoch": trainer.progress.best_epoch + 1,
        "best_validation_loss": trainer.progress.best_loss,
        "temperature": math.exp(float(trainer.model.log_temperature.detach())),
        "trained_subjects": len(trainer.clips.trained),
        "training_clips": len(trainer.clips.train),
        "validation_clips": len(trainer.clips.validation),
        "clips_per_s": trainer.pace.clips_per_s,
        "ranks": trainer.world.size,
        "overlap": trainer.clips.overlap,
        "notices": list(trainer.notices),
    }
