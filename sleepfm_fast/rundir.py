"""A run on disk: ``config.json``, ``metrics.jsonl`` and safetensors checkpoints, each replaced atomically.

A checkpoint is one safetensors file. Its tensors are the model, the optimiser's moments and the random number
generators; everything that is not a tensor (step, sampler position, scheduler, best loss) is one JSON text in the
file's metadata, so that one rename commits all of it together. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepfm_fast.cli.command import to_json
from sleepfm_fast.cli.json_text import from_json, is_encodable
from sleepfm_fast.cli.misplaced import mistaken
from sleepfm_fast.cli.path_kinds import UNKNOWN, Kind, kind_of
from sleepfm_fast.errors import SleepfmError, is_refusal, unreadable
from sleepfm_fast.runs.run_config import damaged_entry
from sleepfm_fast.storage.atomic import named_errors, replace_file

if TYPE_CHECKING:
    import torch

__all__ = [
    "RunDirectory",
    "damaged",
    "goes_on",
    "model_part",
    "pack_optimiser",
    "read_checkpoint",
    "read_state",
    "read_tensors",
    "reconcile",
    "unpack_optimiser",
    "write_atomically",
    "write_checkpoint",
]

FORMAT = "sleepfm_fast run"
VERSION = 1

# What config.json may hold beside what a command looks for by name: a later version may leave some of it out.
ENTRIES: dict[str, tuple[type, ...]] = {
    "initialised_from": (dict, type(None)),
    "overlap": (bool,),
    "trained_subjects": (list,),
    "ranks": (int,),
    "changes": (list,),
}

# Options that may differ between a run's start and its resumption, and those of which the change is recorded.
FREE = ("resume", "device", "threads", "compile", "fused_blocks", "store", "run", "checkpoint_steps", "skip_limit")
RECORDED = ("epochs", "max_steps")


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` under a temporary name, flush it to the disk and rename it to ``path``."""
    with replace_file(path) as file:
        file.write(data)


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
    write_atomically(path, in_order(data))


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


class RunDirectory:
    """The folder of one training run.

    Parameters
    ----------
    path : Path
        The folder; it need not exist before :meth:`create`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.json"
        self.metrics_path = path / "metrics.jsonl"
        self.last_path = path / "last.safetensors"
        self.best_path = path / "best.safetensors"
        self.amplitudes_path = path / "amplitudes.safetensors"

    def refuse_if_present(self) -> None:
        """Refuse to start where anything stands already."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            found = kind_of(self.path)
            if found not in (*UNKNOWN, Kind.RUN, Kind.SUPERVISED):
                raise SleepfmError(f"{self.path} is {found.value} and is not overwritten. Name a new folder.")
            raise SleepfmError(
                f"{self.path} exists already. To continue its run, add --resume; to train from the beginning, name "
                "another folder."
            )

    def exists(self) -> bool:
        """Whether a run stands here."""
        return self.config_path.is_file()

    def create(self, config: Mapping[str, Any]) -> None:
        """Start a run; a folder that holds anything else is refused."""
        self.refuse_if_present()
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_config({"format": FORMAT, "version": VERSION, **config})

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.json``."""
        write_atomically(self.config_path, to_json(config, indent=2).encode() + b"\n")

    def config(self) -> dict[str, Any]:
        """Read ``config.json``."""
        try:
            config: dict[str, Any] = from_json(self.config_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise SleepfmError(
                mistaken(self.path, Kind.RUN, Kind.SUPERVISED)
                or f"{self.path} holds no run (config.json is missing). Give the folder that train wrote: "
                "python -m sleepfm_fast.train STORE RUN"
            ) from None
        except ValueError as error:
            raise SleepfmError(f"{self.config_path} is damaged: {error}. Restore it, or train again.") from error
        if not isinstance(config, dict):
            raise SleepfmError(f"{self.config_path} is damaged: it holds no object. Restore it, or train again.")
        if config.get("format") != FORMAT or config.get("version") != VERSION:
            raise SleepfmError(
                f"{self.config_path} says format '{config.get('format')}', version {config.get('version')}; this "
                f"program reads '{FORMAT}', version {VERSION}."
            )
        for name, kinds in ENTRIES.items():
            if name in config and not isinstance(config[name], kinds):
                raise damaged_entry(self.config_path, name, config[name])
        return config

    def append_metrics(self, row: Mapping[str, Any]) -> int:
        """Append one line to ``metrics.jsonl``; returns the file's size in bytes, to be kept in the checkpoint."""
        with named_errors(self.metrics_path), self.metrics_path.open("ab") as file:
            file.write(to_json(row).encode() + b"\n")
            file.flush()
            return file.tell()

    def last_metric(self, name: str) -> Any:
        """Value of ``name`` in the last line of ``metrics.jsonl`` that has one; None where none has."""
        if not self.metrics_path.exists():
            return None
        for line in reversed(self.metrics_path.read_text(encoding="utf-8", errors="replace").splitlines()):
            with contextlib.suppress(ValueError):
                row = from_json(line)
                if isinstance(row, dict) and name in row:
                    return row[name]
        return None

    def truncate_metrics(self, n_bytes: int) -> None:
        """Forget lines written after the checkpoint that the run resumes from."""
        if self.metrics_path.exists():
            if self.metrics_path.stat().st_size < n_bytes:
                raise SleepfmError(
                    f"{self.metrics_path} is shorter ({self.metrics_path.stat().st_size} bytes) than when the "
                    f"checkpoint was written ({n_bytes} bytes): it was changed by hand. Restore it, or train again."
                )
            os.truncate(self.metrics_path, n_bytes)
        elif n_bytes:
            raise SleepfmError(f"{self.metrics_path} is missing; restore it, or train into another folder.")


def has_ended_as_asked(run: RunDirectory, command: str, now: Mapping[str, Any]) -> bool:
    """Whether the same command has trained this run to its end: there is nothing to do, with ``--resume`` or without.

    Parameters
    ----------
    run : RunDirectory
    command : str
        ``train`` or ``supervise``.
    now : mapping
        As of :func:`reconcile`.
    """
    try:
        saved = run.config()
        state = read_state(run.last_path) if run.last_path.is_file() else {}
    except SleepfmError:  # none, or a damaged one, which is refused in place of a new one
        return False
    options, kept = now["config"], saved.get("config")
    # What --init-from names may have become another file.
    if saved.get("command", "train") != command or not isinstance(kept, dict) or options.get("init_from") is not None:
        return False
    then = {**now["defaults"], **kept}
    same = all(k in FREE or (k in then and then[k] == value) for k, value in options.items())
    if not same or (saved.get("store_digest"), saved.get("ranks", 1)) != (now["store_digest"], now["ranks"]):
        return False
    step, epoch = (found if type(found := state.get(name)) is int else 0 for name in ("step", "epoch"))
    return bool(state.get("stopped_early")) or epoch >= options["epochs"] or 0 < options["max_steps"] <= step


def goes_on(run: RunDirectory, command: str, now: Mapping[str, Any]) -> bool:
    """Whether a command without ``--resume`` resumes a run, as there is nothing to do; else what stands is refused."""
    if has_ended_as_asked(run, command, now):
        return True
    run.refuse_if_present()
    return False


def reconcile(run: RunDirectory, now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make a run's folder ready to be resumed: compare, record what changed, forget metrics after the checkpoint.

    Parameters
    ----------
    run : RunDirectory
        The run.
    now : mapping
        ``config`` (the options as JSON), ``store_digest`` and ``ranks`` (number of processes) of the resumption, and
        ``defaults`` of the options: a run that was begun before there was an option has its default.

    Returns
    -------
    list of dict
        ``step``, ``option``, ``was`` and ``is`` of each change, as appended to ``changes`` in ``config.json``.

    Raises
    ------
    SleepfmError
        When an option that defines the run differs or is not known, or the store differs.
    """
    saved = run.config()
    for entry in ("config", "store_digest"):
        if not isinstance(saved.get(entry), type(now[entry])):
            raise damaged_entry(run.config_path, entry, saved.get(entry))
    then, options = {**now["defaults"], **saved["config"]}, now["config"]
    if unknown := [k for k in saved["config"] if k not in now["defaults"] and k not in options]:
        listed = ", ".join(f"--{k.replace('_', '-')} {saved['config'][k]}" for k in unknown)
        raise SleepfmError(
            f"the run in {run.path} was begun by another version of sleepfm_fast, with {listed}, which this version "
            "does not have. Resume it with the version that began it."
        )
    differing = [k for k in options if k not in FREE and options[k] != then.get(k, options[k])]
    refused = [k for k in differing if k not in RECORDED]
    if refused:
        listed = ", ".join(f"--{k.replace('_', '-')} was {then[k]}, is {options[k]}" for k in refused)
        raise SleepfmError(
            f"the run in {run.path} was started with other options: {listed}. Resume with the same options; only "
            "--epochs, --max-steps and the number of processes may change."
        )
    if saved["store_digest"] != now["store_digest"]:
        raise SleepfmError(
            f"the store has changed since the run in {run.path} began, so it cannot be resumed exactly. Train into "
            "another folder."
        )
    state = read_state(run.last_path) if run.last_path.exists() else {}
    n_bytes, step = state.get("metrics_bytes", 0), state.get("step", 0)
    for name, value in (("metrics_bytes", n_bytes), ("step", step)):
        if type(value) is not int or value < 0:
            raise damaged(run.last_path, ValueError(f"the entry {name} is {value!r}"))
    run.truncate_metrics(n_bytes)
    changes = [
        {"step": step, "option": f"--{k.replace('_', '-')}", "was": then[k], "is": options[k]} for k in differing
    ]
    ranks = saved.get("ranks", 1)
    if ranks != now["ranks"]:
        changes.append({"step": step, "option": "the number of processes", "was": ranks, "is": now["ranks"]})
    if changes:
        config = {**saved["config"], **{k: options[k] for k in differing}}
        recorded = [*saved.get("changes", []), *changes]
        run.write_config({**saved, "config": config, "ranks": now["ranks"], "changes": recorded})
    return changes
