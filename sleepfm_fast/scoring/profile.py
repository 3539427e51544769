"""Text exports that head every kind of event with ``Start Time:`` and ``Signal Type:`` (SOMNOmedics DOMINO)."""

from __future__ import annotations

import re
from datetime import datetime

from sleepfm_fast.scoring.clock import DAY_S, Clock, frame_of, length_s, moment, number
from sleepfm_fast.scoring.timed_texts import Event, ScoringError

__all__ = ["is_profile", "profile_events"]

HEAD = re.compile(r"^\s*(?:start ?time|startzeit)\s*:", re.IGNORECASE | re.MULTILINE)
KIND = re.compile(r"^\s*(?:signal ?type|signaltyp)\s*:", re.IGNORECASE | re.MULTILINE)
RATE = re.compile(r"^\s*rate\s*:\s*([\d.,]+)\s*s\b", re.IGNORECASE | re.MULTILINE)
TIME = r"(?:\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}[T ]+)?\d{1,2}:\d{2}:\d{2}(?:[.,]\d+)?"
ROW = re.compile(rf"\s*(?P<onset>{TIME})(?:\s*-\s*(?P<end>{TIME}))?\s*;(?P<rest>.*)")


def is_profile(text: str) -> bool:
    """Whether a text is such an export."""
    head = text[:4000]
    return bool(HEAD.search(head) and KIND.search(head))


def profile_events(
    text: str, source: str, start: datetime | None, issues: list[str], duration_s: float | None = None
) -> list[Event]:
    """Events of rows ``time; stage`` (each for the rate that the head states) or ``from-to; seconds; event; stage``.

    Raises
    ------
    ScoringError
        When no row can be read.
    """
    rate = RATE.search(text[:4000])
    rate_s = None if rate is None else number(rate[1])
    onsets: list[float | Clock] = []
    rest: list[tuple[float | Clock | None, float | None, str]] = []
    for match in map(ROW.fullmatch, text.splitlines()):
        onset = None if match is None else moment(match["onset"])
        if match is None or onset is None:
            continue
        cells = [cell.strip() for cell in match["rest"].split(";")]
        given_s = length_s(cells[0]) if len(cells) > 1 else None
        name = cells[1] if given_s is not None else cells[0]
        end = moment(match["end"]) if match["end"] else None
        if name:
            onsets.append(onset)
            rest.append((end, given_s if given_s is not None else None if end is not None else rate_s, name))
    if not onsets:
        raise ScoringError(
            f"{source} has the head of an export of events but no row such as '05.03.2024 22:30:00,000; N2'; export it "
            "again, or write a CSV with the columns onset, duration, description."
        )
    frame, onsets_s = frame_of(onsets, source, start, issues, duration_s)
    events = []
    for onset_s, (end, duration_s, name) in zip(onsets_s, rest, strict=True):
        if duration_s is None and end is not None:
            duration_s = (frame.seconds(end) - onset_s) % DAY_S
        events.append(Event(onset_s, duration_s, name))
    return events
