"""How many respiratory events a night has, for its apnoea-hypopnoea index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from sleepfm_fast.scoring.labels import LONGEST_EVENT_S, SDB_OVERLAP_S, ClipGrid
from sleepfm_fast.scoring.stages import EPOCH_S, respiratory_event_of
from sleepfm_fast.scoring.timed_texts import Event, Scoring

__all__ = ["KINDS", "respiratory_counts"]

KINDS = ("obstructive_apnea", "central_apnea", "mixed_apnea", "hypopnea")


def respiratory_counts(scoring: Scoring | None, grid: ClipGrid) -> dict[str, int] | None:
    """Count a night's apnoeas and hypopnoeas that happen in sleep, by kind, and those that do not.

    Parameters
    ----------
    scoring : Scoring or None
    grid : ClipGrid
        The labels of the night's clips, made from it.

    Returns
    -------
    dict of str to int or None
        For each of :data:`KINDS` the events that share time with a clip of sleep; ``outside_sleep``: those that share
        none, as in wake, where no stage is, or where nothing was recorded; ``under_10_s``: of those in sleep, the ones
        shorter than the AASM's :data:`~sleepfm_fast.scoring.labels.SDB_OVERLAP_S`. The same event given twice (kind,
        onset and duration) counts once. An event of impossible length counts where it begins. None where events were
        not scored.
    """
    if scoring is None or not np.any(grid.sdb >= 0):
        return None
    asleep_s = grid.onsets_s[grid.stage > 0]
    events = distinct(scoring.events)
    asleep = [(kind, event) for kind, event in events if sleeps(event, asleep_s)]
    counts = Counter(kind for kind, _ in asleep)
    short = sum(0 < (event.duration_s or 0) < SDB_OVERLAP_S for _, event in asleep)
    return {**{kind: counts[kind] for kind in KINDS}, "outside_sleep": len(events) - len(asleep), "under_10_s": short}


def distinct(events: Iterable[Event]) -> list[tuple[str, Event]]:
    """Respiratory events with their kinds, each once."""
    found: dict[tuple[str, float, float | None], Event] = {}
    for event in events:
        kind = respiratory_event_of(event.text)
        if kind is not None:
            found[kind, event.onset_s, event.duration_s] = event
    return [(kind, event) for (kind, _, _), event in found.items()]


def sleeps(event: Event, asleep_s: npt.NDArray[np.float64]) -> bool:
    """Whether an event shares time with a clip that begins at one of ``asleep_s``."""
    duration_s = event.duration_s or 0.0
    end_s = event.onset_s + (duration_s if 0 < duration_s <= LONGEST_EVENT_S else 0.0)
    begun = int(np.searchsorted(asleep_s, end_s, side="left" if end_s > event.onset_s else "right"))
    return begun > 0 and bool(asleep_s[begun - 1] + EPOCH_S > event.onset_s)
