"""What an embeddings folder is made of: its versions, columns and description; ``embeddings.json`` read."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.json_text import from_json
from sleepfm_fast.cli.misplaced import mistaken
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError, is_refusal, unreadable
from sleepfm_fast.runs.splits import SPLITS
from sleepfm_fast.store.record_check import is_number

__all__ = [
    "COLUMNS",
    "FEATURES_VERSION",
    "FORMAT",
    "KINDS",
    "VERSION",
    "Description",
    "people_problem",
    "range_problem",
    "read_record",
]

FORMAT = "sleepfm_fast embeddings"
VERSION = 2
FEATURES_VERSION = 3
"""Of folders of features since their definitions have numbers: programs that do not know these would take features of
two definitions for the same."""
READABLE = (1, 2, 3)  # version 1 had no kind: all of its folders hold embeddings of one width
KINDS = ("embedding", "feature")
COLUMNS: dict[str, str] = {
    "recording": "int32",
    "clip": "int32",
    "onset_s": "float64",
    "stage": "int8",
    "sdb": "int8",
    "subject": "int32",
    "split": "int8",
}


@dataclass(frozen=True)
class Description:
    """The subjects, recordings and provenance of an embeddings folder.

    The columns ``subject`` and ``recording`` index ``subjects`` and ``recordings``. ``ages`` (years) and ``sexes`` have
    an entry per subject, None where unknown; ``recording_ages`` has one per recording, since a subject is older at its
    second visit, or is empty where the folder is of an earlier version. ``overlap`` says that training and test clips
    come from the same subjects, as in a store with one subject; ``overlap_note`` is the sentence that every command
    then repeats.
    """

    subjects: tuple[str, ...]
    recordings: tuple[str, ...]
    ages: tuple[float | None, ...]
    sexes: tuple[str | None, ...]
    run: str
    store: str
    split_rule: str
    presets: Mapping[str, Any] = field(default_factory=dict)
    overlap: bool = False
    overlap_note: str = ""
    recording_ages: tuple[float | None, ...] = ()


def range_problem(name: str, values: npt.NDArray[Any], n_subjects: int, n_recordings: int) -> str:
    """Return what is wrong with a column's values, or an empty string."""
    limits: dict[str, tuple[float, float]] = {
        "recording": (0, n_recordings - 1),
        "clip": (0, np.iinfo(np.int32).max),
        "onset_s": (0.0, float(np.finfo(np.float64).max)),
        "stage": (-1, 4),
        "sdb": (-1, 1),
        "subject": (0, n_subjects - 1),
        "split": (0, len(SPLITS) - 1),
    }
    low, high = limits[name]
    if not values.size:
        return ""
    lowest, highest = values.min(), values.max()
    if low <= lowest and highest <= high:
        return ""
    return f"column {name} holds values from {lowest} to {highest}; expected {low:g} to {high:g}"


def people_problem(about: Description) -> str:
    """Return what is wrong with the subjects' ages and sexes, or an empty string."""
    facts: list[tuple[str, Sequence[Any], Callable[[Any], bool], Any, str]] = [
        ("ages", about.ages, is_number, about.subjects, "subjects"),
        ("sexes", about.sexes, lambda value: isinstance(value, str), about.subjects, "subjects"),
    ]
    if about.recording_ages:
        facts.append(("ages of them", about.recording_ages, is_number, about.recordings, "recordings"))
    for name, values, is_right, whose, kind in facts:
        if len(values) != len(whose):
            return f"it has {len(whose)} {kind} and {len(values)} {name}"
        wrong = [value for value in values if value is not None and not is_right(value)]
        if wrong:
            return f"one of its {name} is {wrong[0]!r}"
    return ""


def read_record(path: Path) -> dict[str, Any]:
    """Read ``embeddings.json`` of the folder ``path``, of a format and version that are read.

    Raises
    ------
    SleepfmError
        When it is missing, cannot be read, or is of another format or version.
    """
    if (sentence := mistaken(path, Kind.EMBEDDINGS, Kind.FEATURES)) and not (path / "embeddings.json").exists():
        raise SleepfmError(sentence)
    if not path.is_dir():
        made = "make it with" if not path.exists() else "that is a file, not a folder; make one with"
        command = f"python -m sleepfm_fast.embed RUN STORE {shlex.quote(str(path))}"
        raise SleepfmError(f"no embeddings folder at {path}: {made} `{command}`.")
    try:
        record = from_json((path / "embeddings.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if (path / "embeddings" / "embeddings.json").is_file():
            raise SleepfmError(f"{path} is a run, not its embeddings folder; give {path / 'embeddings'}.") from error
        raise SleepfmError(
            f"{path} is not a finished embeddings folder: it has no embeddings.json. Give the folder that "
            "`python -m sleepfm_fast.embed RUN STORE EMBEDDINGS` made, or run that command (again)."
        ) from error
    except (OSError, ValueError) as error:
        if is_refusal(error):
            raise SleepfmError(unreadable(path / "embeddings.json", error)) from error
        raise SleepfmError(
            f"{path / 'embeddings.json'} cannot be read ({error}). Remove the folder and run "
            "`python -m sleepfm_fast.embed RUN STORE EMBEDDINGS` again."
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") not in READABLE:
        found = f"{record.get('format')} {record.get('version')}" if isinstance(record, dict) else type(record).__name__
        raise SleepfmError(
            f"{path / 'embeddings.json'} says format '{found}'; this version reads '{FORMAT}', version "
            f"{', '.join(map(str, READABLE))}. Embed again with this version of sleepfm_fast."
        )
    return record
