"""The participants table: which subject a recording is of, with age and sex.

A text table (comma, semicolon or tab; UTF-8 or Latin-1) with a header line. Column names are compared without case,
spaces and punctuation:

=========  ============================================================================================
recording  ``recording``, ``file``, ``filename``, ``path``, ``record``, ``night``, ``edf``
subject    ``subject``, ``participant``, ``patient``, ``id``, also with ``id`` behind (``patient_id``); ``nsrrid``
age        ``age``, ``age_years``, ``age_at_recording``, ``years``, ``nsrr_age``
sex        ``sex``, ``gender``, ``nsrr_sex``
=========  ============================================================================================

A recording is named by its path or the end of it, its file name, or its file name without suffix. Without a recording
column a row counts for the recordings whose name is the subject, or begins with it and a separator
(``sub-01`` for ``sub-01_ses-2.edf``), and then for those in a folder of that name (``sub-01/night1.edf``; the three
nearest folders are looked at); an ``nsrrid`` also for those whose name ends with a separator and it
(``200001`` for ``shhs1-200001.edf``), as the files of the National Sleep Research Resource are called. The subject of a
recording that no row names is its whole file name without suffix: a subject with several nights under several names is
several subjects, and one name in several folders is one.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from sleepfm_fast.errors import SleepfmError

__all__ = ["Participant", "ParticipantTables", "Participants", "read_participants", "read_tables"]

COLUMNS = {
    "recording": (
        "recording",
        "recordings",
        "recordingid",
        "file",
        "filename",
        "files",
        "path",
        "record",
        "night",
        "edf",
    ),
    "subject": (
        "subject",
        "participant",
        "patient",
        "person",
        "subjectid",
        "participantid",
        "patientid",
        "subjid",
        "id",
        "nsrrid",
    ),
    "age": ("age", "ageyears", "ageyr", "ageatrecording", "years", "ageinyears", "nsrrage"),
    "sex": ("sex", "gender", "nsrrsex"),
}
SEXES = {"m": "M", "male": "M", "man": "M", "f": "F", "female": "F", "w": "F", "woman": "F"}
MISSING = ("", "na", "nan", "n/a", "none", "null", "unknown", "?", ".", "-")

FOLDERS = 3
"""How many folders from the recording up may be named like its subject: night, session, subject."""


@dataclass(frozen=True)
class Participant:
    """One row: ``recording`` as written (None without such a column), ``subject`` (None: derive it), age, sex."""

    recording: str | None
    subject: str | None
    age: float | None
    sex: str | None


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
    _by_name: dict[str, list[int]] = field(init=False, repr=False, default_factory=dict)
    _by_subject: dict[str, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Prepare the look-up by name."""
        for i, row in enumerate(self.rows):
            if row.recording is not None:
                name = parts_of(row.recording)[-1]
                for key in {name.casefold(), stem_of(name).casefold()}:
                    self._by_name.setdefault(key, []).append(i)
            elif row.subject is not None:
                self._by_subject.setdefault(row.subject.casefold(), i)

    def find(self, path: Path) -> int | None:
        """Row of the recording ``path``, None where no row names it; of several, the one naming most of its path."""
        candidates = self._by_name.get(path.name.casefold(), []) + self._by_name.get(path.stem.casefold(), [])
        whole = [p.casefold() for p in (*path.parent.parts, path.name)]
        best: tuple[int, int] | None = None
        for i in candidates:
            parts = [p.casefold() for p in parts_of(self.rows[i].recording or "")]
            ending = whole[-len(parts) :]
            same_file = parts[-1] in (ending[-1], stem_of(ending[-1]))
            if same_file and parts[:-1] == ending[:-1] and (best is None or len(parts) > best[0]):
                best = len(parts), i
        if best is not None:
            return best[1]
        stem = path.stem.casefold()
        separators = list(re.finditer(r"[^a-z0-9]", stem))
        names = [stem] + [stem[: m.start()] for m in reversed(separators)]
        if self.ends_names:
            names += [stem[m.end() :] for m in separators]
        names += [folder.name.casefold() for folder in path.parents[:FOLDERS]]
        return next((self._by_subject[name] for name in names if name in self._by_subject), None)

    def of(self, path: Path) -> Participant:
        """Subject, age and sex of the recording ``path``; its stem is the subject where no row names one."""
        i = self.find(path)
        row = Participant(None, None, None, None) if i is None else self.rows[i]
        return Participant(row.recording, row.subject or path.stem, row.age, row.sex)

    def unknown_recordings(self, paths: Iterable[Path]) -> list[str]:
        """List what the rows that match none of ``paths`` name."""
        found = {self.find(path) for path in paths}
        return [row.recording or row.subject or "" for i, row in enumerate(self.rows) if i not in found]


def parts_of(name: str) -> tuple[str, ...]:
    # Tables made on Windows write backslashes; a leading "./" or "/" says nothing about the folder's name.
    return tuple(p for p in PurePosixPath(name.replace("\\", "/")).parts if p not in (".", "/")) or (name,)


def stem_of(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and suffix.casefold() in ("edf", "bdf", "rec") else name


def read_participants(path: Path) -> Participants:
    """Read a participants table.

    Parameters
    ----------
    path : Path
        A CSV or TSV file with a header line.

    Returns
    -------
    Participants

    Raises
    ------
    SleepfmError
        When the file cannot be read, has neither a recording nor a subject column, or names a recording twice.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SleepfmError(f"the participants table {path} cannot be read: {error.strerror or error}.") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", errors="replace")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("latin-1")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise SleepfmError(
            f"the participants table {path} is empty; a header line with recording, subject, age, sex is expected."
        )
    delimiter = max("\t;,", key=lambda d: lines[0].count(d))
    reader = csv.reader(lines, delimiter=delimiter)
    header = [cell.strip() for cell in next(reader)]
    columns = find_columns(header)
    if "recording" not in columns and "subject" not in columns:
        raise SleepfmError(
            f"the participants table {path} has the columns {', '.join(header)}; a column named recording (or file) or "
            "subject is needed, and age and sex are understood."
        )
    issues: list[str] = []
    rows: list[Participant] = []
    seen: dict[str, int] = {}
    without_suffix: dict[str, str] = {}
    for number, cells in enumerate(reader, start=2):
        row = {name: cells[i].strip() if i < len(cells) else "" for name, i in columns.items()}
        recording, subject = row.get("recording") or None, row.get("subject") or None
        if recording is None and subject is None:
            issues.append(f"{path.name}, row {number}: neither recording nor subject is given; the row is left out.")
            continue
        key = (recording or subject or "").casefold()
        # A name without suffix names the same recording as one with it; two suffixes are two recordings.
        stem = stem_of(key) if recording else key
        other = key if key in seen else stem if stem in seen else without_suffix.get(key)
        if other is not None:
            raise SleepfmError(
                f"the participants table {path} names '{recording or subject}' in rows {seen[other]} and {number}; "
                "keep one row each."
            )
        seen[key] = number
        without_suffix[stem] = key
        rows.append(
            Participant(
                recording,
                subject,
                parse_age(row.get("age", ""), f"{path.name}, row {number}", issues),
                row.get("sex", ""),
            )
        )
    rows = with_sexes(rows, path.name, issues)
    ends_names = "subject" in columns and folded(header[columns["subject"]]) == "nsrrid"
    return Participants(path, tuple(rows), tuple(issues), ends_names)


def folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def find_columns(header: list[str]) -> dict[str, int]:
    """Which column of ``header`` is which; the first name of the list that occurs wins."""
    given = [folded(cell) for cell in header]
    return {
        name: given.index(match)
        for name, names in COLUMNS.items()
        if (match := next((n for n in names if n in given), None)) is not None
    }


def parse_age(text: str, where: str, issues: list[str]) -> float | None:
    if text.casefold() in MISSING:
        return None
    try:
        age = float(text.replace(",", "."))
    except ValueError:
        age = math.nan
    if not 0 <= age <= 130:
        issues.append(f"{where}: the age '{text}' is not a number of years between 0 and 130; it is left out.")
        return None
    return age


def with_sexes(rows: Sequence[Participant], name: str, issues: list[str]) -> list[Participant]:
    """Rows with their sex as M or F where it can be understood, None where it is not given."""
    given = {(row.sex or "").casefold() for row in rows}
    sexes = SEXES
    if "2" in given:
        # ISO 5218. Without a 2 the code is another one: where it is 0 and 1, tables differ in what they mean.
        sexes = SEXES | {"1": "M", "2": "F"}
        issues.append(f"{name}: the sexes are coded; 1 is taken as male and 2 as female (ISO 5218).")
    parsed = [replace(row, sex=parse_sex(row.sex or "", sexes)) for row in rows]
    unknown = Counter(row.sex for row in parsed if row.sex not in (None, *SEXES.values()))
    for sex, n in unknown.items():
        issues.append(
            f"{name}: the sex '{sex}' of {n} rows is neither male nor female; it is kept, and these subjects have no "
            "label of sex."
        )
    of_subject: dict[str, set[str]] = {}
    for row in parsed:
        if row.subject is not None and row.sex is not None:
            of_subject.setdefault(row.subject, set()).add(row.sex)
    for subject, found in of_subject.items():
        if len(found) > 1:
            issues.append(f"{name}: the subject {subject} has the sexes {' and '.join(sorted(found))} in several rows.")
    return parsed


def parse_sex(text: str, sexes: Mapping[str, str]) -> str | None:
    if text.casefold() in MISSING or (text == "0" and "2" in sexes):
        return None
    return sexes.get(text.casefold(), text)


@dataclass(frozen=True)
class ParticipantTables:
    """Several tables: one that was named counts for all recordings, one found in a folder for those below it."""

    tables: tuple[tuple[Path | None, Participants], ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows of all tables."""
        return sum(len(table.rows) for _, table in self.tables)

    @property
    def issues(self) -> list[str]:
        """Cells that could not be understood, of all tables."""
        return [issue for _, table in self.tables for issue in table.issues]

    def table_of(self, path: Path) -> Participants | None:
        """Return the first table that counts for the recording and names it."""
        for folder, table in self.tables:
            if (folder is None or folder in path.parents) and table.find(path) is not None:
                return table
        return None

    def shared_names(self, paths: Iterable[Path]) -> dict[str, list[Path]]:
        """Recordings that are taken for nights of one subject only because their files have one name.

        They lie in several folders, and no row of a table tells them apart: none names them, or one names all of them
        by the file name alone.

        Returns
        -------
        dict of str to list of Path
            By file name without suffix.
        """
        groups: dict[tuple[str, object], list[Path]] = {}
        for path in paths:
            table = self.table_of(path)
            row = None if table is None else table.find(path)
            if table is not None and row is not None and table.rows[row].recording is None:
                continue  # the row names a subject, of whom there may be many nights
            groups.setdefault((path.stem, None if table is None else (id(table), row)), []).append(path)
        return {stem: found for (stem, _), found in groups.items() if len({path.parent for path in found}) > 1}

    def notices(self, paths: Iterable[Path]) -> list[str]:
        """Sentences about recordings that share a name, about recordings without a row, and about wrong cells."""
        paths = list(paths)
        said = list(self.issues)
        shared = self.shared_names(paths)
        if shared:
            stem, places = next(iter(shared.items()))
            row = "the table names them by the file name alone" if self.names(places[0]) else "no table names them"
            said.append(
                f"notice: {len(shared)} file names occur in several folders (such as {stem}, in {len(places)}; {row}); "
                "the recordings of one name were taken for nights of one subject. If they are not, name their subjects "
                "with --participants: a column recording with the folder before the file name, or, where folders "
                "have the subjects' names, a column subject alone."
            )
        unnamed = [path for path in paths if not self.names(path)]
        if self.rows and unnamed:
            said.append(
                f"recordings that are not in the participants table: {len(unnamed)} (such as {unnamed[0].name}); the "
                "subject of each is its file's name"
            )
        return said

    def names(self, path: Path) -> bool:
        """Whether a table names the recording."""
        return self.table_of(path) is not None

    def of(self, path: Path) -> Participant:
        """Subject, age and sex of a recording; see :meth:`Participants.of`."""
        return (self.table_of(path) or Participants()).of(path)

    def unknown_recordings(self, paths: Iterable[Path]) -> list[str]:
        """List what the rows that match none of ``paths`` name."""
        paths = list(paths)
        return [
            name
            for folder, table in self.tables
            for name in table.unknown_recordings(p for p in paths if folder is None or folder in p.parents)
        ]


def read_tables(participants: Path | None, inputs: Iterable[Path]) -> ParticipantTables:
    """Read the table that was named, or else ``participants.csv`` or ``.tsv`` of every folder among ``inputs``."""
    if participants is not None:
        return ParticipantTables(((None, read_participants(participants)),))
    found = []
    for folder in inputs:
        file = next((f for f in (folder / "participants.csv", folder / "participants.tsv") if f.is_file()), None)
        if file is not None:
            found.append((folder.resolve(), read_participants(file)))
    return ParticipantTables(tuple(found))
