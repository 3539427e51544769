"""Writing a clip store: :func:`write_recording` for each recording, then :func:`commit` for the index of them all."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.channels import Montage
from sleepfm_fast.cli.json_text import from_json
from sleepfm_fast.edf import Recording, Segment
from sleepfm_fast.epochs import read_digital
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import counted
from sleepfm_fast.scoring.labels import ClipGrid
from sleepfm_fast.scoring.stages import EPOCH_S
from sleepfm_fast.storage.atomic import replace_file, write_json
from sleepfm_fast.storage.columns import read_columns, write_columns
from sleepfm_fast.store.clip_layout import FORMAT, INDEX_SCHEMA, INDEX_TEXTS, VERSION, sdb_counts, stage_counts
from sleepfm_fast.store.record_check import is_whole_record
from sleepfm_fast.store.stored_channels import StoredChannel, blocks, channel_facts, fraction_pair, plan_channels

__all__ = [
    "StoredChannel",
    "commit",
    "plan_channels",
    "read_record",
    "write_night",
    "write_recording",
    "write_store_file",
]

Array = npt.NDArray[Any]

ALIGNMENT = 64  # bytes: a cache line, and the width of an AVX-512 load
RECORD_FORMAT = "sleepfm_fast recording"


def write_samples(
    path: Path, segments: Iterable[Sequence[Iterable[Array] | None]]
) -> tuple[list[list[list[int]]], int, str]:
    """Write a recording's ``.bin``, segment by segment, all or nothing; every run starts at a multiple of 64 bytes.

    Parameters
    ----------
    path : Path
    segments : iterable of sequences
        For each segment and slot its integers in blocks, contiguous and little-endian; None where the slot is missing.

    Returns
    -------
    list
        The runs, [segment][slot], as (byte offset, n_samples).
    int
        Size of the file.
    str
        Its SHA-256.
    """
    runs: list[list[list[int]]] = []
    digest = hashlib.sha256()
    position = 0
    with replace_file(path) as file:

        def write(content: Any) -> int:
            digest.update(content)
            file.write(content)
            return len(content)

        for slots in segments:
            row = []
            for pieces in slots:
                n_samples, begin = 0, 0 if pieces is None else position
                for block in pieces or ():
                    position += write(block.data.cast("B"))
                    n_samples += len(block)
                row.append([begin, n_samples])
                position += write(bytes(-position % ALIGNMENT))
            runs.append(row)
    return runs, position, digest.hexdigest()


def recorded_segments(
    recording: Recording, channels: Sequence[StoredChannel]
) -> Iterator[list[Iterator[Array] | None]]:
    """Yield the integers of every segment of a recording, slot by slot."""
    wanted = {s.index: s for c in channels if c.signal is not None for s in (c.signal, c.minus) if s is not None}
    signals = list(wanted.values())
    for segment in recording.segments:
        digital = dict(zip(wanted, read_digital(recording, signals, segment), strict=True))
        yield [None if channel.signal is None else blocks(channel, digital) for channel in channels]


def write_recording(
    folder: Path,
    name: str,
    recording: Recording,
    channels: Sequence[StoredChannel],
    grid: ClipGrid,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Write a recording by :func:`write_night`, taking its samples and segments from the open file.

    Parameters
    ----------
    folder, name, grid, facts
        As for :func:`write_night`.
    recording : Recording
    channels : sequence of StoredChannel
        One per slot of the montage.

    Returns
    -------
    dict
        The record, as written to ``<name>.json``.
    """
    return write_night(
        folder,
        name,
        [(s.onset_s, s.n_records * recording.record_s) for s in recording.segments],
        recorded_segments(recording, channels),
        [channel_facts(c) for c in channels],
        grid,
        segment_of(grid.onsets_s, recording.segments, recording.record_s).tolist(),
        facts,
    )


def write_night(
    folder: Path,
    name: str,
    stretches: Sequence[tuple[Fraction, Fraction]],
    segments: Iterable[Sequence[Iterable[Array] | None]],
    channels: Sequence[dict[str, Any]],
    grid: ClipGrid,
    clip_segments: Sequence[int],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Write ``<name>.bin`` and then ``<name>.json`` into ``folder``, each all or nothing.

    Parameters
    ----------
    folder : Path
        ``recordings`` of the store.
    name : str
        The recording's id.
    stretches : sequence of (Fraction, Fraction)
        Onset and duration of each segment in seconds.
    segments : iterable of sequences
        The integers of each segment; see :func:`write_samples`.
    channels : sequence of dict
        One per slot of the montage; see :func:`channel_facts`.
    grid : ClipGrid
        Onsets and labels of the clips.
    clip_segments : sequence of int
        The segment that holds each clip.
    facts : dict
        JSON values added to the record: sources, subject, issues.

    Returns
    -------
    dict
        The record, as written to ``<name>.json``.

    Raises
    ------
    SleepfmError
        When a value does not fit the description of a recording.
    """
    # The description is removed before the samples change: a kill in between must not leave an old one beside new ones.
    (folder / f"{name}.json").unlink(missing_ok=True)
    runs, n_bytes, sha256 = write_samples(folder / f"{name}.bin", segments)
    record = {
        "format": RECORD_FORMAT,
        "version": VERSION,
        "id": name,
        **facts,
        "segments": [
            {"onset_s": fraction_pair(onset_s), "duration_s": fraction_pair(duration_s), "runs": row}
            for (onset_s, duration_s), row in zip(stretches, runs, strict=True)
        ],
        "channels": list(channels),
        "clips": {
            "onset_s": [float(t) for t in grid.onsets_s],
            "segment": list(clip_segments),
            "stage": grid.stage.tolist(),
            "sdb": grid.sdb.tolist(),
        },
        "n_bytes": n_bytes,
        "sha256": sha256,
    }
    # A description that the reader would reject would silently be missing from the index, so it is refused here.
    if not is_whole_record(record):
        (folder / f"{name}.bin").unlink()
        raise SleepfmError(
            f"{name}: a number read from its files cannot be kept in a store (a time, rate, gain or age that is not "
            "finite or has too many digits). Look at the recording's header and record starts, its scoring and its row "
            "of the participants table."
        )
    write_json(folder / f"{name}.json", record)
    return record


def segment_of(onsets_s: npt.NDArray[np.float64], segments: Sequence[Segment], record_s: Fraction) -> Array:
    """Return the segment that holds each clip; of overlapping segments the first in the file."""
    found = np.full(len(onsets_s), -1, dtype=np.int64)
    starts_s = np.array([float(segment.onset_s) for segment in segments])
    ends_s = np.array([float(segment.onset_s + segment.n_records * record_s) for segment in segments])
    # Onsets ascend, so that the clips of a segment are a slice. Segments without a clip, which are most where there are
    # very many, are skipped; going backwards lets the first of overlapping segments win.
    first = np.searchsorted(onsets_s, starts_s - 1e-6, side="left")
    after = np.searchsorted(onsets_s + EPOCH_S, ends_s + 1e-6, side="right")
    for i in np.flatnonzero(first < after)[::-1].tolist():
        found[first[i] : after[i]] = i
    if np.any(found < 0):
        raise ValueError(f"a clip at {onsets_s[found < 0][0]} s lies in no segment of the recording.")
    return found


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a ``<id>.json``; None where it is damaged or its ``.bin`` is missing or of another size."""
    try:
        record = from_json(path.read_text(encoding="utf-8"))
        whole = (
            record["format"] == RECORD_FORMAT
            and record["version"] == VERSION
            and record["id"] == path.stem
            and path.with_suffix(".bin").stat().st_size == record["n_bytes"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole and is_whole_record(record) else None


def write_store_file(
    path: Path, montage: Montage, configuration: dict[str, Any], index: str | None, totals: dict[str, Any] | None
) -> None:
    """Replace ``store.json``. With the name of an index this is the commit; with None the store is unfinished."""
    write_json(
        path / "store.json",
        {
            "format": FORMAT,
            "version": VERSION,
            "montage": montage.to_dict(),
            "configuration": configuration,
            "index": index,
            "totals": totals,
        },
        indent=1,
    )


def commit(path: Path, montage: Montage, configuration: dict[str, Any], records: Sequence[Path]) -> dict[str, Any]:
    """Make the index of ``records``, point ``store.json`` to it, and then delete earlier indices.

    Parameters
    ----------
    path : Path
        The store.
    montage : Montage
    configuration : dict
        The options that every recording was made with, as JSON values.
    records : sequence of Path
        The ``recordings/<id>.json`` that belong to the store, in the order of their ids.

    Returns
    -------
    dict
        Totals: recordings, subjects, clips, hours, stages, sdb.
    """
    columns, texts, digest = gather_columns(records, len(montage.slots))
    name = f"index-{digest}"
    totals = {
        "recordings": len(records),
        "subjects": len(texts["subjects"]),
        "clips": len(columns["clip"]),
        "hours": len(columns["clip"]) * EPOCH_S / 3600,
        "stages": stage_counts(columns["stage"]),
        "sdb": sdb_counts(columns["sdb"]),
        "channels_missing": int(np.sum(~columns["channel_present"])),
    }
    try:
        read_columns(path / name, INDEX_SCHEMA, INDEX_TEXTS, remedy="")
    except SleepfmError:
        write_columns(path / name, columns, texts)
    write_store_file(path, montage, configuration, name, totals)
    for old in path.glob("index-*"):
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)
    return totals


def gather_columns(records: Sequence[Path], n_slots: int) -> tuple[dict[str, Array], dict[str, Any], str]:
    """Return the columns and texts of the index and the digest that names it, holding one record at a time."""
    parts: dict[str, list[Array]] = {name: [] for name in INDEX_SCHEMA}
    recordings: list[dict[str, Any]] = []
    participants: dict[str, dict[str, Any]] = {}
    units: dict[str, int] = {}
    digest = hashlib.sha256()
    n_clips = n_segments = 0
    of_one_visit: list[bool] = []

    for i, file in enumerate(records):
        content = file.read_bytes()
        digest.update(hashlib.sha256(content).digest())
        record = from_json(content)
        if (n := len(record["channels"])) != n_slots:
            raise SleepfmError(
                f"{file} has {counted(n, 'slot')}, the store's montage has {n_slots}. Delete {file} and "
                "its .bin, and run preprocess again."
            )
        found = {
            **clip_columns(record["clips"], i),
            **channel_columns(record["channels"], units),
            **run_columns(record["segments"], n_slots),
            "recording_first_clip": n_clips,
            "recording_first_segment": n_segments,
            "recording_subject": participant(participants, record),
        }
        for name, values in found.items():
            parts[name].append(np.atleast_1d(np.asarray(values, dtype=INDEX_SCHEMA[name])))
        own = {name: record[name] for name in ("start", "age", "n_bytes", "sha256")}
        recordings.append({"id": record["id"], "source": record["source"]["path"], **own})
        of_one_visit.append(record.get("visit") is not None)
        n_clips += len(record["clips"]["onset_s"])
        n_segments += len(record["segments"])
    for name, n in (("recording_first_clip", n_clips), ("recording_first_segment", n_segments)):
        parts[name].append(np.array([n], INDEX_SCHEMA[name]))
    columns = {name: np.concatenate(chunks) for name, chunks in parts.items()}
    facts = list(participants.values())
    for recording, subject, visit in zip(recordings, columns["recording_subject"].tolist(), of_one_visit, strict=True):
        if recording["age"] is None and not visit:  # the subject's age may be that of another visit
            recording["age"] = facts[subject]["age"]
    texts = {
        "recordings": recordings,
        "subjects": [{"subject": s, "age": f["age"], "sex": f["sex"]} for s, f in participants.items()],
        "units": list(units),
    }
    return columns, texts, digest.hexdigest()[:16]


def clip_columns(clips: dict[str, Any], recording: int) -> dict[str, Any]:
    """Columns of a recording's clips."""
    n = len(clips["onset_s"])
    own = {name: clips[name] for name in ("segment", "onset_s", "stage", "sdb")}
    return {"recording": np.full(n, recording), "clip": np.arange(n), **own}


def channel_columns(channels: Sequence[dict[str, Any]], units: dict[str, int]) -> dict[str, Any]:
    """Columns of a recording's channels, absent ones included; ``units`` numbers the units of all recordings."""
    absent: dict[str, Any] = {"present": False, "fs_hz": (0, 1), "gain": 0.0, "offset": 0.0, "unit": ""}
    filled = [c if c["present"] else absent for c in channels]
    return {
        "channel_present": [c["present"] for c in filled],
        "channel_fs_num": [c["fs_hz"][0] for c in filled],
        "channel_fs_den": [c["fs_hz"][1] for c in filled],
        "channel_gain": [c["gain"] for c in filled],
        "channel_offset": [c["offset"] for c in filled],
        "channel_itemsize": [np.dtype(c["dtype"]).itemsize if c["present"] else 0 for c in filled],
        "channel_unit": [units.setdefault(c["unit"], len(units)) for c in filled],
    }


def run_columns(segments: Sequence[dict[str, Any]], n_slots: int) -> dict[str, Any]:
    """Columns of a recording's segments, and of the runs of samples of every channel in them."""
    runs = np.array([s["runs"] for s in segments], dtype=np.int64).reshape(len(segments), n_slots, 2)
    return {
        "channel_n_samples": runs[:, :, 1].sum(axis=0),
        "segment_onset_num": [s["onset_s"][0] for s in segments],
        "segment_onset_den": [s["onset_s"][1] for s in segments],
        "run_offset": runs[:, :, 0].ravel(),
        "run_n_samples": runs[:, :, 1].ravel(),
    }


def participant(participants: dict[str, dict[str, Any]], record: dict[str, Any]) -> int:
    """Return the position of the record's subject, whose age and sex come from its first record that has them."""
    facts = participants.setdefault(record["subject"], {"position": len(participants), "age": None, "sex": None})
    for name in ("age", "sex"):
        if facts[name] is None:
            facts[name] = record[name]
    position: int = facts["position"]
    return position
