"""``preprocess --inspect``: what the recordings hold, what is doubtful and what to do about it; nothing is changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sleepfm_fast.channels import MONTAGES, Montage, passed_over, passed_over_text, resolve_auto, unassigned
from sleepfm_fast.cli.command import printable, to_json
from sleepfm_fast.cohorts.cohort import Header, read_header
from sleepfm_fast.cohorts.corrections import Corrections
from sleepfm_fast.cohorts.folders import path_text
from sleepfm_fast.cohorts.ingest import Cohort, Request, refuse_one_scoring
from sleepfm_fast.cohorts.night import Night, read_night, refuse_empty
from sleepfm_fast.doctor.cohort_findings import cohort_findings
from sleepfm_fast.doctor.findings import SEVERITIES, Channel, Finding, belts_of, channel_findings, channels_of
from sleepfm_fast.doctor.inspection_text import cohort_lines, finding_lines, night_lines
from sleepfm_fast.doctor.measures import ChannelMeasures, beginning_digest, measure_night
from sleepfm_fast.doctor.night_findings import night_findings, unreadable
from sleepfm_fast.doctor.patients import patient_key
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.execution.parallel import Engine, Progress, WorkersLost, in_parallel
from sleepfm_fast.plurals import first_of
from sleepfm_fast.scoring.files import Namesakes, namesakes_of
from sleepfm_fast.scoring.stages import EPOCH_S
from sleepfm_fast.storage.atomic import replace_file
from sleepfm_fast.store.clip_layout import sdb_counts, stage_counts
from sleepfm_fast.store.clip_writer import StoredChannel

__all__ = ["NightReport", "SlotReport", "inspect", "inspect_night"]

SCHEMA = "sleepfm_fast inspection 1"
NIGHTS_SHOWN = 10
"""Of larger cohorts the nights' own tables are left to the report: the findings below them are what matters."""


@dataclass(frozen=True)
class SlotReport:
    """How a slot is filled: ``labels`` empty where it is missing, two of them where one is subtracted.

    ``amplitude`` is that of the samples as stored, None where it was not measured or the slot is derived.
    """

    modality: str
    slot: str
    labels: tuple[str, ...]
    fs_hz: float
    unit: str
    unit_scale: float
    note: str
    amplitude: float | None = None
    kind: str = ""


@dataclass(frozen=True)
class NightReport:
    """What one file holds; ``failure`` says why it could not be ingested, ``digest`` stands for the samples read.

    ``patient`` stands for the person that the header names, by :func:`patient_key`, ``beginning`` for the first minute,
    ``extremes`` for the night in any format (:mod:`~sleepfm_fast.doctor.extremes`).
    """

    path: Path
    format: str = ""
    start: str | None = None
    duration_s: float = 0.0
    n_segments: int = 0
    slots: tuple[SlotReport, ...] = ()
    unused: tuple[str, ...] = ()
    scoring: str = ""
    n_clips: int = 0
    stages: dict[str, int] = field(default_factory=dict)
    sdb: dict[str, int] = field(default_factory=dict)
    issues: tuple[str, ...] = ()
    failure: str | None = None
    minutes_read: float = 0.0
    channels: tuple[dict[str, Any], ...] = ()
    corrections: tuple[dict[str, Any], ...] = ()
    digest: str = ""
    patient: str = ""
    beginning: str = ""
    extremes: bytes = b""
    findings: tuple[Finding, ...] = ()

    @property
    def montage_key(self) -> tuple[tuple[str, float], ...]:
        """Slots that are filled, and their rates."""
        return tuple((slot.slot, slot.fs_hz) for slot in self.slots if slot.labels)

    @property
    def amplitudes(self) -> dict[str, tuple[str, str, float]]:
        """By slot: label, kind, amplitude as stored."""
        return {s.slot: (s.labels[0], s.kind, s.amplitude) for s in self.slots if s.amplitude is not None}


def failed(path: Path, sentence: str) -> NightReport:
    return NightReport(path, failure=sentence, findings=(unreadable(path, sentence),))


def inspect_night(
    path: Path,
    montage: Montage,
    labels: Path | None,
    events_scored: bool,
    corrections: Corrections,
    namesakes: Namesakes,
    meanings: Mapping[str, str],
    like: bool,
    scorer: str,
) -> NightReport:
    """Look at one file as it would be ingested, and at a few minutes of its samples."""
    try:
        night = read_night(
            path,
            montage,
            labels,
            events_scored=events_scored,
            corrections=corrections,
            namesakes=namesakes,
            meanings=meanings,
            scorer=scorer,
        )
        return examined(night, montage, corrections, like=like)
    except SleepfmError as error:
        return failed(path, str(error))
    except Exception as error:
        return failed(path, f"{path} cannot be read: {type(error).__name__}: {error}")


def examined(night: Night, montage: Montage, corrections: Corrections, *, like: bool) -> NightReport:
    """Report on a night that could be read."""
    recording, path = night.recording, night.recording.path
    try:
        refuse_empty(path, night, montage, like=like)
        failure = None
    except SleepfmError as error:
        failure = str(error)
    channels = channels_of(recording.signals, [c.assignment for c in night.channels])
    measures = measure_night(recording, {c.signal.index: c.kind for c in channels}, belts_of(channels))
    trusted = frozenset(c["index"] for c in night.corrections if "unit" in c)
    findings = [unreadable(path, failure)] if failure is not None else []
    findings += channel_findings(path, channels, measures, trusted)
    findings += night_findings(night, montage) if failure is None else []
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
        slots=tuple(slot_report(m, c, measures.channels) for m, c in zip(modalities, night.channels, strict=True)),
        unused=tuple(f"{s.label} ({float(s.fs_hz):g} Hz{', ' + s.unit if s.unit else ''})" for s in unused),
        scoring=scoring,
        n_clips=len(night.grid.onsets_s),
        stages=stage_counts(night.grid.stage),
        sdb=sdb_counts(night.grid.sdb),
        issues=night.issues,
        failure=failure,
        minutes_read=measures.minutes,
        channels=tuple(channel_facts(c, measures.channels.get(c.signal.index)) for c in channels),
        corrections=night.corrections,
        digest=measures.digest if measures.n_windows else "",
        patient=patient_key(recording.format, recording.patient),
        beginning=beginning_digest(recording),
        extremes=measures.extremes,
        findings=tuple(findings),
    )


def channel_facts(channel: Channel, measured: ChannelMeasures | None) -> dict[str, Any]:
    s = channel.signal
    facts = {"label": s.label, "kind": channel.kind, "used": channel.used, "fs_hz": float(s.fs_hz), "unit": s.unit}
    return {**facts, **({} if measured is None else measured.__dict__)}


def slot_report(modality: str, channel: StoredChannel, measured: dict[int, ChannelMeasures]) -> SlotReport:
    slot = channel.assignment.slot
    if channel.signal is None:
        return SlotReport(modality, slot.name, (), 0.0, "", 1.0, "", None, slot.kind)
    labels = (channel.signal.label,) if channel.minus is None else (channel.signal.label, channel.minus.label)
    a = channel.assignment
    m = measured.get(channel.signal.index) if channel.minus is None else None
    amplitude = None if m is None else m.amplitude * a.unit_scale
    fs_hz = float(channel.signal.fs_hz)
    return SlotReport(modality, slot.name, labels, fs_hz, a.unit, a.unit_scale, channel.note, amplitude, slot.kind)


def inspect(cohort: Cohort, request: Request, engine: Engine, report: Path | None = None) -> dict[str, Any]:
    """Print a table of each file, a summary of the cohort and the findings; returns the summary for the JSON line.

    Parameters
    ----------
    cohort : Cohort
        Files that were found in folders and hold annotations only are passed over.
    request : Request
        Montage, scoring and corrections, as they would be ingested.
    engine : Engine
    report : Path, optional
        File for the whole report: the summary, every file with its channels, every finding.

    Raises
    ------
    SleepfmError
        When one scoring was named for several recordings, or the report cannot be written.
    """
    corrections, tables = request.corrections, cohort.tables
    files = [path for path in cohort.files if not corrections.excludes(path)]
    headers = sorted(
        in_parallel(read_header, [(path,) for path in files], Engine("threading", engine.workers)),
        key=lambda header: header.path,
    )
    excluded = {header.path for header in headers if header.empty} - cohort.named
    files = [path for path in files if path not in excluded]
    refuse_one_scoring(request.labels, len(files))
    montage, kinds, unresolved = chosen_montage(request, headers)
    reports = examine(files, montage, request, engine)
    good = [night for night in reports if night.failure is None]
    findings = [finding for night in reports for finding in night.findings]
    findings += cohort_findings(good, tables, auto=request.montage == "auto" and request.like is None)
    if kinds:
        text = passed_over_text(kinds, len(headers))
        findings.append(Finding("warning", "passed_over", tuple(str(n.path) for n in good), "", text, "", dict(kinds)))
    findings.sort(key=lambda f: (SEVERITIES.index(f.severity), f.code, f.paths, f.channel))
    left_out = [path for path in cohort.files if corrections.excludes(path)]
    unused = corrections.unused(((h.path, h.signals) for h in headers), left_out)

    if len(reports) <= NIGHTS_SHOWN:
        for night in reports:
            show_lines([*night_lines(night, tables), ""])
    show_lines(cohort_lines(reports, montage, sorted(excluded), tables))
    if unresolved is not None:
        show_lines([f"  {unresolved}"])
    if unused:
        show_lines([f"  notice: --overrides names recordings or channels that no file has: {first_of(unused, 10)}"])
    show_lines(["", *finding_lines(findings)])

    stages, sdb = Counter[str](), Counter[str]()
    for night in good:
        stages.update(night.stages)
        sdb.update(night.sdb)
    counts = Counter(finding.severity for finding in findings)
    summary = {
        "schema": SCHEMA,
        "nights": len(good),
        "clips": sum(night.n_clips for night in good),
        "hours": sum(night.n_clips for night in good) * EPOCH_S / 3600,
        "stages": dict(stages),
        "sdb": dict(sdb),
        "montage": {"name": montage.name, **{m.name: [slot.name for slot in m.slots] for m in montage.modalities}},
        "findings_by_severity": {severity: counts[severity] for severity in SEVERITIES},
        "findings_by_code": dict(Counter(finding.code for finding in findings)),
        "failed": [{"path": str(night.path), "reason": night.failure} for night in reports if night.failure],
        "annotations_only": sorted(excluded),
        "left_out": left_out,
        "participants_unknown": tables.unknown_recordings(files),
        "overrides_unused": unused,
        "montage_unresolved": unresolved,
    }
    if report is not None:
        write_report(report, summary, {"files": map(facts_of, reports), "findings": findings})
    status = int(len(good) < len(reports) or not good or unresolved is not None)
    return {**summary, "report": None if report is None else str(report), "exit_status": status}


def show_lines(lines: Iterable[str]) -> None:
    """Print lines on standard output, whatever the names in them hold."""
    print("\n".join(printable(path_text(line)) for line in lines))


def chosen_montage(request: Request, headers: Sequence[Header]) -> tuple[Montage, dict[str, int], str | None]:
    """The montage that the files are looked at with, kinds of channel that it passes over, why ``auto`` gave none."""
    montage = request.like or MONTAGES.get(request.montage, MONTAGES["paper"])
    if request.like is not None or request.montage != "auto":
        return montage, {}, None
    try:
        readable = [s for h in headers if (s := request.corrections.apply(h.path, h.signals).signals)]
        montage = resolve_auto(readable)
        return montage, passed_over(readable, montage), None
    except SleepfmError as error:
        return montage, {}, f"{error} Shown here is the montage '{montage.name}'."


def write_report(path: Path, summary: Mapping[str, Any], lists: Mapping[str, Iterable[Any]]) -> None:
    """Write the whole report as JSON, one element of the lists at a time: those of 15,000 nights take gigabytes."""
    try:
        with replace_file(path) as file:
            file.write(to_json(summary, indent=1).removesuffix("\n}").encode())
            for name, values in lists.items():
                file.write(f",\n {json.dumps(name)}: [".encode())
                end = "]"
                for i, value in enumerate(values):
                    text = to_json(value, indent=1).replace("\n", "\n  ")
                    file.write(f"{',' if i else ''}\n  {text}".encode())
                    end = "\n ]"
                file.write(end.encode())
            file.write(b"\n}\n")
    except OSError as error:
        raise SleepfmError(f"--json {path} cannot be written: {error.strerror or error}.") from None


def facts_of(night: NightReport) -> dict[str, Any]:
    """Fields of a night but for what is compared between nights, and for its findings, which stand with all others."""
    left_out = ("findings", "patient", "beginning", "extremes")
    return {f.name: getattr(night, f.name) for f in fields(night) if f.name not in left_out}


def examine(files: Sequence[Path], montage: Montage, request: Request, engine: Engine) -> list[NightReport]:
    """Examine every file; one whose worker died is looked at again by itself, and reported if it dies again."""
    reports: dict[Path, NightReport] = {}
    progress = Progress("files", len(files))

    def run(paths: Sequence[Path], *, alone: bool) -> None:
        namesakes = namesakes_of(files if request.labels is not None else ())
        arguments = [
            (
                path,
                montage,
                request.labels,
                request.events_scored,
                request.corrections.of(path),
                namesakes,
                request.meanings,
                request.like is not None,
                request.scorer,
            )
            for path in paths
        ]
        for night in in_parallel(inspect_night, arguments, engine, own_process=alone):
            reports[night.path] = night
            progress.step(failed=night.failure is not None)

    try:
        run(files, alone=engine.spares_this_process)
    except WorkersLost:
        for path in files:
            if path not in reports:
                try:
                    run([path], alone=True)
                except WorkersLost:
                    reports[path] = failed(
                        path, f"{path}: the process that read it died, perhaps because memory ran out."
                    )
                    progress.step(failed=True)
    finally:
        progress.close()
    return sorted(reports.values(), key=lambda night: night.path)
