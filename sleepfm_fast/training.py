"""One training run: its state, its loop, its checkpoints. The command in ``train.py`` shows it to the user."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sleepfm_fast.batches import Batch, ClipInput, InputConfig
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.command import plain, say
from sleepfm_fast.encoder import PRESETS, SleepModel
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.ops import contrastive_loss
from sleepfm_fast.rundir import RunDirectory, pack_optimiser, read_checkpoint, unpack_optimiser, write_checkpoint
from sleepfm_fast.sampler import ClipSampler, fixed_blocks
from sleepfm_fast.schedule import learning_rate
from sleepfm_fast.splits import Split, assign_subjects

if TYPE_CHECKING:
    from sleepfm_fast.train import Config

__all__ = ["Trainer", "choose_device", "load_model"]

LOG_STEPS = 10  # a line of metrics.jsonl every so many steps
MAX_LOG_TEMPERATURE = math.log(100)  # above, a softmax over unit vectors is an arg max in fp32 (CLIP's bound too)
RESUMABLE = ("resume", "device", "threads", "store", "run", "checkpoint_steps")  # may differ between start and resume


def choose_device(name: str) -> torch.device:
    """Resolve ``auto``; CUDA that was asked for and is absent is refused."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise SleepfmError(
            "--device cuda was given, but torch sees no CUDA device here. Use --device cpu, or install a CUDA build of "
            "torch and check nvidia-smi."
        )
    return torch.device(name)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay kernels and matrices only: a decayed temperature or BatchNorm gain would be pulled towards 0."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    other = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}]


class Trainer:
    """The state of one run, from the first step or from its last checkpoint.

    Use :meth:`prepare`; iterate :meth:`steps`; end with :meth:`finish`.
    """

    def __init__(self, config: Config, store: ClipStore, run: RunDirectory) -> None:
        self.config = config
        self.store = store
        self.run = run
        self.device = choose_device(config.device)
        self.input = ClipInput(
            store, store.montage, InputConfig(config.filters, config.notch_hz, config.normalise), self.device
        )
        if len(self.input.modalities) < 2:
            raise SleepfmError(
                f"the montage of {store.path} has channels of only one modality ({', '.join(self.input.modalities)}); "
                "contrasting needs two or more. Preprocess with a montage that covers more modalities "
                "(see: python -m sleepfm_fast.preprocess --inspect FOLDER)."
            )
        self.split = Split(config.split_salt, config.validation_share, config.test_share)
        codes, notices = assign_subjects(store.subjects, self.split)
        self.subjects = dict(zip(store.subjects, np.maximum(codes, 0).tolist(), strict=True))
        of_clip = codes[store.recording_subject[store.recording]]
        # A clip with one modality has nothing to be contrasted with.
        contrasting = store.modality_present().sum(axis=1) >= 2
        everything = np.flatnonzero(contrasting[store.recording])
        of_clip = of_clip[everything]
        if not contrasting.all():
            notices = (
                *notices,
                f"{int((~contrasting).sum())} of {len(contrasting)} recordings have channels of only one modality; "
                "their clips cannot be contrasted and are left out of training and validation.",
            )
        self.overlap = bool((codes < 0).any())
        self.train_clips = everything[(of_clip == 0) | (of_clip < 0)]
        self.validation_clips = everything[(of_clip == 1) | (of_clip < 0)]
        if len(self.train_clips) < 2:
            raise SleepfmError(
                f"the store {store.path} leaves {len(self.train_clips)} clips with two modalities or more for "
                "training; contrasting needs two clips. Add recordings (see: python -m sleepfm_fast.preprocess "
                "--inspect FOLDER), or lower --test-share and --validation-share."
            )
        if len(self.validation_clips) == 0:
            self.validation_clips = self.train_clips
            if len(store.subjects) > 2:
                notices = (*notices, "no clip is left for validation: the training clips also serve for it.")
        self.notices = notices
        torch.manual_seed(config.seed)
        channels = {name: span.stop - span.start for name, span in self.input.spans.items()}
        self.model = SleepModel(channels, PRESETS[config.preset])
        with torch.no_grad():
            self.model.log_temperature.fill_(config.log_temperature)
        self.model.to(self.device)
        groups = parameter_groups(self.model, config.weight_decay)
        self.optimiser: torch.optim.Optimizer = (
            torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
            if config.optimiser == "sgd"
            else torch.optim.AdamW(groups, lr=config.lr)
        )
        self.sampler = ClipSampler(self.train_clips, config.batch_size, config.seed)
        self.blocks = fixed_blocks(self.validation_clips, config.validation_block, seed=0)
        self.step = 0
        self.best_epoch = -1
        self.best_loss = math.inf
        self.loss_sum = 0.0
        self.clips_per_s = 0.0
        self.stopped_early = False

    # ---- start and resume ----------------------------------------------------------------------------------------

    @classmethod
    def prepare(cls, config: Config) -> Trainer:
        """Start a new run, or restore one when ``config.resume``."""
        if config.store is None or config.run is None:
            raise ValueError("prepare needs config.store and config.run")
        run = RunDirectory(config.run)
        if not config.resume and config.run.exists() and any(config.run.iterdir()):
            raise SleepfmError(
                f"{config.run} exists already. To go on with its run add --resume; to train anew name another folder."
            )
        trainer = cls(config, ClipStore(config.store), run)
        for notice in trainer.notices:
            say(f"notice: {notice}")
        resumed = config.resume and run.exists()
        if resumed:
            trainer.restore()
        else:
            run.create(trainer.description())
        trainer.announce()
        recordings = np.unique(
            np.asarray(trainer.store.recording)[np.concatenate([trainer.train_clips, trainer.validation_clips])]
        )
        from tqdm import tqdm

        for notice in trainer.input.measure(
            recordings.astype(np.int64), lambda r: tqdm(r, desc="measure amplitudes", unit="night")
        ):
            say(f"notice: {notice}")
        return trainer

    def description(self) -> dict[str, Any]:
        """What ``config.json`` holds: all that embed needs to do the same to other clips."""
        return {
            "config": plain(self.config),
            "model": self.model.describe(),
            "montage": self.store.montage.to_dict(),
            "input": plain(self.input.config),
            "split": plain(self.split),
            "overlap": self.overlap,
            "subjects": self.subjects,
            "store_digest": self.store.digest,
        }

    def restore(self) -> None:
        """Load the last checkpoint; a run whose configuration differs is refused by the names that differ."""
        saved = self.run.config()
        then, now = saved["config"], plain(self.config)
        different = [k for k in now if k not in RESUMABLE and now[k] != then.get(k)]
        if different:
            listed = ", ".join(f"--{k.replace('_', '-')} was {then.get(k)}, is {now[k]}" for k in different)
            raise SleepfmError(
                f"the run in {self.run.path} was started otherwise: {listed}. Resume with the same options."
            )
        if saved["store_digest"] != self.store.digest:
            raise SleepfmError(
                f"the store {self.store.path} has changed since the run in {self.run.path} began, so it cannot be "
                "resumed exactly. Train into another folder."
            )
        if not self.run.last_path.exists():
            self.run.truncate_metrics(0)
            say(f"{self.run.path} has no checkpoint yet: starting from the first step")
            return
        tensors, state = read_checkpoint(self.run.last_path)
        model = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
        self.model.load_state_dict(model)
        unpack_optimiser(self.optimiser, tensors, state["optimiser"])
        torch.set_rng_state(tensors["rng/cpu"])
        if self.device.type == "cuda" and "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng/cuda"], self.device)
        self.step = state["step"]
        self.sampler.epoch, self.sampler.position = state["epoch"], state["position"]
        self.best_epoch = state["best_epoch"]
        self.best_loss = math.inf if state["best_loss"] is None else state["best_loss"]
        self.loss_sum = state["loss_sum"]
        self.stopped_early = state["stopped_early"]
        self.run.truncate_metrics(state["metrics_bytes"])
        say(f"resuming {self.run.path} at step {self.step} (epoch {self.sampler.epoch + 1})")

    def save(self, *, best: bool = False) -> None:
        """Write ``last`` (everything) and, when ``best``, ``best`` (the model)."""
        model = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        state: dict[str, Any] = {
            "step": self.step,
            "epoch": self.sampler.epoch,
            "position": self.sampler.position,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "loss_sum": self.loss_sum,
            "stopped_early": self.stopped_early,
        }
        if best:
            write_checkpoint(self.run.best_path, model, state)
        moments, optimiser = pack_optimiser(self.optimiser)
        rng = {"rng/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        size = self.run.metrics_path.stat().st_size if self.run.metrics_path.exists() else 0
        write_checkpoint(
            self.run.last_path, {**model, **moments, **rng}, {**state, "optimiser": optimiser, "metrics_bytes": size}
        )

    def announce(self) -> None:
        """Say what runs where."""
        n = sum(p.numel() for p in self.model.parameters())
        backend = "C++ kernels" if self.device.type == "cpu" else "CUDA filter kernel, chunked torch loss"
        say(
            f"{len(self.train_clips)} training and {len(self.validation_clips)} validation clips, "
            f"{n:,} parameters, {self.total_steps} steps on {self.device} "
            f"({backend}, {torch.get_num_threads()} threads)"
        )

    # ---- the loop ------------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        steps = self.config.epochs * self.sampler.batches_per_epoch
        return min(steps, self.config.max_steps) if self.config.max_steps else steps

    def loss(self, batch: Batch) -> tuple[torch.Tensor, Any]:
        """Encode a batch and contrast it."""
        embeddings, mask = self.model(batch.x, batch.present)
        return contrastive_loss(
            embeddings,
            self.model.log_temperature,
            self.config.mode,
            mask=mask,
            directions=self.config.directions,
        )

    def update(self, batch: Batch, rate: float) -> float:
        """One step of the optimiser; returns the loss before it."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss, _ = self.loss(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise SleepfmError(
                f"the loss is {value} at step {self.step + 1}. Earlier checkpoints are kept in "
                f"{self.run.path}. Lower --lr, or look for a channel with impossible values (preprocess --inspect)."
            )
        self.optimiser.step()
        with torch.no_grad():
            self.model.log_temperature.clamp_(0.0, MAX_LOG_TEMPERATURE)
        return value

    def validate(self) -> dict[str, float]:
        """Loss over the fixed validation blocks, and how often the true clip is the nearest."""
        self.model.eval()
        total = terms = correct = 0.0
        with torch.inference_mode():
            for _, batch in self.input.batches(self.blocks, lambda block: block):
                loss, statistics = self.loss(batch)
                n = 2.0 * float(statistics.n_valid.sum())
                total += float(loss) * n
                correct += float(statistics.correct.sum())
                terms += n
        self.model.train()
        return {"validation_loss": total / max(terms, 1.0), "validation_top1": correct / max(terms, 1.0)}

    def steps(self) -> Iterator[dict[str, Any]]:
        """Train; yields a row after every step, with the epoch's validation where one just ended."""
        remaining = self.total_steps - self.step
        if remaining <= 0 or self.stopped_early:
            return
        self.model.train()
        per_epoch = self.sampler.batches_per_epoch
        batches = self.input.batches(islice(iter(self.sampler), remaining), lambda item: item[2])
        clock = time.perf_counter()
        for (epoch, position, clips), batch in batches:
            rate = learning_rate(self.config, self.step, per_epoch, self.total_steps)
            loss = self.update(batch, rate)
            self.step += 1
            self.loss_sum += loss
            now = time.perf_counter()
            speed = len(clips) / (now - clock)
            self.clips_per_s = speed if self.clips_per_s == 0 else 0.9 * self.clips_per_s + 0.1 * speed
            temperature = math.exp(float(self.model.log_temperature.detach()))
            row: dict[str, Any] = {
                "kind": "step", "epoch": epoch, "step": self.step, "loss": loss, "lr": rate, "temperature": temperature,
            }  # fmt: skip
            if self.step % LOG_STEPS == 0:
                self.run.append_metrics({**row, "clips_per_s": round(self.clips_per_s, 1)})
            last = position + 1 == per_epoch
            self.sampler.epoch, self.sampler.position = (epoch + 1, 0) if last else (epoch, position + 1)
            row["validated"] = self.end_epoch(epoch, position + 1) if last or self.step == self.total_steps else None
            if row["validated"] is None and self.step % self.config.checkpoint_steps == 0:
                self.save()
            yield row
            if self.stopped_early:
                return
            clock = time.perf_counter()

    def end_epoch(self, epoch: int, n_batches: int) -> dict[str, Any]:
        """Validate, remember the best, write the checkpoints."""
        row: dict[str, Any] = {
            "kind": "epoch",
            "epoch": epoch,
            "step": self.step,
            "training_loss": self.loss_sum / n_batches,
            **self.validate(),
        }
        if not math.isfinite(row["validation_loss"]):
            raise SleepfmError(
                f"the validation loss is {row['validation_loss']} after step {self.step}: the training has diverged. "
                f"Earlier checkpoints are kept in {self.run.path}. Lower --lr, and train into another folder."
            )
        self.loss_sum = 0.0
        best = row["validation_loss"] < self.best_loss
        if best:
            self.best_epoch, self.best_loss = epoch, row["validation_loss"]
        self.stopped_early = self.config.patience > 0 and epoch - self.best_epoch >= self.config.patience
        self.run.append_metrics({**row, "clips_per_s": round(self.clips_per_s, 1)})
        self.save(best=best)
        return row

    def finish(self) -> dict[str, Any]:
        """The results that end the command."""
        if self.stopped_early:
            say(f"stopped early: no better validation loss in {self.config.patience} epochs")
        return {
            "run": str(self.run.path),
            "steps": self.step,
            "epochs": self.sampler.epoch,
            "stopped_early": self.stopped_early,
            "best_epoch": self.best_epoch + 1,
            "best_validation_loss": self.best_loss,
            "temperature": math.exp(float(self.model.log_temperature.detach())),
            "training_clips": len(self.train_clips),
            "validation_clips": len(self.validation_clips),
            "clips_per_s": round(self.clips_per_s, 1),
            "overlap": self.overlap,
            "notices": list(self.notices),
        }


def load_model(run: RunDirectory, device: torch.device) -> tuple[SleepModel, dict[str, Any]]:
    """The best model of a run, in evaluation mode, and the run's configuration."""
    config = run.config()
    model = SleepModel.from_description(config["model"])
    tensors, _ = read_checkpoint(run.best_path)
    model.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    return model.to(device).eval(), config
