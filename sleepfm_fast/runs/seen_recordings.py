"""The recordings of a training: what was recorded of a subject stays the same under any name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sleepfm_fast.store.clip_entries import RecordingEntry

__all__ = ["SeenRecording", "SeenRecordings", "is_list_of_recordings"]

DIGITS = 16
"""Hexadecimal digits of a digest: 64 bits, which no two of a billion recordings share by chance."""
NO_TIME = "T00:00:00"
"""Of a start that somebody has blanked: two laboratories may have files of one name with it."""
FIELDS: dict[str, tuple[type, ...]] = {
    "subject": (str,),
    "split": (int,),
    "samples": (str,),
    "night": (str, type(None)),
}


@dataclass(frozen=True)
class SeenRecording:
    """A recording and what it was used for.

    Attributes
    ----------
    subject : str
        Its subject's name at the training.
    split : int
        Index into :data:`sleepfm_fast.runs.splits.SPLITS`.
    samples : str
        Digest of its samples in the store.
    night : str or None
        Digest of its name and start, since a store of another montage has other samples; none where the start is not
        known.
    """

    subject: str
    split: int
    samples: str
    night: str | None

    @classmethod
    def of(cls, entry: RecordingEntry, split: int) -> SeenRecording:
        """Return a recording of a store."""
        night = None
        if entry.start is not None and not entry.start.endswith(NO_TIME):
            night = hashlib.sha256(f"{entry.id}/{entry.start}".encode()).hexdigest()[:DIGITS]
        return cls(entry.subject, split, entry.sha256[:DIGITS], night)


@dataclass(frozen=True)
class SeenRecordings:
    """The recordings of a run's training, validation and test subjects."""

    rows: tuple[SeenRecording, ...] = ()

    @classmethod
    def of(cls, store: Sequence[RecordingEntry], splits: Mapping[str, int]) -> SeenRecordings:
        """Return those of a store, whose subjects are divided as ``splits`` says."""
        return cls(tuple(SeenRecording.of(entry, splits[entry.subject]) for entry in store))

    @classmethod
    def read(cls, rows: Iterable[Mapping[str, Any]] | None) -> SeenRecordings:
        """Return those of a ``config.json``; runs of earlier versions list none."""
        return cls(tuple(SeenRecording(**row) for row in rows or ()))

    def plain(self) -> list[dict[str, Any]]:
        """Return them for ``config.json``."""
        return [asdict(row) for row in self.rows]

    @property
    def subjects(self) -> set[str]:
        """The subjects that they are of."""
        return {row.subject for row in self.rows}

    def found_in(self, store: Sequence[RecordingEntry]) -> dict[int, SeenRecording]:
        """Return those that are among the recordings of a store, by their positions there."""
        by_night = {row.night: row for row in self.rows if row.night is not None}
        by_samples: dict[str, dict[str, SeenRecording]] = {}
        # Of copies under several names, one that was trained with counts; and each is known by its own name.
        for row in sorted(self.rows, key=lambda row: -row.split):
            by_samples.setdefault(row.samples, {})[row.subject] = row
        found = {}
        for i, entry in enumerate(store):
            here = SeenRecording.of(entry, 0)
            copies = by_samples.get(here.samples, {})
            of_night = None if here.night is None else by_night.get(here.night)
            same = of_night or copies.get(here.subject) or next(reversed(copies.values()), None)
            if same is not None:
                found[i] = same
        return found

    def without(self, rows: Iterable[SeenRecording]) -> SeenRecordings:
        """Return all but some of them."""
        left_out = set(rows)
        return SeenRecordings(tuple(row for row in self.rows if row not in left_out))

    def followed_by(self, store: Sequence[RecordingEntry], splits: Mapping[str, int]) -> SeenRecordings:
        """Return them and those of a store that is trained on next, each once."""
        before = self.without(self.found_in(store).values())
        return SeenRecordings((*before.rows, *SeenRecordings.of(store, splits).rows))


def is_list_of_recordings(found: Any) -> bool:
    """Whether a value of a JSON file is what :meth:`SeenRecordings.plain` gives."""
    return isinstance(found, list) and all(
        isinstance(row, dict)
        and row.keys() == FIELDS.keys()
        and all(type(row[name]) in kinds for name, kinds in FIELDS.items())
        and row["split"] in (0, 1, 2)
        for row in found
    )
