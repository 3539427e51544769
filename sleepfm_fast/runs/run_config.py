"""Checks of a run's ``config.json`` before its model is used; an entry that was damaged by hand is refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.montage.slots import MODALITIES
from sleepfm_fast.runs.seen_recordings import is_list_of_recordings
from sleepfm_fast.runs.splits import Split

__all__ = ["damaged_entry", "refuse_damaged"]


def damaged_entry(file: Path, entry: str, found: Any) -> SleepfmError:
    """Make the error that says which entry is wrong."""
    what = "is missing" if found is None else f"is {str(found)[:60]!r}, which it cannot be"
    return SleepfmError(f"{file} is damaged: the entry '{entry}' {what}. Restore the file, or train again.")


def refuse_damaged(file: Path, config: Mapping[str, Any], options: Mapping[str, type]) -> None:
    """Refuse a configuration whose entries are missing or of the wrong kind.

    Parameters
    ----------
    file : Path
        ``config.json``, for the message.
    config : mapping
        Its content.
    options : mapping of str to type
        Entries, as paths with dots, and the dataclass whose fields each holds; a field must have its default's type.

    Raises
    ------
    SleepfmError
        Its message names the first entry that is wrong.
    """
    for entry in ("config", "model", "montage", "input", "subjects", "split"):
        if not isinstance(config.get(entry), dict):
            raise damaged_entry(file, entry, config.get(entry))
    modalities = config["model"].get("modalities")
    if (
        not isinstance(modalities, dict)
        or not 0 < len(modalities) == len(modalities.keys() & set(MODALITIES))
        or any(type(n) is not int or n < 1 for n in modalities.values())
    ):
        raise damaged_entry(file, "model.modalities", modalities)
    for subject, code in config["subjects"].items():
        if code not in (0, 1, 2):
            raise damaged_entry(file, f"subjects.{subject}", code)
    origin = config.get("initialised_from")
    for entry, holder in (("recordings", config), ("initialised_from.recordings", origin)):
        recordings = holder.get("recordings") if isinstance(holder, dict) else None
        if recordings is not None and not is_list_of_recordings(recordings):
            raise damaged_entry(file, entry, recordings)
    for entry, kind in {"split": Split, **options}.items():
        found: Any = config
        for part in entry.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            raise damaged_entry(file, entry, found)
        check_fields(file, entry, found, kind)
        try:
            kind(**found)
        except ValueError as error:
            raise SleepfmError(
                f"{file} is damaged: the entry '{entry}' cannot be: {str(error).rstrip('.')}. Restore the file, or "
                "train again."
            ) from error


def check_fields(file: Path, entry: str, found: Mapping[str, Any], kind: type) -> None:
    """Refuse a name that the dataclass lacks, and a value that is not of the type of its default."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, value in found.items():
        if name not in defaults:
            raise SleepfmError(
                f"{file} has the entry '{entry}.{name}', which this version does not know; it knows "
                f"{', '.join(defaults)}. Use the version of sleepfm_fast that trained the run, or restore the file."
            )
        if not fits(value, defaults[name]):
            raise damaged_entry(file, f"{entry}.{name}", value)


def fits(value: Any, default: Any) -> bool:
    """Whether a JSON value has the type of a default; an integer may stand for a float."""
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(type(v) is int for v in value)
    if isinstance(default, float):
        return type(value) in (int, float)
    return type(value) is type(default)
