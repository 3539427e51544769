"""Stage annotations to spans of time: where a stage without a duration ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.scoring.stages import EPOCH_S, NO_STAGE, STAGES, is_marker, stage_of
from sleepfm_fast.scoring.timed_texts import Event

__all__ = ["LIST_STEPS", "SAME_TIME_S", "StageSpan", "listed_epoch_s", "stage_spans"]

LIST_STEPS = 20
LIST_SHARE = 0.95
"""Stages without duration are taken for a list of every epoch where, of at least 20 steps, 95 % are an epoch long.
Where only changes of stage are listed, fewer than half of the steps are."""
SAME_TIME_S = 1e-6
"""Times closer than this are the same, since onsets are written with microseconds at most."""


@dataclass(frozen=True)
class StageSpan:
    """A stage annotation with its end; ``code`` is -1 for movement, unscored and artefact."""

    onset_s: float
    end_s: float
    code: int


def stage_spans(events: Iterable[Event], issues: list[str]) -> list[StageSpan]:
    """Return the stage annotations with their ends; one without duration lasts until the next stage annotation."""
    staged = [(event, code_of(stage)) for event in events if (stage := stage_of(event.text)) is not None]
    staged.sort(key=lambda item: item[0].onset_s)
    timeless = [
        event for event, code in staged if not event.duration_s and not (code == NO_STAGE and is_marker(event.text))
    ]
    # In a source whose stages have durations, a "Movement" or "Artifact" without one is a remark and not an epoch.
    epochs_are_timeless = len(timeless) * 2 > sum(code != NO_STAGE for _, code in staged)
    starts = sorted({event.onset_s for event, _ in staged})
    following = dict(itertools.pairwise(starts))
    epoch_s = listed_epoch_s(starts)
    n_gaps = 0
    spans: list[StageSpan] = []
    n_extended = n_open = n_negative = 0
    for event, code in staged:
        if event.duration_s:
            if event.duration_s < 0 or not math.isfinite(event.duration_s):
                n_negative += 1
                continue
            spans.append(StageSpan(event.onset_s, event.onset_s + event.duration_s, code))
        elif epochs_are_timeless or not (code == NO_STAGE and is_marker(event.text)):
            end_s = following.get(event.onset_s)
            if epoch_s is not None and end_s is not None and end_s - event.onset_s > epoch_s + SAME_TIME_S:
                end_s = event.onset_s + epoch_s
                n_gaps += 1
            n_extended += 1
            n_open += end_s is None
            spans.append(StageSpan(event.onset_s, event.onset_s + EPOCH_S if end_s is None else end_s, code))
    if n_extended:
        issues.append(
            f"{counted(n_extended, 'stage annotation has', 'stage annotations have')} no duration; each was taken to "
            "last until the next stage annotation" + (f", the last one for {EPOCH_S} s." if n_open else ".")
        )
    if n_gaps:
        issues.append(
            f"the stages are listed every {epoch_s:g} s, with {counted(n_gaps, 'gap')}; what lies in a gap is taken as "
            "not scored."
        )
    if n_negative:
        were = agreeing(n_negative, "was", "were")
        negative = f"{counted(n_negative, 'stage annotation')} with a negative or infinite duration"
        issues.append(f"{negative} {were} left out.")
    return spans


def listed_epoch_s(starts_s: Sequence[float]) -> float | None:
    """Return the step of a list of every epoch, 20 or 30 s; None where only changes of stage are listed."""
    steps = np.diff(np.asarray(starts_s))
    for epoch_s in (30.0, 20.0):
        if len(steps) >= LIST_STEPS and np.mean(np.abs(steps - epoch_s) <= SAME_TIME_S) >= LIST_SHARE:
            return epoch_s
    return None


def code_of(stage: str) -> int:
    """Return the code of a stage: 0..4, -1 for none."""
    return NO_STAGE if stage == "none" else STAGES.index(stage)
