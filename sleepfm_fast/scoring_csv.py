"""Scoring in delimited text: one annotation a row, with a time, usually a duration, and a text."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sleepfm_fast.scoring import Event, Scoring, ScoringError
from sleepfm_fast.stages import fold, stage_of

__all__ = ["parse_csv"]

ONSET = (
    *("onset", "onsets", "onsetsec", "onsetseconds", "start", "starts", "startsec", "starttime", "startseconds"),
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
)
END = (
    *("end", "ends", "endtime", "endsec", "stop", "stoptime", "heuredefin", "fin", "ende", "endzeit", "final", "fine"),
    *("eindtijd", "eventend"),
)
DURATION = (
    *("duration", "durations", "durationsec", "durationseconds", "length", "dur", "duree", "dauer", "duracion"),
    *("durata", "duracao", "duur"),
)
TEXT = (
    *("description", "descriptions", "event", "events", "stage", "sleepstage", "sleepstages", "staging", "stages"),
    *(
        "annotation",
        "annotations",
        "eventname",
        "label",
        "labels",
        "trialtype",
        "name",
        "text",
        "evenement",
        "ereignis",
    ),
    *("evento", "eventtype", "type", "value", "stade", "schlafstadium", "concept", "gebeurtenis"),
)
CLOCK = re.compile(
    r"(?:(?P<date>\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4})[T ,]+)?"
    r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?P<fraction>[.,]\d+)?)?\s*(?P<half>[AaPp]\.?[Mm]\.?)?Z?"
)
DAY_S = 86_400.0
EARLIEST_S = -4 * 3600.0
"""A clock time without a date lies at most this long before the recording's start, and under a day after that."""


@dataclass(frozen=True)
class Clock:
    """A clock time: seconds of the day, and the three numbers of its date where it has one."""

    of_day_s: float
    date: tuple[int, int, int] | None
    separator: str


@dataclass(frozen=True)
class Columns:
    """Which column holds what; None where there is none."""

    onset: int
    end: int | None
    duration: int | None
    text: int


def parse_csv(data: bytes, source: str, start: datetime | None) -> Scoring:
    """Read delimited text: comma, semicolon or tab; UTF-8, UTF-16 or Latin-1; seconds or clock times.

    Parameters
    ----------
    data : bytes
        The file.
    source : str
        Its name, for messages.
    start : datetime or None
        The recording's start, which clock times are counted from.

    Raises
    ------
    ScoringError
        When the columns cannot be recognised, when no row can be read, or when clock times are given without ``start``.
    """
    issues: list[str] = []
    rows = table(decoded(data, source, issues), source)
    columns, rows = layout(rows, source)
    onsets, ends = [], []
    texts: list[tuple[float | None, str]] = []
    bad: list[int] = []
    for line, row in rows:
        cells = [*row, *[""] * (max(c for c in vars(columns).values() if c is not None) + 1 - len(row))]
        onset, text = moment(cells[columns.onset]), cells[columns.text].strip()
        end = moment(cells[columns.end]) if columns.end is not None else None
        duration_s = length_s(cells[columns.duration]) if columns.duration is not None else None
        if onset is None or not text:
            if any(cell.strip() and not re.fullmatch(r"\[.*\]", cell.strip()) for cell in row):
                bad.append(line)
            continue
        onsets.append(onset)
        ends.append(end)
        texts.append((duration_s, text))
    if not onsets:
        raise ScoringError(
            f"{source}: none of its {len(rows)} rows has a readable time and a text; expected a time in seconds or a "
            "clock time, for instance '30,30,Sleep stage W' under 'onset,duration,description'."
        )
    if len(bad) > len(onsets):
        raise ScoringError(
            f"{source}: {len(bad)} of {len(rows)} rows have no readable time or no text (the first in line {bad[0]}); "
            "expected the columns onset, duration, description."
        )
    if bad:
        issues.append(
            f"{source}: {len(bad)} rows without a readable time or text were left out, the first in line {bad[0]}."
        )
    onsets_s = relative_s(onsets, source, start, issues)
    known = [end if end is not None else onset for onset, end in zip(onsets, ends, strict=True)]
    ends_s = relative_s(known, source, start, []) if columns.end is not None and columns.duration is None else None
    events = []
    for i, (duration_s, text) in enumerate(texts):
        if ends_s is not None and ends[i] is not None:
            duration_s = ends_s[i] - onsets_s[i]
            # an end without a date may lie beyond midnight
            duration_s += DAY_S if duration_s < 0 and isinstance(ends[i], Clock) else 0.0
        events.append(Event(onsets_s[i], duration_s, text))
    remark_on_numbering(events, source, issues)
    return Scoring(tuple(events), source, tuple(issues), events_scored=None)


def decoded(data: bytes, source: str, issues: list[str]) -> str:
    """Text of the file: by its byte order mark, by its zero bytes, as UTF-8, at last as Latin-1."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif data[:200].count(0) > len(data[:200]) // 4:
        encodings = ["utf-16-be" if data[0] == 0 else "utf-16-le"]
    else:
        encodings = ["utf-8-sig", "cp1252", "latin-1"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        if encoding in ("cp1252", "latin-1"):
            issues.append(f"{source} is not UTF-8; it was read as Latin-1 (Windows-1252).")
        return text
    raise ScoringError(
        f"{source} is neither text (UTF-8, UTF-16, Latin-1) nor EDF, XML or WFDB annotations; expected one of these."
    )


def table(text: str, source: str) -> list[tuple[int, list[str]]]:
    """Numbered rows of cells; the delimiter is the first of tab, semicolon and comma that splits every early line."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")][:20]
    if not lines:
        raise ScoringError(f"{source} is empty; expected rows of onset, duration, description.")
    delimiter = next((d for d in ("\t", ";", ",") if all(d in line for line in lines)), None)
    if delimiter is None:
        raise ScoringError(
            f"{source} has no column separator (comma, semicolon or tab) common to its first {len(lines)} lines, which "
            f"begin '{lines[0][:60]}'; expected the columns onset, duration, description."
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ScoringError(f"{source}, line {reader.line_num}: {error}; expected delimited text.") from error
    rows = [(n, row) for n, row in rows if any(cell.strip() for cell in row) and not row[0].startswith("#")]
    if not rows:
        raise ScoringError(f"{source} has no row of its own; expected rows of onset, duration, description.")
    return rows


def layout(rows: list[tuple[int, list[str]]], source: str) -> tuple[Columns, list[tuple[int, list[str]]]]:
    """Columns by the header's names; without a header, by position."""
    header = rows[0][1]
    if moment(header[0]) is not None:
        if len(header) == 2:
            return Columns(0, None, None, 1), rows
        if length_s(header[1]) is not None:
            return Columns(0, None, 1, 2), rows
        raise ScoringError(
            f"{source} has no header, and its second column ('{header[1][:30]}') is not a duration; expected a header "
            "naming the columns onset, duration, description, or these three in this order."
        )
    # "onset_s", "Duration [s]", "Start (sec)": the unit is no part of the name
    names = [fold(re.sub(r"\s*[\[(].*?[\])]|_s$|_sec$", "", cell.strip())) for cell in header]

    def column(accepted: Sequence[str]) -> int | None:
        return next((names.index(name) for name in accepted if name in names), None)

    onset, text = column(ONSET), column(TEXT)
    if onset is None or text is None:
        missing = " and ".join(what for what, at in (("the onset", onset), ("the stage or event", text)) if at is None)
        raise ScoringError(
            f"{source}: no column for {missing} among '{', '.join(c.strip() for c in header)}'; expected a header such "
            "as 'onset,duration,description', 'onset_s,duration_s,stage' or 'Start,Duration,Event'."
        )
    return Columns(onset, column(END), column(DURATION), text), rows[1:]


def number(text: str) -> float | None:
    """Finite number, with a decimal point or comma; None otherwise."""
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def moment(text: str) -> float | Clock | None:
    """Read a time: seconds, a clock time, or neither."""
    if (value := number(text)) is not None:
        return value
    match = CLOCK.fullmatch(text.strip())
    if match is None:
        return None
    hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"] or 0)
    if match["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if match["half"][0] in "Pp" else 0)
    if hour > 47 or minute > 59 or second > 60:
        return None
    of_day_s = 3600 * hour + 60 * minute + second + float((match["fraction"] or "0").replace(",", "."))
    if match["date"] is None:
        return Clock(of_day_s, None, "")
    separator = next(c for c in match["date"] if not c.isdigit())
    parts = match["date"].split(separator)
    if len(parts) != 3:
        return None
    return Clock(of_day_s, (int(parts[0]), int(parts[1]), int(parts[2])), separator)


def length_s(text: str) -> float | None:
    """Read a duration in seconds, given as a number or as hh:mm:ss."""
    value = moment(text)
    return value.of_day_s if isinstance(value, Clock) else value


def relative_s(moments: Sequence[float | Clock], source: str, start: datetime | None, issues: list[str]) -> list[float]:
    """Seconds from the recording's start."""
    clocks = [m for m in moments if isinstance(m, Clock)]
    if not clocks:
        return [m for m in moments if not isinstance(m, Clock)]
    if len(clocks) < len(moments):
        raise ScoringError(
            f"{source} mixes clock times ({len(clocks)} rows) with times in seconds ({len(moments) - len(clocks)} "
            "rows); expected one of the two throughout."
        )
    dated = [clock for clock in clocks if clock.date is not None]
    if dated and len(dated) < len(clocks):
        raise ScoringError(f"{source}: {len(dated)} of {len(clocks)} clock times carry a date; expected all or none.")
    if not dated:
        first_s = min(clock.of_day_s for clock in clocks)
        start_s = None if start is None else of_day(start)
        near_midnight = start_s is not None and min(start_s, DAY_S - start_s) < 3600
        # hh:mm:ss from 00:00:00 on, of a recording that did not start about midnight, is time elapsed; the clock times
        # of a night that passes midnight begin before it
        from_zero = clocks[0].of_day_s == first_s or not any(clock.of_day_s > DAY_S - 3600 for clock in clocks)
        beyond_a_day = any(clock.of_day_s >= DAY_S for clock in clocks)
        if first_s < 60 and not near_midnight and (from_zero or beyond_a_day):
            issues.append(f"{source}: its times begin at 00:00:00 and were read as time since the recording's start.")
            return [clock.of_day_s for clock in clocks]
    if start is None:
        raise ScoringError(
            f"{source} gives clock times, but the recording's start is not known; expected times in seconds from the "
            "start of the recording, or a recording whose header states when it started."
        )
    start = start.replace(tzinfo=None)
    if not dated:
        return [(clock.of_day_s - of_day(start) - EARLIEST_S) % DAY_S + EARLIEST_S for clock in clocks]
    day_first = is_day_first(dated, source, start, issues)
    try:
        midnights = {clock.date: midnight(clock, day_first) for clock in dated}
    except ValueError as error:
        raise ScoringError(f"{source}: one of its dates does not exist ({error}).") from error
    relative = [(midnights[c.date] - start).total_seconds() + c.of_day_s for c in dated]
    if min(relative) > DAY_S or max(relative) < -DAY_S:
        days = round(min(relative, key=abs) / DAY_S, 1)
        issues.append(
            f"{source}: its times lie {days:g} days away from the recording's start ({start}); one of the two dates is "
            "wrong, or the labels belong to another recording."
        )
    return relative


def of_day(start: datetime) -> float:
    """Seconds since midnight."""
    return start.hour * 3600 + start.minute * 60 + start.second + start.microsecond / 1e6


def midnight(clock: Clock, day_first: bool) -> datetime:
    """Start of the day of a dated clock time; a date that begins with four digits is year, month, day."""
    if clock.date is None:
        raise ValueError("a clock time without a date")
    a, b, c = clock.date
    year, month, day = (a, b, c) if a > 31 else (c, b, a) if day_first else (c, a, b)
    return datetime(year if year > 99 else 2000 + year if year < 85 else 1900 + year, month, day)


def is_day_first(dated: Sequence[Clock], source: str, start: datetime, issues: list[str]) -> bool:
    """Whether dates read day/month: by numbers above 12, by dots, by nearness to the recording's start."""
    dates = sorted({clock.date for clock in dated if clock.date is not None})
    if dates[0][0] > 31 or dated[0].separator == ".":
        return True
    if any(date[0] > 12 for date in dates) or any(date[1] > 12 for date in dates):
        return any(date[0] > 12 for date in dates)
    away = {}
    for day_first in (True, False):
        first = min(midnight(clock, day_first) + timedelta(seconds=clock.of_day_s) for clock in dated)
        away[day_first] = abs((first - start).total_seconds())
    if away[True] != away[False]:
        return away[True] < away[False]
    if any(date[0] != date[1] for date in dates):
        issues.append(f"{source}: its dates do not tell day from month; they were read as day/month.")
    return True


def remark_on_numbering(events: Sequence[Event], source: str, issues: list[str]) -> None:
    """Say so where bare stage numbers are read as Rechtschaffen & Kales' but look like another numbering."""
    numbers = {int(float(event.text)) for event in events if re.fullmatch(r"[+-]?\d+(?:\.0+)?", event.text.strip())}
    if 4 in numbers and 5 not in numbers and stage_of("4") == "N3":
        issues.append(
            f"{source} writes stages as numbers, with a 4 and no 5; 4 was read as S4 (N3) and 5 would be REM. If 4 "
            "means REM in this file, write the stages as W, N1, N2, N3, R."
        )
