"""The nights when summer time begins or ends: a scorer's clock jumps by an hour, a recording's samples do not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sleepfm_fast.plurals import counted
from sleepfm_fast.scoring.clock import clock_text
from sleepfm_fast.scoring.stages import EPOCH_S, stage_of
from sleepfm_fast.scoring.timed_texts import Event

__all__ = ["without_clock_change"]

HOUR_S = 3600.0
SAME_TIME_S = 1e-3
"""Clock times are written to the millisecond at best."""
LEAST_STEPS = 20
CONTINUOUS_SHARE = 0.95
"""A jump counts as one, and not as a gap, if of at least 20 steps between stages 95 % are without a break."""
PUT_BACK_TO_S = (1 * HOUR_S, 2 * HOUR_S)
"""Clocks go from 2 to 1 (Britain, America) or from 3 to 2 (most of Europe) in autumn."""
PUT_FORWARD_TO_S = (2 * HOUR_S, 3 * HOUR_S)
"""Clocks go from 1 to 2 or from 2 to 3 in spring."""


@dataclass(frozen=True)
class Jump:
    """A jump of the clock: the row of the first stage after it, and that stage's expected and written times."""

    row: int
    expected_s: float
    found_s: float

    @property
    def shift_s(self) -> float:
        """Seconds to add to the times that were read off the clock after the jump."""
        return self.expected_s - self.found_s


def without_clock_change(
    events: Sequence[Event], start_of_day_s: float, source: str, issues: list[str]
) -> Sequence[Event]:
    """Undo the hour by which the clock of a list of stages jumps when summer time begins or ends.

    Such a clock is recognised by stages that follow one another without a break, except for one step that is exactly an
    hour too long at the hour at which clocks are put forward, or too short at the hour at which they are put back.

    Parameters
    ----------
    events : sequence of Event
        In the file's order, with times read off the clock as if it had not changed.
    start_of_day_s : float
        The recording's start, in seconds from midnight.
    source : str
    issues : list of str
        Remarks on what was done are appended.

    Returns
    -------
    sequence of Event
        The events, with those after the jump moved by an hour. Events other than stages in the hour that the clock
        showed twice are moved only if the file is in temporal order, which tells to which of the two they belong.
    """
    jump = found_jump(events, start_of_day_s)
    if jump is None:
        return events
    back = jump.shift_s > 0
    steps = [b.onset_s - a.onset_s for a, b in itertools.pairwise(events)]
    ordered = all(step >= -SAME_TIME_S for i, step in enumerate(steps) if i + 1 != jump.row)
    n_unclear = 0
    moved = []
    for row, event in enumerate(events):
        if stage_of(event.text) is not None or ordered:
            after = row >= jump.row
        elif back:
            after = event.onset_s >= jump.expected_s
            n_unclear += jump.found_s <= event.onset_s < jump.expected_s
        else:
            after = event.onset_s >= jump.found_s
        moved.append(replace(event, onset_s=event.onset_s + jump.shift_s) if after else event)
    issues.append(
        f"{source}: its clock is put {'back' if back else 'forward'} by an hour at "
        f"{clock_text(jump.expected_s + start_of_day_s)}, as where summer time {'ends' if back else 'begins'}: what "
        f"comes after was taken as {'an hour later' if back else 'an hour earlier'}, so that the stages follow one "
        "another as the recording does. Clock times in other files of this night are not corrected: give them in "
        "seconds from the recording's start."
    )
    if n_unclear:
        issues.append(
            f"{source}: {counted(n_unclear, 'event lies', 'events lie')} in the hour that the clock shows twice and "
            "was taken for the first; sort the file by time, so that its order tells."
        )
    return moved


def found_jump(events: Sequence[Event], start_of_day_s: float) -> Jump | None:
    """Find the only step between two stages that is an hour off, at an hour at which clocks change; None if none."""
    rows = [i for i, event in enumerate(events) if stage_of(event.text) is not None]
    staged = [events[i] for i in rows]
    steps = [b.onset_s - a.onset_s for a, b in itertools.pairwise(staged)]
    if len(steps) < LEAST_STEPS:
        return None
    usual_s = next((s for s in (30.0, 20.0) if 2 * sum(abs(step - s) <= SAME_TIME_S for step in steps) > len(steps)), 0)
    lengths = [event.duration_s or usual_s for event in staged]
    off = [step - length for step, length in zip(steps, lengths, strict=False)]
    broken = [i for i, value in enumerate(off) if abs(value) > SAME_TIME_S]
    jumps = [i for i in broken if abs(abs(off[i]) - HOUR_S) <= SAME_TIME_S]
    if len(jumps) != 1 or len(broken) > (1 - CONTINUOUS_SHARE) * len(steps):
        return None
    i = jumps[0]
    jump = Jump(rows[i + 1], staged[i].onset_s + lengths[i], staged[i + 1].onset_s)
    hours = PUT_BACK_TO_S if jump.shift_s > 0 else PUT_FORWARD_TO_S
    of_day_s = (jump.found_s + start_of_day_s) % 86_400
    # the first stage after the change begins within an epoch of it
    longest_s = max(lengths[i], float(EPOCH_S))
    return jump if any(hour <= of_day_s + SAME_TIME_S < hour + longest_s for hour in hours) else None
