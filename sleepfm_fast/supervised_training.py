"""One end-to-end supervised training: its state, its loop, its checkpoints. ``supervise.py`` shows it to the user."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

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
from sleepfm_fast.ops.pages import release_pages
from sleepfm_fast.optimiser import build_optimiser
from sleepfm_fast.progress import Progress
from sleepfm_fast.results import FOLDER
from sleepfm_fast.rundir import (
    RunDirectory,
    pack_optimiser,
    read_checkpoint,
    reconcile,
    unpack_optimiser,
    write_checkpoint,
)
from sleepfm_fast.sampler import ClipSampler
from sleepfm_fast.schedule import learning_rate
from sleepfm_fast.splits import Split
from sleepfm_fast.supervised_clips import held_out_of, in_words, montage_of, select_labelled
from sleepfm_fast.supervised_network import finite, load_weights, logits_of, refuse_other_runs, scored
from sleepfm_fast.tasks import TASKS
from sleepfm_fast.world import choose_device

if TYPE_CHECKING:
    from sleepfm_fast.supervise import Config

__all__ = ["SupervisedTrainer"]

LOG_STEPS = 10  # a line of metrics.jsonl every so many steps


class SupervisedTrainer:
    """The state of one run, from the first step or from its last checkpoint.

    Use :meth:`prepare`; iterate :meth:`steps`; end with :meth:`finish`. The network is one encoder over the channels of
    all modalities stacked, with one output a class; absent channels are left out by the encoder itself.
    """

    def __init__(self, config: Config, store: ClipStore, run: RunDirectory) -> None:
        self.config = config
        self.store = store
        self.run = run
        self.options = cast("Any", config)  # has the fields that a schedule and an optimiser read
        self.device = choose_device(config.device)
        self.montage = montage_of(store, config.modality)
        self.input = ClipInput(
            store, self.montage, InputConfig(config.filters, config.notch_hz, config.normalise), self.device
        )
        self.split = Split(config.split_salt, config.validation_share, config.test_share)
        self.select(self.recordings_with(self.input.feed.present))
        recordings = np.unique(np.concatenate([self.recordings_of(side.clips) for side in self.sides.values()]))
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
        self.progress = Progress()
        self.clips_per_s = 0.0

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
            trainer.restore()
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

    def restore(self) -> None:
        """Load the last checkpoint."""
        if not self.run.last_path.exists():
            say(f"{self.run.path} has no checkpoint yet: starting from the first step")
            return
        tensors, state = read_checkpoint(self.run.last_path)
        load_weights(self.model, tensors)
        unpack_optimiser(self.optimiser, tensors, state["optimiser"])
        self.progress = Progress.from_state(state)
        self.sampler.epoch, self.sampler.position = state["epoch"], state["position"]
        torch.set_rng_state(tensors["rng/cpu"])
        if self.device.type == "cuda" and "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng/cuda"], self.device)
        say(f"resuming {self.run.path} at step {self.progress.step} (epoch {self.sampler.epoch + 1})")

    def save(self, *, best: bool = False) -> None:
        """Write ``last`` (everything) and, when ``best``, ``best`` (the network)."""
        model = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        place = {"epoch": self.sampler.epoch, "position": self.sampler.position, "ranks": 1}
        state: dict[str, Any] = {**self.progress.to_state(), **place}
        if best:
            write_checkpoint(self.run.best_path, model, state)
        generators = {"rng/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        moments, optimiser = pack_optimiser(self.optimiser)
        size = self.run.metrics_path.stat().st_size if self.run.metrics_path.exists() else 0
        write_checkpoint(
            self.run.last_path,
            {**model, **moments, **generators},
            {**state, "optimiser": optimiser, "metrics_bytes": size},
        )

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

    # ---- the loop ------------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        steps = self.config.epochs * self.sampler.batches_per_epoch
        return min(steps, self.config.max_steps) if self.config.max_steps else steps

    def recordings_of(self, clips: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Recording of each clip."""
        return np.asarray(self.store.recording[clips], np.int64)

    def losses(self, logits: Tensor, clips: npt.NDArray[np.int64]) -> Tensor:
        """Weighted cross-entropy of every clip, [B]; its mean is the loss."""
        columns = torch.from_numpy(self.column[clips]).to(self.device)
        return cross_entropy(logits, columns, reduction="none") * self.weights[columns]

    def update(self, batch: Batch, clips: npt.NDArray[np.int64], rate: float) -> tuple[float, str]:
        """One step of the optimiser: the loss before it, and why the step was left out if it was."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # A batch with impossible values must not leave them in the running statistics either.
        kept = [buffer.clone() for buffer in self.model.buffers()]
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.losses(logits_of(self.model, batch, self.config.precision), clips).mean()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        value, size = torch.stack([loss.detach(), norm]).tolist()  # one wait for the device
        if math.isfinite(value) and math.isfinite(size):
            self.optimiser.step()
            return value, ""
        for buffer, before in zip(self.model.buffers(), kept, strict=True):
            buffer.copy_(before)
        what = "the gradient is not finite" if math.isfinite(value) else f"the loss is {value}"
        inputs = [
            name
            for name, x in batch.x.items()
            if not bool(torch.where(batch.present[name].to(x.device)[..., None], x, 0.0).isfinite().all())
        ]
        return value, f"{what}; not finite: the input of {', '.join(inputs)}" if inputs else what

    def skip(self, reason: str, clips: npt.NDArray[np.int64]) -> None:
        """Note a step that was left out; too many in a row end the training."""
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        step, in_a_row = self.progress.step + 1, self.progress.skipped_in_a_row
        names = sorted({self.store.recordings[r].id for r in self.recordings_of(clips).tolist()})
        row = {"kind": "skipped", "step": step, "reason": reason, "recordings": names, "clips": clips.tolist()}
        self.run.append_metrics(row)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        say(f"notice: step {step} is skipped: {reason} (clips of {', '.join(names[:3])}{more}; see metrics.jsonl)")
        if in_a_row > self.config.skip_limit:
            raise SleepfmError(
                f"{reason} at step {step}, which makes {in_a_row} in a row (--skip-limit {self.config.skip_limit}). "
                f"Earlier checkpoints are kept in {self.run.path}. Lower --lr, or look for a channel with impossible "
                "values (preprocess --inspect)."
            )

    def steps(self) -> Iterator[dict[str, Any]]:
        """Train; yields a row after every step, with the epoch's validation where one just ended."""
        progress = self.progress
        remaining = self.total_steps - progress.step
        if remaining <= 0 or progress.stopped_early:
            return
        self.model.train()
        per_epoch = self.sampler.batches_per_epoch
        clock = time.perf_counter()
        for (epoch, position, clips), batch in self.input.batches(
            islice(iter(self.sampler), remaining), lambda item: item[2]
        ):
            rate = learning_rate(self.options, progress.step, per_epoch, self.total_steps)
            loss, failure = self.update(batch, clips, rate)
            if failure:
                self.skip(failure, clips)
            else:
                progress.skipped_in_a_row = 0
                progress.loss_sum += loss
                progress.loss_terms += 1
            progress.step += 1
            now = time.perf_counter()
            speed = len(clips) / (now - clock)
            self.clips_per_s = speed if self.clips_per_s == 0 else 0.9 * self.clips_per_s + 0.1 * speed
            row: dict[str, Any] = {"kind": "step", "epoch": epoch, "step": progress.step, "loss": loss, "lr": rate}
            if progress.step % LOG_STEPS == 0:
                self.run.append_metrics({**row, "clips_per_s": round(self.clips_per_s, 1)})
            last = position + 1 == per_epoch
            self.sampler.epoch, self.sampler.position = (epoch + 1, 0) if last else (epoch, position + 1)
            row["validated"] = self.end_epoch(epoch) if last or progress.step == self.total_steps else None
            if row["validated"] is None and progress.step % self.config.checkpoint_steps == 0:
                self.save()
            yield row
            if progress.stopped_early:
                return
            clock = time.perf_counter()

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Validate, remember the best, write the checkpoints."""
        progress = self.progress
        row: dict[str, Any] = {
            "kind": "epoch",
            "epoch": epoch,
            "step": progress.step,
            "training_loss": progress.loss_sum / max(progress.loss_terms, 1),
            **self.validate(),
        }
        if not math.isfinite(row["validation_loss"]):
            raise SleepfmError(
                f"the validation loss is {row['validation_loss']} after step {progress.step}: the training has "
                f"diverged. Earlier checkpoints are kept in {self.run.path}. Lower --lr, and train into another folder."
            )
        progress.loss_sum, progress.loss_terms = 0.0, 0
        best = row["validation_loss"] < progress.best_loss
        if best:
            progress.best_epoch, progress.best_loss = epoch, row["validation_loss"]
        progress.stopped_early = self.config.patience > 0 and epoch - progress.best_epoch >= self.config.patience
        self.run.append_metrics({**row, "clips_per_s": round(self.clips_per_s, 1)})
        self.save(best=best)
        return row

    def scored(self, clips: npt.NDArray[np.int64], what: str = "") -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        """As :func:`sleepfm_fast.supervised_network.scored`; the network is in training mode again afterwards."""
        yield from scored(self.model, self.input, clips, self.config.precision, what)
        self.model.train()

    def validate(self) -> dict[str, float]:
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
        tensors, _ = read_checkpoint(self.run.best_path)
        load_weights(self.model, tensors)
        clips = self.clips.test.clips
        parts = [logits.double().cpu().numpy() for _, logits in self.scored(clips, "test")]
        return log_odds(finite(np.concatenate(parts), self.store, clips))

    def finish(self) -> dict[str, Any]:
        """Test the best epoch, write ``RUN/results/TASK`` and return the results that end the command."""
        release_pages()  # kept for further steps
        config, progress = self.config, self.progress
        if progress.stopped_early:
            say(f"stopped early: no better validation loss in {config.patience} epochs")
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
