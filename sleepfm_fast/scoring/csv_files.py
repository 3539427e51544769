"""Scoring in delimited text: one annotation a row, with a time, usually a duration, and a text; or a list of stages."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction

from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.scoring.clock import (
    DAY_S,
    LONGEST_S,
    Clock,
    Frame,
    frame_of,
    length_s,
    moment,
    of_day,
    refuse_half_days,
)
from sleepfm_fast.scoring.clock_change import without_clock_change
from sleepfm_fast.scoring.csv_columns import (
    TEXT,
    UNITS_S,
    Columns,
    cell_of,
    clock_column,
    counts_epochs,
    number_of_epoch,
    stage_column,
    table,
)
from sleepfm_fast.scoring.grouped_thousands import without_groups
from sleepfm_fast.scoring.profile import is_profile, profile_events
from sleepfm_fast.scoring.scorers import of_scorer
from sleepfm_fast.scoring.stage_spans import SAME_TIME_S, listed_epoch_s
from sleepfm_fast.scoring.stages import (
    EPOCH_S,
    fold,
    has_words_of_other_scripts,
    perhaps_respiratory,
    respiratory_event_of,
    stage_of,
)
from sleepfm_fast.scoring.timed_texts import Event, Scoring, ScoringError

__all__ = ["parse_csv"]

MEASURED = re.compile(rf"(?P<number>[+-]?[\d.,]+)\s*(?P<unit>{'|'.join(UNITS_S)})\.?", re.IGNORECASE)
"""``25,3 s`` in a cell."""
NO_TEXT = ("", "x", "-")
"""What stands in a column of events where none of its words fits."""
FEW_STAGES = 4
"""Fewer stages than this tell nothing of the unit of their times."""
LONGEST_STEP_S = 600.0
LONGEST_STAGE_S = 3600.0
"""Half of a night's stages are far shorter than either, be they epochs or the time between two changes."""
SHORTFALL_S = 60.0
"""A list of stages without times may be this much shorter than the recording, and a last epoch longer."""
SCORED_UNTIL = Fraction(2, 3)
"""A scoring ends in the last third of the recording. Of numbers, not two of 20 or less, 30 and 60 s can put it there:
what ends there in epochs of 20 s would end, in epochs of 30 s, beyond the recording, and what does in 60 s, before."""


def parse_csv(
    data: bytes,
    source: str,
    start: datetime | None,
    length_of_recording_s: float | None = None,
    scorer: str = "",
) -> Scoring:
    """Read delimited text: comma, semicolon or tab; UTF-8, UTF-16 or Latin-1; seconds or clock times.

    A list of stages without times, one a line or beside a number of epoch, counts as 30-s epochs from the recording's
    start, and is refused where it does not fill the recording.

    Parameters
    ----------
    data : bytes
        The file.
    source : str
        Its name, for messages.
    start : datetime or None
        The recording's start, which clock times are counted from.
    length_of_recording_s : float, optional
        How long the recording is; a list of stages without times needs it, and clock times are compared with it.
    scorer : str, optional
        Whose rows or column to take of a table of several scorers (:func:`sleepfm_fast.scoring.scorers.of_scorer`).

    Raises
    ------
    ScoringError
        When the columns cannot be recognised, when no row can be read, or when clock times are given without ``start``.
    """
    issues: list[str] = []
    text = decoded(data, source, issues)
    if (listed := stage_lines(text)) is not None:
        events = untimed(listed, None, source, length_of_recording_s, issues)
        return Scoring(tuple(events), source, tuple(issues), events_scored=None)
    if is_profile(text):
        events = profile_events(text, source, start, issues, length_of_recording_s)
        return Scoring(tuple(events), source, tuple(issues), events_scored=None)
    rows, columns = table(of_scorer(text, source, scorer) if scorer else text, source)
    if columns.onset is not None and counts_epochs(rows, columns, length_of_recording_s):
        stage = stage_column(rows, columns)
        clock = clock_column(rows, (stage, columns.onset, columns.end))
        columns = Columns(clock, None, None, stage, columns.onset, stages_only=True)
    if columns.onset is not None and columns.epoch is not None:
        issues.append(
            f"{source}: no column is named as one of times; the clock times of column {columns.onset + 1} "
            f"('{cell_of(rows[0][1], columns.onset)}' in the first row) were taken for those of the epochs."
        )
    if columns.onset is None:
        texts = [cell_of(row, columns.text) for _, row in rows]
        numbers = None if columns.epoch is None else [cell_of(row, columns.epoch) for _, row in rows]
        events = untimed(texts, numbers, source, length_of_recording_s, issues)
        return Scoring(tuple(events), source, tuple(issues), events_scored=None)
    events = timed(rows, columns, source, start, length_of_recording_s, issues)
    return Scoring(tuple(events), source, tuple(issues), events_scored=None)


@dataclass
class TimedRows:
    """Rows with a time and a text: when each begins, and when it ends or how long it lasts, as far as it says."""

    onsets: list[float | Clock] = field(default_factory=list)
    ends: list[float | Clock | None] = field(default_factory=list)
    durations_s: list[float | None] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    """Of the column of stages beside that of events; empty where a row has none."""
    n_staged: int = 0
    """Rows whose text names a stage, those without a time too."""


def timed_rows(rows: list[tuple[int, list[str]]], columns: Columns, source: str, issues: list[str]) -> TimedRows:
    """Rows of a table that has a column of times; a table most of whose rows have no time or text is refused."""
    found = TimedRows()
    bad: list[int] = []
    n_blank = 0
    used = (columns.onset, columns.end, columns.duration, columns.text, columns.stage)
    last = max(c for c in used if c is not None)
    table_cells = [[*row, *[""] * (last + 1 - len(row))] for _, row in rows]
    for column in (columns.onset, columns.end):
        if column is not None:
            for cells, cell in zip(table_cells, without_groups([c[column] for c in table_cells]), strict=True):
                cells[column] = cell
    for (line, row), cells in zip(rows, table_cells, strict=True):
        onset, text = time_in(cells[columns.onset or 0], columns.onset_unit_s), text_of(cells, columns)
        end = time_in(cells[columns.end], columns.end_unit_s) if columns.end is not None else None
        duration = None if columns.duration is None else duration_in(cells[columns.duration], columns.duration_unit_s)
        stage = "" if columns.stage is None else cells[columns.stage].strip()
        stage = stage if stage_of(stage) is not None else ""
        found.n_staged += stage_of(text) is not None
        text = text or stage
        if onset is not None and not text and columns.stages_only:
            # An epoch that nobody scored: without a word of its own, the stage before it would last through it.
            text = "unscored"
            n_blank += 1
        if onset is None or not text:
            if any(cell.strip() and not re.fullmatch(r"\[.*\]", cell.strip()) for cell in row):
                bad.append(line)
            continue
        found.onsets.append(onset)
        found.ends.append(end)
        found.durations_s.append(duration)
        found.texts.append(text)
        found.stages.append(stage)
    if not found.onsets:
        raise ScoringError(
            f"{source}: none of its {counted(len(rows), 'row')} has a readable time and a text; expected a time in "
            "seconds or a clock time, for instance '30,30,Sleep stage W' under 'onset,duration,description'."
        )
    if len(bad) > len(found.onsets):
        raise ScoringError(
            f"{source}: {len(bad)} of {counted(len(rows), 'row')} {agreeing(len(bad), 'has', 'have')} no readable time "
            f"or no text (the first in line {bad[0]}); expected the columns onset, duration, description."
        )
    if bad:
        issues.append(
            f"{source}: {counted(len(bad), 'row')} without a readable time or text {agreeing(len(bad), 'was', 'were')} "
            f"left out, the first in line {bad[0]}."
        )
    if n_blank:
        issues.append(
            f"{source}: {counted(n_blank, 'row has', 'rows have')} a time and no stage; "
            f"{agreeing(n_blank, 'it counts', 'they count')} as not scored."
        )
    return found


def timed(
    rows: list[tuple[int, list[str]]],
    columns: Columns,
    source: str,
    start: datetime | None,
    length_of_recording_s: float | None,
    issues: list[str],
) -> list[Event]:
    """Events of a table whose rows have a time."""
    found = timed_rows(rows, columns, source, issues)
    refuse_minutes(found.onsets, found.texts, source)
    frame, onsets_s = frame_of(found.onsets, source, start, issues, length_of_recording_s)
    refuse_half_days(found.onsets, onsets_s, source, length_of_recording_s)
    events = []
    for onset_s, end, duration_s, text in zip(onsets_s, found.ends, found.durations_s, found.texts, strict=True):
        if duration_s is None and end is not None:
            duration_s = end_of(end, frame, source) - onset_s
            # an end without a date may lie beyond midnight; one just before the onset is a mistake, not a day
            if isinstance(end, Clock) and end.date is None and duration_s % DAY_S < LONGEST_S:
                duration_s %= DAY_S
        events.append(Event(onset_s, duration_s, text))
    # Where the column of events has the stages too (RemLogic), the one of stages says only which was scored meanwhile.
    rows_are_stages = all(found.stages) and 2 * found.n_staged < len(found.onsets)
    if rows_are_stages and (listed_epoch_s(sorted({*onsets_s})) is not None or follow_one_another(events)):
        events = staged_epochs(events, found.stages, source, issues)
    refuse_outside(events, frame, columns, source, length_of_recording_s)
    if frame.kind in ("of day", "dated") and start is not None:
        return list(without_clock_change(events, of_day(start), source, issues))
    return events


def refuse_outside(
    events: Sequence[Event], frame: Frame, columns: Columns, source: str, length_of_recording_s: float | None
) -> None:
    """Refuse stages of which most lie outside the recording, or that last hours, as do those in another unit.

    A recording cut out of a longer night, half of which or more is scored in usual steps, keeps its part of the
    scoring. Where all stages lie outside, none is taken, and :func:`~sleepfm_fast.scoring.labels.clip_labels` says so.
    """
    staged = [event for event in events if stage_of(event.text) is not None]
    if length_of_recording_s is None or len(staged) < FEW_STAGES:
        return
    onsets_s = sorted({event.onset_s for event in staged})
    durations_s = [event.duration_s for event in staged if event.duration_s and math.isfinite(event.duration_s)]
    outside = sum(not -EPOCH_S < at < length_of_recording_s for at in onsets_s)
    steps_s = [b - a for a, b in itertools.pairwise(onsets_s)]
    step_s, lasts_s = (statistics.median(values or [0.0]) for values in (steps_s, durations_s))
    # an epoch, or a stage between two changes; steps that are all alike are epochs
    usual = step_s <= (EPOCH_S if min(steps_s, default=0.0) == step_s else LONGEST_STEP_S)
    covered_s = min(onsets_s[-1], length_of_recording_s) - max(onsets_s[0], 0.0)
    of_part = usual and 2 * covered_s >= length_of_recording_s
    if len(onsets_s) > outside > len(onsets_s) / 2 and not of_part:
        said = (
            f"{outside} of the {counted(len(onsets_s), 'time')} of its stages "
            f"{agreeing(outside, 'lies', 'lie')} outside the recording, which lasts "
            f"{length_of_recording_s / 60:.1f} minutes"
        )
        plain = frame.kind == "seconds" and columns.onset_unit_s == 1
        what, names, each_s = "times", "Onset (ms)", min(steps_s)
        if lasts_s == each_s and columns.duration is not None:
            what, names = "times and durations", "Onset (ms) and Duration (ms)"
    elif lasts_s > LONGEST_STAGE_S and sum(durations_s) > length_of_recording_s + LONGEST_STAGE_S:
        said = f"half of its stages last {lasts_s / 3600:.1f} hours or more by their durations"
        plain = columns.duration is not None and columns.duration_unit_s == 1
        what, names, each_s = "durations", "Duration (ms)", lasts_s
    else:
        return
    hint = "If they belong to this recording, correct them, or give seconds from its start."
    if plain and each_s in (20_000, 30_000):
        hint = f"The {what} would fit milliseconds: if they are, say so in the columns' names, {names}."
    elif plain and each_s > 2 * EPOCH_S:
        hint = (
            f"The {what} would fit samples at {each_s / EPOCH_S:g} Hz, for epochs of {EPOCH_S} s: if they are, divide "
            "them by the sampling frequency. Expected seconds, or a column's name that states another unit of time, "
            f"as {names}."
        )
    raise ScoringError(f"{source}: {said}. {hint}")


def text_of(cells: Sequence[str], columns: Columns) -> str:
    """Text of a row: that of another column about the event where the first has none, or only describes what it names.

    ``Hypopnea with MA, desat to 88`` under ``Description`` is ``Hypopnea`` under ``Type``.
    """
    text = cells[columns.text].strip()
    others = [cell_of(cells, column) for column in columns.others]
    if text in NO_TEXT:
        return next((other for other in others if other not in NO_TEXT), text)
    if respiratory_event_of(text) is None and stage_of(text) is None and perhaps_respiratory(text):
        return next((other for other in others if respiratory_event_of(other) is not None), text)
    return text


def follow_one_another(events: Sequence[Event]) -> bool:
    """Whether most events end where the next begins, as stages do and what is scored in them does not."""
    ends_s = [event.onset_s + (event.duration_s or math.nan) for event in events]
    follows = [abs(b.onset_s - end_s) <= SAME_TIME_S for end_s, b in zip(ends_s, events[1:], strict=False)]
    return 2 * sum(follows) > len(follows)


def staged_epochs(events: Sequence[Event], stages: Sequence[str], source: str, issues: list[str]) -> list[Event]:
    """Events of a table of epochs, each with its stage and the events in it, whose place in it is not given."""
    found: list[Event] = []
    n_placeless = 0
    for event, stage in zip(events, stages, strict=True):
        found.append(Event(event.onset_s, event.duration_s, stage))
        texts = [] if event.text == stage else [text.strip() for text in re.split(r"[;|+\n]", event.text)]
        named = [text for text in texts if text and stage_of(text) is None]
        n_placeless += len(named)
        found += [Event(event.onset_s, None, text) for text in named]
    if n_placeless:
        issues.append(
            f"{source} has a row an epoch, with its stage and its events; of {counted(n_placeless, 'event')} only the "
            "epoch is known."
        )
    return found


def end_of(end: float | Clock, frame: Frame, source: str) -> float:
    """Seconds from the recording's start to an end as it is written."""
    try:
        return frame.seconds(end)
    except ValueError as error:
        raise ScoringError(f"{source}: one of its dates does not exist ({error}).") from error


def refuse_minutes(onsets: Sequence[float | Clock], texts: Sequence[str], source: str) -> None:
    """Refuse stages by a clock without seconds, as spreadsheets write it, once two epochs of a minute have one time."""
    staged = [at for at, text in zip(onsets, texts, strict=True) if stage_of(text) is not None]
    if not staged or any(not isinstance(at, Clock) or at.of_day_s % 60 for at in staged):
        return
    twice = sum(a == b for a, b in itertools.pairwise(staged))
    if 4 * twice > len(staged):
        raise ScoringError(
            f"{source} gives {twice} of its {counted(len(staged), 'stage')} the time of the stage before: its times "
            "are whole minutes, so that epochs of one minute cannot be told apart; expected times with seconds, such "
            "as 23:50:30 (a spreadsheet may have left the seconds out), or seconds from the recording's start."
        )


def time_in(cell: str, unit_s: float) -> float | Clock | None:
    """Time of a cell: a clock time as it is, a number in the unit behind it or else in ``unit_s``, in seconds."""
    if match := MEASURED.fullmatch(cell.strip()):
        cell, unit_s = match["number"], UNITS_S[match["unit"].casefold()]
    at = moment(cell)
    return at * unit_s if isinstance(at, float) else at


def duration_in(cell: str, unit_s: float) -> float | None:
    """Duration of a cell in seconds: hh:mm:ss, mm:ss, or a number as in :func:`time_in`."""
    if ":" in cell:
        return length_s(cell)
    at = time_in(cell, unit_s)
    return at.of_day_s if isinstance(at, Clock) else at


def untimed(
    texts: Sequence[str],
    numbers: Sequence[str] | None,
    source: str,
    length_of_recording_s: float | None,
    issues: list[str],
) -> list[Event]:
    """Events of a list of stages: one an epoch of 30 s, the first at the recording's start.

    Epochs whose numbers begin with 2 or more are counted from the recording's start, and need not fill it; numbers from
    1 on may as well be counted from where the scorer began.

    Raises
    ------
    ScoringError
        When most texts name no stage, the numbers of the epochs do not count upwards by one, or the list does not
        fit the recording, so that epochs of another length or another beginning must be meant.
    """
    n_stages = sum(stage_of(text) is not None for text in texts)
    if 2 * n_stages < len(texts) or not n_stages:
        raise ScoringError(
            f"{source} has no column of times for the onset, and only {n_stages} of its {counted(len(texts), 'text')} "
            f"{agreeing(n_stages, 'names', 'name')} a sleep stage; expected a header such as "
            "'onset,duration,description' or 'Start,Duration,Event'."
        )
    first, listed = 0, counted(len(texts), "stage")
    if numbers is not None:
        numbered = successive(numbers, source)
        first = max(numbered[0] - 1, 0)
        listed = f"the epochs {numbered[0]} to {numbered[-1]}"
    length_s = (first + len(texts)) * EPOCH_S
    if length_of_recording_s is None:
        raise ScoringError(
            f"{source} lists {listed} without times, and how long the recording is is not known "
            "here; expected a column onset, in seconds from the recording's start."
        )
    missing_s = length_of_recording_s - length_s
    if first and missing_s >= SHORTFALL_S and length_s < SCORED_UNTIL * length_of_recording_s:
        raise ScoringError(
            f"{source} lists {listed} without times. If they are of {EPOCH_S} s "
            f"and counted from the recording's start, they end {missing_s / 60:.1f} minutes before it does; their "
            f"length is not stated, so it is not known where they lie. Add a column onset, for epochs of {EPOCH_S} s "
            f"with {EPOCH_S} * (number of the epoch - 1) in seconds, and one named duration."
        )
    if (missing_s >= SHORTFALL_S and not first) or missing_s <= -EPOCH_S:
        would_s = length_of_recording_s / (first + len(texts))
        raise ScoringError(
            f"{source} lists {listed} without times: "
            f"{counted(length_s / 60, 'minute', spec='g')} of {EPOCH_S}-s epochs, and the recording lasts "
            f"{length_of_recording_s / 60:.1f} minutes (that would be epochs of {would_s:.3g} s), so it is not known "
            "where they lie. Add a column onset, in seconds from the recording's start, and one named duration if "
            "epochs are not of 30 s."
        )
    issues.append(
        f"{source} lists stages without times; its {counted(len(texts), 'stage was', 'stages were')} taken as "
        f"{EPOCH_S}-s epochs from the recording's {'start' if not first else f'epoch {first + 1} on'}"
        + (f"; the last {missing_s / 60:.1f} minutes are not scored." if missing_s >= SHORTFALL_S else ".")
    )
    return [Event((first + i) * float(EPOCH_S), float(EPOCH_S), text or "unscored") for i, text in enumerate(texts)]


def successive(numbers: Sequence[str], source: str) -> list[int]:
    """Numbers of epochs that count upwards by one; others are refused, with the first that does not."""
    numbered = [number_of_epoch(n) for n in numbers]
    found: list[int] = []
    for written, number in zip(numbers, numbered, strict=True):
        if number is None or (found and number != found[-1] + 1):
            after = f"{found[-1]} is followed by '{written[:20]}'" if found else f"the first is '{written[:20]}'"
            raise ScoringError(
                f"{source} has no column of times, and its epochs are not numbered one after the other ({after}); "
                "expected a column onset, in seconds from the recording's start."
            )
        found.append(number)
    return found


def stage_lines(text: str) -> list[str] | None:
    """Lines of a file that holds one stage a line, below a header or not; None where it holds anything else."""
    lines = [line.strip().strip('"') for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) > 1 and stage_of(lines[0]) is None and fold(lines[0]) in TEXT:
        lines = lines[1:]
    if len(lines) < 2 or any(stage_of(line) is None for line in lines):
        return None
    return lines


def decoded(data: bytes, source: str, issues: list[str]) -> str:
    """Text of the file: by its byte order mark, by its zero bytes, as UTF-8, at last as Latin-1.

    The encodings of Chinese and Cyrillic Windows fit other texts too; they are taken where known words come of it.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif data[:200].count(0) > len(data[:200]) // 4:
        encodings = ["utf-16-be" if data[0] == 0 else "utf-16-le"]
    else:
        encodings = ["utf-8-sig", "gb18030", "cp1251", "cp1252", "latin-1"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        if encoding in ("gb18030", "cp1251"):
            if not has_words_of_other_scripts(text.casefold()):
                continue
            issues.append(
                f"{source} is not UTF-8; it was read as {encoding.upper()}, in which it has words of a scoring."
            )
        if encoding in ("cp1252", "latin-1"):
            issues.append(f"{source} is not UTF-8; it was read as Latin-1 (Windows-1252).")
        return text
    raise ScoringError(
        f"{source} is neither text (UTF-8, UTF-16, Latin-1) nor EDF, XML or WFDB annotations; expected one of these."
    )
