"""One training run: its state, its loop, its checkpoints. The command in ``train.py`` shows it to the user."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from tqdm import tqdm

from sleepfm_fast.batch_norm import synchronise_batch_norm
from sleepfm_fast.batches import Batch, ClipInput, InputConfig
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.command import plain, say
from sleepfm_fast.encoder import PRESETS, SleepModel
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.modality_dropout import draw, without
from sleepfm_fast.neighbours import clips_of
from sleepfm_fast.objective import Objective, backward, not_finite, wrap
from sleepfm_fast.ops.pages import release_pages
from sleepfm_fast.optimiser import build_optimiser
from sleepfm_fast.origin import UNKNOWN_SUBJECTS, Seen, seen_by, split_before
from sleepfm_fast.plan import make_plan
from sleepfm_fast.pretrained import Pretrained, initialise, read_pretrained
from sleepfm_fast.progress import Progress
from sleepfm_fast.rundir import (
    RunDirectory,
    pack_optimiser,
    read_checkpoint,
    reconcile,
    unpack_optimiser,
    write_checkpoint,
)
from sleepfm_fast.sampler import shard, shard_sizes
from sleepfm_fast.schedule import learning_rate
from sleepfm_fast.selection import chosen_montage, select_clips
from sleepfm_fast.splits import Split
from sleepfm_fast.training_facts import announcement, description, results
from sleepfm_fast.validation import validate
from sleepfm_fast.world import World

if TYPE_CHECKING:
    from sleepfm_fast.settings import Settings

__all__ = ["Trainer"]

LOG_STEPS = 10  # a line of metrics.jsonl every so many steps


class Trainer:
    """The state of one run, from the first step or from its last checkpoint.

    Use :meth:`prepare`; iterate :meth:`steps`; end with :meth:`finish`. With several processes all of them do, in step;
    the first alone writes.
    """

    def __init__(self, config: Settings, store: ClipStore, run: RunDirectory, world: World, seen: Seen) -> None:
        self.config = config
        self.store = store
        self.run = run
        self.world = world
        self.device = world.device(config.device)
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
            known=seen.subjects,
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
        self.objective = Objective(self.model, config.mode, config.directions, config.loss_scale, config.precision)
        self.wrapped: torch.nn.Module = self.objective
        self.optimiser = build_optimiser(self.model, config)
        plan = make_plan(config, store, self.clips, len(self.input.modalities), world.size)
        self.sampler, self.blocks, self.n_parts = plan.sampler, plan.blocks, plan.n_parts
        self.progress = Progress()
        self.clips_per_s = 0.0

    # ---- start and resume ----------------------------------------------------------------------------------------

    @classmethod
    def prepare(cls, config: Settings, world: World | None = None) -> Trainer:
        """Start a new run, or restore one when ``config.resume``."""
        world = world or World()
        if config.store is None or config.run is None:
            raise ValueError("prepare needs config.store and config.run")
        run = RunDirectory(config.run)
        if not config.resume:
            world.on_main(run.refuse_if_present)
        found = None
        if resumed := world.on_main(lambda: config.resume and run.exists()):
            seen = split_before(world.on_main(run.config).get("initialised_from"))
        elif config.init_from is None:
            seen = Seen()
        else:
            found = read_pretrained(config.init_from)
            seen = seen_by(found.config)
        trainer = cls(config, ClipStore(config.store), run, world, seen)
        for notice in trainer.notices:
            trainer.say(f"notice: {notice}")
        if resumed:
            trainer.restore()
        else:
            if found is not None:
                trainer.initialise(found)
            world.on_main(lambda: run.create(description(trainer)))
        trainer.say(announcement(trainer))
        for notice in trainer.measure():
            trainer.say(f"notice: {notice}")
        # Where every recording has every modality, no encoder is ever without clips.
        present = trainer.input.feed.present & (trainer.input.scales.scale != 0)
        used = np.unique(recordings_of(trainer.store, trainer.clips.clips))
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
        }

    def columns(self, modality: str) -> npt.NDArray[np.int64]:
        """Columns of the store's channels that belong to a modality."""
        span = self.input.spans[modality]
        return np.flatnonzero((self.input.places >= span.start) & (self.input.places < span.stop))

    def measure(self) -> tuple[str, ...]:
        """Measure the amplitudes of all recordings in use, each rank its share."""
        recordings = np.unique(recordings_of(self.store, self.clips.clips))
        mine = recordings[self.world.rank :: self.world.size]
        notices = self.input.measure(
            mine, lambda r: tqdm(r, desc="measure amplitudes", unit="night", disable=not self.world.main)
        )
        if self.world.size == 1:
            return notices
        for name in ("centre", "scale"):
            column = getattr(self.input.scales, name)
            for rank, rows in enumerate(self.world.gather_rows(torch.from_numpy(column[mine]))):
                column[recordings[rank :: self.world.size]] = rows.numpy()
        return self.input.flat_channels(recordings) if self.config.normalise == "recording" else ()

    def restore(self) -> None:
        """Load the last checkpoint; a run whose configuration differs is refused by the names that differ."""
        now = {"config": plain(self.config), "store_digest": self.store.digest, "ranks": self.world.size}
        changes = self.world.on_main(lambda: reconcile(self.run, now))
        for change in changes:
            self.say(
                f"notice: from step {change['step']} on, {change['option']} is {change['is']}, was {change['was']}"
            )
        if not self.world.on_main(self.run.last_path.exists):
            self.say(f"{self.run.path} has no checkpoint yet: starting from the first step")
            if self.config.init_from is None:
                return
            self.initialise(read_pretrained(self.config.init_from))
            before = self.world.on_main(self.run.config)["initialised_from"]
            if self.origin is None or self.origin["sha256"] != before["sha256"]:
                raise SleepfmError(
                    f"--init-from {self.config.init_from} is not the file that {self.run.path} was started from. "
                    "Restore it, or train into another folder."
                )
            return
        tensors, state = read_checkpoint(self.run.last_path)
        model = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
        self.model.load_state_dict(model)
        unpack_optimiser(self.optimiser, tensors, state["optimiser"])
        self.progress = Progress.from_state(state)
        self.sampler.epoch, self.sampler.position = state["epoch"], state["position"]
        if state.get("ranks", 1) == self.world.size:
            own = f"/{self.world.rank}" if self.world.rank else ""
            torch.set_rng_state(tensors[f"rng/cpu{own}"])
            if self.device.type == "cuda" and f"rng/cuda{own}" in tensors:
                torch.cuda.set_rng_state(tensors[f"rng/cuda{own}"], self.device)
        else:
            self.seed_rank(self.progress.step, always=True)
        self.say(f"resuming {self.run.path} at step {self.progress.step} (epoch {self.sampler.epoch + 1})")

    def seed_rank(self, step: int, *, always: bool = False) -> None:
        """Give this rank random numbers of its own (dropout); the first goes on with those that made the weights."""
        if self.world.rank or always:
            numbers = np.random.SeedSequence([self.config.seed, self.world.rank, step]).generate_state(1, np.uint64)
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

    def unite_buffers(self) -> None:
        """Average the ranks' running statistics of batch norm; synchronised ones are equal already."""
        if self.config.batch_norm == "local":
            self.world.mean_in_place(list(self.model.buffers()))

    def say(self, sentence: str) -> None:
        """Say it once, whatever the number of processes."""
        if self.world.main:
            say(sentence)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Write a line of ``metrics.jsonl``, once."""
        if self.world.main:
            self.run.append_metrics(row)

    # ---- the loop ------------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        steps = self.config.epochs * self.sampler.batches_per_epoch
        return min(steps, self.config.max_steps) if self.config.max_steps else steps

    def update(self, batch: Batch, rate: float, counts: tuple[int, ...]) -> tuple[float, str]:
        """One step of the optimiser: the mean loss before it, and why the step was left out if it was.

        ``counts`` are the clips (pairs) of every rank.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # A batch with impossible values must not leave them in the running statistics either.
        kept = [buffer.clone() for buffer in self.model.buffers()]
        self.optimiser.zero_grad(set_to_none=True)
        outcome = backward(self.objective, self.wrapped, batch, counts=counts, n_parts=self.n_parts)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # One wait for the device. Both numbers have the same bits on every rank, so all of them decide alike.
        loss, size = torch.stack([self.objective.mean(outcome).to(norm.dtype), norm]).tolist()
        if not (math.isfinite(loss) and math.isfinite(size)):
            for buffer, before in zip(self.model.buffers(), kept, strict=True):
                buffer.copy_(before)
            return loss, not_finite(batch, outcome, loss, tuple(self.model.modalities), self.world)
        self.optimiser.step()
        with torch.no_grad():
            self.model.log_temperature.clamp_(0.0, self.config.max_log_temperature)
        return loss, ""

    def skip(self, reason: str, clips: npt.NDArray[np.int64]) -> None:
        """Note a step that was left out; too many in a row end the training."""
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        step, in_a_row = self.progress.step + 1, self.progress.skipped_in_a_row
        names = sorted({self.store.recordings[r].id for r in recordings_of(self.store, clips).tolist()})
        row = {"kind": "skipped", "step": step, "reason": reason, "recordings": names, "clips": clips.tolist()}
        self.append_metrics(row)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        self.say(f"notice: step {step} is skipped: {reason} (clips of {', '.join(names[:3])}{more}; see metrics.jsonl)")
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
        rank, n_ranks = self.world.rank, self.world.size
        batches = self.input.batches(
            islice(iter(self.sampler), remaining), lambda item: clips_of(shard(item[2], rank, n_ranks))
        )
        clock = time.perf_counter()
        for (epoch, position, items), batch in batches:
            clips = clips_of(items)
            rate = learning_rate(self.config, progress.step, per_epoch, self.total_steps)
            if self.config.modality_dropout:
                numbers = draw(self.config.seed, epoch, position, len(clips))
                batch = without(batch, numbers, self.config.modality_dropout, rank, n_ranks)
            loss, failure = self.update(batch, rate, shard_sizes(len(items), n_ranks))
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
            temperature = math.exp(float(self.model.log_temperature.detach()))
            row: dict[str, Any] = {"kind": "step", "epoch": epoch, "step": progress.step}
            row |= {"loss": loss, "lr": rate, "temperature": temperature}
            if progress.step % LOG_STEPS == 0:
                self.append_metrics({**row, "clips_per_s": round(self.clips_per_s, 1)})
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
        self.unite_buffers()
        row: dict[str, Any] = {
            "kind": "epoch",
            "epoch": epoch,
            "step": progress.step,
            "training_loss": progress.loss_sum / max(progress.loss_terms, 1),
            **validate(
                *(self.model, self.input, self.blocks, self.config.mode, self.config.directions, self.world),
                precision=self.config.precision,
            ),
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
        self.append_metrics({**row, "clips_per_s": round(self.clips_per_s, 1)})
        self.save(best=best)
        return row

    def finish(self) -> dict[str, Any]:
        """The results that end the command; the memory kept for further steps goes back to the system."""
        release_pages()
        if self.progress.stopped_early:
            self.say(f"stopped early: no better validation loss in {self.config.patience} epochs")
        return results(self)


def recordings_of(store: ClipStore, clips: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Recording of each clip."""
    return np.asarray(store.recording[clips], np.int64)
