"""Checkpoints of the authors' code (``best.pt``, ``checkpoint.pt``) as models of this project, and as run folders.

The authors' file is a pickle. It is read with ``weights_only``, which unpickles tensors, numbers and containers and
refuses anything else.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sleepfm_fast.batches import InputConfig
from sleepfm_fast.cli.command import plain, to_json
from sleepfm_fast.encoder import PRESETS, SleepModel, build_encoder
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.montage.montages import MONTAGES
from sleepfm_fast.plurals import first_of
from sleepfm_fast.rundir import RunDirectory, read_checkpoint, write_checkpoint
from sleepfm_fast.runs.splits import Split

__all__ = ["SeedCheckpoint", "read_seed_checkpoint", "write_run"]

# The names that the authors' code writes, in the order of this project's modalities; then those by which the file that
# they have released is said to call the same encoders.
STATES_OF = {
    "respiratory": ("respiratory_state_dict", "resp_state_dict"),
    "brain": ("sleep_stages_state_dict", "sleep_state_dict"),
    "ecg": ("ekg_state_dict",),
}
MOST_CHANNELS = 64
"""The most channels of an encoder, far above any montage's, so that a damaged file cannot demand absurd memory."""
MONTAGE_OF = {(7, 10, 2): "paper", (3, 5, 1): "cinc2018"}
INPUT = InputConfig(filters="seed", notch_hz=0, normalise="none")


@dataclasses.dataclass(frozen=True)
class SeedCheckpoint:
    """The contents of a checkpoint of the authors' training.

    Attributes
    ----------
    path : Path
        The file.
    model : SleepModel
        The three encoders and the temperature.
    montage : str
        Name of the montage whose channel counts the encoders have.
    epoch : int
        Epoch after which it was written.
    best_loss : float
        The best validation loss so far, NaN where the file does not say.
    """

    path: Path
    model: SleepModel
    montage: str
    epoch: int
    best_loss: float

    def description(self) -> dict[str, Any]:
        """Return the contents of a run's ``config.json``."""
        return {
            "config": {"imported_from": str(self.path), "epoch": self.epoch},
            "model": self.model.describe(),
            "montage": MONTAGES[self.montage].to_dict(),
            "input": plain(INPUT),
            "split": plain(Split()),
            "overlap": False,
            "subjects": {},
            "store_digest": "",
        }


def unpickle(path: Path) -> dict[str, Any]:
    """Read the file's dictionary without executing anything in it."""
    refuse_inflated(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about pickle protocols; a file that cannot be read raises
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SleepfmError(f"there is no file {path}; give the authors' best.pt or checkpoint.pt.") from None
    except OSError as error:  # in a damaged archive torch seeks to impossible places; that error names no file
        raise SleepfmError(
            f"{path} cannot be read: {error.strerror or error}. Was the file transferred whole?"
        ) from error
    except pickle.UnpicklingError as error:
        raise SleepfmError(
            f"{path} holds more than tensors and numbers, or is no PyTorch checkpoint, and was not loaded: a pickle "
            f"can run any code. (torch says: {str(error).splitlines()[0]})"
        ) from error
    # All that torch's reader raises for the many ways in which a file can be cut short or garbled.
    except (
        *(RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError),
        *(MemoryError, struct.error),
    ) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise SleepfmError(f"{path} is damaged or no PyTorch checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise SleepfmError(f"{path} holds a {type(content).__name__}; the authors' checkpoint is a dictionary.")
    return content


def refuse_inflated(path: Path) -> None:
    """Refuse an archive that holds more than its own size: torch never compresses, and would unpack any amount."""
    try:
        n_bytes = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            n_held = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):  # what is wrong is for torch's reader to say
        return
    if n_held > n_bytes:
        raise SleepfmError(
            f"{path} was not loaded: it has {n_bytes} bytes and would unpack to {n_held}, while torch.save writes "
            "tensors as they are. Save the checkpoint again with torch.save."
        )


def number(value: Any) -> float | None:
    """Return a finite number that is given as such or as a tensor of one element; None for anything else."""
    try:
        found = float(value.detach().reshape(()) if isinstance(value, torch.Tensor) and value.numel() == 1 else value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return found if math.isfinite(found) else None


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is dense, real and in memory: not sparse, quantised, complex or on "meta"."""
    dense = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta"
    return dense and not tensor.is_complex()


def state_names(path: Path, content: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of each modality's state dict in this file; refuse a file that lacks one, or has it twice."""
    given = {modality: [name for name in names if name in content] for modality, names in STATES_OF.items()}
    missing = [" or ".join(STATES_OF[modality]) for modality, names in given.items() if not names]
    missing += [name for name in ("temperature",) if name not in content]
    if missing:
        raise SleepfmError(
            f"{path} lacks {', '.join(missing)}; it has {', '.join(map(str, list(content)[:8])) or 'nothing'}. The "
            "authors' pretraining writes one state dict a modality and the temperature."
        )
    twice = next((names for names in given.values() if len(names) > 1), None)
    if twice:
        raise SleepfmError(
            f"{path} has both {' and '.join(twice)}, which are names of one encoder; which of them is meant is not "
            "known. Keep one."
        )
    return {modality: names[0] for modality, names in given.items()}


def encoder_state(path: Path, place: str, state: Any) -> dict[str, torch.Tensor]:
    """Return one encoder's tensors under this project's names, after checking each; ``place`` is its name there."""
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise SleepfmError(f"{path}: {place} is not a mapping of names to tensors.")
    found = {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    strange = next((name for name, tensor in found.items() if not is_plain(tensor)), None)
    if strange is not None:
        raise SleepfmError(
            f"{path}: {place} has {strange} as a sparse, quantised, complex or empty tensor; the authors' "
            "code writes dense real numbers."
        )
    stem = found.get("stage1.weight")
    if stem is None or stem.ndim != 3 or not 1 <= stem.shape[1] <= MOST_CHANNELS:
        raise SleepfmError(
            f"{path}: {place} has no tensor stage1.weight [32, channels, 3]; it was not written by the "
            "authors' training code."
        )
    expected = build_encoder(stem.shape[1], PRESETS["seed"]).state_dict()
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise SleepfmError(
            f"{path}: {place} is not the published network: "
            + "; ".join(
                f"{what} {first_of(names, 3)}"
                for what, names in (("it lacks", missing), ("it has unknown", unknown))
                if names
            )
            + "."
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise SleepfmError(
                f"{path}: {place} has {name} of shape {list(found[name].shape)}; the published network "
                f"has {list(tensor.shape)}."
            )
    return {name: found[name].to(tensor.dtype) for name, tensor in expected.items()}


def read_seed_checkpoint(path: Path) -> SeedCheckpoint:
    """Read a checkpoint in the layout of the authors' pretraining script.

    Parameters
    ----------
    path : Path
        A file with ``respiratory_state_dict``, ``sleep_stages_state_dict``, ``ekg_state_dict`` (names with or without
        DataParallel's ``module.``; the first two may be called ``resp_state_dict`` and ``sleep_state_dict``) and
        ``temperature``, the logarithm of the logits' scale.

    Returns
    -------
    SeedCheckpoint
        In evaluation mode, on the CPU.

    Raises
    ------
    SleepfmError
        Where the file is missing, unsafe, damaged, or another network's; the first tensor that differs is named.
    """
    content = unpickle(path)
    names = state_names(path, content)
    states = {modality: encoder_state(path, name, content[name]) for modality, name in names.items()}
    channels = {modality: state["stage1.weight"].shape[1] for modality, state in states.items()}
    counts = tuple(channels.values())
    if counts not in MONTAGE_OF:
        known = "; ".join(f"{'/'.join(map(str, key))} ({name})" for key, name in MONTAGE_OF.items())
        raise SleepfmError(
            f"{path} was trained on {'/'.join(map(str, counts))} respiratory/brain/ecg channels; the montages that "
            f"are known have {known}."
        )
    temperature = number(content["temperature"])
    if temperature is None:
        raise SleepfmError(f"{path}: the temperature is {str(content['temperature'])[:60]}; expected a finite number.")
    epoch, best_loss = number(content.get("epoch")), number(content.get("best_loss"))
    model = SleepModel(channels, PRESETS["seed"], log_temperature=temperature)
    for modality, state in states.items():
        model.encoders[modality].load_state_dict(state)
    return SeedCheckpoint(
        path=path,
        model=model.eval(),
        montage=MONTAGE_OF[counts],
        epoch=-1 if epoch is None else int(epoch),
        best_loss=math.nan if best_loss is None else best_loss,
    )


def write_run(checkpoint: SeedCheckpoint, run: RunDirectory) -> bool:
    """Write the checkpoint as a run folder, which embed reads and train can start from.

    Returns
    -------
    bool
        False where that run stands there already. One without weights, as after a kill, is completed.

    Raises
    ------
    SleepfmError
        When the folder holds something else.
    """
    tensors = {f"model/{name}": tensor for name, tensor in checkpoint.model.state_dict().items()}
    best_loss = None if math.isnan(checkpoint.best_loss) else checkpoint.best_loss
    state = {"epoch": checkpoint.epoch, "best_loss": best_loss}
    if not run.exists():
        run.create(checkpoint.description())
    elif not is_described(run, checkpoint):
        raise SleepfmError(f"{run.path} holds another run and is not overwritten. Name a new folder.")
    elif run.best_path.exists():
        there, then = read_checkpoint(run.best_path)
        same = there.keys() == tensors.keys() and all(same_bits(there[name], tensors[name]) for name in tensors)
        if not same or then != state:
            raise SleepfmError(
                f"{run.path} holds a run of other weights than {checkpoint.path} and is not overwritten. Name a new "
                "folder."
            )
        return False
    write_checkpoint(run.best_path, tensors, state)
    return True


def is_described(run: RunDirectory, checkpoint: SeedCheckpoint) -> bool:
    """Whether a run's ``config.json`` is that of a checkpoint, wherever its file lay."""
    there, now = run.config(), json.loads(to_json(checkpoint.description()))
    options = there.get("config")
    source = options.get("imported_from") if isinstance(options, dict) else None
    now["config"]["imported_from"] = source
    return bool(source) and {name: there.get(name) for name in now} == now


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal, NaN to NaN too."""
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
