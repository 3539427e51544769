"""Writing a clip store: one recording at a time by :func:`write_recording`, then all at once by :func:`commit`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.atomic import replace_file, write_json
from sleepfm_fast.channels import Assignment
from sleepfm_fast.clip_index import commit, write_store_file
from sleepfm_fast.clip_layout import VERSION
from sleepfm_fast.edf import Recording, Segment, Signal
from sleepfm_fast.epochs import read_digital
from sleepfm_fast.labels import ClipGrid
from sleepfm_fast.stages import EPOCH_S

__all__ = [
    "ALIGNMENT",
    "StoredChannel",
    "commit",
    "plan_channels",
    "read_record",
    "write_night",
    "write_recording",
    "write_store_file",
]

Array = npt.NDArray[Any]

ALIGNMENT = 64  # bytes: a cache line, and what AVX-512 loads at once
RECORD_FORMAT = "sleepfm_fast recording"
BLOCK = 1 << 20  # samples handled at a time while a channel is derived, to bound the temporary memory
DIVISOR = 256  # a derived channel's step is the finer of the two gains over this: rounding adds < 0.2 % of that step


@dataclass(frozen=True)
class StoredChannel:
    """How a slot is filled: ``signal``, or ``signal - minus``, as integers of ``dtype`` with ``gain`` and ``offset``.

    ``factors`` are what the two signals' integers are multiplied with before they are subtracted and rounded; None
    where the integers are stored as they are, or subtracted exactly.
    """

    assignment: Assignment
    signal: Signal | None
    minus: Signal | None
    dtype: str
    gain: float
    offset: float
    factors: tuple[float, float] | None
    note: str


def plan_channels(assignments: Sequence[Assignment], sample_bytes: int) -> list[StoredChannel]:
    """Decide integer type, gain and offset of every slot.

    A derived channel A - B is the exact int32 difference where A and B have one gain. Otherwise it is requantised to
    int32 in steps of the finer gain over 256 (a coarser power of two where 24-bit signals would overflow), which its
    note says.
    """
    return [plan_channel(a, sample_bytes) for a in assignments]


def plan_channel(assignment: Assignment, sample_bytes: int) -> StoredChannel:
    signal, minus, scale = assignment.signal, assignment.minus, assignment.unit_scale
    if signal is None:
        return StoredChannel(assignment, None, None, "", 0.0, 0.0, None, "")
    gain, offset = signal.gain * scale, signal.offset * scale
    if minus is None:
        return StoredChannel(assignment, signal, None, "<i2" if sample_bytes == 2 else "<i4", gain, offset, None, "")
    gain_minus, offset_minus = minus.gain * scale, minus.offset * scale  # assign() only pairs signals of one unit
    name = f"{signal.label} - {minus.label}"
    if gain == gain_minus:
        return StoredChannel(
            assignment, signal, minus, "<i4", gain, offset - offset_minus, None, f"{name}: exact difference"
        )
    largest = 2.0 ** (8 * sample_bytes - 1)
    divisor = DIVISOR
    while divisor > 1 and (abs(gain) + abs(gain_minus)) * largest * divisor / min(abs(gain), abs(gain_minus)) >= 2**31:
        divisor //= 2
    step = min(abs(gain), abs(gain_minus)) / divisor
    if (abs(gain) + abs(gain_minus)) * largest / step >= 2**31:
        step = (abs(gain) + abs(gain_minus)) * largest / (2**31 - 1)
    return StoredChannel(
        assignment, signal, minus, "<i4", step, offset - offset_minus, (gain / step, gain_minus / step),
        f"{name}: gains differ ({gain:g} and {gain_minus:g} {assignment.unit}), requantised in steps of "
        f"{step:g} {assignment.unit}",
    )  # fmt: skip


def blocks(channel: StoredChannel, digital: dict[int, Array]) -> Iterator[Array]:
    """Yield the integers of a channel that is not missing, contiguous and little-endian, block by block."""
    assert channel.signal is not None
    samples = digital[channel.signal.index]
    for start in range(0, len(samples), BLOCK):
        block = samples[start : start + BLOCK]
        if channel.minus is not None:
            other = digital[channel.minus.index][start : start + BLOCK]
            if channel.factors is None:
                block = block.astype(np.int32) - other.astype(np.int32)
            else:
                block = np.rint(channel.factors[0] * block - channel.factors[1] * other)
        yield np.ascontiguousarray(block, dtype=channel.dtype)


def write_samples(
    path: Path, segments: Iterable[Sequence[Iterable[Array] | None]]
) -> tuple[list[list[list[int]]], int, str]:
    """Write a ``.bin``, segment by segment, all or nothing.

    Parameters
    ----------
    path : Path
    segments : iterable of sequences
        For each segment, for each slot: its integers in blocks, contiguous and little-endian; None where it is missing.

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
    """Write ``<name>.bin`` and then ``<name>.json`` into ``folder``, each all or nothing.

    Parameters
    ----------
    folder : Path
        ``recordings`` of the store.
    name : str
        The recording's id.
    recording : Recording
    channels : sequence of StoredChannel
        One per slot of the montage.
    grid : ClipGrid
        Onsets and labels of the clips.
    facts : dict
        JSON values added to the record: sources, subject, issues.

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
    """
    # A stale description must never stand beside new samples.
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
    write_json(folder / f"{name}.json", record)
    return record


def fraction_pair(value: Fraction) -> list[int]:
    return [value.numerator, value.denominator]


def channel_facts(channel: StoredChannel) -> dict[str, Any]:
    slot = channel.assignment.slot
    if channel.signal is None:
        return {"slot": slot.name, "kind": slot.kind, "present": False}
    return {
        "slot": slot.name,
        "kind": slot.kind,
        "present": True,
        "labels": [channel.signal.label] + ([channel.minus.label] if channel.minus is not None else []),
        "unit": channel.assignment.unit,
        "fs_hz": fraction_pair(channel.signal.fs_hz),
        "gain": channel.gain,
        "offset": channel.offset,
        "dtype": channel.dtype,
        "note": channel.note,
    }


def segment_of(onsets_s: npt.NDArray[np.float64], segments: Sequence[Segment], record_s: Fraction) -> Array:
    """Segment that holds each clip; the first in the file where segments overlap."""
    found = np.full(len(onsets_s), -1, dtype=np.int64)
    for i, segment in reversed(list(enumerate(segments))):
        start_s = float(segment.onset_s)
        end_s = float(segment.onset_s + segment.n_records * record_s)
        found[(onsets_s >= start_s - 1e-6) & (onsets_s + EPOCH_S <= end_s + 1e-6)] = i
    if np.any(found < 0):
        raise ValueError(f"a clip at {onsets_s[found < 0][0]} s lies in no segment of the recording.")
    return found


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a ``<id>.json``; None where it is damaged or its ``.bin`` is missing or of another size."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = (
            record["format"] == RECORD_FORMAT
            and record["version"] == VERSION
            and record["id"] == path.stem
            and path.with_suffix(".bin").stat().st_size == record["n_bytes"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None
