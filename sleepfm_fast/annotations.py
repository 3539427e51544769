"""Labels of a recording, whatever they come in: EDF+ annotations, CSV, NSRR or Profusion XML, WFDB."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sleepfm_fast.cli.given_paths import as_path
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.scoring.csv_files import decoded, parse_csv
from sleepfm_fast.scoring.files import find_scoring
from sleepfm_fast.scoring.labels import ClipGrid, clip_labels
from sleepfm_fast.scoring.respiratory_lists import gamma_events, ucddb_events
from sleepfm_fast.scoring.stages import EPOCH_S, respiratory_event_of, stage_of
from sleepfm_fast.scoring.timed_texts import Event, Scoring, ScoringError
from sleepfm_fast.scoring.xml_files import parse_xml
from sleepfm_fast.wfdb import WfdbAnnotation, read_annotations, read_header

if TYPE_CHECKING:
    from sleepfm_fast.edf import Recording

__all__ = [
    "ClipGrid",
    "Event",
    "Scoring",
    "ScoringError",
    "clip_labels",
    "find_scoring",
    "read_scoring",
    "respiratory_event_of",
    "scoring_of",
    "stage_of",
]

MAX_TEXT_BYTES = 1 << 28
"""No night's scoring is as large as 256 MiB; a larger text file is something else."""

# MIT-BIH Polysomnographic Database: what follows the stage in a note of a .st file.
SLPDB_EVENTS = {
    "H": "Hypopnea",
    "HA": "Hypopnea with arousal",
    "OA": "Obstructive apnea",
    "X": "Obstructive apnea with arousal",
    "CA": "Central apnea",
    "CAA": "Central apnea with arousal",
    "L": "Leg movement",
    "LA": "Leg movement with arousal",
    "A": "Arousal",
}
SLPDB_STAGES = frozenset(("W", "1", "2", "3", "4", "R", "M", "MT"))
UCDDB_STAGES = {"0": "W", "1": "R", "2": "1", "3": "2", "4": "3", "5": "4"}
"""The numbers of ``ucddb002_stage.txt`` (St. Vincent's University Hospital), which are nobody else's; 6 and more mean
artefact and not scored."""


def read_scoring(
    path: str | Path, *, start: datetime | None = None, length_s: float | None = None, scorer: str = ""
) -> Scoring:
    """Read a file of labels; the kind is told by its content.

    Parameters
    ----------
    path : str or Path
        EDF+ or BDF+ with annotations, CSV, NSRR ``PSGAnnotation``, Profusion or Sleepware XML, WFDB annotations
        (``.st``; the header ``.hea`` of the same name beside it), or a list of respiratory events named as UCDDB or
        the Wisconsin Sleep Cohort name theirs.
    start : datetime, optional
        The recording's start. Clock times of a CSV need it; an EDF+ hypnogram that started at another time of the
        same night is shifted by the difference, and says so.
    length_s : float, optional
        How long the recording is; a list of stages without times needs it, and clock times are compared with it.
    scorer : str, optional
        Whose stages to take of a table of several scorers: a name in its column of scorers, or of a scorer's column.

    Returns
    -------
    Scoring
        Events from the recording's start.

    Raises
    ------
    SleepfmError
        When the file is missing, of no known kind, or damaged.
    """
    path = as_path(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
        size = path.stat().st_size
    except OSError as error:
        raise ScoringError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not head:
        raise ScoringError(f"{path} is empty; expected labels as EDF+, CSV, NSRR or Profusion XML, or WFDB.")
    if head.startswith(b"version https://git-lfs"):
        raise ScoringError(f"{path} is a Git LFS pointer, not the file itself. Fetch it with `git lfs pull`.")
    if head[:8] == b"\xffBIOSEMI" or (head[:1] == b"0" and not head[1:8].strip(b" \0") and len(head) >= 256):
        return edf_scoring(path, start)
    if size > MAX_TEXT_BYTES:
        raise ScoringError(f"{path} has {size} bytes; labels of one recording are far smaller. Is it a signal file?")
    if head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").startswith(b"<"):
        return parse_xml(path.read_bytes(), str(path))
    # A WFDB file has no signature: it has a header beside it, and is no text.
    if path.suffix.lower() == ".hea":
        raise ScoringError(f"{path} is a WFDB header; give the annotation file, for instance {path.stem}.st, instead.")
    if path.suffix.lower() not in (".csv", ".tsv", ".txt") and path.with_suffix(".hea").is_file():
        return wfdb_scoring(path)
    if path.suffix.lower() == ".st":
        raise ScoringError(
            f"{path} is taken for WFDB annotations, but {path.with_suffix('.hea').name}, which states the sampling "
            "frequency, is not beside it. Put it there."
        )
    if path.name.casefold().endswith(("_respevt.txt", ".sco.txt")):
        issues: list[str] = []
        text = decoded(path.read_bytes(), str(path), issues)
        if path.name.casefold().endswith("_respevt.txt"):
            events = ucddb_events(text, str(path), start, length_s, issues)
        else:
            events = gamma_events(text, str(path), start, issues)
        return Scoring(tuple(events), str(path), tuple(issues), events_scored=True)
    scoring = parse_csv(path.read_bytes(), str(path), start, length_s, scorer)
    return ucddb_stages(scoring) if re.fullmatch(r"ucddb\d+(?:_stages?)?\.(?:txt|csv)", path.name.lower()) else scoring


def ucddb_stages(scoring: Scoring) -> Scoring:
    """Stages of a file of UCDDB, by its documentation."""
    numbers = [event for event in scoring.events if event.text.strip().isdigit()]
    if len(numbers) < len(scoring.events):
        return scoring  # somebody has put it into words
    events = tuple(replace(e, text=f"Sleep stage {UCDDB_STAGES.get(e.text.strip(), '?')}") for e in numbers)
    issue = f"{scoring.source} is named like those of UCDDB: 1 was read as REM, and 2 to 5 as the stages 1 to 4."
    return replace(scoring, events=events, issues=(*scoring.issues, issue))


def scoring_of(recording: Recording) -> Scoring:
    """Annotations inside a recording, as :func:`read_scoring` gives those of a file."""
    events = tuple(Event(a.onset_s, a.duration_s, a.text) for a in recording.annotations)
    return Scoring(events, str(recording.path), (), events_scored=None)


def edf_scoring(path: Path, start: datetime | None) -> Scoring:
    """Annotations of an EDF+ or BDF+ file, moved to the clock of a recording that started at ``start``."""
    from sleepfm_fast.edf import read_recording

    recording = read_recording(path)
    scoring = scoring_of(recording)
    if not scoring.events:
        raise ScoringError(
            f"{path} holds no annotations; expected an EDF+ or BDF+ file with sleep stages as annotations."
        )
    issues = [*scoring.issues, *recording.issues]
    shift_s = 0.0
    if start is not None and recording.start is not None:
        difference_s = (recording.start.replace(tzinfo=None) - start.replace(tzinfo=None)).total_seconds()
        if abs(difference_s) >= 86_400:
            issues.append(
                f"{path} started on {recording.start}, the recording on {start}, more than a day apart; its "
                "annotations were taken as counted from the recording's start."
            )
        elif difference_s:
            shift_s = difference_s
            issues.append(
                f"{path} started {abs(difference_s):g} s {'after' if difference_s > 0 else 'before'} the recording; "
                "its annotations were shifted accordingly."
            )
    events = tuple(Event(e.onset_s + shift_s, e.duration_s, e.text) for e in scoring.events)
    return Scoring(events, str(path), tuple(issues), events_scored=None)


def wfdb_scoring(path: Path) -> Scoring:
    """Stages and events from the notes of a WFDB annotation file.

    Two dialects: one note per 30-s epoch holding the stage and the events in it (MIT-BIH Polysomnographic Database),
    and notes at each change of stage with events between ``(name`` and ``name)`` (CinC 2018).
    """
    annotations, frequency_hz = read_annotations(path)
    frequency_hz = frequency_hz or read_header(path.with_suffix(".hea")).fs_hz
    notes = [annotation for annotation in annotations if annotation.aux.strip()]
    if not notes:
        raise ScoringError(
            f"{path} holds {counted(len(annotations), 'WFDB annotation')} without texts; expected notes with sleep "
            "stages, as in the .st files of the MIT-BIH Polysomnographic Database."
        )
    issues: list[str] = []
    if any(re.fullmatch(r"\(.+|[^(]+\)", note.aux.strip()) for note in notes):
        events = [*bracketed_events(notes, frequency_hz, issues)]
        return Scoring(tuple(events), str(path), tuple(issues), events_scored=True)
    events = [*epoch_events(notes, frequency_hz, issues)]
    return Scoring(tuple(events), str(path), tuple(issues), events_scored=True)


def epoch_events(notes: Sequence[WfdbAnnotation], frequency_hz: float, issues: list[str]) -> Iterator[Event]:
    """``4 LA H``: the epoch's stage, then its events, whose place inside the epoch is not given."""
    unknown: dict[str, int] = {}
    for note in notes:
        # The format keeps sample 0 for its own notes, so an epoch that starts the recording stands at sample 1.
        onset_s = 0.0 if note.sample <= 1 else note.sample / frequency_hz
        for place, code in enumerate(note.aux.split()):
            if place == 0 and code in SLPDB_STAGES:
                yield Event(onset_s, float(EPOCH_S), f"Sleep stage {code}")
            elif code in SLPDB_EVENTS:
                yield Event(onset_s, float(EPOCH_S), SLPDB_EVENTS[code])
            elif stage_of(code) is not None:
                yield Event(onset_s, float(EPOCH_S), code)
            else:
                unknown[code] = unknown.get(code, 0) + 1
    if unknown:
        listed = ", ".join(f"'{code}' ({n})" for code, n in sorted(unknown.items())[:8])
        codes = counted(
            sum(unknown.values()), "code in the notes is not known and was", "codes in the notes are not known and were"
        )
        issues.append(f"{codes} left out: {listed}.")


def bracketed_events(notes: Sequence[WfdbAnnotation], frequency_hz: float, issues: list[str]) -> Iterator[Event]:
    """Stages that last until the next one, the last one an epoch, and events from ``(name`` to ``name)``."""
    opened: dict[str, float] = {}
    n_unpaired = 0
    staged = sorted({note.sample / frequency_hz for note in notes if stage_of(note.aux.strip()) is not None})
    ends_s = dict(zip(staged, [*staged[1:], *(onset_s + EPOCH_S for onset_s in staged[-1:])], strict=True))
    for note in notes:
        text, onset_s = note.aux.strip(), note.sample / frequency_hz
        if text.startswith("(") and not text.endswith(")"):
            n_unpaired += text[1:] in opened
            opened[text[1:]] = onset_s
        elif text.endswith(")") and not text.startswith("("):
            begun_s = opened.pop(text[:-1], None)
            n_unpaired += begun_s is None
            if begun_s is not None:
                yield Event(begun_s, onset_s - begun_s, text[:-1])
        else:
            is_stage = stage_of(text) is not None
            yield Event(onset_s, ends_s[onset_s] - onset_s if is_stage else None, text)
    n_unpaired += len(opened)
    if n_unpaired:
        events = counted(n_unpaired, "event has", "events have")
        were = agreeing(n_unpaired, "was", "were")
        issues.append(f"{events} a beginning without an end, or the reverse, and {were} left out.")
