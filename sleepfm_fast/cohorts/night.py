"""One night: what its files hold for a montage (:func:`read_night`), and that into a store (:func:`process_night`)."""

from __future__ import annotations

import json
import os
import socket
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from sleepfm_fast.channels import Montage, assign, likely_slot
from sleepfm_fast.cohorts.corrections import Corrections
from sleepfm_fast.cohorts.folders import name_fault, path_text
from sleepfm_fast.cohorts.night_scoring import night_scoring
from sleepfm_fast.cohorts.participants import Participant
from sleepfm_fast.edf import Recording
from sleepfm_fast.errors import SleepfmError, is_own_source, refused_by_system
from sleepfm_fast.formats.edf_header import INCOMPLETE
from sleepfm_fast.plurals import counted, first_of
from sleepfm_fast.recordings import open_recording
from sleepfm_fast.scoring.files import Namesakes
from sleepfm_fast.scoring.labels import ClipGrid, clip_labels, refuse_endless
from sleepfm_fast.scoring.lights import lights_of
from sleepfm_fast.scoring.respiratory_counts import respiratory_counts
from sleepfm_fast.scoring.stages import EPOCH_S
from sleepfm_fast.scoring.timed_texts import Scoring
from sleepfm_fast.storage.columns import file_digest
from sleepfm_fast.store.clip_layout import sdb_counts, stage_counts
from sleepfm_fast.store.clip_writer import StoredChannel, plan_channels, write_recording

__all__ = ["Night", "NightConfig", "NightRow", "attempt_night", "read_night", "row_of"]

STARTED = Path("running") / "nights"
"""Folder of a store with one file for each night that is being worked on; what a killed worker held stays in it."""


@dataclass(frozen=True)
class Night:
    """What one recording gives: channels for the slots, scoring, clips.

    ``scoring_path`` is the scoring's file, None where it stands in the recording or there is none; ``unreadable``
    files that are named like a scoring and could not be read as one; ``corrections`` what the user's corrections
    changed; ``also`` files that completed the scoring, ``named`` all that are named like it.
    """

    recording: Recording
    channels: tuple[StoredChannel, ...]
    scoring: Scoring | None
    scoring_path: Path | None
    unreadable: tuple[Path, ...]
    grid: ClipGrid
    issues: tuple[str, ...]
    corrections: tuple[dict[str, Any], ...] = ()
    also: tuple[Path, ...] = ()
    named: tuple[Path, ...] = ()


@dataclass(frozen=True)
class NightConfig:
    """What all nights of a run share; ``like`` says that the montage is another store's or a run's (--like)."""

    store: Path
    montage: Montage
    labels: Path | None
    events_scored: bool
    configuration_digest: str
    corrections: Corrections = field(default_factory=Corrections)
    namesakes: Namesakes = field(default_factory=Namesakes)
    meanings: Mapping[str, str] = field(default_factory=dict)
    like: bool = False
    scorer: str = ""


@dataclass(frozen=True)
class NightRow:
    """Outcome of a night: ``failure`` is the sentence why it could not be ingested, or None.

    ``seconds`` is what it took, ``n_bytes`` what its samples take in the store.
    """

    path: Path
    name: str
    n_clips: int
    stages: dict[str, int]
    sdb: dict[str, int]
    issues: tuple[str, ...]
    failure: str | None
    n_bytes: int = 0
    seconds: float | None = None
    host: str = ""


def read_night(
    path: Path,
    montage: Montage,
    labels: Path | None,
    *,
    events_scored: bool = False,
    corrections: Corrections | None = None,
    namesakes: Namesakes | None = None,
    meanings: Mapping[str, str] | None = None,
    scorer: str = "",
) -> Night:
    """Read a recording's header and scoring, fill the slots and cut the clips.

    Samples of EDF and BDF files are not read; those of a WFDB record are decoded, as only they show what is missing.

    Parameters
    ----------
    path : Path
        An EDF or BDF file, or the header of a WFDB record.
    montage : Montage
    labels : Path or None
        A scoring file, or a folder of them; None looks beside the recording and into it.
    events_scored : bool
        Respiratory events were scored, so that a clip without one has none.
    corrections : Corrections, optional
        What the user corrects in the header.
    namesakes : Namesakes, optional
        The cohort's recordings that share a name; see :func:`sleepfm_fast.scoring.files.find_scoring`.
    meanings : mapping of str to str, optional
        What texts of the scoring stand for, as :func:`sleepfm_fast.scoring.texts.parse_meanings` gives them.
    scorer : str, optional
        As of :func:`sleepfm_fast.annotations.read_scoring`.

    Raises
    ------
    SleepfmError
        When the recording, or a scoring given by ``labels``, cannot be read, or its name cannot be kept.
    """
    if fault := name_fault(path):
        raise SleepfmError(fault)
    recording, corrected = (corrections or Corrections()).apply_to(open_recording(path))
    refuse_endless(path, recording.n_records * recording.record_s)
    assignments = assign(recording.signals, montage, trusted=corrected.trusted)
    channels = tuple(plan_channels(assignments, recording.sample_bytes))
    issues = [*recording.issues, *recording.sample_issues()]
    for channel in channels:
        issues += channel.assignment.issues
    used = {s.index: s for c in channels for s in (c.signal, c.minus) if s is not None}
    issues += [f"{s.label}: {issue}" for s in used.values() for issue in s.issues]
    scoring, scoring_path, unreadable, also, named = night_scoring(
        recording, labels, namesakes, meanings or {}, scorer, issues
    )
    end_s = max((s.onset_s + s.n_records * recording.record_s for s in recording.segments), default=Fraction(0))
    grid = clip_labels(
        scoring,
        end_s,
        recording.segments,
        events_scored=True if events_scored else None,
    )
    issues += [*(scoring.issues if scoring is not None else ()), *grid.issues]
    return Night(
        recording,
        channels,
        scoring,
        scoring_path,
        unreadable,
        grid,
        tuple(dict.fromkeys(issues)),
        corrected.applied,
        also,
        named,
    )


def source_facts(path: Path) -> dict[str, Any]:
    """Path, size, modification time and SHA-256 of the whole file."""
    status = path.stat()
    return {
        "path": str(path),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": file_digest(path),
    }


def recording_facts(recording: Recording) -> dict[str, Any]:
    """:func:`source_facts` of a recording; ``others`` are those of its further files, by name."""
    facts = source_facts(recording.path)
    others = [source_facts(file) for file in recording.files if file != recording.path]
    return {**facts, "others": [{**other, "path": Path(other["path"]).name} for other in others]} if others else facts


def attempt_night(path: Path, name: str, participant: Participant, config: NightConfig) -> NightRow:
    """Do :func:`process_night`, leaving a mark in the store while it lasts: it tells what a dead worker held."""
    began_s = time.monotonic()
    mark = config.store / STARTED / name
    with suppress(OSError):  # without a mark a death costs more, nothing else
        mark.write_text(f"{path_text(path)}\n{socket.gethostname()} {os.getpid()}\n", encoding="utf-8")
    row = process_night(path, name, participant, config)
    mark.unlink(missing_ok=True)
    return replace(row, seconds=time.monotonic() - began_s, host=socket.gethostname())


def process_night(path: Path, name: str, participant: Participant, config: NightConfig) -> NightRow:
    """Ingest one night into the store; whatever goes wrong comes back as a sentence.

    Parameters
    ----------
    path : Path
        The recording.
    name : str
        Its id in the store.
    participant : Participant
        Its subject, age and sex.
    config : NightConfig
    """
    try:
        night = read_night(
            path,
            config.montage,
            config.labels,
            events_scored=config.events_scored,
            corrections=config.corrections,
            namesakes=config.namesakes,
            meanings=config.meanings,
            scorer=config.scorer,
        )
        refuse_empty(path, night, config.montage, like=config.like)
        lights_s = lights_of(night.scoring)
        record = write_recording(
            config.store / "recordings",
            name,
            night.recording,
            night.channels,
            night.grid,
            {
                **participant.facts(),
                "configuration_digest": config.configuration_digest,
                "source": recording_facts(night.recording),
                "scoring": scoring_facts(night),
                "format_of_source": night.recording.format,
                "start": None if night.recording.start is None else night.recording.start.isoformat(),
                "issues": list(night.issues),
                "respiratory_events": respiratory_counts(night.scoring, night.grid),
                **({"lights_s": lights_s} if lights_s else {}),
                "corrections": list(night.corrections),
                "corrections_digest": config.corrections.digest(path),
            },
        )
    except SleepfmError as error:
        return NightRow(path, name, 0, {}, {}, (), str(error))
    except OSError as error:
        what = refused_by_system(error)
        return NightRow(path, name, 0, {}, {}, (), f"{path} could not be ingested ({what}).")
    except Exception as error:
        # The last line of our own code tells where to look; the night's failure must not stop the others.
        frames = traceback.extract_tb(error.__traceback__)
        place = next((f for f in reversed(frames) if is_own_source(f.filename)), None)
        where = f" ({Path(place.filename).name}, line {place.lineno})" if place is not None else ""
        return NightRow(
            path, name, 0, {}, {}, (), f"{path} could not be ingested: {type(error).__name__}: {error}{where}."
        )
    return row_of(record)


def row_of(record: dict[str, Any]) -> NightRow:
    """Outcome of a night whose record is in the store."""
    clips = record["clips"]
    return NightRow(
        Path(record["source"]["path"]),
        record["id"],
        len(clips["onset_s"]),
        stage_counts(clips["stage"]),
        sdb_counts(clips["sdb"]),
        tuple(record["issues"]),
        None,
        record["n_bytes"],
    )


def refuse_empty(path: Path, night: Night, montage: Montage, *, like: bool) -> None:
    """Raise where a night has no channel or no clip to store; ``like`` as of :class:`NightConfig`."""
    recording = night.recording
    if not recording.signals:
        raise SleepfmError(
            f"{path} holds no signals ({counted(len(recording.annotations), 'annotation')}); it is not a recording."
        )
    if all(c.signal is None for c in night.channels):
        slots = [slot.name for slot in montage.slots]
        label, meant = next(
            ((s.label, slot.name) for s in recording.signals if (slot := likely_slot(s.label, montage.slots))),
            (recording.signals[0].label, "C3-M2" if "C3-M2" in slots else "SLOT"),
        )
        otherwise = (
            "leave --like out: other channels need a network trained on them" if like else "choose another --montage"
        )
        example = {path.name: {label: {"alias": meant}}}
        raise SleepfmError(
            f"{path}: none of its {counted(len(recording.signals), 'channel')} "
            f"({listed([s.label for s in recording.signals])}) fills a slot of the montage '{montage.name}'. Say what "
            f"they are, as with --overrides {json.dumps(example, ensure_ascii=False)} (the slots: "
            f"{listed(slots, 40)}), or {otherwise}."
        )
    if len(night.grid.onsets_s) == 0:
        held_s = float(recording.n_records * recording.record_s)
        raise SleepfmError(
            f"{path}: no whole clip of {EPOCH_S} s fits; it holds {held_s:g} s in {len(recording.segments)} segment(s)."
            + (f" It is {INCOMPLETE}: its header promises more." if recording.n_missing else "")
        )


def scoring_facts(night: Night) -> dict[str, Any]:
    lists = {"also": night.also, "unreadable": night.unreadable}
    others = {name: [source_facts(path.resolve()) for path in paths] for name, paths in lists.items() if paths}
    if night.scoring_path is not None:
        return {
            "kind": "file",
            **source_facts(night.scoring_path.resolve()),
            "named": [str(path.resolve()) for path in night.named],
            **others,
        }
    return {"kind": "none" if night.scoring is None else "inside", "path": None, "passed_over": None, **others}


def listed(labels: Sequence[str], limit: int = 12) -> str:
    """Join labels with commas, repeated ones counted, at most ``limit`` of them."""
    counts = Counter(labels)
    names = [f"{label} ({n})" if n > 1 else label for label, n in counts.items()]
    return first_of(names, limit)
