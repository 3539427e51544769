"""The layout of a clip store: integers as recorded, at their native rates, with labels.

A store is a folder (layout version 1)::

    store.json              format, version, montage, configuration, name of the index in force; replaced last, which is
                            the commit
    recordings/<id>.bin     for each segment, for each filled slot: its samples, contiguous, little-endian int16 or
                            int32 (BDF and derived channels), every run starting at a multiple of 64 bytes
    recordings/<id>.json    what the .bin holds and where it came from; written after the .bin
    nights.csv              one row per recording: its subject and the scorer's figures (``cohorts.nights_table``)
    failures/<id>.json      a recording that could not be ingested, and why; tried again by the next run
    index-<hash>/           columns of all recordings, with one row per clip, per recording, per (recording, slot), per
                            segment, or per (segment, slot)

``clip_writer`` writes it, ``clips`` reads it. Only the slots of the montage are stored. Physical value = gain * stored
integer + offset, in the channel's unit.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.json_text import from_json
from sleepfm_fast.cli.misplaced import mistaken
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError, is_refusal, unreadable
from sleepfm_fast.montage.slots import Montage
from sleepfm_fast.scoring.stages import STAGES

__all__ = [
    "FORMAT",
    "INDEX_SCHEMA",
    "INDEX_TEXTS",
    "VERSION",
    "ClipStoreError",
    "read_store_file",
    "sdb_counts",
    "stage_counts",
]

FORMAT = "sleepfm_fast clip store"
ORIGINS = ("seed", "clinical")
"""The origins of the data that convert makes a store from."""
VERSION = 1

INDEX_SCHEMA = {
    # one row per clip
    "recording": "<i4",
    "clip": "<i4",
    "segment": "<i4",
    "onset_s": "<f8",
    "stage": "<i1",
    "sdb": "<i1",
    # one row per recording; the two "first" columns have one row more, the total
    "recording_first_clip": "<i8",
    "recording_first_segment": "<i8",
    "recording_subject": "<i4",
    # one row per (recording, slot)
    "channel_present": "|b1",
    "channel_fs_num": "<i8",
    "channel_fs_den": "<i8",
    "channel_gain": "<f8",
    "channel_offset": "<f8",
    "channel_itemsize": "|i1",
    "channel_unit": "<i4",
    "channel_n_samples": "<i8",
    # one row per segment
    "segment_onset_num": "<i8",
    "segment_onset_den": "<i8",
    # one row per (segment, slot)
    "run_offset": "<i8",
    "run_n_samples": "<i8",
}
INDEX_TEXTS = ("recordings", "subjects", "units")

Array = npt.NDArray[Any]


class ClipStoreError(SleepfmError):
    """A store that is missing, unfinished, of another version or damaged."""


def read_store_file(path: Path) -> dict[str, Any]:
    """Read and check ``store.json`` of the store ``path``."""
    file = path / "store.json"
    if not file.is_file():
        if sentence := mistaken(path, Kind.STORE):
            raise ClipStoreError(sentence)
        what = "is not a clip store (it has no store.json)" if path.is_dir() else "does not exist"
        command = f"python -m sleepfm_fast.preprocess FILES-OR-FOLDER {shlex.quote(str(path))}"
        raise ClipStoreError(f"{path} {what}. Make one with `{command}`.")
    try:
        value = from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if is_refusal(error):
            raise ClipStoreError(unreadable(file, error)) from None
        raise damaged(file, str(error)) from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ClipStoreError(f"{file} does not describe a '{FORMAT}'. Choose the folder that preprocess wrote.")
    if value.get("version") != VERSION:
        raise ClipStoreError(
            f"{path} is a clip store of version {value.get('version')}; this sleepfm_fast reads version {VERSION}. "
            "Run preprocess again into a new folder, or use the version of sleepfm_fast that wrote it."
        )
    if wrong := wrong_entry(value):
        raise damaged(file, wrong)
    return value


def damaged(file: Path, what: str) -> ClipStoreError:
    """Make the error that says that ``store.json`` cannot be used, and what that means for the store."""
    return ClipStoreError(
        f"{file} is damaged: {what}. The recordings beside it are not lost, but the store must be made again: run "
        "preprocess into a new folder."
    )


def wrong_entry(value: dict[str, Any]) -> str:
    """Return which entry of ``store.json`` is missing or cannot be as it was written; empty if none."""
    configuration, index = value.get("configuration"), value.get("index", False)
    if not isinstance(configuration, dict):
        return "the entry 'configuration' is missing or no object"
    kinds = {"digest": str, "montage": str, "events_scored": bool}
    for name, kind in kinds.items():
        if not isinstance(configuration.get(name), kind):
            return f"the entry 'configuration.{name}' is missing or of the wrong kind"
    if not isinstance(configuration.get("inputs", []), list):  # what is in it is only ever repeated
        return "the entry 'configuration.inputs' is of the wrong kind"
    if not isinstance(configuration.get("scorer", ""), str):
        return "the entry 'configuration.scorer' is of the wrong kind"
    if not isinstance(configuration.get("meanings", {}), dict) or configuration.get("from") not in (None, *ORIGINS):
        return "the entry 'configuration.meanings' or 'configuration.from' is of the wrong kind"
    if index is not None and not (isinstance(index, str) and re.fullmatch("index-[0-9a-f]{16}", index)):
        return "the entry 'index' is missing or names no index"
    try:
        Montage.from_dict(value.get("montage", {}))
    except SleepfmError as error:
        return str(error).rstrip(".")
    return ""


def stage_counts(stage: Sequence[int] | Array) -> dict[str, int]:
    """Count the clips per stage name, ``none`` last."""
    counts = np.bincount(np.asarray(stage, dtype=np.int64) + 1, minlength=len(STAGES) + 1)
    return {**{name: int(counts[code + 1]) for code, name in enumerate(STAGES)}, "none": int(counts[0])}


def sdb_counts(sdb: Sequence[int] | Array) -> dict[str, int]:
    """Count the clips with a respiratory event, without one, and those of which it is unknown."""
    counts = np.bincount(np.asarray(sdb, dtype=np.int64) + 1, minlength=3)
    return {"event": int(counts[2]), "none": int(counts[1]), "unknown": int(counts[0])}
