"""``preprocess --inspect``: which channel of which file fills which slot, and what is missing; nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleepfm_fast.channels import MONTAGES, Montage, resolve_auto, unassigned
from sleepfm_fast.clip_layout import sdb_counts, stage_counts
from sleepfm_fast.clip_writer import StoredChannel
from sleepfm_fast.cohort import read_header
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.night import read_night, refuse_empty
from sleepfm_fast.participants import ParticipantTables
from sleepfm_fast.stages import EPOCH_S
from sleepfm_fast.summary import percentages

__all__ = ["inspect", "inspect_night"]

InParallel = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]], str], Iterable[Any]]


@dataclass(frozen=True)
class SlotReport:
    """How a slot is filled: ``labels`` empty where it is missing, two of them where one is subtracted."""

    modality: str
    slot: str
    labels: tuple[str, ...]
    fs_hz: float
    unit: str
    unit_scale: float
    note: str


@dataclass(frozen=True)
class NightReport:
    """What one file holds; ``failure`` says why it could not be ingested."""

    path: Path
    format: str
    start: str | None
    duration_s: float
    n_segments: int
    slots: tuple[SlotReport, ...]
    unused: tuple[str, ...]
    scoring: str
    n_clips: int
    stages: dict[str, int]
    sdb: dict[str, int]
    issues: tuple[str, ...]
    failure: str | None


def inspect_night(path: Path, montage: Montage, labels: Path | None, events_scored: bool) -> NightReport:
    """Look at one file as it would be ingested; no samples are read."""
    try:
        night = read_night(path, montage, labels, events_scored=events_scored)
    except SleepfmError as error:
        return NightReport(path, "", None, 0.0, 0, (), (), "", 0, {}, {}, (), str(error))
    except Exception as error:
        sentence = f"{path} cannot be read: {type(error).__name__}: {error}"
        return NightReport(path, "", None, 0.0, 0, (), (), "", 0, {}, {}, (), sentence)
    try:
        refuse_empty(path, night, montage)
        failure = None
    except SleepfmError as error:
        failure = str(error)
    recording = night.recording
    modalities = [m.name for m in montage.modalities for _ in m.slots]
    unused = unassigned(recording.signals, [c.assignment for c in night.channels])
    if night.scoring_path is not None:
        scoring = str(night.scoring_path)
    else:
        scoring = "none" if night.scoring is None else "annotations inside the file"
    return NightReport(
        path=path,
        format=recording.format,
        start=None if recording.start is None else recording.start.isoformat(" "),
        duration_s=recording.duration_s,
        n_segments=len(recording.segments),
        slots=tuple(slot_report(m, c) for m, c in zip(modalities, night.channels, strict=True)),
        unused=tuple(f"{s.label} ({float(s.fs_hz):g} Hz{', ' + s.unit if s.unit else ''})" for s in unused),
        scoring=scoring,
        n_clips=len(night.grid.onsets_s),
        stages=stage_counts(night.grid.stage),
        sdb=sdb_counts(night.grid.sdb),
        issues=night.issues,
        failure=failure,
    )


def slot_report(modality: str, channel: StoredChannel) -> SlotReport:
    slot = channel.assignment.slot.name
    if channel.signal is None:
        return SlotReport(modality, slot, (), 0.0, "", 1.0, "")
    labels = (channel.signal.label,) if channel.minus is None else (channel.signal.label, channel.minus.label)
    assignment = channel.assignment
    return SlotReport(
        modality, slot, labels, float(channel.signal.fs_hz), assignment.unit, assignment.unit_scale, channel.note
    )


def inspect(
    files: Sequence[Path],
    named: set[Path],
    montage_name: str,
    labels: Path | None,
    tables: ParticipantTables,
    *,
    events_scored: bool,
    in_parallel: InParallel,
) -> dict[str, Any]:
    """Print a table a file and a summary of the cohort on standard output; returns the same for the JSON line.

    Parameters
    ----------
    files : sequence of Path
        Recordings.
    named : set of Path
        Those named one by one; others that hold annotations only are passed over.
    montage_name : str
        ``auto`` or one of the presets.
    labels : Path or None
        Where the scoring is looked for.
    tables : ParticipantTables
    events_scored : bool
    in_parallel : callable
        ``in_parallel(work, arguments, what)`` yields the results in any order.
    """
    headers = list(in_parallel(read_header, [(path,) for path in files], "headers"))
    excluded = {header.path for header in headers if header.empty} - named
    files = [path for path in files if path not in excluded]
    if labels is not None and labels.is_file() and len(files) > 1:
        raise SleepfmError(
            f"--labels {labels} is one file, but {len(files)} recordings were given. Give a folder, or one recording."
        )
    unresolved = None
    montage = MONTAGES.get(montage_name, MONTAGES["paper"])
    if montage_name == "auto":
        try:
            montage = resolve_auto([header.signals for header in headers if header.signals])
        except SleepfmError as error:
            unresolved = f"{error} Shown here is the montage '{montage.name}'."
    arguments = [(path, montage, labels, events_scored) for path in files]
    reports = sorted(in_parallel(inspect_night, arguments, "files"), key=lambda report: report.path)
    for report in reports:
        print("\n".join(night_lines(report, tables)) + "\n")
    print("\n".join(cohort_lines(reports, montage, sorted(excluded), tables)))
    if unresolved is not None:
        print(f"  {unresolved}")
    stages = Counter[str]()
    sdb = Counter[str]()
    for report in reports:
        stages.update(report.stages)
        sdb.update(report.sdb)
    good = [report for report in reports if report.failure is None]
    return {
        "nights": len(good),
        "clips": sum(report.n_clips for report in good),
        "hours": sum(report.n_clips for report in good) * EPOCH_S / 3600,
        "stages": dict(stages),
        "sdb": dict(sdb),
        "montage": {"name": montage.name, **{m.name: [slot.name for slot in m.slots] for m in montage.modalities}},
        "files": reports,
        "failed": [{"path": str(report.path), "reason": report.failure} for report in reports if report.failure],
        "annotations_only": sorted(excluded),
        "participants_unknown": tables.unknown_recordings(files),
        "montage_unresolved": unresolved,
        "exit_status": int(len(good) < len(reports) or not good or unresolved is not None),
    }


def night_lines(report: NightReport, tables: ParticipantTables) -> list[str]:
    """Table of one file."""
    person = tables.of(report.path)
    facts = [f"subject {person.subject}"]
    facts += [f"{person.age:g} years"] if person.age is not None else []
    facts += [person.sex] if person.sex is not None else []
    if report.format == "":
        return [str(report.path), f"  cannot be ingested: {report.failure}"]
    minutes, seconds = divmod(round(report.duration_s), 60)
    gaps = f", {report.n_segments} segments" if report.n_segments > 1 else ""
    lines = [
        str(report.path),
        f"  {report.format}, {minutes // 60}:{minutes % 60:02d}:{seconds:02d} h{gaps}, "
        f"start {report.start or 'unknown'}; {', '.join(facts)}",
    ]
    width = max((len(slot.slot) for slot in report.slots), default=0)
    modality = ""
    for slot in report.slots:
        name = slot.modality if slot.modality != modality else ""
        modality = slot.modality
        lines.append(f"  {name:<11}  {slot.slot:<{width}}  {slot_text(slot)}")
    missing = [m for m in dict.fromkeys(s.modality for s in report.slots) if not filled(report, m)]
    if missing:
        lines.append(f"  no channel of: {', '.join(missing)}")
    if report.unused:
        lines.append(f"  not used: {', '.join(report.unused)}")
    unscored = report.stages.get("none", 0)
    lines.append(f"  scoring: {report.scoring}")
    lines.append(f"  clips: {report.n_clips}, {report.n_clips - unscored} with a stage, {unscored} without")
    if report.n_clips:
        lines.append(f"  stages: {percentages(report.stages)}")
        lines.append(f"  sleep-disordered breathing: {percentages(report.sdb)}")
    lines += [f"  note: {issue}" for issue in report.issues]
    if report.failure is not None:
        lines.append(f"  cannot be ingested: {report.failure}")
    return lines


def slot_text(slot: SlotReport) -> str:
    if not slot.labels:
        return "missing"
    text = f"{' - '.join(slot.labels)}  {slot.fs_hz:g} Hz  {slot.unit or 'no unit'}"
    if slot.unit_scale != 1.0:
        text += f" (header's unit x {slot.unit_scale:g})"
    return f"{text}  [{slot.note.partition(': ')[2]}]" if slot.note else text


def filled(report: NightReport, modality: str) -> bool:
    return any(slot.labels for slot in report.slots if slot.modality == modality)


def cohort_lines(
    reports: Sequence[NightReport], montage: Montage, excluded: Sequence[Path], tables: ParticipantTables
) -> list[str]:
    """Summary of all files: how often each slot is filled, by which labels, at which rates."""
    good = [report for report in reports if report.failure is None]
    lines = [f"{len(reports)} files, {len(good)} can be ingested; montage {montage.name}"]
    names = [slot.name for slot in montage.slots]
    width = max(map(len, names), default=0)
    for i, name in enumerate(names):
        here = [report.slots[i] for report in good if report.slots[i].labels]
        labels = Counter(" - ".join(slot.labels) for slot in here)
        rates = Counter(f"{slot.fs_hz:g}" for slot in here)
        by = ", ".join(f"{label} ({n})" for label, n in labels.most_common(5))
        if len(labels) > 5:
            by += f" and {len(labels) - 5} other labels"
        lines.append(
            f"  {name:<{width}}  {len(here):>5} of {len(good)}" + (f"  {'/'.join(rates)} Hz  {by}" if here else "")
        )
    clips = sum(report.n_clips for report in good)
    lines.append(f"  {clips} clips, {clips * EPOCH_S / 3600:.2f} hours")
    if excluded:
        lines.append(f"  passed over, annotations only: {', '.join(str(path) for path in excluded)}")
    unknown = tables.unknown_recordings(report.path for report in reports)
    if unknown:
        lines.append(f"  the participants table names recordings that were not given: {', '.join(unknown[:10])}")
    lines += [f"  {issue}" for issue in tables.issues]
    return lines
