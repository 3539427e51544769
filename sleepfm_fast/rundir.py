"""A run on disk: ``config.json``, ``metrics.jsonl`` and checkpoints, each replaced atomically."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sleepfm_fast.cli.command import to_json
from sleepfm_fast.cli.json_text import from_json
from sleepfm_fast.cli.misplaced import mistaken
from sleepfm_fast.cli.path_kinds import UNKNOWN, Kind, kind_of
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.runs.checkpoints import (
    model_part,
    pack_optimiser,
    read_checkpoint,
    read_state,
    read_tensors,
    unpack_optimiser,
    write_checkpoint,
)
from sleepfm_fast.runs.run_config import damaged_entry
from sleepfm_fast.storage.atomic import named_errors, replace_file

__all__ = [
    "RunDirectory",
    "model_part",
    "pack_optimiser",
    "read_checkpoint",
    "read_state",
    "read_tensors",
    "unpack_optimiser",
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
        with replace_file(self.config_path) as file:
            file.write(to_json(config, indent=2).encode() + b"\n")

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
