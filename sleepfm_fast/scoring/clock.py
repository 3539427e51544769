"""Times as scorers write them, seconds or clock times with or without a date, as seconds from a recording's start."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.scoring.stages import EPOCH_S
from sleepfm_fast.scoring.timed_texts import ScoringError

__all__ = [
    "DAY_S", "HALF_DAY_S", "LONGEST_S", "Clock", "Frame", "clock_text", "frame_of", "length_s", "moment", "number",
    "of_day", "refuse_half_days",
]  # fmt: skip

CLOCK = re.compile(
    r"(?:(?P<date>\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4})[T ,]+)?"
    r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?P<fraction>[.,]\d+)?)?\s*(?P<half>[AaPp]\.?[Mm]\.?)?Z?"
)
DOTTED = re.compile(r"^(.*[T ])?(\d{1,2})\.(\d{2})\.(\d{2}(?:,\d+)?(?: ?[AaPp]\.?[Mm]\.?)?)$")
"""A clock time with dots, ``22.13.47``, as in Nordic countries and Italy; a date may precede it."""
SHORT = re.compile(r"(\d{1,3}):([0-5]\d(?:[.,]\d+)?)")
DAY_S = 86_400.0
EARLIEST_S = -4 * 3600.0
"""A clock time without a date is placed in the day that begins this long before the recording's start."""
LONGEST_S = 18 * 3600.0
"""Times from 00:00:00 up to this may be time elapsed since the recording's start; later ones are clock times."""
HALF_DAY_S = DAY_S / 2
NO_DATE = date(1985, 1, 1)
"""Stands for a date that was left out, as EDF+ has it and as the NSRR and others anonymise: EDF is younger."""
THIRTEEN_S = 13 * 3600.0
STATE_KIND = (
    "Give them as seconds from the recording's start (a column onset), or, if they are clock times, with their dates."
)
FAR_S = 3600.0
"""An annotation at most this far outside the recording may be a remark about it, and is no evidence about the clock."""


@dataclass(frozen=True)
class Clock:
    """A clock time: seconds since midnight, the three numbers of its date, if any, and whether it has am or pm."""

    of_day_s: float
    date: tuple[int, int, int] | None
    separator: str
    half: bool = False


IN_GROUPS = re.compile(r"[+-]?\d{1,3}(?:(?:,\d{3})+\.|(?:[.' \u00a0\u202f]\d{3})+,|(?:[' \u00a0\u202f]\d{3})+\.)\d+")
"""``1,230.0`` and ``1.230,0``: without decimals it could not be told which separator is meant."""


def number(text: str) -> float | None:
    """Read a finite number with a decimal point or comma, its thousands grouped or not; None for other texts."""
    text = text.strip()
    if IN_GROUPS.fullmatch(text):
        whole, decimals = re.split(r"[.,](?=\d+$)", text)
        text = f"{re.sub(r'[^0-9+-]', '', whole)}.{decimals}"
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def moment(text: str) -> float | Clock | None:
    """Read a time as seconds or as a clock time; return None for other texts."""
    if (value := number(text)) is not None:
        return value
    match = CLOCK.fullmatch(DOTTED.sub(r"\1\2:\3:\4", text.strip()))
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
    half = match["half"] is not None
    if match["date"] is None:
        return Clock(of_day_s, None, "", half)
    separator = next(c for c in match["date"] if not c.isdigit())
    parts = match["date"].split(separator)
    if len(parts) != 3:
        return None
    return Clock(of_day_s, (int(parts[0]), int(parts[1]), int(parts[2])), separator, half)


def length_s(text: str) -> float | None:
    """Read a duration in seconds, given as a number, as hh:mm:ss or as mm:ss."""
    if match := SHORT.fullmatch(text.strip()):
        return 60 * int(match[1]) + float(match[2].replace(",", "."))
    value = moment(text)
    return value.of_day_s if isinstance(value, Clock) else value


@dataclass(frozen=True)
class Frame:
    """The origin that the times of a file are counted from.

    Attributes
    ----------
    kind : {"seconds", "elapsed", "of day", "dated"}
    start : datetime or None
        The recording's start, which the last two kinds need.
    day_first : bool
        Whether dates are day/month rather than month/day.
    """

    kind: str
    start: datetime | None
    day_first: bool = True

    def seconds(self, at: float | Clock) -> float:
        """Return seconds from the recording's start; a clock time without a date is placed by :data:`EARLIEST_S`."""
        if not isinstance(at, Clock):
            return at
        if self.kind in ("seconds", "elapsed") or self.start is None:
            return at.of_day_s
        if self.kind == "dated" and at.date is not None:
            return (midnight(at, self.day_first) - self.start).total_seconds() + at.of_day_s
        return (at.of_day_s - of_day(self.start) - EARLIEST_S) % DAY_S + EARLIEST_S


def frame_of(
    moments: Sequence[float | Clock],
    source: str,
    start: datetime | None,
    issues: list[str],
    duration_s: float | None = None,
) -> tuple[Frame, list[float]]:
    """Find out what a file's times are counted from, and return that with the times in seconds from the start.

    Raises
    ------
    ScoringError
        When kinds are mixed, a date does not exist, clock times are given without ``start``, or the times may be both
        clock times and time elapsed within the recording's ``duration_s``.
    """
    clocks = [m for m in moments if isinstance(m, Clock)]
    if not clocks:
        return Frame("seconds", None), [m for m in moments if not isinstance(m, Clock)]
    if len(clocks) < len(moments):
        raise ScoringError(
            f"{source} mixes clock times ({counted(len(clocks), 'row')}) with times in seconds "
            f"({counted(len(moments) - len(clocks), 'row')}); expected one of the two throughout."
        )
    dated = [clock for clock in clocks if clock.date is not None]
    if dated and len(dated) < len(clocks):
        raise ScoringError(
            f"{source}: {len(dated)} of {len(clocks)} clock times {agreeing(len(dated), 'carries', 'carry')} a date; "
            "expected all or none."
        )
    if not dated and is_elapsed(clocks, source, start, duration_s):
        issues.append(f"{source}: its times begin at 00:00:00 and were read as time since the recording's start.")
        return Frame("elapsed", None), [clock.of_day_s for clock in clocks]
    if start is None:
        raise ScoringError(
            f"{source} gives clock times, but the recording's start is not known; expected times in seconds from the "
            "start of the recording, or a recording whose header states when it started."
        )
    start = start.replace(tzinfo=None)
    if not dated:
        frame = Frame("of day", start)
        return frame, [frame.seconds(clock) for clock in clocks]
    try:
        frame = Frame("dated", start, is_day_first(dated, source, start, issues))
        relative = [frame.seconds(clock) for clock in dated]
    except (ValueError, OverflowError) as error:
        raise ScoringError(f"{source}: one of its dates does not exist ({error}).") from error
    if start.date() == NO_DATE and (nights := math.floor((min(relative) - EARLIEST_S) / DAY_S)):
        issues.append(
            f"{source} has dates and the recording has none ({NO_DATE:%d.%m.%Y} stands for it): its first time was "
            "taken to be of the recording's night, by the clock."
        )
        frame = Frame("dated", start + timedelta(days=nights), frame.day_first)
        relative = [frame.seconds(clock) for clock in dated]
    if min(relative) >= DAY_S or max(relative) < -HALF_DAY_S:
        days = round(min(relative, key=abs) / DAY_S, 1)
        issues.append(
            f"{source}: its times lie {counted(days, 'day', spec='g')} away from the recording's start ({start}); one "
            "of the two dates is wrong, or the labels belong to another recording."
        )
    return frame, relative


def refuse_half_days(
    moments: Sequence[float | Clock], onsets_s: Sequence[float], source: str, duration_s: float | None
) -> None:
    """Refuse times of a 12-hour clock whose am and pm were lost, which would move half of a night by twelve hours.

    Parameters
    ----------
    moments : sequence of float or Clock
        The times as they are written.
    onsets_s : sequence of float
        The same times as :func:`frame_of` read them, by a 24-hour clock.
    source : str
    duration_s : float or None
        Length of the recording; where it is not known, only the second sign below counts.

    Raises
    ------
    ScoringError
        When no hour is 0 or above 12, and there is one of two signs. The first: some times lie far outside the
        recording, and all of these would lie inside it twelve hours earlier or later. The second, for recordings so
        long that no time lies far outside: a time of the last minute before 13:00 is followed by one from 1:00 on that
        lies at most a minute later by a 12-hour clock.
    """
    clocks = [at for at in moments if isinstance(at, Clock) and not at.half and 1 <= at.of_day_s / 3600 < 13]
    if len(clocks) < len(moments):
        return
    remedy = (
        "They seem to be of a 12-hour clock without am and pm; expected a 24-hour clock, am or pm behind each time, or "
        "seconds from the recording's start."
    )
    outside = [at for at in onsets_s if duration_s is not None and not -FAR_S <= at < duration_s + FAR_S]
    ends_s = duration_s or 0.0
    if outside and all(any(0 <= at + shift < ends_s for shift in (-HALF_DAY_S, HALF_DAY_S)) for at in outside):
        raise ScoringError(
            f"{source}: {len(outside)} of its {counted(len(moments), 'clock time')} "
            f"{agreeing(len(outside), 'lies', 'lie')} outside the recording, and inside it twelve hours earlier or "
            f"later; no hour is 0 or above 12. {remedy} If the clock has 24 hours, the recording's start is twelve "
            "hours off."
        )
    for before, after in itertools.pairwise(clocks):
        if before.of_day_s >= THIRTEEN_S - 60 and 0 < after.of_day_s + HALF_DAY_S - before.of_day_s <= 60:
            raise ScoringError(
                f"{source}: behind {clock_text(before.of_day_s)} comes {clock_text(after.of_day_s)}; no hour is 0 or "
                f"above 12. {remedy}"
            )


def clock_text(of_day_s: float) -> str:
    """Write seconds from midnight as ``03:00:00``."""
    minutes, seconds = divmod(round(of_day_s) % 86_400, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


def is_elapsed(clocks: Sequence[Clock], source: str, start: datetime | None, duration_s: float | None) -> bool:
    """Whether times hh:mm:ss count from the recording's start: they begin at 00:00:00, and the recording does not.

    Clock times of a night that passes midnight include 00:00:00 too, but begin before it. Where the recording itself
    starts within an hour of midnight, the times are what lies within it.

    Raises
    ------
    ScoringError
        When the recording starts near midnight and the times would lie within it either way, or neither way; or when
        clock times lie far outside the recording, and as time elapsed would lie within it.
    """
    if any(clock.half for clock in clocks):
        return False
    elapsed_s = [clock.of_day_s for clock in clocks]
    first_s = min(elapsed_s)
    if first_s < 60 and max(elapsed_s) >= DAY_S:
        return True
    begins = first_s < 60 and (elapsed_s[0] == first_s or max(elapsed_s) <= LONGEST_S)
    if start is None:
        return begins
    start_s = of_day(start)
    clock_s = [Frame("of day", start).seconds(clock) for clock in clocks]
    ends_s = math.inf if duration_s is None else duration_s
    if not begins:
        if duration_s is not None and lies_within(elapsed_s, ends_s, 0) and not lies_within(clock_s, ends_s, FAR_S):
            raise ScoringError(
                f"{source}: as clock times, its times ({clock_text(first_s)} to {clock_text(max(elapsed_s))}) lie up "
                f"to {farthest_s(clock_s, ends_s) / 3600:.1f} hours outside the recording, which starts at "
                f"{clock_text(start_s)} and lasts {ends_s / 3600:.1f} hours; as time since its start they lie inside. "
                + STATE_KIND
            )
        return False
    if min(start_s, DAY_S - start_s) >= FAR_S:
        return True
    if abs(min(clock_s)) < 1:  # headers state whole seconds
        return False
    as_elapsed, as_clock = (lies_within(times, ends_s, EPOCH_S) for times in (elapsed_s, clock_s))
    if as_elapsed == as_clock:
        how = "either way" if as_clock else "neither way"
        length = "an unknown time" if duration_s is None else f"{duration_s / 60:.1f} minutes"
        raise ScoringError(
            f"{source}: its times begin at {clock_text(first_s)} and the recording at {clock_text(start_s)}, so they "
            "may be clock times or time since the recording's start; the recording lasts "
            f"{length}, and they lie inside it {how}. {STATE_KIND}"
        )
    return as_elapsed


def lies_within(times_s: Sequence[float], ends_s: float, margin_s: float) -> bool:
    """Whether no time lies more than the margin outside the recording."""
    return min(times_s) >= -margin_s and max(times_s) < ends_s + margin_s


def farthest_s(times_s: Sequence[float], ends_s: float) -> float:
    """Return how far outside the recording a time lies at most."""
    return max(-min(times_s), max(times_s) - ends_s)


def of_day(start: datetime) -> float:
    """Return the seconds since midnight."""
    return start.hour * 3600 + start.minute * 60 + start.second + start.microsecond / 1e6


def midnight(clock: Clock, day_first: bool) -> datetime:
    """Return the start of a dated clock time's day; a date whose first number is a year is year, month, day."""
    if clock.date is None:
        raise ValueError("a clock time without a date")
    a, b, c = clock.date
    year, month, day = (a, b, c) if a > 31 else (c, b, a) if day_first else (c, a, b)
    return datetime(year if year > 99 else 2000 + year if year < 85 else 1900 + year, month, day)


def is_day_first(dated: Sequence[Clock], source: str, start: datetime, issues: list[str]) -> bool:
    """Whether dates are day/month: told by dots, by numbers above 12, or by the distance to the recording's start."""
    dates = sorted({clock.date for clock in dated if clock.date is not None})
    if dates[0][0] > 31 or dated[0].separator == ".":
        return True
    if any(date[0] > 12 for date in dates) or any(date[1] > 12 for date in dates):
        return any(date[0] > 12 for date in dates)
    away = {}
    for day_first in (True, False):
        times = [midnight(clock, day_first) + timedelta(seconds=clock.of_day_s) for clock in dated]
        # Where the recording has no date, a night's dates are those that lie closer together.
        first = max(times) if start.date() == NO_DATE else start
        away[day_first] = abs((min(times) - first).total_seconds())
    if away[True] != away[False]:
        return away[True] < away[False]
    if any(date[0] != date[1] for date in dates):
        issues.append(f"{source}: its dates do not tell day from month; they were read as day/month.")
    return True
