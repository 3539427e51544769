"""One contrastive training: model, clips, step and validation. ``train.py`` is the command around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from sleepfm_fast.batches import Batch, ClipInput, InputConfig
from sleepfm_fast.cli.command import plain
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.encoder import PRESETS, SleepModel
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.model.batch_norm import synchronise_batch_norm
from sleepfm_fast.model.compilation import compile_encoders
from sleepfm_fast.model.fused_training import check_fused_training, fuse_training
from sleepfm_fast.pretrained import Pretrained, initialise, read_pretrained
from sleepfm_fast.rundir import RunDirectory
from sleepfm_fast.runs.origin import UNKNOWN_SUBJECTS, Seen, seen_by, split_before
from sleepfm_fast.runs.resumption import goes_on, reconcile
from sleepfm_fast.runs.splits import Split
from sleepfm_fast.store.label_rules import label_rules_note
from sleepfm_fast.training.facts import announcement, description, results
from sleepfm_fast.training.loop import TrainingLoop, asked, recordings_of
from sleepfm_fast.training.modality_dropout import draw, without
from sleepfm_fast.training.objective import Objective, backward, not_finite, wrap
from sleepfm_fast.training.optimiser import build_optimiser
from sleepfm_fast.training.plan import make_plan
from sleepfm_fast.training.sampler import shard_sizes
from sleepfm_fast.training.selection import chosen_montage, select_clips
from sleepfm_fast.training.validation import validate
from sleepfm_fast.training.world import World

if TYPE_CHECKING:
    from sleepfm_fast.training.settings import Settings

__all__ = ["Trainer"]


class Trainer(TrainingLoop):
    """One contrastive training.

    Make it by :meth:`prepare`, iterate :meth:`steps`, end with :meth:`finish`. With several processes all of them do so
    in lockstep; only the first one writes.
    """

    model: SleepModel

    def __init__(self, config: Settings, store: ClipStore, run: RunDirectory, world: World, seen: Seen) -> None:
        super().__init__(config, store, run, world)
        self.config = config
        self.montage = chosen_montage(store, config.modalities)
        self.input = ClipInput(
            store, self.montage, InputConfig(config.filters, config.notch_hz, config.normalise), self.device
        )
        self.split = Split(config.split_salt, config.validation_share, config.test_share)
        self.seen = seen
        self.clips = select_clips(
            *(store, self.split, self.montage),
            n_subjects=config.train_subjects,
            replicate=config.replicate,
            seen=seen,
        )
        self.notices = self.clips.notices
        if not seen.complete:
            self.notices += (f"{config.init_from}: {UNKNOWN_SUBJECTS}",)
        if config.modality_dropout and len(self.input.modalities) < 3:
            raise SleepfmError(
                f"--modality-dropout leaves every clip two modalities, so it needs three; {store.path} has "
                f"{', '.join(self.input.modalities)}."
            )
        torch.manual_seed(config.seed)  # every rank makes the same weights
        channels = {name: span.stop - span.start for name, span in self.input.spans.items()}
        encoder = PRESETS[config.preset]
        if config.dropout is not None:
            encoder = dataclasses.replace(encoder, dropout=config.dropout)
        self.model = SleepModel(channels, encoder, config.log_temperature or 0.0)
        self.origin: dict[str, Any] | None = None
        if config.batch_norm == "synchronised" and world.size > 1:
            group = dist.new_group()
            synchronise_batch_norm(self.model, group)
            self.model.count_everywhere = partial(world.total, group=group)
        self.seed_rank(0)
        self.model.to(self.device)
        if config.compile:
            compile_encoders(self.model)
        if config.fused_blocks:
            synchronised = config.batch_norm == "synchronised" and world.size > 1
            check_fused_training(self.model, config.precision, compiled=config.compile, synchronised=synchronised)
            fuse_training(self.model)
        self.objective = Objective(self.model, config.mode, config.directions, config.loss_scale, config.precision)
        self.wrapped: torch.nn.Module = self.objective
        self.optimiser = build_optimiser(self.model, config)
        plan = make_plan(config, store, self.clips, len(self.input.modalities), world.size)
        self.sampler, self.blocks, self.n_parts = plan.sampler, plan.blocks, plan.n_parts

    # ---- start and resume ----------------------------------------------------------------------------------------

    @classmethod
    def prepare(cls, config: Settings, world: World | None = None) -> Trainer:
        """Start a new run; with ``config.resume``, go on with an existing one."""
        world = world or World()
        if config.store is None or config.run is None:
            raise ValueError("prepare needs config.store and config.run")
        run = RunDirectory(config.run)
        store = ClipStore(config.store)
        if not config.resume:
            now = asked(plain(config), config, store, world)
            config = dataclasses.replace(config, resume=world.on_main(lambda: goes_on(run, "train", now)))
        found = None
        if resumed := world.on_main(lambda: config.resume and run.exists()):
            saved = world.on_main(run.config)
            if (made_by := saved.get("command", "train")) != "train":
                raise SleepfmError(
                    f"{run.path} holds a run of {made_by}, not of train. Resume it with `python -m "
                    f"sleepfm_fast.{made_by}`, or name another folder."
                )
            seen = split_before(saved.get("initialised_from"))
        elif config.init_from is None:
            seen = Seen()
        else:
            found = read_pretrained(config.init_from)
            seen = seen_by(found.config)
        trainer = cls(config, store, run, world, seen)
        trainer.say_notices(label_rules_note(store.path), *trainer.notices)
        if resumed:
            trainer.restore()
        else:
            trainer.say_new()
            if found is not None:
                trainer.initialise(found)
            world.on_main(lambda: run.create(description(trainer)))
        trainer.say(announcement(trainer))
        used = np.unique(recordings_of(trainer.store, trainer.clips.clips))
        trainer.say_notices(*trainer.measure(used))
        trainer.keep_amplitudes()
        # If every recording has every modality, no encoder is ever without clips, and DistributedDataParallel need not
        # look for unused parameters.
        present = trainer.input.feed.present & (trainer.input.scales.scale != 0)
        whole = all(present[used][:, trainer.columns(name)].any(axis=1).all() for name in trainer.input.modalities)
        trainer.wrapped = wrap(trainer.objective, unused=not whole or config.modality_dropout > 0)
        return trainer

    def initialise(self, found: Pretrained) -> None:
        """Take over the encoders of ``--init-from``."""
        sentences = initialise(self.model, found, self.montage, self.config)
        for sentence in sentences:
            self.say(sentence)
        self.origin = {
            "path": str(self.config.init_from),
            "file": str(found.file),
            "sha256": found.sha256(),
            "modalities": list(self.model.modalities),
            "log_temperature": float(self.model.log_temperature.detach()),
            "subjects": self.seen.subjects,
            "subjects_known": self.seen.complete,
            "recordings": self.seen.recordings.plain(),
        }

    def columns(self, modality: str) -> npt.NDArray[np.int64]:
        """Return the columns of the store's channels that belong to a modality."""
        span = self.input.spans[modality]
        return np.flatnonzero((self.input.places >= span.start) & (self.input.places < span.stop))

    def restore(self) -> None:
        """Load the last checkpoint; a run whose configuration differs is refused, naming what differs."""
        now = asked(plain(self.config), self.config, self.store, self.world)
        self.say_changes(self.world.on_main(lambda: reconcile(self.run, now)))
        if self.load_last() or self.config.init_from is None:
            return
        self.initialise(read_pretrained(self.config.init_from))
        before = self.world.on_main(self.run.config).get("initialised_from")
        if self.origin is None or self.origin["sha256"] != before["sha256"]:
            raise SleepfmError(
                f"--init-from {self.config.init_from} is not the file that {self.run.path} was started from. "
                "Restore it, or train into another folder."
            )

    # ---- a step and a validation ---------------------------------------------------------------------------------

    def prepared(self, batch: Batch, epoch: int, position: int, n_clips: int) -> Batch:
        """Return the batch with modalities left out of it (``--modality-dropout``)."""
        if not self.config.modality_dropout:
            return batch
        numbers = draw(self.config.seed, epoch, position, n_clips)
        return without(batch, numbers, self.config.modality_dropout, self.world.rank, self.world.size)

    def gradient(self, batch: Batch, items: npt.NDArray[np.int64]) -> tuple[torch.Tensor, Callable[[], str]]:
        """Add the gradient of the contrastive loss; the loss returned is the mean, whatever ``--loss-scale`` is."""
        counts = shard_sizes(len(items), self.world.size)
        outcome = backward(self.objective, self.wrapped, batch, counts=counts, n_parts=self.n_parts)
        modalities = tuple(self.model.modalities)
        return self.objective.mean(outcome), lambda: not_finite(batch, outcome, modalities, self.world)

    def after_step(self) -> None:
        """Keep the temperature in its range."""
        with torch.no_grad():
            self.model.log_temperature.clamp_(0.0, self.config.max_log_temperature)

    def watched(self) -> dict[str, torch.Tensor]:
        """The temperature."""
        return {"temperature": self.model.log_temperature.detach().exp()}

    def step_words(self, row: dict[str, Any]) -> str:
        """The temperature."""
        return f"temperature {row['temperature']:.1f} "

    def validation_words(self, row: dict[str, Any]) -> str:
        """Say how often a clip's own counterpart is the most similar one."""
        return f"validation top-1 {100 * row['validation_top1']:.1f} %"

    def validation(self) -> dict[str, float]:
        """The contrastive loss over fixed blocks of clips."""
        return validate(
            *(self.model, self.input, self.blocks, self.config.mode, self.config.directions, self.world),
            precision=self.config.precision,
        )

    def finish(self) -> dict[str, Any]:
        """End the training; return the results that the command prints last."""
        self.wind_up()
        return results(self)
