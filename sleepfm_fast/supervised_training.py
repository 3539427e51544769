"""One end-to-end supervised training: network, clips, a step, a validation, the test. ``supervise.py`` shows it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from sleepfm_fast.batches import Batch, ClipInput, InputConfig
from sleepfm_fast.classification import conclude, log_odds
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.command import plain, say
from sleepfm_fast.encoder import PRESETS, Encoder, build_encoder
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.optimiser import build_optimiser
from sleepfm_fast.results import FOLDER
from sleepfm_fast.rundir import RunDirectory, read_checkpoint, reconcile
from sleepfm_fast.sampler import ClipSampler
from sleepfm_fast.splits import Split
from sleepfm_fast.supervised_clips import held_out_of, in_words, montage_of, select_labelled
from sleepfm_fast.supervised_network import finite, logits_of, refuse_other_runs, scored
from sleepfm_fast.tasks import TASKS
from sleepfm_fast.training_loop import TrainingLoop, recordings_of
from sleepfm_fast.world import World

if TYPE_CHECKING:
    from sleepfm_fast.supervise import Config

__all__ = ["SupervisedTrainer"]


class SupervisedTrainer(TrainingLoop):
    """One supervised training, in one process.

    Use :meth:`prepare`; iterate :meth:`steps`; end with :meth:`finish`. The network is one encoder over the channels of
    all modalities stacked, with one output a class; absent channels are left out by the encoder itself.
    """

    def __init__(self, config: Config, store: ClipStore, run: RunDirectory) -> None:
        super().__init__(config, store, run, World())
        self.config = config
        self.montage = montage_of(store, config.modality)
        self.input = ClipInput(
            store, self.montage, InputConfig(config.filters, config.notch_hz, config.normalise), self.device
        )
        self.split = Split(config.split_salt, config.validation_share, config.test_share)
        self.select(self.recordings_with(self.input.feed.present))
        recordings = np.unique(np.concatenate([recordings_of(store, side.clips) for side in self.sides.values()]))
        for notice in self.input.measure(
            recordings, lambda r: tqdm(r, desc="measure amplitudes", unit="night", file=sys.stderr)
        ):
            say(f"notice: {notice}")
        # A channel that is flat throughout a recording is none.
        self.select(self.recordings_with(self.input.feed.present & (self.input.scales.scale != 0)))
        self.classes = np.unique(self.clips.train.labels)
        # Column of the network's output for every clip of the store; -1 where it has no label, or not this run's.
        self.column = np.full(len(store), -1, np.int64)
        for side in self.sides.values():
            place = np.searchsorted(self.classes, side.labels).clip(max=len(self.classes) - 1)
            self.column[side.clips] = np.where(self.classes[place] == side.labels, place, -1)
        self.weights = self.class_weights().to(self.device)
        torch.manual_seed(config.seed)
        self.model = self.build().to(self.device)
        self.optimiser = build_optimiser(self.model, self.options)
        self.sampler = ClipSampler(self.clips.train.clips, config.batch_size, config.seed)

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
    def prepare(cls, config: Config) -> SupervisedTrainer:
        """Start a new run, or restore one when ``config.resume``."""
        run = RunDirectory(config.run)
        if not config.resume:
            run.refuse_if_present()
        store = ClipStore(config.store)
        resumed = config.resume and run.exists()
        if resumed:
            remedy = "Resume it with `python -m sleepfm_fast.{command}`, or name another folder."
            refuse_other_runs(run, run.config(), remedy)
            for change in reconcile(run, {"config": kept_options(config), "store_digest": store.digest, "ranks": 1}):
                say(f"notice: from step {change['step']} on, {change['option']} is {change['is']}, was {change['was']}")
        trainer = cls(config, store, run)
        for notice in trainer.clips.notices:
            say(f"notice: {notice}")
        if resumed:
            trainer.load_last()
        else:
            run.create(trainer.description())
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
            "store_digest": self.store.digest,
            "ranks": 1,
            "changes": [],
        }

    def announce(self) -> None:
        """Say what is trained on what."""
        n = sum(p.numel() for p in self.model.parameters())
        names = TASKS[self.config.task].names
        for side, clips in self.sides.items():
            say(f"{side}: {in_words(clips, names)}")
        say(
            f"{n:,} parameters, {self.input.n_columns} channels of {', '.join(self.input.modalities)}, "
            f"{self.total_steps} steps of {min(self.config.batch_size, len(self.clips.train))} clips on {self.device} "
            f"({torch.get_num_threads()} threads)"
        )

    # ---- a step and a validation ---------------------------------------------------------------------------------

    def losses(self, logits: Tensor, clips: npt.NDArray[np.int64]) -> Tensor:
        """Weighted cross-entropy of every clip, [B]; its mean is the loss."""
        columns = torch.from_numpy(self.column[clips]).to(self.device)
        return cross_entropy(logits, columns, reduction="none") * self.weights[columns]

    def gradient(self, batch: Batch, items: npt.NDArray[np.int64]) -> tuple[Tensor, Callable[[], str]]:
        """Add the gradient of the cross-entropy."""
        loss = self.losses(logits_of(self.model, batch, self.config.precision), items).mean()
        loss.backward()
        return loss.detach(), lambda: f"the input of {', '.join(names)}" if (names := batch.not_finite()) else ""

    def scored(self, clips: npt.NDArray[np.int64], what: str = "") -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        """As :func:`sleepfm_fast.supervised_network.scored`; the network is in training mode again afterwards."""
        yield from scored(self.model, self.input, clips, self.config.precision, what)
        self.model.train()

    def validation(self) -> dict[str, float]:
        """Mean loss, accuracy, and accuracy averaged over the classes that occur, on the validation clips."""
        k = len(self.classes)
        total = 0.0
        confusion = np.zeros((k, k), np.int64)
        for clips, logits in self.scored(self.clips.validation.clips):
            total += float(self.losses(logits, clips).double().sum())
            np.add.at(confusion, (self.column[clips], logits.argmax(1).cpu().numpy()), 1)
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
        self.load(read_checkpoint(self.run.best_path)[0])
        clips = self.clips.test.clips
        parts = [logits.double().cpu().numpy() for _, logits in self.scored(clips, "test")]
        return log_odds(finite(np.concatenate(parts), self.store, clips))

    def finish(self) -> dict[str, Any]:
        """Test the best epoch, write ``RUN/results/TASK`` and return the results that end the command."""
        self.wind_up()
        config, progress = self.config, self.progress
        names = TASKS[config.task].names
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
                "clips_per_s": round(self.clips_per_s, 1),
            },
        }
        counts = np.bincount(self.column[self.clips.train.clips], minlength=len(self.classes))
        return conclude(
            record,
            held_out_of(self.store, self.clips.test),
            self.test(),
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
