"""Which columns of a delimited text hold times, durations, texts and stages, by the names in its header or by place."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sleepfm_fast.plurals import counted, first_of
from sleepfm_fast.scoring.clock import Clock, length_s, moment
from sleepfm_fast.scoring.stage_spans import LIST_STEPS
from sleepfm_fast.scoring.stages import LONGEST_NAME, fold, respiratory_event_of, stage_of, with_latin_words
from sleepfm_fast.scoring.timed_texts import ScoringError

__all__ = [
    "TEXT",
    "UNITS_S",
    "Columns",
    "cell_of",
    "clock_column",
    "counts_epochs",
    "name_and_unit",
    "number_of_epoch",
    "stage_column",
    "table",
]

ONSET = (
    *(
        "recordingonset",
        "onset",
        "onsets",
        "onsetsec",
        "onsetseconds",
        "start",
        "starts",
        "startsec",
        "starttime",
        "startseconds",
    ),
    *(
        "starttimesec",
        "begin",
        "time",
        "times",
        "timesec",
        "timestamp",
        "seconds",
        "heurededebut",
        "debut",
        "startzeit",
    ),
    *("beginn", "anfang", "zeit", "inicio", "inizio", "horadeinicio", "starttijd", "eventstart", "datetime"),
    *("uhrzeit", "heure", "hora", "ora", "tijd", "epochstart", "epochstarttime", "onsettime", "clocktime"),
    *("localtimestart", "stamptimelocal"),
)
END = (
    *("end", "ends", "endtime", "endsec", "stop", "stoptime", "heuredefin", "fin", "ende", "endzeit", "final", "fine"),
    *("eindtijd", "eventend", "stopsec", "stopseconds", "endseconds", "offset"),
)
DURATION = (
    *("duration", "durations", "durationsec", "durationseconds", "length", "dur", "duree", "dauer", "duracion"),
    *("durata", "duracao", "duur"),
)
STAGE = (
    *("stage", "sleepstage", "sleepstages", "staging", "stages", "stagename", "sleepstagename", "stagelabel"),
    *("userdefinedstage", "humanstage", "stagehum", "manualstage", "expertstage", "consensusstage", "majority"),
    *("stade", "stades", "schlafstadium", "schlafstadien", "schlafphase", "stadium", "estadio", "stadio", "hypnogram"),
    *("estagio", "estagios", "fase", "fases", "etapa", "etapas", "fasedosono", "estagiodosono", "fasedesueno"),
    "hypno",
)
EVENT = (
    *("standardisedevent", "standardizedevent", "description", "descriptions", "event", "events", "eventname"),
    *("eventtype", "annotation", "annotations", "evenement", "ereignis", "evento", "gebeurtenis", "beschreibung"),
    *("bezeichnung", "descripcion", "descrizione", "omschrijving", "libelle"),
)
TEXT = (*EVENT, *STAGE, "label", "labels", "trialtype", "name", "text", "type", "value", "concept", "class")
"""A table that has a column of events and one of the stage at that time is one of events."""
OF_STAGES = ("stage", "staging", "hypno", "stade", "stadi", "scorer", "rater", "expert")
"""Parts of the names of columns that may hold the stages of one of several scorers."""
ABOUT_EVENTS = (*EVENT, "type", "text")
"""Columns of which one may name the event where another only describes it, or leaves it out."""
EPOCH = ("epoch", "epochs", "epochnumber", "epochno", "epochindex", "epoche", "epoque", "epoca", "epochid")
UNITS_S = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds", "sek", "sekunden"), 1.0),
    **dict.fromkeys(("ms", "msec", "msecs", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("min", "mins", "minute", "minutes", "minuten"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
}
SAMPLES = ("sample", "samples", "point", "points", "frame", "frames")
UNIT = "|".join((*UNITS_S, *SAMPLES))
IN_NAME = re.compile(rf"\s*[\[(]\s*(?P<inside>{UNIT})\s*[\])]|_(?P<behind>s|sec|ms|min|samples?)$", re.IGNORECASE)
PREAMBLE_LINES = 100
"""The table's header is looked for in so many lines; exports put patient, settings and lists of events before it."""


@dataclass(frozen=True)
class Columns:
    """Which column holds what, None where there is none; and how many seconds a number in it stands for.

    ``stage`` is a column of stages beside one of events, which then is ``text``; ``others`` are further columns of
    texts about the event.
    """

    onset: int | None
    end: int | None
    duration: int | None
    text: int
    epoch: int | None = None
    stage: int | None = None
    stages_only: bool = False
    onset_unit_s: float = 1.0
    end_unit_s: float = 1.0
    duration_unit_s: float = 1.0
    others: tuple[int, ...] = ()


def cell_of(row: Sequence[str], column: int) -> str:
    """Text of a cell; empty where the row ends before it."""
    return row[column].strip() if column < len(row) else ""


def table(text: str, source: str) -> tuple[list[tuple[int, list[str]]], Columns]:
    """Rows with their line numbers, and columns; the delimiter is that of tab, semicolon, comma that splits lines.

    Where none splits every early line, or the first line is no header, the header is the first line that names columns.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")][:20]
    if not lines:
        raise ScoringError(f"{source} is empty; expected rows of onset, duration, description.")
    delimiter = next((d for d in ("\t", ";", ",") if all(d in line for line in lines)), None)
    failure: ScoringError | None = None
    if delimiter is not None:
        rows = split_rows(text, delimiter, source)
        if not rows:
            raise ScoringError(f"{source} has no row of its own; expected rows of onset, duration, description.")
        try:
            return layout(rows, source)
        except ScoringError as error:
            failure = error
    for d in (delimiter,) if delimiter is not None else ("\t", ";", ","):
        rows = split_rows(text, d, source)
        for at, (_, row) in enumerate(rows[:PREAMBLE_LINES]):
            columns = named_columns(row, source, rows[at + 1 :]) if len(row) > 1 else None
            if columns is not None and columns.onset is not None:
                return rows[at + 1 :], columns
    if failure is not None:
        raise failure
    raise ScoringError(
        f"{source} has no column separator (comma, semicolon or tab) common to its first "
        f"{counted(len(lines), 'line')}, beginning '{lines[0][:60]}', and no line that names columns; expected the "
        "columns onset, duration, description, or one sleep stage a line."
    )


def split_rows(text: str, delimiter: str, source: str) -> list[tuple[int, list[str]]]:
    """Rows that hold anything, with the numbers of their lines."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ScoringError(f"{source}, line {reader.line_num}: {error}; expected delimited text.") from error
    return [(n, row) for n, row in rows if any(cell.strip() for cell in row) and not row[0].startswith("#")]


def layout(rows: list[tuple[int, list[str]]], source: str) -> tuple[list[tuple[int, list[str]]], Columns]:
    """Columns by the header's names; without a header, by position."""
    header = rows[0][1]
    if moment(header[0]) is not None:
        if len(header) == 2:
            return rows, Columns(0, None, None, 1)
        second = header[1] if len(header) > 1 else ""
        if length_s(second) is not None:
            return rows, columns_by_place(rows, 0, 2)
        raise ScoringError(
            f"{source} has no header, and its second column ('{second[:30]}') is not a duration; expected a header "
            "naming the columns onset, duration, description, or these three in this order."
        )
    columns = named_columns(header, source, rows[1:])
    if columns is not None:
        return rows[1:], columns
    if len(header) > 2 and moment(header[1]) is not None and length_s(header[2]) is not None:
        return rows, columns_by_place(rows, 1, 0)
    names = [fold(name) for name, _ in map(name_and_unit, header)]
    wanted = (("the onset", ONSET), ("the stage or event", TEXT))
    missing = " and ".join(what for what, accepted in wanted if not set(accepted) & set(names))
    shown = " ".join(", ".join(c.strip() for c in header).split())
    shown = shown if len(shown) <= LONGEST_NAME else f"{shown[:LONGEST_NAME]}..."
    staged = [c.strip() for c, name in zip(header, names, strict=True) if any(word in name for word in OF_STAGES)]
    raise ScoringError(
        f"{source}: no column for {missing} among '{shown}'; expected a header such "
        "as 'onset,duration,description', 'onset_s,duration_s,stage' or 'Start,Duration,Event'."
        + (f" If {first_of(staged, 3)} are stages of several scorers, choose one with --scorer." if staged else "")
    )


def columns_by_place(rows: list[tuple[int, list[str]]], onset: int, text: int) -> Columns:
    """Columns without a header: onsets, behind them durations or ends, and texts.

    They are ends where most are the onset of the row below.
    """
    pairs = [(moment(row[onset]), moment(row[onset + 1])) for _, row in rows if len(row) > onset + 1]
    follows = [b is not None and b == a for (_, b), (a, _) in itertools.pairwise(pairs)]
    if len(follows) > 1 and 2 * sum(follows) > len(follows):
        return Columns(onset, onset + 1, None, text)
    return Columns(onset, None, onset + 1, text)


def number_of_epoch(text: str) -> int | None:
    """Read the number of an epoch; ``1.0`` is one too, which pandas writes in a column where a number is missing."""
    match = re.fullmatch(r"(\d{1,9})(?:[.,]0+)?", text)
    return int(match[1]) if match else None


def counts_epochs(rows: list[tuple[int, list[str]]], columns: Columns, length_of_recording_s: float | None) -> bool:
    """Whether what stands as onset is the number of the epoch: stages one by one, and as seconds over too soon."""
    onset, text = columns.onset or 0, columns.text
    if length_of_recording_s is None or not LIST_STEPS <= len(rows) < length_of_recording_s / 2:
        return False
    numbers = [row[onset].strip() if len(row) > max(onset, text, columns.duration or 0) else "" for _, row in rows]
    found = [number_of_epoch(number) for number in numbers]
    if found[0] is None or found != list(range(found[0], found[0] + len(found))):
        return False
    return all(stage_of(row[text]) is not None for _, row in rows)


def clock_column(rows: list[tuple[int, list[str]]], used: Sequence[int | None]) -> int | None:
    """First column not ``used`` of which every row is a clock time, mostly another one than those of other rows."""
    for column in range(min((len(row) for _, row in rows), default=0)):
        cells = [row[column].strip() for _, row in rows]
        if column in used or 2 * len({*cells}) <= len(cells):
            continue
        if all(isinstance(moment(cell), Clock) for cell in cells):
            return column
    return None


def stage_column(rows: list[tuple[int, list[str]]], columns: Columns) -> int:
    """Column of the stages beside numbers of epochs: without a header, the first of two scorers' columns."""
    if columns.duration is not None:
        cells = [row[columns.duration].strip() for _, row in rows]
        if len({*cells}) > 1 and all(stage_of(cell) is not None for cell in cells):
            return columns.duration
    return columns.text


def names_any(rows: list[tuple[int, list[str]]], column: int) -> bool:
    """Whether a column names a stage or a respiratory event in any row."""
    texts = {row[column].strip() for _, row in rows if column < len(row)}
    return any(stage_of(text) is not None or respiratory_event_of(text) is not None for text in texts)


def name_and_unit(cell: str) -> tuple[str, str]:
    """``Start (ms)`` -> ``Start``, ``ms``; what else stands in brackets is no part of the name."""
    if len(cell) > LONGEST_NAME:
        return cell, ""
    match = IN_NAME.search(cell.strip())
    unit = "" if match is None else (match["inside"] or match["behind"]).casefold()
    return re.sub(r"\s*[\[(].*?[\])]|_(s|sec|ms|min|samples?)$", "", cell.strip(), flags=re.IGNORECASE), unit


def named_columns(header: list[str], source: str, rows: list[tuple[int, list[str]]]) -> Columns | None:
    """Columns of a header: with a text and a time, or with a stage and no time; None where there are neither.

    Of several columns of texts the first by name is taken, unless nothing in it is known and in another is: BIDS may
    have ``sleep_stage`` as ``trial_type`` and the stage as ``value``.
    """
    named = [name_and_unit(cell) for cell in header]
    names = [fold(with_latin_words(name)) for name, _ in named]

    def column(accepted: Sequence[str]) -> int | None:
        return next((names.index(name) for name in accepted if name in names), None)

    def unit_s(at: int | None) -> float:
        unit = "" if at is None else named[at][1]
        if unit in SAMPLES:
            raise ScoringError(
                f"{source} gives times in samples ('{header[at or 0].strip()}'); expected seconds from the recording's "
                "start, clock times, or a unit that is one of time (s, ms, min, h)."
            )
        return UNITS_S.get(unit, 1.0)

    onset, text, end, duration = column(ONSET), column(TEXT), column(END), column(DURATION)
    if text is None:
        return None
    if not names_any(rows, text):
        others = (i for name in TEXT for i, given in enumerate(names) if given == name and name not in STAGE)
        text = next((i for i in others if names_any(rows, i)), text)
    if onset is None:
        stage = column(STAGE)
        if stage is None:
            return None
        ends = [i for i, name in enumerate(names) if name in (*END, *DURATION)]
        clock = clock_column(rows, [stage, *ends])
        if clock is None:
            return Columns(None, None, None, stage, column(EPOCH), stages_only=True)
        return Columns(clock, None, duration, stage, column(EPOCH), None, True, duration_unit_s=unit_s(duration))
    stages_only = names[text] in STAGE
    stage = None if stages_only else column(STAGE)
    of_times = unit_s(onset), unit_s(end), unit_s(duration)
    about = [i for i, name in enumerate(names) if i != text and name in ABOUT_EVENTS and not stages_only]
    return Columns(onset, end, duration, text, None, stage, stages_only, *of_times, others=tuple(about))
