"""The participants table: which subject a recording is of, with age and sex; `participants_file` reads it.

A recording is named by its path or the end of it, its file name, or its file name without suffix. Without a recording
column a row counts for the recordings whose name is the subject, or begins with it and a separator (``sub-01`` for
``sub-01_ses-2.edf``), and then for those in a folder of that name (``sub-01/night1.edf``; the three nearest folders are
looked at); an ``nsrrid`` (``mesaid``, ``wsc_id``, ``pid``) also for those whose name ends with a separator and it
(``200001`` for ``shhs1-200001.edf``, ``10119`` for ``wsc-visit1-10119-nsrr.edf``), as the files of the National Sleep
Research Resource are called. A subject may have a row for every visit: the visit that the recording's name or folder
tells (:mod:`sleepfm_fast.cohorts.visits`) chooses the row, and its age is the recording's; the subject is one person
all the same. The subject of a recording that no row names is its whole file name without suffix: a subject with several
nights under several names is several subjects, and one name in several folders is one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sleepfm_fast.cli.path_kinds import PREPARED, RECORDINGS
from sleepfm_fast.cohorts.visits import EXAMPLES, told_visit
from sleepfm_fast.errors import SleepfmError

__all__ = ["Participant", "Participants", "same_text", "stem_of"]

FOLDERS = 3
"""How many folders from the recording up may be named like its subject: night, session, subject."""


@dataclass(frozen=True)
class Participant:
    """One row: ``recording`` as written (None without such a column), ``subject`` (None: derive it), age, sex, visit.

    ``visit`` is None where the table has no such column, or a row of it says nothing. Of a recording it is the visit
    that the recording is of.
    """

    recording: str | None
    subject: str | None
    age: float | None
    sex: str | None
    visit: str | None = None

    def facts(self) -> dict[str, Any]:
        """What the store keeps of it with a recording; the visit where there is one."""
        facts = {"subject": self.subject, "age": self.age, "sex": self.sex}
        return facts if self.visit is None else {**facts, "visit": self.visit}


@dataclass
class Participants:
    """A participants table.

    Attributes
    ----------
    path : Path or None
        Where it was read; None for no table.
    rows : tuple of Participant
    issues : tuple of str
        Cells that could not be understood.
    ends_names : bool
        A subject also names the recordings whose name ends with it.
    """

    path: Path | None = None
    rows: tuple[Participant, ...] = ()
    issues: tuple[str, ...] = ()
    ends_names: bool = False
    _by_name: dict[tuple[str, ...], int] = field(init=False, repr=False, default_factory=dict)
    _longest: int = field(init=False, repr=False, default=0)
    _by_subject: dict[str, list[int]] = field(init=False, repr=False, default_factory=dict)
    _visits: frozenset[str] = field(init=False, repr=False, default=frozenset())

    def __post_init__(self) -> None:
        """Prepare the look-up by name."""
        for i, row in enumerate(self.rows):
            if row.recording is not None:
                # By all that the row names, folders too: the nights of a cohort may all be called night1.edf.
                parts = tuple(same_text(part) for part in parts_of(row.recording))
                self._by_name.setdefault(parts, i)
                self._longest = max(self._longest, len(parts))
            elif row.subject is not None:
                self._by_subject.setdefault(same_text(row.subject), []).append(i)
                if self.ends_names and row.subject.isdigit():  # 1 is written 0001 in mesa-sleep-0001.edf
                    self._by_subject.setdefault(row.subject.lstrip("0") or "0", self._by_subject[row.subject])
        self._visits = frozenset(row.visit for row in self.rows if row.visit is not None and row.recording is None)

    def find(self, path: Path) -> int | None:
        """Row of the recording ``path``, None where no row names it; of several, the one naming most of its path.

        Raises
        ------
        SleepfmError
            Where its subject has a row for every visit and nothing tells which the recording is of.
        """
        whole = tuple(same_text(p) for p in (*path.parent.parts, path.name))
        for length in range(min(self._longest, len(whole)), 0, -1):
            folders = whole[len(whole) - length : -1]
            for name in (whole[-1], stem_of(whole[-1])):
                if (row := self._by_name.get((*folders, name))) is not None:
                    return row
        stem = same_text(path.stem)
        separators = list(re.finditer(r"[^a-z0-9]", stem))
        names = [stem] + [stem[: m.start()] for m in reversed(separators)]
        if self.ends_names:
            whole_id = stem.removesuffix("-nsrr")
            ends = [whole_id[m.end() :] for m in separators if m.end() < len(whole_id)]
            names += [name for end in ends for name in (end, end.lstrip("0"))]
        names += [same_text(folder.name) for folder in path.parents[:FOLDERS]]
        rows = next((self._by_subject[name] for name in names if name in self._by_subject), None)
        return None if rows is None else self._of_visit(path, rows)

    def visit(self, path: Path) -> str | None:
        """The visit that a recording is of, where the table has a column of them and the name tells one."""
        return told_visit(path, self._visits) if self._visits else None

    def _of_visit(self, path: Path, rows: Sequence[int]) -> int:
        """Of the rows of a subject, that of the recording's visit; any where no row is of it, which has no age then."""
        visit = self.visit(path)
        if len(rows) > 1 and visit is None:
            listed = ", ".join(sorted({self.rows[i].visit or "" for i in rows}))
            raise SleepfmError(
                f"the participants table {self.path} has {len(rows)} rows of subject {self.rows[rows[0]].subject} "
                f"(visits {listed}), and nothing in the name {path.name} or its folders tells which of them the "
                f"recording is of. Name files or folders by their visit (such as {EXAMPLES}), write the visits of the "
                "table as the names have them (a column visit, such as baseline and followup for "
                "chat-baseline-300001.edf), or give a table with a row a recording (recording, subject, age, sex)."
            )
        return next((i for i in rows if self.rows[i].visit == visit), rows[0])

    def of(self, path: Path) -> Participant:
        """Subject, age, sex and visit of the recording ``path``; its stem is the subject where no row names one."""
        i = self.find(path)
        row = Participant(None, None, None, None) if i is None else self.rows[i]
        visit = None if row.recording is not None else self.visit(path)
        age = None if self.lacks_visit(path) else row.age
        subject = row.subject
        if subject is not None and row.recording is None:  # however a visit's row writes it, it is one person
            subject = self.rows[self._by_subject[same_text(subject)][0]].subject
        return Participant(row.recording, subject or path.stem, age, row.sex, visit)

    def lacks_visit(self, path: Path) -> bool:
        """Whether the subject of the recording has rows, but none of its visit: how old it was then is not known."""
        i = self.find(path)
        if i is None or self.rows[i].recording is not None:
            return False
        return self.rows[i].visit is not None and self.visit(path) not in (None, self.rows[i].visit)

    def unknown_recordings(self, paths: Iterable[Path]) -> list[str]:
        """List what the rows that match none of ``paths`` name."""
        found = {self.find(path) for path in paths}
        return [
            row.recording or f"{row.subject}{f' (visit {row.visit})' if len(self._visits) > 1 else ''}"
            for i, row in enumerate(self.rows)
            if i not in found
        ]


def parts_of(name: str) -> tuple[str, ...]:
    # Tables made on Windows write backslashes; a leading "./" or "/" says nothing about the folder's name.
    return tuple(p for p in PurePosixPath(name.replace("\\", "/")).parts if p not in (".", "/")) or (name,)


def stem_of(name: str) -> str:
    """A recording's name without its suffix, if it is one of recordings."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.casefold()}" in (*RECORDINGS, *PREPARED) else name


def same_text(text: str) -> str:
    """How names are compared: without case; letters with accents as one character, which macOS writes as two."""
    return unicodedata.normalize("NFC", text).casefold()
