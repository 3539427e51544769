"""Annotations to labels: one sleep stage and one sleep-disordered-breathing label per 30-s clip."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.scoring.stage_spans import LIST_STEPS, SAME_TIME_S, StageSpan, stage_spans
from sleepfm_fast.scoring.stages import EPOCH_S, NO_STAGE, STAGES, respiratory_event_of
from sleepfm_fast.scoring.texts import told_apart, unknown_texts
from sleepfm_fast.scoring.timed_texts import Event, Scoring, ScoringError

if TYPE_CHECKING:
    from sleepfm_fast.edf import Segment

__all__ = ["LABEL_RULES", "OVERLONG", "TWO_SCORERS", "ClipGrid", "clip_labels", "refuse_endless"]

LABEL_RULES = 8
"""Version of the labels, to be raised when the same scoring gives clips other labels than before: nights of a store are
then made again. 2: no clip outside the scored part of a night counts as free of events. 3: no respiratory event lasts
more than five minutes. 4: the grid of clips follows most epochs and not the first stage. 5: numbers unlike those of any
night mean no stage, lists that count epochs are read as epochs, durations within texts are read, and so are columns of
events in every language. 6: a few events among listed epochs keep their durations, a remark leaves a stage its place,
numbers of UCDDB are known, and dates beside a recording without one count from the night. 7: times since
the start of a recording that begins near midnight are told from clock times, clock times of a column without a known
name are used, and stages in milliseconds or samples are refused. 8: numbered epochs that end before the recording
are read, and times whose thousands are grouped."""

SDB_OVERLAP_S = 10.0
"""Seconds of an event inside a clip that make the clip one with an event: the least that an apnoea or hypopnoea lasts
(AASM)."""
SDB_OVERLAP_FRACTION = 0.5
"""Share of an event inside a clip that does so as well, for the shorter events that some scorers keep."""
LONGEST_EVENT_S = 300.0
"""No apnoea or hypopnoea lasts five minutes: a longer one was never ended, or its duration is in another unit."""
OVERLONG = "longer than any apnoea or hypopnoea lasts"
"""Part of the remark on such events."""
TWO_SCORERS = "the scoring looks like that of two scorers"
"""Beginning of the remark on it."""
STAGE_COVERAGE = 0.5
"""Share of an epoch that stage annotations must cover for the epoch to get a stage."""

LEFT_SHARE = 0.1
"""Share of the recorded time in no clip, because of gaps, from which on a remark is made; a few gaps leave less."""
MOST_DAYS = 60
"""Longer than any recording of sleep. One that seems longer has a damaged header, and would give clips without end."""

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int8]
Intervals = list[tuple[float, float]]


@dataclass(frozen=True)
class ClipGrid:
    """Labels of a recording's clips.

    Attributes
    ----------
    onsets_s : ndarray of float64, shape (n,)
        Start of each half-open 30-s clip, in seconds from the recording's start, ascending.
    stage : ndarray of int8, shape (n,)
        0..4 for W, N1, N2, N3, R; -1 for none.
    sdb : ndarray of int8, shape (n,)
        1 respiratory event, 0 none, -1 not scored.
    issues : tuple of str
        A sentence for each thing that the scoring leaves doubtful.
    """

    onsets_s: Floats
    stage: Codes
    sdb: Codes
    issues: tuple[str, ...] = ()


def clip_labels(
    scoring: Scoring | None,
    n_s: float | Fraction,
    segments: Sequence[Segment] = (),
    *,
    events_scored: bool | None = None,
) -> ClipGrid:
    """Cut a recording into 30-s clips on its scoring's own grid and label each.

    The grid is anchored on the onset of the first annotation that names a stage, modulo 30 s; but where more than half
    of these annotations agree on another onset modulo 30 s, it is anchored there, since a first stage may last until
    lights off or be the rest of an epoch that was cut. The grid extends over the whole recording; clips of which stages
    cover less than half keep stage none. Without stages it starts at the recording's start. A clip lies wholly inside
    one segment.

    The stage of an epoch is the one that covers most of it; of two that cover as much, the one that starts later; of
    two that also start together, none. An annotation without duration lasts until the next one, or for one epoch where
    every epoch is listed.

    The SDB label of a clip is 1 where an apnoea or hypopnoea overlaps it by at least 10 s or by half of the event's
    duration; otherwise it is 0 where respiratory events were scored, and -1 where they were not. Nobody scored before
    the first stage and after the last: a clip there without an event has no label. Neither has a clip whose only event
    lasts more than five minutes, which is an error of the scoring or of its unit of time.

    Parameters
    ----------
    scoring : Scoring or None
        None gives clips without labels.
    n_s : float or Fraction
        Time from the recording's start to the end of its last segment, gaps included (``Recording.duration_s``).
    segments : sequence of Segment
        Contiguous stretches; their records share one duration. Empty: one stretch from 0 to ``n_s``.
    events_scored : bool, optional
        Overrides ``scoring.events_scored`` for a night that has a stage or an event; a night that nobody scored has no
        label. Where both are None, events count as scored if there is at least one.

    Returns
    -------
    ClipGrid
        Onsets, stages, SDB labels and remarks.
    """
    issues: list[str] = []
    events = told_apart(scoring.events, scoring.source, issues) if scoring is not None else ()
    unknown_texts(events, issues)
    spans = stage_spans(events, issues)
    scored = [span for span in spans if span.code != NO_STAGE]
    anchor_s, is_first = grid_anchor(scored)
    stretches = stretches_of(n_s, segments)
    onsets_s = grid_onsets(anchor_s, stretches)

    recorded_s = sum(end_s - start_s for start_s, end_s in stretches)
    left_s = recorded_s - EPOCH_S * len(onsets_s)
    if len(stretches) > 1 and left_s > LEFT_SHARE * recorded_s:
        issues.append(
            f"the gaps of the recording leave {left_s / 60:.1f} of its {recorded_s / 60:.1f} recorded minutes in no "
            f"clip: one lies on the grid of {EPOCH_S} s, and holds no gap."
        )
    off_grid = sum(off_grid_s(span.onset_s - anchor_s) > SAME_TIME_S for span in scored)
    if off_grid:
        issues.append(
            f"{off_grid} of {counted(len(scored), 'stage annotation')} {agreeing(off_grid, 'does', 'do')} not start on "
            f"the 30-s grid of {'the first stage' if is_first else 'most of them'} (which starts at {anchor_s:g} s); "
            "each epoch got the stage that covers most of it."
        )
    outside = count_outside(scored, stretches)
    if outside:
        issues.append(
            f"{outside} of {counted(len(scored), 'stage annotation')} {agreeing(outside, 'lies', 'lie')} wholly "
            "outside the recorded signal"
            + ("; do these labels belong to this recording?" if outside == len(scored) else ".")
        )
    if scoring is None:
        issues.append("no scoring was found: every clip has stage none and unknown SDB.")
    elif not scored:
        issues.append(f"{scoring.source} names no sleep stage: every clip has stage none.")

    stage = stage_codes(onsets_s, spans, issues)
    codes: dict[tuple[float, float], list[int]] = {}
    for span in spans:
        codes.setdefault((span.onset_s, span.end_s), []).append(span.code)
    differ = sum(len({*given}) > 1 for given in codes.values())
    if differ and 2 * sum(len(given) > 1 for given in codes.values()) > len(codes) >= LIST_STEPS:
        issues.append(
            f"{TWO_SCORERS}: most epochs are given more than once, {differ} of {len(codes)} with different stages. "
            "Epochs on which the scorers differ have no stage, so that only those that are easy to score are left. If "
            "a column says who scored, name one with --scorer; else put each scorer's rows into a file of their own, "
            "in folders of their own, and name the one to use with --labels."
        )
    respiratory = [event for event in events if respiratory_event_of(event.text) is not None]
    if events_scored is None or not (scored or respiratory):
        events_scored = None if scoring is None else scoring.events_scored
    if events_scored is None:
        events_scored = bool(respiratory)
    sdb = sdb_codes(onsets_s, respiratory, events_scored, issues)
    if scored:
        unseen = (onsets_s + EPOCH_S <= min(s.onset_s for s in scored)) | (onsets_s >= max(s.end_s for s in scored))
        sdb[unseen & (sdb == 0)] = -1
    return ClipGrid(onsets_s, stage, sdb, tuple(issues))


def grid_anchor(scored: Sequence[StageSpan]) -> tuple[float, bool]:
    """Return where the grid of clips begins, from 0 to 30 s, and whether the first stage begins on it."""
    if not scored:
        return 0.0, True
    phases = [round(span.onset_s % EPOCH_S, 6) % EPOCH_S for span in sorted(scored, key=lambda span: span.onset_s)]
    common_s, n = Counter(phases).most_common(1)[0]
    return (common_s, common_s == phases[0]) if 2 * n > len(phases) else (phases[0], True)


def refuse_endless(path: Path, recorded_s: Fraction) -> None:
    """Refuse a recording that, by the rates in its header, lasts longer than any recording of sleep.

    Raises
    ------
    ScoringError
        To be raised before clips are made, which take memory however few samples there are.
    """
    days = recorded_s / 86_400
    if days > MOST_DAYS:
        raise ScoringError(
            f"{path}: its header says that the samples last {float(min(days, Fraction(10**9))):.6g} days or more; "
            f"expected at most {MOST_DAYS}. Its sampling frequency or the duration of a record must be wrong: restore "
            "the file, or correct the header."
        )


def stretches_of(n_s: float | Fraction, segments: Sequence[Segment]) -> Intervals:
    """Return the start and end of each contiguous stretch, in seconds."""
    if not segments:
        return [(0.0, float(n_s))] if n_s > 0 else []
    filled = [segment for segment in segments if segment.n_records > 0]
    # n_s is the end of the segment that ends last: for this one the quotient is the duration of a record, and for the
    # others it is larger.
    record_s = min(((Fraction(n_s) - s.onset_s) / s.n_records for s in filled), default=Fraction(0))
    return [(float(s.onset_s), float(s.onset_s + s.n_records * record_s)) for s in filled]


def count_outside(spans: Sequence[StageSpan], stretches: Intervals) -> int:
    """Count the spans that share no time with any stretch; stretches may overlap, and be as many as the records."""
    starts_s, ends_s = np.array(sorted(stretches)).reshape(-1, 2).T
    # A span overlaps a stretch if, of the stretches that start before the span ends, the last end is after its onset.
    begun = np.searchsorted(starts_s, [span.end_s for span in spans], side="left")
    last_s = np.concatenate([[-np.inf], np.maximum.accumulate(ends_s)])[begun]
    return int(np.count_nonzero(last_s <= [span.onset_s for span in spans]))


def off_grid_s(offset_s: float) -> float:
    """Return the distance to the nearest multiple of 30 s."""
    return abs(offset_s - EPOCH_S * round(offset_s / EPOCH_S))


def grid_onsets(anchor_s: float, stretches: Intervals) -> Floats:
    """Return the onsets, anchor + 30 k seconds, of the clips that lie wholly inside one stretch."""
    onsets: list[Floats] = [np.empty(0)]
    for start_s, end_s in stretches:
        first = math.ceil((start_s - anchor_s - SAME_TIME_S) / EPOCH_S)
        after = math.floor((end_s - anchor_s + SAME_TIME_S) / EPOCH_S)
        onsets.append(np.maximum(anchor_s + EPOCH_S * np.arange(first, after, dtype=np.float64), start_s))
    return np.unique(np.concatenate(onsets))


def merged(intervals: Iterable[tuple[float, float]]) -> Intervals:
    """Return the union of intervals as disjoint intervals in ascending order."""
    union: Intervals = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], end))
        else:
            union.append((start, end))
    return union


def touched(onsets_s: Floats, start_s: float, end_s: float) -> slice:
    """Return the slice of the clips that overlap the interval from ``start_s`` to ``end_s``."""
    first = np.searchsorted(onsets_s, start_s - EPOCH_S, side="right")
    return slice(int(first), int(np.searchsorted(onsets_s, end_s, side="left")))


def overlap_s(onsets_s: Floats, start_s: float, end_s: float) -> Floats:
    """Return the seconds that each clip shares with the interval; negative where they are apart."""
    return np.minimum(onsets_s + EPOCH_S, end_s) - np.maximum(onsets_s, start_s)


def coverage_s(onsets_s: Floats, intervals: Iterable[tuple[float, float]]) -> Floats:
    """Return how many seconds of each clip the union of the intervals covers."""
    covered = np.zeros(len(onsets_s))
    for start_s, end_s in merged(intervals):
        clips = touched(onsets_s, start_s, end_s)
        covered[clips] += np.maximum(overlap_s(onsets_s[clips], start_s, end_s), 0)
    return covered


def stage_codes(onsets_s: Floats, spans: Sequence[StageSpan], issues: list[str]) -> Codes:
    """Return the stage of each clip, by largest coverage; see :func:`clip_labels` for ties."""
    codes = np.array([*range(len(STAGES)), NO_STAGE], dtype=np.int8)
    n = len(onsets_s)
    covered = np.zeros((len(codes), n))
    latest_s = np.full((len(codes), n), -np.inf)
    for row, code in enumerate(codes):
        own = [span for span in spans if span.code == code and span.end_s > span.onset_s]
        covered[row] = coverage_s(onsets_s, [(span.onset_s, span.end_s) for span in own])
        for span in own:
            clips = touched(onsets_s, span.onset_s, span.end_s)
            latest_s[row, clips] = np.maximum(latest_s[row, clips], span.onset_s)
    if n == 0:
        return np.empty(0, dtype=np.int8)
    any_stage_s = coverage_s(onsets_s, [(s.onset_s, s.end_s) for s in spans if s.end_s > s.onset_s])

    most = covered >= covered.max(axis=0) - SAME_TIME_S
    latest = np.where(most, latest_s, -np.inf)
    winner = most & (latest >= latest.max(axis=0))
    enough = any_stage_s >= STAGE_COVERAGE * EPOCH_S - SAME_TIME_S
    undecided = enough & (winner.sum(axis=0) > 1)
    stage = np.where(enough & ~undecided, codes[winner.argmax(axis=0)], NO_STAGE).astype(np.int8)

    overlapping = int(np.count_nonzero(covered.sum(axis=0) > any_stage_s + SAME_TIME_S))
    if overlapping:
        issues.append(
            f"different stages overlap in {counted(overlapping, 'epoch')}; each got the one that covers most of it, of "
            "equals the one that starts later"
            + (f", and {int(undecided.sum())} that stayed undecided got none." if undecided.any() else ".")
        )
    partly = int(np.count_nonzero(~enough & (any_stage_s > SAME_TIME_S)))
    if partly:
        are = counted(partly, "epoch is", "epochs are")
        issues.append(f"{are} covered by stage annotations for less than half and got stage none.")
    return stage


def sdb_codes(onsets_s: Floats, events: Sequence[Event], events_scored: bool, issues: list[str]) -> Codes:
    """Return the SDB label of each clip; see :func:`clip_labels`."""
    sdb = np.full(len(onsets_s), 0 if events_scored else -1, dtype=np.int8)
    n_outside = n_timeless = 0
    overlong_s: list[float] = []
    unsure = np.zeros(len(onsets_s), dtype=bool)
    for event in events:
        duration_s = event.duration_s or 0.0
        if duration_s <= 0 or not math.isfinite(duration_s):
            n_timeless += 1
            clips = slice(*np.searchsorted(onsets_s, [event.onset_s - EPOCH_S, event.onset_s], side="right").tolist())
            sdb[clips] = 1
        else:
            end_s = event.onset_s + duration_s
            clips = touched(onsets_s, event.onset_s, end_s)
            shared_s = overlap_s(onsets_s[clips], event.onset_s, end_s)
            if duration_s > LONGEST_EVENT_S:
                overlong_s.append(duration_s)
                unsure[clips] |= shared_s >= SDB_OVERLAP_S - SAME_TIME_S
            else:
                enough_s = min(SDB_OVERLAP_S, SDB_OVERLAP_FRACTION * duration_s)
                sdb[clips][shared_s >= enough_s - SAME_TIME_S] = 1
        n_outside += clips.start >= clips.stop
    sdb[unsure & (sdb == 0)] = -1
    if overlong_s:
        n, median_s = len(overlong_s), float(np.median([event.duration_s or 0.0 for event in events]))
        remark = (
            f"{n} of {counted(len(events), 'respiratory event')} {agreeing(n, 'is', 'are')} {OVERLONG}, the longest of "
            f"{max(overlong_s):g} s; clips for which only {agreeing(n, 'it speaks', 'they speak')} have no label of "
            "sleep-disordered breathing."
        )
        if SDB_OVERLAP_S <= median_s / 1000 <= LONGEST_EVENT_S:
            remark += " The durations would fit milliseconds: if they are, say so in the column's name, Duration (ms)."
        issues.append(remark)
    if n_timeless:
        issues.append(
            f"{counted(n_timeless, 'respiratory event has', 'respiratory events have')} no duration; each counts in "
            "the clip where it lies."
        )
    if n_outside:
        issues.append(
            f"{n_outside} of {counted(len(events), 'respiratory event')} {agreeing(n_outside, 'lies', 'lie')} in no "
            "clip of the recording."
        )
    return sdb
