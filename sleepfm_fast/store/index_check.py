"""Checks that the columns of a store's index agree, since a damaged one must not place a clip outside its file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.json_text import are, is_text
from sleepfm_fast.scoring.stages import EPOCH_S
from sleepfm_fast.store.record_check import is_number

__all__ = ["index_problem"]

Array = npt.NDArray[Any]
CLIPS = ("recording", "clip", "segment", "onset_s", "stage", "sdb")
BLOCK = 1 << 20
"""Clips that are checked at a time, so that the index of a large cohort is not held in memory."""
SLACK_S = 1e-3
LIMITS = {"stage": (-1, 4), "sdb": (-1, 1)}


def index_problem(columns: Mapping[str, Array], texts: Mapping[str, Any], n_slots: int) -> tuple[str, str] | None:
    """Find the first file of an index that cannot be as it was written.

    Parameters
    ----------
    columns : mapping of str to ndarray
        The columns of :data:`~sleepfm_fast.store.clip_layout.INDEX_SCHEMA`.
    texts : mapping of str to JSON value
    n_slots : int
        Number of slots of the montage.

    Returns
    -------
    (str, str) or None
        The file's name and what is wrong with it; None where everything agrees.
    """
    return next(problems(columns, texts, n_slots), None)


def problems(columns: Mapping[str, Array], texts: Mapping[str, Any], n_slots: int) -> Iterator[tuple[str, str]]:
    yield from wrong_texts(texts)
    n_recordings = len(texts["recordings"])
    n_clips, n_segments = len(columns["clip"]), len(columns["segment_onset_num"])
    lengths = {
        **dict.fromkeys(CLIPS, n_clips),
        **dict.fromkeys(("recording_first_clip", "recording_first_segment"), n_recordings + 1),
        "recording_subject": n_recordings,
        **{name: n_recordings * n_slots for name in columns if name.startswith("channel_")},
        **dict.fromkeys(("segment_onset_num", "segment_onset_den"), n_segments),
        **dict.fromkeys(("run_offset", "run_n_samples"), n_segments * n_slots),
    }
    for name, n in lengths.items():
        if columns[name].shape != (n,):
            yield f"{name}.npy", f"its shape is {list(columns[name].shape)}, expected [{n}]"
    for name, n in (("recording_first_clip", n_clips), ("recording_first_segment", n_segments)):
        firsts = columns[name]
        if firsts[0] != 0 or firsts[-1] != n or (np.diff(firsts) < 0).any():
            yield f"{name}.npy", f"it does not rise from 0 to {n}"
    yield from wrong_values(columns, texts)
    yield from wrong_clips(columns, np.diff(columns["recording_first_clip"]))
    yield from wrong_runs(columns, texts, n_slots)
    yield from misplaced_clips(columns, n_slots)


def wrong_texts(texts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    kinds: dict[str, Mapping[str, Any]] = {
        "recordings": {"id": str, "source": str, "start": (str, type(None)), "n_bytes": int, "sha256": str},
        "subjects": {"subject": str, "sex": (str, type(None))},
    }
    for name, fields in kinds.items():
        rows = texts[name]
        whole = isinstance(rows, list) and all(
            isinstance(row, dict)
            and all(field in row and isinstance(row[field], kind) for field, kind in fields.items())
            and (row.get("age") is None or is_number(row["age"]))
            for row in rows
        )
        if not whole:
            yield f"{name}.json", "its entries are not those that were written"
    if not are(texts["units"], is_text):
        yield "units.json", "it is no list of units"
    if any("age" not in row for row in texts["subjects"]):
        yield "subjects.json", "an entry has no age"


def wrong_values(columns: Mapping[str, Array], texts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the columns with values outside the range that they can have."""
    present = columns["channel_present"]
    rated = np.where(present, columns["channel_fs_num"], 1)
    limits = {
        **LIMITS,
        "recording_subject": (0, len(texts["subjects"]) - 1),
        "channel_unit": (0, len(texts["units"]) - 1),
        "channel_fs_den": (1, 1 << 62),
        "channel_n_samples": (0, 1 << 62),
        "segment_onset_den": (1, 1 << 62),
        "run_offset": (0, 1 << 62),
        "run_n_samples": (0, 1 << 62),
    }
    for name, (low, high) in limits.items():
        values = columns[name]
        if values.size and not low <= values.min() <= values.max() <= high:
            yield f"{name}.npy", f"it holds values from {values.min()} to {values.max()}, expected {low} to {high}"
    if rated.size and rated.min() < 1:
        yield "channel_fs_num.npy", "a channel that is there has no sampling rate"
    if (
        not np.isin(columns["channel_itemsize"], (0, 2, 4)).all()
        or ((columns["channel_itemsize"] == 0) != ~present).any()
    ):
        yield "channel_itemsize.npy", "a channel's samples are not of 2 or 4 bytes"
    for name in ("channel_gain", "channel_offset", "onset_s"):
        if not np.isfinite(columns[name]).all():
            yield f"{name}.npy", "it holds values that are not finite"


def wrong_clips(columns: Mapping[str, Array], n_clips: Array) -> Iterator[tuple[str, str]]:
    """Yield an error if clips are not numbered recording by recording, or lie in a segment that does not exist."""
    recording = np.repeat(np.arange(n_clips.size, dtype=np.int32), n_clips)
    if not np.array_equal(columns["recording"], recording):
        yield "recording.npy", "its clips are not those of the recordings, one after the other"
    first = columns["recording_first_clip"][:-1].astype(np.int32)
    numbers = np.arange(recording.size, dtype=np.int32)
    numbers -= np.repeat(first, n_clips)
    if not np.array_equal(columns["clip"], numbers):
        yield "clip.npy", "its clips are not numbered from 0 in every recording"
    n_segments = np.repeat(np.diff(columns["recording_first_segment"]).astype(np.int32), n_clips)
    segment = columns["segment"]
    if segment.size and (segment.min() < 0 or (segment >= n_segments).any()):
        yield "segment.npy", "a clip lies in a segment that its recording does not have"


def wrong_runs(columns: Mapping[str, Array], texts: Mapping[str, Any], n_slots: int) -> Iterator[tuple[str, str]]:
    """Runs of samples that end behind their file, or begin within a sample."""
    n_segments = np.diff(columns["recording_first_segment"])
    n_bytes = np.repeat(np.array([row["n_bytes"] for row in texts["recordings"]], np.int64), n_segments)
    itemsize = np.repeat(columns["channel_itemsize"].reshape(-1, n_slots).astype(np.int64), n_segments, axis=0)
    offset = columns["run_offset"].reshape(-1, n_slots)
    n_samples = columns["run_n_samples"].reshape(-1, n_slots)
    room = np.maximum(n_bytes[:, None] - offset, 0) // np.maximum(itemsize, 1)
    if ((n_samples > room) & (itemsize > 0)).any():
        yield "run_n_samples.npy", "samples lie behind the end of their recording's file"
    if (offset % np.maximum(itemsize, 1)).any():
        yield "run_offset.npy", "samples begin within a sample"


def misplaced_clips(columns: Mapping[str, Array], n_slots: int) -> Iterator[tuple[str, str]]:
    """Clips that do not lie within their segment, by the samples of the channel that has most of it."""
    fs_hz = columns["channel_fs_num"] / columns["channel_fs_den"]
    period_s = np.where(columns["channel_present"], 1 / np.maximum(fs_hz, 1e-12), 0.0).reshape(-1, n_slots)
    first_segment = columns["recording_first_segment"]
    period_s = np.repeat(period_s, np.diff(first_segment), axis=0)
    lasts_s = (columns["run_n_samples"].reshape(-1, n_slots) * period_s).max(axis=1, initial=0.0)
    begins_s = columns["segment_onset_num"] / columns["segment_onset_den"]
    least_s = np.where(period_s > 0, period_s, np.inf).min(axis=1, initial=np.inf)
    slack_s = SLACK_S + np.where(np.isfinite(least_s), least_s, 0.0)
    for begin in range(0, len(columns["clip"]), BLOCK):
        block = slice(begin, begin + BLOCK)
        row = first_segment[columns["recording"][block]] + columns["segment"][block]
        into_s = columns["onset_s"][block] - begins_s[row]
        if ((into_s < -slack_s[row]) | (into_s + EPOCH_S > lasts_s[row] + slack_s[row])).any():
            yield "onset_s.npy or segment_onset_num.npy", "a clip does not lie within its segment"
            return
