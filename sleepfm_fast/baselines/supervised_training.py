"""One end-to-end supervised training: network, clips, a step, a validation, the test. ``supervise.py`` shows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from sleepfm_fast.baselines.supervised_clips import held_out_of, in_words, montage_of, select_labelled
from sleepfm_fast.baselines.supervised_network import blocks_of, finite, logits_of, refuse_other_runs, scored
from sleepfm_fast.batches import Batch, ClipInput, InputConfig
from sleepfm_fast.cli.command import plain
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.distributed import gather_rows
from sleepfm_fast.encoder import PRESETS, Encoder, build_encoder
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.classification import conclude, log_odds
from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.model.backends import encoder_backend, filter_backend, threads
from sleepfm_fast.model.batch_norm import synchronise_batch_norm
from sleepfm_fast.plurals import counted
from sleepfm_fast.results import FOLDER
from sleepfm_fast.rundir import RunDirectory, read_checkpoint
from sleepfm_fast.runs.resumption import goes_on, reconcile
from sleepfm_fast.runs.splits import Split
from sleepfm_fast.store.label_rules import label_rules_note
from sleepfm_fast.store.side_stream import upload
from sleepfm_fast.training.loop import TrainingLoop, asked, recordings_of
from sleepfm_fast.training.objective import wrap
from sleepfm_fast.training.optimiser import build_optimiser
from sleepfm_fast.training.sampler import ClipSampler, shard, shard_sizes
from sleepfm_fast.training.world import World

if TYPE_CHECKING:
    from sleepfm_fast.supervise import Config

__all__ = ["SupervisedTrainer"]


class SupervisedTrainer(TrainingLoop):
    """One supervised training.

    Use :meth:`prepare`; iterate :meth:`steps`; end with :meth:`finish`. With several processes all of them do, in step;
    the first alone writes. The network is one encoder over the channels of all modalities stacked, with one output a
    class; absent channels are left out by the encoder itself.
    """

    def __init__(self, config: Config, store: ClipStore, run: RunDirectory, world: World) -> None:
        super().__init__(config, store, run, world)
        self.config = config
        self.montage = montage_of(store, config.modality)
        self.input = ClipInput(
            store, self.montage, InputConfig(config.filters, config.notch_hz, config.normalise), self.device
        )
        self.split = Split(config.split_salt, config.validation_share, config.test_share)
        self.select(self.recordings_with(self.input.feed.present))
        recordings = np.unique(np.concatenate([recordings_of(store, side.clips) for side in self.sides.values()]))
        self.say_notices(*self.measure(recordings))
        # A channel that is flat throughout a recording is none.
        self.select(self.recordings_with(self.input.feed.present & (self.input.scales.scale != 0)))
        self.classes = np.unique(self.clips.train.labels)
        # Column of the network's output for every clip of the store; -1 where it has no label, or not this run's.
        self.column = np.full(len(store), -1, np.int64)
        for side in self.sides.values():
            place = np.searchsorted(self.classes, side.labels).clip(max=len(self.classes) - 1)
            self.column[side.clips] = np.where(self.classes[place] == side.labels, place, -1)
        self.weights = self.class_weights().to(self.device)
        torch.manual_seed(config.seed)  # every rank makes the same weights
        self.model = self.build()
        if config.batch_norm == "synchronised" and world.size > 1:
            synchronise_batch_norm(self.model, dist.new_group())
        self.seed_rank(0)
        self.model.to(self.device)
        self.wrapped = wrap(self.model, unused=False)
        self.optimiser = build_optimiser(self.model, self.options)

    @staticmethod
    def recordings_with(channels: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which recordings have one of the channels [n_recordings, C]."""
        return np.asarray(channels.any(axis=1), np.bool_)

    def select(self, have: npt.NDArray[np.bool_]) -> None:
        """Choose the clips, given which recordings have a channel to read."""
        config = self.config
        self.clips = select_labelled(
            self.store, self.split, config.task, have, n_subjects=config.train_subjects, replicate=config.replicate
        )
        if len(self.clips.train) < 2:
            raise SleepfmError("one labelled training clip is left; batch norm needs two. Raise --train-subjects.")
        order: dict[str, Any] = {}
        if config.shuffle_recordings:
            order = {"recordings": np.asarray(self.store.recording), "in_play": config.shuffle_recordings}
        self.sampler = ClipSampler(self.clips.train.clips, config.batch_size, config.seed, **order)
        (size,) = self.sampler.batch_sizes
        if min(shard_sizes(size, self.world.size)) < 2:
            raise SleepfmError(
                f"a batch of {counted(size, 'clip')} over {self.world.size} processes leaves fewer than two clips to "
                "one; batch norm needs two. Raise --batch-size, or use fewer processes."
            )
        self.sides = {"train": self.clips.train, "validation": self.clips.validation, "test": self.clips.test}

    def class_weights(self) -> Tensor:
        """Weight of each class in the loss: 1, or n / (K n_k), whose mean over the training clips is 1."""
        k = len(self.classes)
        if self.config.class_weights == "none":
            return torch.ones(k)
        counts = np.bincount(self.column[self.clips.train.clips], minlength=k)
        return torch.tensor(counts.sum() / (k * counts), dtype=torch.float32)

    def build(self) -> Encoder:
        """The network: an encoder with as many outputs as there are classes."""
        config = dataclasses.replace(PRESETS[self.config.preset], dim=len(self.classes))
        if self.config.dropout is not None:
            config = dataclasses.replace(config, dropout=self.config.dropout)
        self.encoder = config
        return build_encoder(self.input.n_columns, config)

    # ---- start and resume ----------------------------------------------------------------------------------------

    @classmethod
    def prepare(cls, config: Config, world: World | None = None) -> SupervisedTrainer:
        """Start a new run, or restore one when ``config.resume``."""
        world = world or World()
        run = RunDirectory(config.run)
        store = ClipStore(config.store)
        if not config.resume:
            now = asked(kept_options(config), config, store, world)
            config = dataclasses.replace(config, resume=world.on_main(lambda: goes_on(run, "supervise", now)))
        changes: list[dict[str, Any]] = []
        if resumed := world.on_main(lambda: config.resume and run.exists()):
            remedy = "Resume it with `python -m sleepfm_fast.{command}`, or name another folder."
            refuse_other_runs(run, world.on_main(run.config), remedy)
            now = asked(kept_options(config), config, store, world)
            changes = world.on_main(lambda: reconcile(run, now))
        trainer = cls(config, store, run, world)
        trainer.say_changes(changes)
        trainer.say_notices(label_rules_note(store.path), *trainer.clips.notices)
        if resumed:
            trainer.load_last()
        else:
            trainer.say_new()
            world.on_main(lambda: run.create(trainer.description()))
        trainer.keep_amplitudes()
        trainer.announce()
        return trainer

    def description(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        spans = {name: span.stop - span.start for name, span in self.input.spans.items()}
        return {
            "command": "supervise",
            "config": kept_options(self.config),
            "model": {
                "modalities": spans,
                "encoder": dataclasses.asdict(self.encoder),
                "task": self.config.task,
                "classes": [TASKS[self.config.task].names[k] for k in self.classes],
            },
            "montage": self.montage.to_dict(),
            "input": plain(self.input.config),
            "split": plain(self.split),
            "overlap": self.clips.overlap,
            "subjects": self.clips.subjects,
            "training_subjects": self.clips.drawn,
            "recordings": self.clips.recordings.plain(),
            "store_digest": self.store.digest,
            "ranks": self.world.size,
            "changes": [],
        }

    def announce(self) -> None:
        """Say what is trained on what."""
        n = sum(p.numel() for p in self.model.parameters())
        names = TASKS[self.config.task].names
        for side, clips in self.sides.items():
            self.say(f"{side}: {in_words(clips, names)}")
        (size,) = self.sampler.batch_sizes
        share = shard_sizes(size, self.world.size)[0]
        together = f", {self.world.size} processes of {counted(share, 'clip')}" if self.world.size > 1 else ""
        self.say(
            f"{n:,} parameters, {counted(self.input.n_columns, 'channel')} of {', '.join(self.input.modalities)}, "
            f"{counted(self.total_steps, 'step')} of {size} clips on {self.device}{together} "
            f"({filter_backend(self.device)}; {encoder_backend(self.model, self.device, self.config.precision)}; "
            f"{threads()})"
        )

    # ---- a step and a validation ---------------------------------------------------------------------------------

    def losses(self, logits: Tensor, clips: npt.NDArray[np.int64]) -> Tensor:
        """Weighted cross-entropy of every clip, [B]; its mean is the loss."""
        columns = upload(torch.from_numpy(self.column[clips]), self.device)
        return cross_entropy(logits, columns, reduction="none") * self.weights[columns]

    def gradient(self, batch: Batch, items: npt.NDArray[np.int64]) -> tuple[Tensor, Callable[[], str]]:
        """Add the gradient of the cross-entropy, whose mean is over the clips of all ranks."""
        rank, n_ranks = self.world.rank, self.world.size
        losses = self.losses(logits_of(self.wrapped, batch, self.config.precision), shard(items, rank, n_ranks))
        # DistributedDataParallel takes the mean over ranks, so each rank's share is n_ranks times its part of the sum.
        (losses.sum() / (len(items) / n_ranks)).backward()
        every = losses.detach()
        if n_ranks > 1:
            every = gather_rows(every, shard_sizes(len(items), n_ranks), None)
        return every.mean(), lambda: self.not_finite(batch)

    def not_finite(self, batch: Batch) -> str:
        """Name the modalities whose input is not finite on any rank; empty where all are."""
        names = sorted({name for rank in self.world.gather(batch.not_finite()) for name in rank})
        return f"the input of {', '.join(names)}" if names else ""

    def logits(self, clips: npt.NDArray[np.int64], what: str = "") -> npt.NDArray[np.float32]:
        """Logits [n, K] of clips, on every rank; each scores some of the blocks. ``what`` names a bar of progress."""
        blocks = blocks_of(clips)
        rank, n_ranks = self.world.rank, self.world.size
        what = what if self.world.main else ""
        mine = [
            part.cpu() for part in scored(self.model, self.input, blocks[rank::n_ranks], self.config.precision, what)
        ]
        self.model.train()
        logits = np.empty((len(clips), len(self.classes)), np.float32)
        place = np.arange(len(clips))
        rows = self.world.gather_rows(torch.cat(mine) if mine else torch.empty(0, logits.shape[1]))
        for of_rank, values in enumerate(rows):
            if len(values):
                logits[np.concatenate(blocks_of(place)[of_rank::n_ranks])] = values.numpy()
        return logits

    def validation_words(self, row: dict[str, Any]) -> str:
        """Accuracy, and averaged over the classes."""
        return (
            f"validation accuracy {100 * row['validation_accuracy']:.1f} % (mean over classes "
            f"{100 * row['validation_balanced_accuracy']:.1f} %)"
        )

    def validation(self) -> dict[str, float]:
        """Mean loss, accuracy, and accuracy averaged over the classes that occur, on the validation clips."""
        k = len(self.classes)
        clips = self.clips.validation.clips
        logits = self.logits(clips)
        total = float(self.losses(torch.from_numpy(logits).to(self.device), clips).double().sum())
        confusion = np.zeros((k, k), np.int64)
        np.add.at(confusion, (self.column[clips], logits.argmax(1)), 1)
        n = confusion.sum(1)
        recall = np.diag(confusion)[n > 0] / n[n > 0]
        return {
            "validation_loss": total / int(n.sum()),
            "validation_accuracy": float(np.diag(confusion).sum() / n.sum()),
            "validation_balanced_accuracy": float(recall.mean()),
        }

    # ---- the end -------------------------------------------------------------------------------------------------

    def test(self) -> npt.NDArray[np.float64]:
        """Log-odds [n, K] of the test clips by the best network."""
        # Only the rank that wrote the file reads it: elsewhere a shared file system may still show an earlier one.
        self.world.on_main(lambda: self.load(read_checkpoint(self.run.best_path)[0]))
        self.world.copy_from_main(self.model.state_dict().values())
        clips = self.clips.test.clips
        return log_odds(finite(self.logits(clips, "test").astype(np.float64), self.store, clips))

    def finish(self) -> dict[str, Any]:
        """Test the best epoch, write ``RUN/results/TASK`` and return the results that end the command.

        On ranks other than the first, which writes, the results are empty.
        """
        self.wind_up()
        odds = self.test()
        if not self.world.main:
            return {}
        config, progress = self.config, self.progress
        names = TASKS[config.task].names
        pace = self.pace.clips_per_s
        if pace is None:  # no step was made now; what stands at the run's result would else lose its speed
            pace = self.run.last_metric("clips_per_s")
        record = {
            "command": "supervise",
            "run": self.run.path,
            "store": self.store.path,
            "task": config.task,
            "modalities": self.input.modalities,
            "preset": config.preset,
            "class_weights": config.class_weights,
            "overlap": self.clips.overlap,
            "overlap_note": " ".join(self.clips.notices) if self.clips.overlap else "",
            **{name: side.counts(names) for name, side in self.sides.items()},
            "training_subjects": self.clips.drawn,
            "replicate": config.replicate,
            "fit": {
                "steps": progress.step,
                "epochs": self.sampler.epoch,
                "stopped_early": progress.stopped_early,
                "skipped_steps": progress.skipped,
                "best_epoch": progress.best_epoch + 1,
                "best_validation_loss": progress.best_loss,
                "clips_per_s": pace,
                "ranks": self.world.size,
            },
        }
        counts = np.bincount(self.column[self.clips.train.clips], minlength=len(self.classes))
        return conclude(
            record,
            held_out_of(self.store, self.clips.test),
            odds,
            self.classes.astype(np.int8),
            bootstraps=config.bootstraps,
            seed=config.seed,
            prior=counts / counts.sum() if config.class_weights == "balanced" else None,
            path=self.run.path / FOLDER / config.task,
            overwrite=True,
        )


def kept_options(config: Config) -> dict[str, Any]:
    """The options that define a run; ``bootstraps`` only shapes its result."""
    options: dict[str, Any] = plain(config)
    del options["bootstraps"]
    return options
