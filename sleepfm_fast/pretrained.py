"""Trained models to embed with or to start from: a run folder, one of its checkpoints, or a file of the authors' code.

A model comes with a description of its training input: the channels' names in their order, the filters and the scaling.
Weights are taken over only where the encoders agree tensor by tensor, and the channels do too.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sleepfm_fast.batches import InputConfig
from sleepfm_fast.cli.given_paths import as_path
from sleepfm_fast.cli.option_ranges import option
from sleepfm_fast.encoder import EncoderConfig, SleepModel
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.model.seed_checkpoint import read_seed_checkpoint
from sleepfm_fast.montage.slots import MODALITIES, Montage
from sleepfm_fast.plurals import first_of
from sleepfm_fast.rundir import RunDirectory, model_part, read_tensors
from sleepfm_fast.runs.run_config import refuse_damaged
from sleepfm_fast.storage.columns import file_digest

if TYPE_CHECKING:
    from sleepfm_fast.training.settings import Settings

__all__ = [
    "SEED_SUFFIXES",
    "UNITS",
    "Pretrained",
    "initialise",
    "load_model",
    "read_pretrained",
    "refuse_differences",
]

SEED_SUFFIXES = (".pt", ".pth")
UNITS = (
    "the authors trained on the recorder's integers without gain (CinC 2018) or on their own units; clips here are in "
    "uV. Embeddings are meaningful only where the amplitudes agree; check on labelled nights."
)


@dataclass(frozen=True)
class Pretrained:
    """The weights and the description of a trained model.

    Attributes
    ----------
    file : Path
        The file that holds the weights.
    kind : str
        What kind of file it is, in words.
    tensors : dict of str to Tensor
        The weights by the names of :class:`SleepModel`'s state dict.
    config : dict or None
        The content of a run's ``config.json``: ``model``, ``montage``, ``input`` and more; None where only the weights
        are known.
    """

    file: Path
    kind: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] | None

    def sha256(self) -> str:
        """Return the SHA-256 of the file, in hexadecimal."""
        return file_digest(self.file)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that have an encoder."""
        found = {name.split(".")[1] for name in self.tensors if name.startswith("encoders.")}
        return tuple(sorted(found, key=MODALITIES.index)) if found <= set(MODALITIES) else tuple(sorted(found))


def read_pretrained(path: Path) -> Pretrained:
    """Read a run folder (its best checkpoint), a ``.safetensors`` checkpoint, or the authors' ``.pt`` file.

    Raises
    ------
    SleepfmError
        When it is missing, damaged, or none of these.
    """
    if path.suffix in SEED_SUFFIXES:
        checkpoint = read_seed_checkpoint(path)
        tensors = dict(checkpoint.model.state_dict())
        return Pretrained(path, "the authors' checkpoint", tensors, checkpoint.description())
    if path.suffix == ".safetensors":
        run = RunDirectory(path.parent)
        config = trained_config(run) if run.exists() else None
        return Pretrained(path, "a checkpoint", model_tensors(path), config)
    run = RunDirectory(path)
    config = trained_config(run)
    return Pretrained(run.best_path, "the best checkpoint of a run", model_tensors(run.best_path), config)


def trained_config(run: RunDirectory) -> dict[str, Any]:
    """Return the configuration of a run of train; refuse a run of another command."""
    config = run.config()
    if config.get("command", "train") != "train":
        raise SleepfmError(
            f"{run.path} holds a run of {config['command']}, whose network gives classes and no embeddings. Give a run "
            "of train."
        )
    refuse_damaged(run.config_path, config, {"input": InputConfig, "model.encoder": EncoderConfig})
    return config


def model_tensors(path: Path) -> dict[str, Tensor]:
    """Return a checkpoint's model tensors by their state dict's names, without those of optimiser and generators."""
    found = read_tensors(path)
    found = model_part(found) or found
    if not any(name.startswith("encoders.") for name in found):
        listed = ", ".join(list(found)[:3]) or "nothing"
        raise SleepfmError(
            f"{path} holds no tensors named encoders.<modality>.*, as train writes them; it has {listed}."
        )
    return found


def load_model(path: str | Path, device: str | torch.device) -> tuple[SleepModel, dict[str, Any], dict[str, str]]:
    """Load a trained float32 model in evaluation mode, its run's configuration, and file and SHA-256 of its weights.

    Parameters
    ----------
    path : path-like
        A path as for :func:`read_pretrained`.
    device : torch.device or str

    Raises
    ------
    SleepfmError
        As :func:`read_pretrained`; and for a checkpoint without the ``config.json`` of its run.
    """
    found = read_pretrained(as_path(path))
    if found.config is None:
        raise SleepfmError(
            f"{found.file} has no config.json beside it, which says what its channels and filters are. Give the run "
            "folder that train wrote, or a checkpoint inside it."
        )
    with torch.device("meta"):  # a description can ask for any memory, but not for other tensors than the file has
        shapes = SleepModel.from_description(found.config["model"]).float().state_dict()
    refuse_differences(found, dict(shapes), found.tensors)
    with torch.device("cpu"):  # whatever a program's default device and type are
        model = SleepModel.from_description(found.config["model"]).float()
    model.load_state_dict(found.tensors)
    return model.to(device).eval(), found.config, {"file": str(found.file), "sha256": found.sha256()}


def initialise(model: SleepModel, found: Pretrained, montage: Montage, settings: Settings) -> tuple[str, ...]:
    """Give a new model the encoders of a trained one, and its temperature unless another was asked for.

    Parameters
    ----------
    model : SleepModel
        The new model; changed in place.
    found : Pretrained
        The trained one, which may have more modalities.
    montage : Montage
        The new model's; each modality's channels must be those that its encoder was trained on, in the same order.
    settings : Settings
        Where ``log_temperature`` is None, the trained one is taken, clamped to 0 to ``max_log_temperature``.

    Returns
    -------
    tuple of str
        Sentences for the user: what was initialised, and notices.

    Raises
    ------
    SleepfmError
        For the first modality, channel or tensor that differs.
    """
    wanted = tuple(model.modalities)
    if lacking := [name for name in wanted if name not in found.modalities]:
        raise SleepfmError(
            f"--init-from {found.file} has encoders for {', '.join(found.modalities)}, none for {', '.join(lacking)}. "
            f"Train the others alone (--modalities {' '.join(n for n in wanted if n in found.modalities)}), or start "
            "without --init-from."
        )
    if found.config is not None:
        refuse_other_channels(found, montage)
    ours = {name: t for name, t in model.state_dict().items() if name.startswith("encoders.")}
    prefixes = tuple(f"encoders.{name}." for name in wanted)
    theirs = {name: t for name, t in found.tensors.items() if name.startswith(prefixes)}
    refuse_differences(found, ours, theirs, why=f" (--preset {settings.preset} was asked for)")
    sentences = []
    tau = found.tensors.get("log_temperature")
    state = {**model.state_dict(), **theirs}
    if settings.log_temperature is None and tau is not None:
        value = min(max(float(tau), 0.0), settings.max_log_temperature)
        state["log_temperature"] = torch.tensor(value)
    model.load_state_dict(state)
    temperature = math.exp(float(model.log_temperature.detach()))
    own = settings.log_temperature is None and tau is not None
    sentences.append(
        f"{', '.join(wanted)} start from {found.kind} ({found.file}): {len(theirs)} tensors; the temperature starts "
        f"at {temperature:.3g}, {'the trained one' if own else 'as asked for'}; the optimiser starts anew"
    )
    if unused := [name for name in found.modalities if name not in wanted]:
        sentences.append(f"the encoders of {', '.join(unused)} in {found.file} are not used")
    if found.config is None:
        sentences.append(
            f"notice: {found.file} does not say which channels it was trained on; their number fits, their order is "
            "for you to check"
        )
    else:
        sentences += other_input(found, settings)
    return tuple(sentences)


def other_input(found: Pretrained, settings: Settings) -> list[str]:
    """Return a notice of the options in which the input of the training differs from the input now, if any."""
    assert found.config is not None
    trained: Mapping[str, Any] = found.config["input"]
    differing = [name for name in ("filters", "notch_hz", "normalise") if trained[name] != getattr(settings, name)]
    if not differing:
        return []
    listed = ", ".join(f"{option(name)} {trained[name]} (now {getattr(settings, name)})" for name in differing)
    return [f"notice: {found.file} was trained with {listed}; its encoders meet other amplitudes or bands here"]


def refuse_other_channels(found: Pretrained, montage: Montage) -> None:
    """Refuse encoders that were trained on other channels, or on the same ones in another order."""
    assert found.config is not None
    trained = {m.name: [s.name for s in m.slots] for m in Montage.from_dict(found.config["montage"]).modalities}
    for modality in montage.modalities:
        ours = [slot.name for slot in modality.slots]
        if ours and ours != trained[modality.name]:
            theirs = ", ".join(trained[modality.name])
            name = found.config["montage"]["name"]
            is_run = found.file.suffix not in SEED_SUFFIXES
            with_its = f"--like {shlex.quote(str(found.file.parent))}" if is_run else f"--montage {name}"
            raise SleepfmError(
                f"--init-from {found.file}: its {modality.name} encoder was trained on {theirs} (montage {name}); the "
                f"store has {', '.join(ours)} (montage {montage.name}). Make a store with its channels: "
                f"`python -m sleepfm_fast.preprocess FILES-OR-FOLDER STORE {with_its}`."
            )


def refuse_differences(
    found: Pretrained, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], why: str = ""
) -> None:
    """Refuse tensors that are missing, unknown, of another shape, or hold no numbers of the model's kind, by name."""
    for words, names in (
        ("lacks", [n for n in ours if n not in theirs]),
        ("has, and the model lacks,", [n for n in theirs if n not in ours]),
    ):
        if names:
            raise SleepfmError(f"{found.file} holds another network{why}: it {words} {first_of(names, 3)}.")
    for name, tensor in ours.items():
        if theirs[name].shape != tensor.shape:
            raise SleepfmError(
                f"{found.file} holds another network{why}: {name} has the shape {list(theirs[name].shape)} there, "
                f"{list(tensor.shape)} in the model."
            )
        if theirs[name].is_floating_point() != tensor.is_floating_point():
            kind = "floating-point numbers" if tensor.is_floating_point() else "whole numbers"
            raise SleepfmError(
                f"{found.file} holds another network{why}: {name} has the type "
                f"{str(theirs[name].dtype).removeprefix('torch.')} there, {kind} in the model."
            )
