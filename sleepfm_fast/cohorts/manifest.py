"""The manifest of a store: one row a night with what became of it, readable while preprocess runs.

Every run appends to a journal of its own, ``manifest/<run>.csv``, so that the jobs of an array never write one file
together; when no other run is at work the journals are merged into ``manifest.csv``, the latest row of a night
counting.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path

from sleepfm_fast.storage.atomic import replace_file

__all__ = ["FAILED", "LEFT_OUT", "Entry", "Journal", "merge_manifest", "read_manifest"]

FOLDER = "manifest"
FILE = "manifest.csv"
LEFT_OUT = "left_out"
FAILED = "failed"
GONE = "gone"
LONGEST_CELL = 10_000
"""A reason may repeat what a file holds; what goes on is cut off, for the reader refuses cells of 128 KiB."""


@dataclass(frozen=True)
class Entry:
    """A row.

    Attributes
    ----------
    id : str
        Name in the store.
    path : str
        The recording.
    status : str
        ``ingested``; ``failed``; ``changed``: the store keeps what it has of an older version; ``annotations_only``;
        ``left_out``, as the user's corrections say; ``gone``: it was not ingested, and the file no longer exists.
    reason : str
        Why it is not ``ingested``.
    seconds : str
        What the night took; empty where it is not known.
    clips, bytes : int
        What the store holds of it.
    shard : str
        ``i/n``, or empty.
    host : str
        Machine that worked on it.
    finished : str
        When, UTC, ISO 8601.
    """

    id: str
    path: str
    status: str
    reason: str = ""
    seconds: str = ""
    clips: int = 0
    bytes: int = 0
    shard: str = ""
    host: str = ""
    finished: str = ""


HEADER = tuple(field.name for field in fields(Entry))


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def lines_of(rows: Iterable[tuple[object, ...]]) -> str:
    text = io.StringIO(newline="")
    cells = ([v[:LONGEST_CELL] if isinstance(v, str) else v for v in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


class Journal:
    """The rows of one run; each is on its way to the disk when :meth:`add` returns."""

    def __init__(self, store: Path, run: str) -> None:
        (store / FOLDER).mkdir(exist_ok=True)
        self.file = (store / FOLDER / f"{run}.csv").open("a", encoding="utf-8", newline="")
        if self.file.tell() == 0:
            self.file.write(lines_of([HEADER]))
        self.file.flush()

    def add(self, entry: Entry) -> None:
        """Append a row."""
        # One write a row: a reader, or a crash, never sees half of one on a local disk.
        self.file.write(lines_of([astuple(entry)]))
        self.file.flush()

    def close(self) -> None:
        """Close the file; the rows stay."""
        self.file.close()


def read_rows(path: Path) -> list[Entry]:
    """Whole rows of a journal; the torn last line of a run that was killed is passed over."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows = []
    with suppress(csv.Error):  # a quotation mark whose other half was torn off takes all that follows into one cell
        for row in csv.DictReader(io.StringIO(text, newline="")):
            try:
                known = {name: row[name] or "" for name in HEADER}
                rows.append(Entry(**{**known, "clips": int(known["clips"]), "bytes": int(known["bytes"])}))  # type: ignore[arg-type]
            except (KeyError, ValueError, TypeError):
                continue
    return rows


def journals(store: Path) -> list[Path]:
    return sorted((store / FOLDER).glob("*.csv"))


def read_manifest(store: Path) -> list[Entry]:
    """Latest row of every night, of finished and of running jobs, by path.

    Parameters
    ----------
    store : Path
        A clip store, finished or being written.
    """
    rows = read_rows(store / FILE)
    for journal in journals(store):
        rows += read_rows(journal)
    return sorted(latest(rows).values(), key=lambda entry: entry.path)


def latest(rows: Iterable[Entry]) -> dict[str, Entry]:
    """Row of each path that finished last; of equally late ones the one that stands last."""
    found: dict[str, Entry] = {}
    for row in rows:
        if row.path not in found or row.finished >= found[row.path].finished:
            found[row.path] = row
    return found


def may_exist(path: str) -> bool:
    """Whether a file is there, or the system does not tell; a link to nothing is there."""
    try:
        os.lstat(path)  # a name that is not UTF-8 is not written as the system has it
    except (FileNotFoundError, NotADirectoryError):
        return "\\x" in path
    except (OSError, ValueError):
        return True
    return True


def merge_manifest(store: Path, stored: Mapping[str, Entry]) -> None:
    """Write ``manifest.csv`` anew and remove the journals that went into it.

    Parameters
    ----------
    store : Path
    stored : mapping of str to Entry
        By path, what the store holds: a night without a row, as after a kill, gets this one. Rows of nights that the
        store no longer holds, as of recordings that were moved, go; those of nights that failed and whose file no
        longer exists become ``gone``.
    """
    parts = journals(store)
    rows = read_rows(store / FILE)
    for part in parts:
        rows += read_rows(part)
    found = latest(rows)
    found = {path: entry for path, entry in found.items() if entry.status != "ingested" or path in stored}
    for path, entry in stored.items():
        if path not in found or found[path].status in ("annotations_only", LEFT_OUT, GONE):
            found[path] = entry
    for path, entry in found.items():
        if entry.status == FAILED and not may_exist(path):
            found[path] = replace(entry, status=GONE, reason=f"the file no longer exists; before: {entry.reason}")
    text = lines_of([HEADER, *(astuple(entry) for _, entry in sorted(found.items()))])
    with replace_file(store / FILE) as file:
        file.write(text.encode())
    for part in parts:
        part.unlink(missing_ok=True)
