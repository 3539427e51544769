"""The loop that every training shares: steps, skipped steps, epochs, early stopping, checkpoints and resuming."""

from __future__ import annotations

import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sleepfm_fast import __version__
from sleepfm_fast.batches import Batch, ClipInput
from sleepfm_fast.cli.bars import progress_bar
from sleepfm_fast.cli.command import plain, plain_defaults, say
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.ops.pages import release_pages
from sleepfm_fast.plurals import counted, first_of
from sleepfm_fast.rundir import (
    RunDirectory,
    model_part,
    pack_optimiser,
    read_checkpoint,
    unpack_optimiser,
    write_checkpoint,
)
from sleepfm_fast.runs.checkpoints import damaged
from sleepfm_fast.training.kept_buffers import KeptBuffers
from sleepfm_fast.training.neighbours import clips_of
from sleepfm_fast.training.pace import Pace
from sleepfm_fast.training.progress import Progress, whole_number
from sleepfm_fast.training.sampler import ClipSampler, shard
from sleepfm_fast.training.schedule import learning_rate
from sleepfm_fast.training.world import World

__all__ = ["TrainingLoop", "asked", "recordings_of"]

LOG_STEPS = 10  # steps between lines of metrics.jsonl; epochs count from 0 there, as they have in all earlier runs
OWN = ("store", "run", "device", "threads")
"""Options that may differ between the processes of a training, as between machines; all others must be the same."""

Int64 = npt.NDArray[np.int64]


class TrainingLoop(ABC):
    """One run, from the first step or from its last checkpoint. A subclass defines a step and a validation.

    With several processes all of them iterate :meth:`steps` in lockstep; only the first one writes.

    Parameters
    ----------
    options : Config or Settings
        Length, schedule, patience, limits and the device of the run.
    store, run, world
        Where clips come from, where the run is written, and the processes that take part.

    Attributes
    ----------
    input, model, optimiser, sampler
        Set by the subclass. An item of the sampler is a clip, or a pair of neighbouring clips.
    progress : Progress
        How far the run has come.
    pace : Pace
        Clips per second of the last steps, of all processes together.
    """

    input: ClipInput
    model: torch.nn.Module
    optimiser: torch.optim.Optimizer
    sampler: ClipSampler

    def __init__(self, options: Any, store: ClipStore, run: RunDirectory, world: World) -> None:
        self.options = options
        self.store = store
        self.run = run
        self.world = world
        alike = {"sleepfm_fast": __version__, "the index": store.digest}
        alike |= {f"--{name.replace('_', '-')}": value for name, value in plain(options).items() if name not in OWN}
        world.require_same(alike)
        self.device = world.device(options.device)
        self.progress = Progress()
        self.pace = Pace()
        self.measured = False

    # ---- what a subclass says --------------------------------------------------------------------------------------

    @abstractmethod
    def gradient(self, batch: Batch, items: Int64) -> tuple[Tensor, Callable[[], str]]:
        """Add the gradient of the loss to the parameters' ``grad``.

        Parameters
        ----------
        batch : Batch
            This process's clips.
        items : int64 [n] or [n, 2]
            Items of all processes.

        Returns
        -------
        loss : Tensor
            0-d and detached, the same on every rank.
        explain : callable
            Called if loss or gradient is not finite; returns what else was not, or an empty text.
        """

    @abstractmethod
    def validation(self) -> dict[str, float]:
        """Return ``validation_loss`` and whatever else belongs into an epoch's row."""

    @abstractmethod
    def validation_words(self, row: dict[str, Any]) -> str:
        """Return what an epoch's line says about its validation besides the loss."""

    def step_words(self, row: dict[str, Any]) -> str:
        """Return what the progress bar says about a step besides the loss, with a space at the end."""
        return ""

    def prepared(self, batch: Batch, epoch: int, position: int, n_clips: int) -> Batch:
        """Return the batch at this place of the run as its step is to use it."""
        return batch

    def after_step(self) -> None:  # noqa: B027 - most parameters have no range
        """Bring parameters back into their ranges."""

    def watched(self) -> dict[str, Tensor]:
        """Return what else belongs into a step's row, from before the step: 0-d on the device, read with the loss."""
        return {}

    def measure(self, recordings: Int64) -> tuple[str, ...]:
        """Measure the amplitudes that the run has not kept, each rank its share; a sentence for each flat channel."""
        if self.options.normalise != "recording":
            return ()
        scales = self.input.scales
        notices = self.world.on_main(lambda: list(self.input.read_amplitudes(self.run.amplitudes_path)))
        # What the first process has read, all of them know.
        for name in ("centre", "scale", "measured") if self.world.size > 1 else ():
            column = getattr(scales, name)
            column[:] = self.world.gather_rows(torch.from_numpy(column.astype(np.float32)))[0].numpy()
        unknown = recordings[~scales.measured[recordings]]
        mine = unknown[self.world.rank :: self.world.size]
        self.input.measure(
            mine,
            lambda r: progress_bar(r, desc="measure amplitudes", unit="night", disable=not self.world.main),
        )
        for name in ("centre", "scale") if self.world.size > 1 else ():
            column = getattr(scales, name)
            for rank, rows in enumerate(self.world.gather_rows(torch.from_numpy(column[mine]))):
                column[unknown[rank :: self.world.size]] = rows.numpy()
        scales.measured[recordings] = True
        self.measured = self.measured or len(unknown) > 0
        return (*notices, *self.input.flat_channels(recordings))

    def keep_amplitudes(self) -> None:
        """Write amplitudes that were measured into the run's folder, once it stands: no later command measures them."""
        if self.measured:
            self.world.on_main(lambda: self.input.write_amplitudes(self.run.amplitudes_path))

    def unite_buffers(self) -> None:
        """Average the ranks' running statistics of batch norm; synchronised ones are equal already."""
        if self.options.batch_norm == "local":
            self.world.mean_in_place(list(self.model.buffers()))

    # ---- saying and writing, once ----------------------------------------------------------------------------------

    def say(self, sentence: str) -> None:
        """Say a sentence to the user once, whatever the number of processes."""
        if self.world.main:
            say(sentence)

    def say_notices(self, *notices: str) -> None:
        """Say what the user should know; empty texts are left out."""
        for notice in filter(None, notices):
            self.say(f"notice: {notice}")

    def say_changes(self, changes: Iterable[Mapping[str, Any]]) -> None:
        """Say which options are other ones from here on; ``changes`` as of ``runs.resumption.reconcile``."""
        for change in changes:
            self.say(
                f"notice: from step {change['step']} on, {change['option']} is {change['is']}, was {change['was']}"
            )

    def say_new(self) -> None:
        """Say that there was nothing to resume, where ``--resume`` asks for that."""
        if self.options.resume:
            self.say(f"notice: there is no run in {self.run.path} to continue; the training starts from the beginning")

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Write a line of ``metrics.jsonl``, once."""
        if self.world.main:
            self.world.refuse_taken_over()
            self.run.append_metrics(row)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load the model from a checkpoint's tensors."""
        self.model.load_state_dict(model_part(tensors))

    def load_last(self) -> bool:
        """Restore the last checkpoint; False if there is none yet."""
        if not self.world.on_main(self.run.last_path.exists):
            self.say(f"{self.run.path} has no checkpoint yet: starting from the first step")
            return False
        tensors, state = read_checkpoint(self.run.last_path)
        try:
            self.take_up(tensors, state)
        except torch.OutOfMemoryError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            what = str(error).partition("\n")[0].rstrip(":. ")
            raise damaged(self.run.last_path, ValueError(f"{type(error).__name__}: {what}")) from error
        where = f"at step {self.progress.step} (epoch {self.sampler.epoch + 1})"
        self.say(self.finished() or f"resuming {self.run.path} {where}")
        return True

    def take_up(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Restore everything from a checkpoint: model, optimiser, progress, random numbers."""
        self.load(tensors)
        unpack_optimiser(self.optimiser, tensors, state["optimiser"])
        self.progress = Progress.from_state(state)
        self.sampler.epoch, self.sampler.position = (whole_number(state, name) for name in ("epoch", "position"))
        if state.get("ranks", 1) == self.world.size:
            own = f"/{self.world.rank}" if self.world.rank else ""
            torch.set_rng_state(tensors[f"rng/cpu{own}"])
            if self.device.type == "cuda" and f"rng/cuda{own}" in tensors:
                torch.cuda.set_rng_state(tensors[f"rng/cuda{own}"], self.device)
        else:
            self.seed_rank(self.progress.step, always=True)

    def finished(self) -> str:
        """Say why a run has no steps left to train, and how to get more; empty if it has some."""
        steps = counted(self.progress.step, "step")
        if self.progress.stopped_early:
            return (
                f"{self.run.path} is finished: it stopped early after {steps}, with no better validation loss in "
                f"{counted(self.options.patience, 'epoch')} (--patience). To train for longer, train into another "
                "folder with a larger --patience, or 0 for none."
            )
        if self.progress.step < self.total_steps:
            return ""
        of_epochs = self.options.epochs * self.sampler.batches_per_epoch
        asked, more = f"--epochs {self.options.epochs}", "--epochs"
        if self.total_steps < of_epochs:
            asked, more = f"--max-steps {self.options.max_steps}", "--max-steps"
        elif self.options.max_steps == of_epochs:
            more = "--epochs and --max-steps"
        finished = f"{self.run.path} is finished: it has trained {steps}, all that {asked} asks for."
        if getattr(self.options, "compat", "none") != "none" and "--epochs" in more:
            return f"{finished} --compat {self.options.compat} fixes the epochs; to train for longer, do without it."
        return f"{finished} To train it for longer, give the same command with --resume and a larger {more}."

    def seed_rank(self, step: int, *, always: bool = False) -> None:
        """Seed this rank's own random numbers (for dropout); rank 0 goes on with those that made the weights."""
        if self.world.rank or always:
            numbers = np.random.SeedSequence([self.options.seed, self.world.rank, step]).generate_state(1, np.uint64)
            torch.manual_seed(int(numbers[0] >> np.uint64(1)))

    def save(self, *, best: bool = False) -> None:
        """Write ``last`` (everything) and, when ``best``, ``best`` (the model)."""
        self.unite_buffers()
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        generators = {
            f"rng/{kind}/{rank}" if rank else f"rng/{kind}": own[0]
            for kind, mine in rng.items()
            for rank, own in enumerate(self.world.gather_rows(mine[None]))
        }
        if not self.world.main:
            return
        self.world.refuse_taken_over()
        model = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        state: dict[str, Any] = {
            **self.progress.to_state(),
            "epoch": self.sampler.epoch,
            "position": self.sampler.position,
            "ranks": self.world.size,
        }
        if best:
            write_checkpoint(self.run.best_path, model, state)
        moments, optimiser = pack_optimiser(self.optimiser)
        size = self.run.metrics_path.stat().st_size if self.run.metrics_path.exists() else 0
        write_checkpoint(
            self.run.last_path,
            {**model, **moments, **generators},
            {**state, "optimiser": optimiser, "metrics_bytes": size},
        )

    # ---- the loop --------------------------------------------------------------------------------------------------

    # A walk through the published network's modules takes a millisecond or two: once, not in every step. What loads or
    # averages them writes into the same tensors.
    @cached_property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Parameters of the model."""
        return list(self.model.parameters())

    @cached_property
    def buffers(self) -> list[Tensor]:
        """Running statistics of the model."""
        return list(self.model.buffers())

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        steps: int = self.options.epochs * self.sampler.batches_per_epoch
        return min(steps, self.options.max_steps) if self.options.max_steps else steps

    def update(self, batch: Batch, items: Int64, rate: float) -> tuple[dict[str, float], str]:
        """One step of the optimiser: loss and what is watched before it, and why the step was left out if it was."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # A batch with impossible values must not leave them in the running statistics either.
        kept = KeptBuffers(self.buffers)
        self.optimiser.zero_grad(set_to_none=True)
        loss, explain = self.gradient(batch, items)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        # The one wait for the device in a step. Loss and norm have the same bits on every rank: all decide alike.
        watched = self.watched()
        value, size, *values = torch.stack([t.to(norm.dtype) for t in (loss, norm, *watched.values())]).tolist()
        before = {"loss": value, **dict(zip(watched, values, strict=True))}
        if not (math.isfinite(value) and math.isfinite(size)):
            kept.restore()
            what = "the gradient is not finite" if math.isfinite(value) else f"the loss is {value}"
            where = explain()
            return before, f"{what}; not finite: {where}" if where else what
        self.optimiser.step()
        self.after_step()
        return before, ""

    def skip(self, reason: str, clips: Int64) -> None:
        """Record a step that was skipped; too many in a row end the training."""
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        step, in_a_row = self.progress.step + 1, self.progress.skipped_in_a_row
        names = sorted({self.store.recordings[r].id for r in recordings_of(self.store, clips).tolist()})
        row = {"kind": "skipped", "step": step, "reason": reason, "recordings": names, "clips": clips.tolist()}
        self.append_metrics(row)
        self.say(f"notice: step {step} is skipped: {reason} (clips of {first_of(names, 3)}; see metrics.jsonl)")
        if in_a_row > self.options.skip_limit:
            raise SleepfmError(
                f"{reason} at step {step}, which makes {in_a_row} in a row (--skip-limit {self.options.skip_limit}). "
                f"Earlier checkpoints are kept in {self.run.path}. Lower --lr, or look for a channel with impossible "
                "values (preprocess --inspect)."
            )

    def steps(self) -> Iterator[dict[str, Any]]:
        """Train; yields a row after every step, with the epoch's validation if the step ended one."""
        progress = self.progress
        remaining = self.total_steps - progress.step
        if remaining <= 0 or progress.stopped_early:
            return
        self.model.train()
        per_epoch = self.sampler.batches_per_epoch
        rank, n_ranks = self.world.rank, self.world.size
        batches = self.input.batches(
            islice(iter(self.sampler), remaining),
            lambda place: clips_of(shard(place[2], rank, n_ranks)),
            in_play=self.sampler.in_play,
        )
        clock = time.perf_counter()
        for (epoch, position, items), batch in batches:
            clips = clips_of(items)
            rate = learning_rate(self.options, progress.step, per_epoch, self.total_steps)
            before, failure = self.update(self.prepared(batch, epoch, position, len(clips)), items, rate)
            if failure:
                self.skip(failure, clips)
            else:
                progress.skipped_in_a_row = 0
                progress.loss_sum += before["loss"]
                progress.loss_terms += 1
            progress.step += 1
            self.pace.add(len(clips), time.perf_counter() - clock)
            row: dict[str, Any] = {"kind": "step", "epoch": epoch, "step": progress.step}
            row |= {**before, "lr": rate}
            if progress.step % LOG_STEPS == 0:
                self.append_metrics({**row, "clips_per_s": self.pace.clips_per_s})
            last = position + 1 == per_epoch
            self.sampler.epoch, self.sampler.position = (epoch + 1, 0) if last else (epoch, position + 1)
            row["validated"] = self.end_epoch(epoch) if last or progress.step == self.total_steps else None
            if row["validated"] is None and progress.step % self.options.checkpoint_steps == 0:
                self.save()
            yield row
            if progress.stopped_early:
                return
            clock = time.perf_counter()

    def follow(self, command: str) -> None:
        """Train to the end, with a progress bar and a line for each epoch."""
        with progress_bar(
            total=self.total_steps,
            initial=self.progress.step,
            unit="step",
            desc=command,
            mininterval=0.5,
            disable=not self.world.main,
        ) as bar:
            for row in self.steps():
                bar.update()
                bar.set_postfix_str(
                    f"epoch {row['epoch'] + 1}/{self.options.epochs} loss {row['loss']:.3f} {self.step_words(row)}"
                    f"{self.pace.clips_per_s:.0f} clips/s",
                    refresh=False,
                )
                if (validated := row["validated"]) is not None and self.world.main:
                    best = " (best)" if validated["epoch"] == self.progress.best_epoch else ""
                    bar.write(
                        f"epoch {validated['epoch'] + 1}: training loss {validated['training_loss']:.4f}, validation "
                        f"loss {validated['validation_loss']:.4f}{best}, {self.validation_words(validated)}",
                        file=sys.stderr,
                    )

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Validate, update the best result, and write the checkpoints."""
        progress = self.progress
        self.unite_buffers()
        row: dict[str, Any] = {
            "kind": "epoch",
            "epoch": epoch,
            "step": progress.step,
            "training_loss": progress.loss_sum / max(progress.loss_terms, 1),
            **self.validation(),
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
        progress.stopped_early = self.options.patience > 0 and epoch - progress.best_epoch >= self.options.patience
        self.append_metrics({**row, "clips_per_s": self.pace.clips_per_s})
        self.save(best=best)
        return row

    def wind_up(self) -> None:
        """Give the memory kept for further steps back to the system; say so if the training was stopped early."""
        release_pages()
        if self.progress.stopped_early:
            self.say(f"stopped early: no better validation loss in {counted(self.options.patience, 'epoch')}")


def asked(kept: Mapping[str, Any], config: Any, store: ClipStore, world: World) -> dict[str, Any]:
    """What a run is compared with before it is resumed; ``kept`` are the options that define it."""
    options = {"config": dict(kept), "defaults": plain_defaults(config)}
    return {**options, "store_digest": store.digest, "ranks": world.size}


def recordings_of(store: ClipStore, clips: Int64) -> Int64:
    """Return the number of each clip's recording."""
    return np.asarray(store.recording[clips], np.int64)
