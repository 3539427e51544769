"""The scoring of a night, from all files that hold part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sleepfm_fast.annotations import read_scoring, scoring_of
from sleepfm_fast.edf import Recording
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.scoring.files import (
    NOT_USED,
    SEEMS_TO_LIE,
    Namesakes,
    ending,
    find_scorings,
    scoring_folder,
    similar_scorings,
)
from sleepfm_fast.scoring.scorers import UnknownScorerError
from sleepfm_fast.scoring.stages import respiratory_event_of, stage_of
from sleepfm_fast.scoring.texts import translated
from sleepfm_fast.scoring.timed_texts import Scoring

__all__ = ["NONE_INSTEAD", "OWN_INSTEAD", "night_scoring"]

OWN_INSTEAD = "the stages are those of the recording's own annotations"
NONE_INSTEAD = "the night has no stages"
"""These begin the remark on a night whose scoring lies beside it, by the name, and cannot be read."""


def night_scoring(
    recording: Recording,
    labels: Path | None,
    namesakes: Namesakes | None,
    meanings: Mapping[str, str],
    scorer: str,
    issues: list[str],
) -> tuple[Scoring | None, Path | None, tuple[Path, ...], tuple[Path, ...], tuple[Path, ...]]:
    """Scoring of a recording (by ``labels``, else beside it, else inside it), its file, and other files.

    The others: those that are named like it and cannot be read, those joined, all that are named like it. What the
    first file that can be read lacks, stages or respiratory events, comes from the next ones that have it, at last from
    inside.
    """
    inside = translated(scoring_of(recording), meanings) if recording.annotations else None
    files = find_scorings(recording.path, labels, namesakes)
    if not files:
        if labels is not None:
            where = "its own annotations were used" if inside is not None else "it has no annotations of its own"
            issues.append(f"no scoring for this recording was found in {labels}; {where}.")
        unstaged = inside is None or not names_stage(inside)
        if labels is None and unstaged and (folder := scoring_folder(recording.path)) is not None:
            issues.append(f"its scoring {SEEMS_TO_LIE} {folder}, which is looked into only with --labels {folder}")
        elif inside is None and (similar := similar_scorings(recording.path, labels)):
            issues.append(
                f"{' and '.join(path.name for path in similar)} may be its scoring, by the numbers in the names. "
                f"If so, name it like the recording: {recording.path.stem}{ending(similar[0])}."
            )
        return inside, None, (), (), ()

    def read(path: Path) -> Scoring:
        # The scoring of a recording that was cut short is that of the whole.
        length_s = recording.duration_s + recording.missing_s
        return translated(read_scoring(path, start=recording.start, length_s=length_s, scorer=scorer), meanings)

    unreadable = []
    for path in files:
        try:
            scoring = read(path)
        except SleepfmError as error:
            if labels is not None or isinstance(error, UnknownScorerError):
                raise
            # Only its name suggested that it belongs to the recording.
            issues.append(f"the file {path.name} {NOT_USED}: {error}")
            unreadable.append(path)
        else:
            break
    else:
        instead = OWN_INSTEAD if inside is not None and names_stage(inside) else NONE_INSTEAD
        issues.append(f"{instead}: no file beside the recording that is named like its scoring can be read.")
        return inside, None, tuple(unreadable), (), files
    also = []
    for more in files[files.index(path) + 1 :]:
        if is_complete(scoring):
            break
        try:
            joined = completed(scoring, read(more))
        except SleepfmError as error:
            issues.append(f"the file {more.name} {NOT_USED}: {error}")
            unreadable.append(more)
            continue
        if joined is not scoring:
            n = len(joined.events) - len(scoring.events)
            issues.append(
                f"{more.name} lists no respiratory event; the night counts as scored for them."
                if not n
                else f"{counted(n, 'annotation')} of {more.name} {agreeing(n, 'was', 'were')} joined with {path.name}, "
                "which has none of their kind."
            )
            scoring = joined
            also.append(more)
    if inside is not None and not is_complete(scoring):
        lacks = "sleep stage" if not names_stage(scoring) else "respiratory event"
        joined = completed(scoring, inside)
        if joined is not scoring:
            if unreadable and names_stage(joined) and not names_stage(scoring):
                issues.append(f"{OWN_INSTEAD}: {path.name} names none, and other files like it cannot be read.")
            else:
                issues.append(f"{path.name} names no {lacks}; it was joined with the recording's own annotations.")
            scoring = joined
    if unreadable and not names_stage(scoring):
        issues.append(f"{NONE_INSTEAD}: {path.name} names none, and other files like it cannot be read.")
    return scoring, path, tuple(unreadable), tuple(also), files


def is_complete(scoring: Scoring) -> bool:
    """Whether a scoring names stages, and has respiratory events or says that they were scored."""
    return names_stage(scoring) and (scoring.events_scored is not None or names_event(scoring))


def completed(scoring: Scoring, more: Scoring) -> Scoring:
    """Join what a scoring lacks: all of another that has its stages, else that one's respiratory events."""
    if not names_stage(scoring) and names_stage(more):
        events = more.events
    elif not names_event(scoring) and scoring.events_scored is None:
        events = tuple(event for event in more.events if respiratory_event_of(event.text) is not None)
    else:
        events = ()
    if not events and (more.events_scored is None or scoring.events_scored is not None):
        return scoring
    if not events:
        return replace(scoring, events_scored=more.events_scored, issues=scoring.issues + more.issues)
    return replace(scoring, events=scoring.events + events, issues=scoring.issues + more.issues)


def names_event(scoring: Scoring) -> bool:
    return any(respiratory_event_of(event.text) is not None for event in scoring.events)


def names_stage(scoring: Scoring) -> bool:
    return any(stage_of(event.text) not in (None, "none") for event in scoring.events)
