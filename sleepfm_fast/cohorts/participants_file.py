"""Reading a participants table: its columns under their many names, its rows, and what is doubtful in them.

A text table (comma, semicolon or tab; UTF-8 or Latin-1) with a header line. Column names are compared without case,
spaces and punctuation:

=========  ============================================================================================
recording  ``recording``, ``file``, ``filename``, ``path``, ``record``, ``night``, ``edf``
subject    ``subject``, ``participant``, ``patient``, ``id``, also with ``id``, ``code`` or ``number`` behind
           (``patient_id``); ``nsrrid``, ``mesaid``, ``wsc_id``, ``pid``, ``sid``, ``studyid``
visit      ``visit``, ``visitnumber``, ``wsc_vst``, ``session``, ``timepoint``
age        ``age``, ``age_years``, ``age_at_recording``, ``years``, ``nsrr_age``
sex        ``sex``, ``gender``, ``nsrr_sex``
=========  ============================================================================================
"""

from __future__ import annotations

import csv
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sleepfm_fast.cohorts.participants import Participant, Participants, same_text, stem_of
from sleepfm_fast.cohorts.sexes import MISSING, codes_in, sexes_of
from sleepfm_fast.cohorts.visits import EXAMPLES, visit_of
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import first_lines

__all__ = ["read_participants"]

AGES = ("ageatpsg", "agepsg", "ageatvisit", "ageatstudy", "alter", "edad", "leeftijd", "eta", "idade", "alder")
SEXES = ("geschlecht", "sexe", "sexo", "sesso", "geslacht", "biologicalsex", "sexatbirth", "pcorigendercd", "sexdsc")
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
        *("datei", "dateiname", "aufnahme", "fichier", "enregistrement", "archivo", "fichero", "registro"),
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
        "mesaid",
        "wscid",
        *("subjectcode", "participantcode", "patientcode", "subjectnumber", "participantnumber", "patientnumber"),
        *("pid", "publicid", "sid", "studyid", "studypatid", "scode", "bidsfolder"),
        *("proband", "probandid", "probandennummer", "patientennummer", "patientid", "sujet", "sujeto", "soggetto"),
        *("paciente", "paziente", "deelnemer", "participante", "pseudonym"),
    ),
    "visit": ("visit", "visitnumber", "visitno", "vnum", "wscvst", "session", "sessionid", "timepoint"),
    "age": ("age", "ageyears", "ageyr", "ageatrecording", "years", "ageinyears", "nsrrage", *AGES),
    "sex": ("sex", "gender", "nsrrsex", "sexmf", "gendermf", *SEXES),
}
AGE = re.compile(
    r"(?P<above>>=?|≥|over )?\s*(?P<years>[+-]?(?:\d+[.,]?\d*|[.,]\d+)(?:e[+-]?\d+)?)\s*(?P<plus>\+|and over|or over)?"
    r"\s*(?:y|yo|yrs?|years?(?: old)?|a|jahre|ans|años|anos|anni|jaar)?\.?",
    re.IGNORECASE,
)
MAY_BE = {"age": re.compile(r"(?<![a-z])age|age(?![a-z])"), "sex": re.compile("sex|gender")}
"""Names of columns that may be meant where none is known."""
NSRR_IDS = ("nsrrid", "mesaid", "wscid", "pid", "publicid")
"""Columns whose subjects end the names of their recordings."""


def lines_of(path: Path) -> list[str]:
    """Lines of a table that are not blank, as far as it can be read."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise SleepfmError(
            f"the participants table {path} does not exist. Give a CSV with the columns recording, subject, age, sex, "
            "or leave the option out: then every recording counts as a separate subject, of unknown age and sex."
        ) from None
    except OSError as error:
        raise SleepfmError(f"the participants table {path} cannot be read: {error.strerror or error}.") from None
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise SleepfmError(
            f"the participants table {path} is a spreadsheet (.xlsx, .xls, .ods), not text; save it as CSV in the "
            "program that made it, and give that file."
        )
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
    return lines


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
        When the file cannot be read, has neither a recording nor a subject column, or names a recording, or a subject's
        visit, twice.
    """
    header, table = table_in(path)
    columns = find_columns(header)
    if "recording" not in columns and "subject" not in columns:
        raise SleepfmError(
            f"the participants table {path} has the columns {', '.join(header)}; a column named recording (or file) or "
            "subject is needed, and age and sex are understood."
        )
    if "subject" in columns and "recording" in columns and counts_nights(header, table, columns["recording"]):
        del columns["recording"]
    issues: list[str] = []
    rows = rows_of(table, columns, path, issues)
    rows = with_sexes(rows, path.name, issues, header[columns["sex"]] if "sex" in columns else "")
    issues += [*unknown_columns(header, columns, path.name), *alike_subjects(rows, path.name)]
    ends_names = "subject" in columns and folded(header[columns["subject"]]) in NSRR_IDS
    return Participants(path, tuple(rows), tuple(issues), ends_names)


def table_in(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table, by the delimiter that it states or that its header has most of."""
    lines = lines_of(path)
    stated = re.fullmatch(r"sep=([^\w\s\0\"])", lines[0].strip().strip('"'))  # Excel's own first line
    if stated and len(lines) > 1:
        lines = lines[1:]
    delimiter = stated[1] if stated else max("\t;,", key=lambda d: lines[0].count(d))
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        header, *table = reader
    except csv.Error as error:
        raise SleepfmError(
            f"the participants table {path} cannot be read: row {reader.line_num}: {error}. Was a quotation mark "
            "opened and not closed?"
        ) from None
    return [cell.strip() for cell in header], table


def rows_of(
    table: Sequence[Sequence[str]], columns: Mapping[str, int], path: Path, issues: list[str]
) -> list[Participant]:
    """The rows, their sex as written; a recording, or a subject's visit, that is named twice is refused."""
    nameless: list[str] = []
    ages: list[str] = []
    bounds: list[str] = []
    rows: list[Participant] = []
    seen: dict[str, int] = {}
    facts: dict[str, tuple[str, str]] = {}
    without_suffix: dict[str, str] = {}
    for number, cells in enumerate(table, start=2):
        row = {name: cells[i].strip() if i < len(cells) else "" for name, i in columns.items()}
        recording, subject = row.get("recording") or None, row.get("subject") or None
        if recording is None and subject is None:
            nameless.append(f"{path.name}, row {number}: neither recording nor subject is given; the row is left out.")
            continue
        visit = None if row.get("visit", "").casefold() in MISSING else visit_of(row["visit"])
        key = (recording or subject or "").casefold()
        if recording is None and visit is not None:
            key = f"{key} (visit {visit})"
        # A name without suffix names the same recording as one with it; two suffixes are two recordings.
        stem = stem_of(key) if recording else key
        other = key if key in seen else stem if stem in seen else without_suffix.get(key)
        same = (row.get("age", ""), row.get("sex", ""))
        if other is not None and recording is None and facts[other] == same:
            continue  # a row for every night of one person, which says the same of each
        facts[key] = same
        if other is not None:
            raise SleepfmError(
                f"the participants table {path} names '{recording or key}' in rows {seen[other]} and {number}; keep "
                "one row each."
                + (
                    " A subject may have a row for every visit if a column visit (or visitnumber) tells them apart and "
                    f"the recordings are named by it (such as {EXAMPLES})."
                    if recording is None and visit is None
                    else ""
                )
            )
        seen[key] = number
        without_suffix[stem] = key
        rows.append(
            Participant(
                recording,
                subject,
                parse_age(row.get("age", ""), f"{path.name}, row {number}", ages, bounds),
                row.get("sex", ""),
                visit,
            )
        )
    issues += first_lines(ages, f"{path.name}:", "more age is left out", "more ages are left out")
    issues += first_lines(bounds, f"{path.name}:", "more age is a bound", "more ages are bounds", 1)
    issues += first_lines(nameless, f"{path.name}:", "more row is left out", "more rows are left out")
    return rows


def folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", name).casefold())


def find_columns(header: list[str]) -> dict[str, int]:
    """Which column of ``header`` is which; the first name of the list that occurs wins."""
    given = [folded(cell) for cell in header]
    found = {
        name: given.index(match)
        for name, names in COLUMNS.items()
        if (match := next((n for n in names if n in given), None)) is not None
    }
    if "sex" not in found:  # sex (F=1), M1/F2
        bare = [folded(re.sub(r"[\[(].*", "", cell)) for cell in header]
        at = next((i for i, cell in enumerate(header) if codes_in(cell) and bare[i] in (*COLUMNS["sex"], "m1f2")), None)
        found |= {} if at is None else {"sex": at}
    return found


def counts_nights(header: Sequence[str], rows: Sequence[Sequence[str]], recording: int) -> bool:
    """Whether the column taken for names of recordings is one of the nights' numbers, beside one of subjects."""
    cells = {row[recording].strip() for row in rows if recording < len(row)}
    return folded(header[recording]) == "night" and all(re.fullmatch(r"\d{0,2}", cell) for cell in cells)


def parse_age(text: str, where: str, issues: list[str], bounds: list[str]) -> float | None:
    """Years as a number; of a top code, such as the 90+ of data that must not name the very old, the bound."""
    if text.casefold() in MISSING:
        return None
    written = AGE.fullmatch(text)
    age = float(written["years"].replace(",", ".")) if written else math.nan
    if 0 <= age <= 130 and written and (written["above"] or written["plus"]):
        bounds.append(f"{where}: the age '{text}' is taken as {age:g}.")
    if not 0 <= age <= 130:
        issues.append(f"{where}: the age '{text}' is not a number of years between 0 and 130; it is left out.")
        return None
    return age


def with_sexes(rows: Sequence[Participant], name: str, issues: list[str], header: str) -> list[Participant]:
    """Rows with their sex as M or F where it can be understood, None where it is not given."""
    sexes = sexes_of([row.sex or "" for row in rows], name, issues, header)
    parsed = [replace(row, sex=sex) for row, sex in zip(rows, sexes, strict=True)]
    of_subject: dict[str, set[str]] = {}
    for row in parsed:
        if row.subject is not None and row.sex is not None:
            of_subject.setdefault(row.subject, set()).add(row.sex)
    several = [
        f"{name}: the subject {subject} has the sexes {' and '.join(sorted(found))} in several rows."
        for subject, found in of_subject.items()
        if len(found) > 1
    ]
    issues += first_lines(several, f"{name}:", "more subject has two sexes", "more subjects have two sexes")
    return parsed


def alike_subjects(rows: Sequence[Participant], name: str) -> list[str]:
    """Say which subjects may be one person, written in two ways."""
    ways: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.subject is not None:
            plain = re.sub(r"[\W_]+", "-", same_text(row.subject))
            ways.setdefault(re.sub(r"(?<!\d)0+(?=\d)", "", plain), {})[row.subject] = None
    several = [list(names) for names in ways.values() if len(names) > 1]
    if not several:
        return []
    shown = "; ".join(", ".join(names) for names in several[:3]) + ("; ..." if len(several) > 3 else "")
    return [
        f"notice: {name}: names of subjects differ only in case, separators or leading zeros ({shown}); each counts as "
        "a subject of its own, so that one person may be in both training and test. Write a person's name in one way."
    ]


def unknown_columns(header: Sequence[str], columns: Mapping[str, int], name: str) -> list[str]:
    """Say which of age and sex a table has no column for, and which of its columns were not understood."""
    lacking = [fact for fact in ("age", "sex") if fact not in columns]
    others = [cell for i, cell in enumerate(header) if i not in columns.values() and cell]
    if not lacking or not others:
        return []
    # Tables of cohorts have hundreds of columns.
    others.sort(key=lambda cell: not any(MAY_BE[fact].search(cell.casefold()) for fact in lacking))
    shown = ", ".join(others[:12]) + (", ..." if len(others) > 12 else "")
    return [
        f"{name}: no column is recognised as {' or '.join(lacking)}, so it stays unknown; if one of these is meant, "
        f"rename it {' or '.join(lacking)}: {shown}."
    ]
