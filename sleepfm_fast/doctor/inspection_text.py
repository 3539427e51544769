"""The report of ``preprocess --inspect`` for people: a table of each night, of the cohort, and of the findings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sleepfm_fast.channels import Montage
from sleepfm_fast.cohorts.participant_tables import ParticipantTables
from sleepfm_fast.cohorts.summary import percentages
from sleepfm_fast.doctor.findings import Finding
from sleepfm_fast.plurals import clock, counted, first_of
from sleepfm_fast.scoring.stages import EPOCH_S

if TYPE_CHECKING:
    from sleepfm_fast.doctor.inspection import NightReport, SlotReport

__all__ = ["cohort_lines", "finding_lines", "night_lines"]

SAME_SHOWN = 3
"""A finding of more nights than that takes one line for all of them."""


def night_lines(report: NightReport, tables: ParticipantTables) -> list[str]:
    """Table of one file."""
    person = tables.of(report.path)
    facts = [f"subject {person.subject}"]
    facts += [f"{person.age:g} years"] if person.age is not None else []
    facts += [person.sex] if person.sex is not None else []
    if report.format == "":
        return [str(report.path), f"  cannot be ingested: {report.failure}"]
    gaps = f", {report.n_segments} segments" if report.n_segments > 1 else ""
    lines = [
        str(report.path),
        f"  {report.format}, {clock(report.duration_s)} h{gaps}, start {report.start or 'unknown'}; {', '.join(facts)}",
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
    lines = [f"{counted(len(reports), 'file')}, {len(good)} can be ingested; montage {montage.name}"]
    names = [slot.name for slot in montage.slots]
    width = max(map(len, names), default=0)
    for i, name in enumerate(names):
        here = [report.slots[i] for report in good if report.slots[i].labels]
        labels = Counter(" - ".join(slot.labels) for slot in here)
        rates = Counter(f"{slot.fs_hz:g}" for slot in here)
        by = ", ".join(f"{label} ({n})" for label, n in labels.most_common(5))
        if len(labels) > 5:
            by += f" and {counted(len(labels) - 5, 'other label')}"
        lines.append(
            f"  {name:<{width}}  {len(here):>5} of {len(good)}" + (f"  {'/'.join(rates)} Hz  {by}" if here else "")
        )
    clips = sum(report.n_clips for report in good)
    lines.append(f"  {counted(clips, 'clip')}, {clips * EPOCH_S / 3600:.2f} hours")
    if excluded:
        lines.append(f"  passed over, annotations only: {first_of([str(path) for path in excluded], 10)}")
    unknown = tables.unknown_recordings(report.path for report in reports)
    if unknown:
        lines.append(f"  the participants table names recordings that were not given: {', '.join(unknown[:10])}")
    lines += [f"  {notice}" for notice in tables.notices(report.path for report in reports)]
    return lines


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """One line a finding, the worst first: severity, recording, channel, what it is, what to do."""
    if not findings:
        return ["findings: none"]
    counts = Counter(finding.severity for finding in findings)
    lines = ["findings: " + ", ".join(counted(n, severity) for severity, n in counts.items())]
    groups: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in findings:
        # remarks are alike when they differ in numbers only
        alike = finding.text if finding.code in ("remark", "meaning", "long_events", "two_scorers") else ""
        if finding.code == "no_scoring":  # for each reason one line; the action tells it, with the names of files
            alike = finding.action.replace(Path(finding.paths[0]).stem, "#")
        what = re.sub(r"[\d.,]+", "#", alike)
        groups.setdefault((finding.severity, finding.code, finding.channel, what), []).append(finding)
    for (severity, code, channel, _), same in groups.items():
        shown = same if len(same) <= SAME_SHOWN else same[:1]
        for finding in shown:
            where = Path(finding.paths[0]).name if len(finding.paths) == 1 else f"{len(finding.paths)} recordings"
            if shown is not same:
                where = f"{counted(len(same), 'recording')}, such as {where}"
            what = f"{channel}: " if channel else ""
            todo = f" -> {finding.action}" if finding.action else ""
            lines.append(f"  {severity:<7}  {code:<16}  {where}  {what}{finding.text}{todo}")
    return lines
