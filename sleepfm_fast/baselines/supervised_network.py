"""The network of a supervised run: built, run over clips, and loaded again for other recordings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sleepfm_fast.batches import Batch, ClipInput, InputConfig
from sleepfm_fast.channels import Montage
from sleepfm_fast.cli.bars import progress_bar
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.encoder import Encoder, EncoderConfig, build_encoder
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.model.precision import Precision, arithmetic
from sleepfm_fast.pretrained import Pretrained, refuse_differences
from sleepfm_fast.rundir import RunDirectory, model_part, read_checkpoint
from sleepfm_fast.runs.run_config import damaged_entry, refuse_damaged

__all__ = ["Classifier", "blocks_of", "load_classifier", "logits_of", "refuse_other_runs", "scored"]

BLOCK = 256  # clips scored at a time


def logits_of(network: torch.nn.Module, batch: Batch, precision: Precision) -> Tensor:
    """Float32 logits [B, K] of a batch: its modalities' channels stacked, absent ones left out."""
    x = torch.cat(list(batch.x.values()), dim=1)
    present = torch.cat(list(batch.present.values()), dim=1)
    with arithmetic(precision, x.device):
        logits: Tensor = network(x, present)
    return logits.float()


def blocks_of(clips: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Cut clips, in order, into what is scored at a time."""
    return [clips[i : i + BLOCK] for i in range(0, len(clips), BLOCK)]


def scored(
    network: torch.nn.Module,
    clip_input: ClipInput,
    blocks: Sequence[npt.NDArray[np.int64]],
    precision: Precision,
    what: str = "",
) -> Iterator[Tensor]:
    """Yield the logits [B, K] of each block, the network in evaluation mode; ``what`` names a bar of progress."""
    network.eval()
    total = sum(len(block) for block in blocks)
    with progress_bar(total=total, unit="clip", desc=what, disable=not what) as bar:
        for block, batch in clip_input.batches(blocks, lambda block: block):
            with torch.inference_mode():  # not around the yield: the caller's thread would be in it, and stay so
                logits = logits_of(network, batch, precision)
            yield logits
            bar.update(len(block))


def finite(logits: npt.NDArray[np.float64], store: ClipStore, clips: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return logits [n, K] of clips, or say which clip's are not finite."""
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        clip = int(clips[bad.argmax()])
        name = store.recordings[int(store.recording[clip])].id
        raise SleepfmError(
            f"the network's output for clip {clip} (recording {name}) is not finite. Look for a channel with "
            "impossible values there (preprocess --inspect)."
        )
    return logits


def refuse_other_runs(run: RunDirectory, config: dict[str, Any], remedy: str) -> None:
    """Refuse a run that another command made."""
    made_by = config.get("command", "train")
    if made_by != "supervise":
        raise SleepfmError(f"{run.path} holds a run of {made_by}, not of supervise. {remedy.format(command=made_by)}")


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The best network of a run, ready for the clips of a store.

    Attributes
    ----------
    network : Encoder
        In evaluation mode.
    clip_input : ClipInput
        Makes its batches.
    task : str
        A key of :data:`sleepfm_fast.evaluation.tasks.TASKS`.
    classes : int8 [K]
        Class of each output, ascending.
    precision : {"float32", "bfloat16"}
    config : dict
        The run's ``config.json``.
    """

    network: Encoder
    clip_input: ClipInput
    task: str
    classes: npt.NDArray[np.int8]
    precision: Precision
    config: dict[str, Any]

    def logits(self, clips: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Logits [n, K] of clips of the store.

        Raises
        ------
        SleepfmError
            When one is not finite.
        """
        parts = scored(self.network, self.clip_input, blocks_of(clips), self.precision, "classify")
        rows = [logits.double().cpu().numpy() for logits in parts]
        return finite(np.concatenate(rows), self.clip_input.store, clips)


def load_classifier(run: RunDirectory, store: ClipStore, device: torch.device) -> Classifier:
    """Load the network of the best epoch; the store's channels are matched with the run's by name.

    Raises
    ------
    SleepfmError
        When the run is not one of ``supervise``, has no finished epoch, or the store has none of its channels.
    """
    config = run.config()
    refuse_other_runs(run, config, "For embeddings: python -m sleepfm_fast.embed RUN STORE EMBEDDINGS.")
    refuse_damaged(run.config_path, config, {"input": InputConfig, "model.encoder": EncoderConfig})
    task, classes = config["model"].get("task"), config["model"].get("classes")
    if task not in TASKS or not isinstance(classes, list) or not set(classes) <= set(TASKS[task].names):
        raise damaged_entry(run.config_path, "model", config["model"])
    montage = Montage.from_dict(config["montage"])
    clip_input = ClipInput(store, montage, InputConfig(**config["input"]), device)
    network = build_encoder(clip_input.n_columns, EncoderConfig.from_dict(config["model"]["encoder"]))
    tensors, _ = read_checkpoint(run.best_path)
    weights = model_part(tensors)
    refuse_differences(Pretrained(run.best_path, "a checkpoint", weights, config), network.state_dict(), weights)
    network.load_state_dict(weights)
    names = TASKS[task].names
    return Classifier(
        network.to(device).eval(),
        clip_input,
        task,
        np.array([names.index(name) for name in classes], np.int8),
        config["config"].get("precision", "float32"),
        config,
    )
