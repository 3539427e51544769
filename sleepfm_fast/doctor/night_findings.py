"""What is doubtful about a night as a whole: its scoring against its samples, gaps, and the montage's empty slots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sleepfm_fast.channels import Montage, meant_slot, unassigned
from sleepfm_fast.cohorts.night import Night
from sleepfm_fast.cohorts.night_scoring import NONE_INSTEAD, OWN_INSTEAD
from sleepfm_fast.doctor.findings import Finding
from sleepfm_fast.edf import Recording, read_recording
from sleepfm_fast.formats.edf_header import INCOMPLETE
from sleepfm_fast.plurals import counted
from sleepfm_fast.scoring.files import NOT_USED, SEEMS_TO_LIE
from sleepfm_fast.scoring.labels import OVERLONG, TWO_SCORERS
from sleepfm_fast.scoring.lights import lights_of
from sleepfm_fast.scoring.stage_spans import StageSpan, stage_spans
from sleepfm_fast.scoring.stages import EPOCH_S, NO_STAGE
from sleepfm_fast.scoring.texts import asks_meaning

__all__ = ["minutes", "night_findings"]

UNSCORED_S = 120.0
"""Lead-in or tail without a stage that is worth saying: four epochs; shorter ones are the calibration's."""
BEYOND_S = 30.0
"""Scoring may end one epoch after the samples: the last epoch is often scored though it is not whole."""
SHIFT_S = 1.0
"""Clocks of scoring and recording that differ by less are one clock, rounded."""
MOSTLY = 0.5
"""Half of the clips: less labels than that are seldom what is meant."""


def night_findings(night: Night, montage: Montage) -> list[Finding]:
    """Judge a night that was read with ``montage``."""
    path = str(night.recording.path)
    found = [
        Finding("warning" if severe else "note", code, (path,), channel, text, action, figures)
        for code, severe, channel, text, action, figures in (
            *missing(night, montage), *incomplete(night.recording), *gaps(night.recording), *scored(night)
        )
    ]  # fmt: skip
    # What is wrong with units is judged from the samples, what lacks a stage is told with its times.
    told = {issue for c in night.channels for issue in c.assignment.issues if "potential" in issue or "range" in issue}
    told |= {issue for issue in night.issues if "every clip has stage none" in issue}
    told |= {issue for issue in night.issues if INCOMPLETE in issue}
    told |= {issue for issue in night.issues if night.scoring is None and SEEMS_TO_LIE in issue}
    if night.scoring_path is None:  # of one that was found in the end, what else lies beside it is a remark
        told |= {i for i in night.issues if NOT_USED in i or i.startswith((OWN_INSTEAD, NONE_INSTEAD))}
    rest = [issue for issue in night.issues if issue not in told]
    return found + [
        Finding("warning", "meaning", (path,), "", issue, "") if asks_meaning(issue) else
        Finding("warning", "long_events", (path,), "", issue, "") if OVERLONG in issue else
        Finding("warning", "two_scorers", (path,), "", issue, "") if TWO_SCORERS in issue else
        Finding("note", "remark", (path,), "", issue, "")
        for issue in rest
    ]  # fmt: skip


Said = tuple[str, bool, str, str, str, dict[str, object]]


def missing(night: Night, montage: Montage) -> Iterator[Said]:
    """Modalities and slots that no channel fills."""
    unused = [s.label.strip() for s in unassigned(night.recording.signals, [c.assignment for c in night.channels])]
    filled = {c.assignment.slot.name for c in night.channels if c.signal is not None}
    for modality in montage.modalities:
        slots = [slot for slot in modality.slots if slot.name not in filled]
        empty = [slot.name for slot in slots]
        action = "nothing to do: it is masked"
        if unused:
            shown = ", ".join(unused[:4]) + (", ..." if len(unused) > 4 else "")
            action += f"; if a channel that is not used ({shown}) is meant"
            likely = next(((label, slot) for label in unused if (slot := meant_slot(label, slots))), None)
            if likely is None:
                action += ", give it the slot's name as alias with --overrides"
            else:
                entry = {night.recording.path.name: {likely[0]: {"alias": likely[1].name}}}
                action += f": --overrides {json.dumps(entry, ensure_ascii=False)}"
        figures: dict[str, object] = {"slots": empty}
        if empty and len(empty) == len(modality.slots):
            yield "missing_modality", True, modality.name, f"no channel of {modality.name}", action, figures
        elif empty:
            text = f"no channel for {counted(len(empty), 'slot')}"
            yield "missing_slot", False, ", ".join(empty), text, action, figures


def incomplete(recording: Recording) -> Iterator[Said]:
    """A file that is shorter than its header says."""
    if not recording.n_missing:
        return
    lost_s, n_whole = recording.missing_s, recording.n_records + recording.n_missing
    whole_s = float(n_whole * recording.record_s)
    n_bytes = recording.header_bytes + n_whole * recording.record_bytes
    text = f"the last {minutes(lost_s)} of {minutes(whole_s)} are missing: {INCOMPLETE}"
    action = f"copy it again: whole it has {n_bytes} bytes; what is there can be used"
    yield "incomplete", lost_s >= EPOCH_S, "", text, action, {"seconds": lost_s, "bytes": n_bytes}


def gaps(recording: Recording) -> Iterator[Said]:
    """Interruptions of a discontinuous file; where a drifting clock cuts it, nothing is interrupted."""
    ends = [s.onset_s + s.n_records * recording.record_s for s in recording.segments]
    starts = zip(ends, recording.segments[1:], strict=False)
    lost = [max(float(b.onset_s - a), 0.0) for a, b in starts if not b.drifted]
    if not lost:
        return
    text = f"{counted(len(lost), 'gap')}, {sum(lost):g} s of {recording.duration_s:g} s are missing"
    action = "nothing to do: clips lie inside one segment; if the gaps are not real, correct the record starts"
    yield "gaps", False, "", text, action, {"gaps": len(lost), "seconds": sum(lost)}


def scored(night: Night) -> Iterator[Said]:
    """Scoring against the recording: where it begins and ends, whose clock it has, how much it covers."""
    recording = night.recording
    if night.scoring is None:
        stem = recording.path.stem
        action = (
            f"name its file like the recording ({stem}.csv, {stem}-Hypnogram.edf), beside it or in the folder of "
            "--labels; for one recording --labels takes a file of any name"
        )
        action = next((issue for issue in night.issues if SEEMS_TO_LIE in issue or NOT_USED in issue), action)
        found = "read" if night.unreadable else "found"
        yield "no_scoring", True, "", f"no scoring was {found}", action, {}
        return
    if night.unreadable and night.scoring_path is None:
        text = next(issue for issue in night.issues if NOT_USED in issue)
        action = "repair the file, or move it away if it is no scoring; until then its own annotations are used"
        yield "scoring_not_read", True, "", text, action, {}
    spans = [s for s in stage_spans(night.scoring.events, []) if s.end_s > s.onset_s]
    staged = [span for span in spans if span.code != NO_STAGE]
    if not staged:
        yield "no_stages", True, "", "its scoring names no sleep stage", "name another file with --labels", {}
        return
    first_s, last_s = min(s.onset_s for s in staged), max(s.end_s for s in staged)
    end_s = recording.duration_s
    yield from clocks(night)
    if UNSCORED_S <= first_s < end_s:  # of scoring that lies outside, scoring_beyond says so
        text = f"the first {minutes(first_s)} have no stage"
        yield "unscored_lead_in", False, "", text, "nothing to do: those clips have stage none", {"seconds": first_s}
    if UNSCORED_S <= end_s - last_s < end_s:
        text = f"the recording continues for {minutes(end_s - last_s)} after the last stage"
        action = "nothing to do: those clips have stage none; if it should be scored, is it the whole scoring?"
        yield "unscored_tail", False, "", text, action, {"seconds": end_s - last_s}
    if last_s - end_s > BEYOND_S or first_s < -BEYOND_S:
        over_s = max(last_s - end_s, -first_s)
        where = "after the end" if last_s - end_s >= -first_s else "before the start"
        n_epochs = sum(overhang(span, end_s) for span in staged) / EPOCH_S
        text = f"stages reach {minutes(over_s)} beyond the recording, {where} ({counted(n_epochs, 'epoch', spec='g')})"
        action = "is it this recording's scoring, is the recording whole, and do their start times agree?"
        yield "scoring_beyond", True, "", text, action, {"seconds": over_s, "epochs": n_epochs}
    share = float(np.mean(night.grid.stage == NO_STAGE)) if night.grid.stage.size else 0.0
    if share > MOSTLY:
        text = f"{100 * share:.0f} % of the clips have no stage"
        yield "mostly_unscored", True, "", text, "is it this recording's scoring, and its start time?", {"share": share}
    yield from lights(night, first_s, last_s)


def overhang(span: StageSpan, end_s: float) -> float:
    """Seconds of a stage before the recording's start and after its end."""
    inside_s = max(0.0, min(span.end_s, end_s) - max(span.onset_s, 0.0))
    return span.end_s - span.onset_s - inside_s


def clocks(night: Night) -> Iterator[Said]:
    """Compare the start that a scoring in an EDF file states with the recording's."""
    path, start = night.scoring_path, night.recording.start
    if path is None or start is None or path.suffix.lower() not in (".edf", ".bdf"):
        return
    other = read_recording(path).start
    if other is None:
        return
    shift_s = (other.replace(tzinfo=None) - start.replace(tzinfo=None)).total_seconds()
    if abs(shift_s) >= SHIFT_S:
        text = f"the scoring {path.name} states the start {other}, the recording {start}: {shift_s:+g} s"
        action = "its stages were shifted by that much" if abs(shift_s) < 86_400 else "more than a day: not shifted"
        yield "scoring_start", True, "", text, f"{action}; check that both clocks are right", {"seconds": shift_s}


def lights(night: Night, first_s: float, last_s: float) -> Iterator[Said]:
    """First marker of lights off and last of lights on, against the first and last stage."""
    for name, onset_s in lights_of(night.scoring).items():
        early_s = onset_s - first_s if name == "off" else last_s - onset_s
        if early_s >= UNSCORED_S:
            side = "before" if name == "off" else "after"
            text = f"lights {name} at {minutes(onset_s)}, {minutes(early_s)} of stages lie {side}"
            action = "nothing is cut; leave those epochs out of the scoring if they are not sleep opportunity"
            yield "lights", False, "", text, action, {"onset_s": onset_s, "seconds": early_s}


def minutes(seconds: float) -> str:
    """A length of time as findings say it."""
    return f"{seconds:.0f} s" if abs(seconds) < 600 else f"{seconds / 60:.1f} min"


def unreadable(path: Path, sentence: str) -> Finding:
    """A night that cannot be ingested."""
    return Finding(
        "error",
        "unreadable",
        (str(path),),
        "",
        sentence,
        "if that cannot be repaired, remove the file; the others are not affected",
    )
