"""The form to which every source of labels is reduced: a list of timed texts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from sleepfm_fast.errors import SleepfmError

__all__ = ["Event", "Scoring", "ScoringError"]


STATED_LENGTH = re.compile(r"(?<!\s)\s*-\s*dur:\s*(?P<seconds>\d+(?:[.,]\d+)?)\s*sec\b\.?", re.IGNORECASE)
"""An event's length within its text, as Grass' Twin, and what other programs export from it, write it:
``Respiratory Event - Dur: 12.9 sec. - Hypopnea - Desat 91.6 %``."""


class ScoringError(SleepfmError):
    """A file of labels that cannot be read; the message says which, what was found and expected, and what to do."""


@dataclass(frozen=True)
class Event:
    """One annotation: ``onset_s`` from the recording's start, ``duration_s`` (None where not given), ``text``."""

    onset_s: float
    duration_s: float | None
    text: str

    def with_stated_length(self) -> Event:
        """Return the event without the duration that its text states, which counts if the source gives none."""
        match = STATED_LENGTH.search(self.text)
        if match is None:
            return self
        text = self.text[: match.start()] + self.text[match.end() :]
        return replace(self, duration_s=self.duration_s or float(match["seconds"].replace(",", ".")), text=text)


@dataclass(frozen=True)
class Scoring:
    """The annotations of one recording, in time order.

    Attributes
    ----------
    events : tuple of Event
        Sorted by onset; equal onsets keep the file's order.
    source : str
        The file, for messages.
    issues : tuple of str
        A sentence for each thing that was repaired or skipped, or is doubtful.
    events_scored : bool or None
        Whether the source scored respiratory events; None where the file cannot tell.
    """

    events: tuple[Event, ...]
    source: str
    issues: tuple[str, ...] = ()
    events_scored: bool | None = None

    def __post_init__(self) -> None:
        """Sort the events by onset, after giving events their duration where only their text states it.

        Raises
        ------
        ScoringError
            When an onset is not finite, as where a file states an absurd unit of time.
        """
        wrong = next((event for event in self.events if not math.isfinite(event.onset_s)), None)
        if wrong is not None:
            raise ScoringError(
                f"{self.source} gives '{wrong.text[:40]}' a time that is no finite number of seconds; expected seconds "
                "from the recording's start, or a unit and a sampling frequency that are true."
            )
        events = sorted((event.with_stated_length() for event in self.events), key=lambda event: event.onset_s)
        object.__setattr__(self, "events", tuple(events))
