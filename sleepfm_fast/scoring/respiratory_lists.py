"""Lists of respiratory events in layouts that one cohort uses: UCDDB's ``_respevt.txt`` and WSC's ``.sco.txt``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from statistics import median

from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.scoring.clock import HALF_DAY_S, Clock, frame_of, moment, number, refuse_half_days
from sleepfm_fast.scoring.stages import EPOCH_S, respiratory_event_of
from sleepfm_fast.scoring.timed_texts import Event, ScoringError

__all__ = ["gamma_events", "ucddb_events"]

UCDDB_ROW = re.compile(r"\s*(?P<clock>\d{1,2}:\d{2}:\d{2})\s+(?P<kind>[A-Za-z][\w/-]*)(?P<rest>.*)")
"""``23:31:07  HYP-C       13   91.4  3.1  -  +``: flags of periodic breathing (PB, CS) may precede the duration."""
UCDDB_KINDS = {"APNEA": "apnea", "HYP": "hypopnea"}
UCDDB_TYPES = {"O": "Obstructive ", "C": "Central ", "M": "Mixed "}

GAMMA_COLUMNS = 7
"""Epoch, two numbers of samples, a length in samples, text, number, clock time; values and the duration follow."""
SHORTEST_S = 5.0
"""Some durations of WSC are negative or a hundredth of what is meant; no event that is scored lasts less than this."""
LEAST_S = 10.0
"""An apnoea or hypopnoea lasts at least this long by definition (AASM)."""


def ucddb_events(
    text: str, source: str, start: datetime | None, length_s: float | None, issues: list[str]
) -> list[Event]:
    """Events of a list of UCDDB (St. Vincent's University Hospital): a clock time, ``APNEA-O``, a duration in seconds.

    Parameters
    ----------
    text : str
        The file, with the two or three lines of its header.
    source : str
        Its name, for messages.
    start : datetime or None
        The recording's start.
    length_s : float or None
        How long the recording is.
    issues : list of str
        Gets what is doubtful.

    Raises
    ------
    ScoringError
        When a line with a time is no event, or ``start`` is not known.
    """
    lines = [line for line in text.splitlines() if re.match(r"\s*\d{1,2}:\d{2}", line)]
    rows = [match for line in lines if (match := ucddb_row(line)) is not None]
    if len(rows) < len(lines) or not (rows or "PB/CS" in text):
        wrong = next((line.strip() for line in lines if ucddb_row(line) is None), None)
        found = "no line that begins with a clock time" if wrong is None else f"the line '{wrong[:60]}'"
        raise ScoringError(
            f"{source} is named like UCDDB's lists of respiratory events, and has {found}; expected a clock time, a "
            "type and a duration in seconds, for instance '23:31:07  HYP-C  13'."
        )
    clocks = [clock for match in rows if (clock := moment(match["clock"])) is not None]
    _, onsets_s = frame_of(clocks, source, start, issues, length_s)
    refuse_half_days(clocks, onsets_s, source, length_s)
    events = []
    for onset_s, match in zip(onsets_s, rows, strict=True):
        name, _, kind = match["kind"].upper().partition("-")
        words = UCDDB_TYPES.get(kind, "") + UCDDB_KINDS[name] if name in UCDDB_KINDS else match["kind"]
        duration_s = next((value for cell in match["rest"].split() if (value := number(cell)) is not None), None)
        events.append(Event(onset_s, duration_s, words))
    return events


def ucddb_row(line: str) -> re.Match[str] | None:
    """Clock time, type and the rest of a line that is an event; None for other lines and times such as 23:75:00."""
    match = UCDDB_ROW.fullmatch(line)
    return None if match is None or moment(match["clock"]) is None else match


def gamma_events(text: str, source: str, start: datetime | None, issues: list[str]) -> list[Event]:
    """Events of a list of Grass' Gamma as the Wisconsin Sleep Cohort publishes it, with tabs between its columns.

    Parameters
    ----------
    text, source, start, issues
        As for :func:`ucddb_events`.

    Raises
    ------
    ScoringError
        When most lines have other columns, or ``start`` is not known.
    """
    rows = gamma_rows(text, source, issues)
    onsets_s = gamma_onsets(rows, source, start, issues)
    events = []
    n_short = 0
    for row, onset_s in zip(rows, onsets_s, strict=True):
        values = [value for cell in row[GAMMA_COLUMNS:] if (value := number(cell)) is not None]
        event = Event(onset_s, values[-1] if len(values) > 1 else None, row[4])
        if respiratory_event_of(event.text) is not None and (event.duration_s or 0.0) < SHORTEST_S:
            n_short += 1
            event = replace(event, duration_s=LEAST_S)
        events.append(event)
    if n_short:
        issues.append(
            f"{source}: of {counted(n_short, 'respiratory event')} the duration is missing, negative or under "
            f"{SHORTEST_S:g} s; {agreeing(n_short, 'it counts', 'they count')} as {LEAST_S:g} s long, the least that "
            "such an event lasts."
        )
    return events


def gamma_rows(text: str, source: str, issues: list[str]) -> list[list[str]]:
    """Cells of the lines that are events."""
    lines = [[cell.strip() for cell in line.split("\t")] for line in text.splitlines() if line.strip()]
    headed = any(cells[0].casefold().startswith("epoch") for cells in lines)
    lines = [cells for cells in lines if not cells[0].casefold().startswith("epoch")]
    rows = [cells for cells in lines if is_gamma_row(cells)]
    n_left = len(lines) - len(rows)
    if n_left > len(rows) or not (rows or headed):
        wrong = next((" ".join(cells).strip() for cells in lines if not is_gamma_row(cells)), "")
        of_all = f"{n_left} of its {counted(len(lines), 'line')} {agreeing(n_left, 'is', 'are')} none"
        found = f"{of_all} (the first: '{wrong[:60]}')" if lines else "all of its lines are empty"
        raise ScoringError(
            f"{source} is named like WSC's lists of events, and {found}; expected columns with tabs between them: "
            "epoch, three numbers of samples, text, number, clock time, values, duration in seconds."
        )
    if n_left:
        issues.append(
            f"{source}: {counted(n_left, 'line')} without an epoch, a text or a clock time in "
            f"{agreeing(n_left, 'its column was', 'their columns were')} left out."
        )
    return rows


def is_gamma_row(cells: Sequence[str]) -> bool:
    """Whether a line has an epoch, a text, and a clock time or nothing, in their columns."""
    if len(cells) < GAMMA_COLUMNS or not re.fullmatch(r"\d{1,9}", cells[0]) or not cells[4]:
        return False
    return number(cells[4]) is None and (not cells[6] or isinstance(moment(cells[6]), Clock))


def gamma_onsets(rows: Sequence[Sequence[str]], source: str, start: datetime | None, issues: list[str]) -> list[float]:
    """Seconds from the recording's start, by the clock; half days and missing clock times by the epoch."""
    clocks = [at for cells in rows if (at := moment(cells[6])) is not None]
    clocks_s = iter(frame_of(clocks, source, start, issues)[1])
    onsets_s: list[float] = []
    apart_s: list[float] = []
    n_moved = 0
    for cells in rows:
        epoch_s = (int(cells[0]) - 1) * float(EPOCH_S)
        if not cells[6]:
            onsets_s.append(epoch_s)
            continue
        # Some files have a 12-hour clock without am and pm.
        clock_s = next(clocks_s)
        half_days = round((epoch_s - clock_s) / HALF_DAY_S)
        n_moved += half_days != 0
        onsets_s.append(clock_s + half_days * HALF_DAY_S)
        apart_s.append(abs(onsets_s[-1] - epoch_s - EPOCH_S / 2))
    if n_moved:
        issues.append(
            f"{source}: {counted(n_moved, 'clock time')} {agreeing(n_moved, 'was', 'were')} moved by twelve hours or "
            "more, to the half of the day in which the epoch lies."
        )
    if apart_s and (middle_s := median(apart_s)) > 2 * EPOCH_S:
        issues.append(
            f"{source}: clock times lie {middle_s / 60:.1f} minutes (median) from their epochs; the events stand where "
            "the clock says."
        )
    if n_placed := len(rows) - len(clocks):
        issues.append(
            f"{source}: {counted(n_placed, 'event has', 'events have')} an epoch and no clock time; "
            f"{agreeing(n_placed, 'it was', 'they were')} placed at the epoch's start."
        )
    return onsets_s
