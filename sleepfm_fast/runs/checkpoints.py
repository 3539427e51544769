"""Checkpoints: safetensors files, replaced atomically.

A checkpoint is one file. Its tensors are the model, the optimiser's moments and the random number generators;
everything that is not a tensor (step, sampler position, scheduler, best loss) is one JSON text in the file's metadata,
so that one rename commits all of it together. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepfm_fast.cli.command import to_json
from sleepfm_fast.cli.json_text import from_json, is_encodable
from sleepfm_fast.errors import SleepfmError, is_refusal, unreadable
from sleepfm_fast.storage.atomic import replace_file

if TYPE_CHECKING:
    import torch

__all__ = [
    "damaged",
    "model_part",
    "pack_optimiser",
    "read_checkpoint",
    "read_state",
    "read_tensors",
    "unpack_optimiser",
    "write_checkpoint",
]


def write_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON state as one safetensors file, atomically.

    Parameters
    ----------
    path : Path
        Where the checkpoint will stand.
    tensors : mapping of str to tensor
        Any device; copied to the CPU.
    state : mapping
        Values that JSON can hold.
    """
    from safetensors.torch import save

    data = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={"format": "pt", "state": to_json(state)},
    )
    with replace_file(path) as file:
        file.write(in_order(data))


def in_order(data: bytes) -> bytes:
    """Sort the metadata of a safetensors file, which safetensors writes in an order that differs from call to call.

    Equal weights then are equal files. Embeddings and what is made of them name a checkpoint by its digest.
    """
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + data[8 + n :]


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`write_checkpoint` wrote.

    Raises
    ------
    SleepfmError
        When the file is missing, damaged, or lacks the state.
    """
    tensors, metadata = read_safetensors(path)
    if "state" not in metadata:
        raise SleepfmError(f"the safetensors file {path} holds no sleepfm_fast state; it was not written by train.")
    return tensors, state_in(path, metadata)


def state_in(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON state in a checkpoint's metadata; empty where there is none."""
    try:
        state = from_json(metadata.get("state", "{}"))
    except ValueError as error:
        raise damaged(path, error) from error
    if not isinstance(state, dict):
        raise damaged(path, ValueError("its state is no object"))
    return state


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of any safetensors file.

    Raises
    ------
    SleepfmError
        When the file is missing or damaged.
    """
    return read_safetensors(path)[0]


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read tensors and metadata."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise SleepfmError(
            f"there is no checkpoint {path}; train the run first: python -m sleepfm_fast.train STORE RUN"
        )
    if not is_encodable(str(path), "utf-8"):  # safetensors takes no other name
        raise SleepfmError(f"the name {os.fsencode(path)!r} is not valid UTF-8. Rename the folder.")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return tensors, file.metadata() or {}
    except (SafetensorError, ValueError, OSError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> SleepfmError:
    """Make the error that says that a checkpoint cannot be read, and how the run's other one can help."""
    try:
        with path.open("rb"):  # safetensors says "I/O error" or "No such file" for whatever the system refused
            pass
    except OSError as refusal:
        if is_refusal(refusal):
            return SleepfmError(unreadable(path, refusal))
    other = path.with_name("last.safetensors" if path.name == "best.safetensors" else "best.safetensors")
    if path.name == "last.safetensors":
        remedy = "Restore it, or delete it: --resume then begins at the first step."
        remedy += f" The best model so far is in {other}." if other.is_file() else ""
    elif other.is_file():
        remedy = f"Restore it; {other} holds the model of the last checkpoint, which embed and --init-from take too."
    else:
        remedy = "Restore it, or train again."
    return SleepfmError(f"the checkpoint {path} is damaged ({error}). {remedy}")


def read_state(path: Path) -> dict[str, Any]:
    """Read only the JSON state of a checkpoint."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, ValueError, OSError) as error:
        raise damaged(path, error) from error
    return state_in(path, metadata)


def model_part(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the model's tensors of a checkpoint, by their names in its state dict."""
    return {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}


def pack_optimiser(optimiser: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors named ``optimiser/<parameter>/<moment>`` and JSON."""
    import torch

    state = optimiser.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, moments in state["state"].items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimiser/{index}/{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"groups": state["param_groups"], "plain": plain}


def unpack_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
) -> None:
    """Restore what :func:`pack_optimiser` took apart."""
    moments: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in state["plain"].items()}
    for name, tensor in tensors.items():
        if name.startswith("optimiser/"):
            _, index, moment = name.split("/", 2)
            moments.setdefault(int(index), {})[moment] = tensor
    # How a step is computed belongs to this process and device, not to the run.
    here = {name: optimiser.defaults[name] for name in ("foreach", "fused") if name in optimiser.defaults}
    groups = [{**group, **here} for group in state["groups"]]
    optimiser.load_state_dict({"state": moments, "param_groups": groups})
