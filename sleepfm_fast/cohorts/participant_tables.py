"""The participants tables of a run: one that was named, or those found in the folders given."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sleepfm_fast.cohorts.participants import Participant, Participants
from sleepfm_fast.cohorts.participants_file import read_participants
from sleepfm_fast.plurals import counted

__all__ = ["ParticipantTables", "read_tables"]

# "night2", "ses-1", "_n2": what tells a person's nights apart in a name.
NIGHT = re.compile(
    r"(?:night|nacht|nuit|noche|notte|visit|session|ses|recording|rec)[-_ ]?\d+|(?<=[-_ .])[nv][-_]?\d+(?=$|[-_ .])",
    re.IGNORECASE,
)
# "part2", "diag", "CPAP": what tells the parts of a split night apart, or the nights before and under treatment.
PART = re.compile(
    r"(?<![^-_ .])(?:(?:part|teil|partie|parte|deel|half)[-_ ]?(?:\d+|[ab])|(?:c|a|bi|bi-|auto)?pap|"
    r"diag(?:nos\w*)?|titrat\w*|split|baseline|basal|pre|post|treatment|therap\w*|follow[-_ ]?up)(?=$|[-_ .])",
    re.IGNORECASE,
)
# SC4012E0 is subject 01, night 2 of Sleep-EDF; shhs1-200001 and shhs2-200001 are one person's visits.
COHORTS = ((re.compile(r"^(sc4\d\d|st7\d\d)\d[a-z].*"), r"\1"), (re.compile(r"^shhs\d-"), "shhs-"))


def without_night(stem: str) -> str:
    """A recording's name without what tells a person's nights, or parts of one, apart; empty where nothing is left."""
    name = stem.casefold()
    for pattern, person in COHORTS:
        name = pattern.sub(person, name)
    name = re.sub(r"[-_ .]+", "-", PART.sub("", NIGHT.sub("", name))).strip("-")
    return name if re.search(r"[a-z0-9]", name) else ""


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

    def perhaps_one_person(self, paths: Iterable[Path]) -> list[list[Path]]:
        """Recordings whose names differ in a number of the night only, and of whom no table says whose they are."""
        groups: dict[str, list[Path]] = {}
        for path in paths:
            if not self.tells_person(path) and (person := without_night(path.stem)):
                groups.setdefault(person, []).append(path)
        return [found for found in groups.values() if len({path.stem for path in found}) > 1]

    def notices(self, paths: Iterable[Path]) -> list[str]:
        """Sentences about recordings that share a name, about recordings without a row, and about wrong cells."""
        paths = list(paths)
        said = list(self.issues)
        shared = self.shared_names(paths)
        if shared:
            stem, places = next(iter(shared.items()))
            row = "the table names them by the file name alone" if self.names(places[0]) else "no table names them"
            said.append(
                f"notice: {counted(len(shared), 'file name occurs', 'file names occur')} in several folders (such as "
                f"{stem}, in {len(places)}; {row}); the recordings of one name were taken for nights of one subject. "
                "If they are not, name their subjects with --participants: a column recording with the folder before "
                "the file name, or, where folders have the subjects' names, a column subject alone."
            )
        nights = self.perhaps_one_person(paths)
        if nights:
            said.append(
                f"notice: in {counted(len(nights), 'case')} the names of recordings look like several nights of one "
                f"person (such as {nights[0][0].stem} and {nights[0][1].stem}), and no table says so: each counts as a "
                "separate subject, so one person may be in both training and test. If they are one person, give "
                "--participants with the columns recording and subject."
            )
        ageless = [path for path in paths if (table := self.table_of(path)) is not None and table.lacks_visit(path)]
        if ageless:
            said.append(
                f"notice: {counted(len(ageless), 'recording is', 'recordings are')} of a visit of which the "
                f"participants table has no row (such as {ageless[0].name}): subject and sex are taken from another "
                "visit, the age is not known. Where the table means the same visit by another number, write it there "
                "as the names have it"
            )
        unnamed = [path for path in paths if not self.names(path)]
        if self.rows and unnamed:
            said.append(
                f"recordings that are not in the participants table: {len(unnamed)} (such as {unnamed[0].name}); the "
                "subject of each is its file's name"
            )
        return said

    def refuse_untold_visits(self, paths: Iterable[Path]) -> None:
        """Refuse, before any work, a recording of which nothing tells which of its subject's visits it is of."""
        for path in paths:
            self.table_of(path)

    def names(self, path: Path) -> bool:
        """Whether a table names the recording."""
        return self.table_of(path) is not None

    def tells_person(self, path: Path) -> bool:
        """Whether a table says whose the recording is, rather than repeating the file's name for the subject."""
        return self.names(path) and (self.of(path).subject or "").casefold() != path.stem.casefold()

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
