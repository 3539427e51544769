"""What is doubtful between the nights of a cohort: montages that differ, nights that are one, odd amplitudes."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepfm_fast.channels import unknown_labels, unknown_text
from sleepfm_fast.cohorts import eeg_slots
from sleepfm_fast.cohorts.eeg_slots import NightEeg
from sleepfm_fast.cohorts.participant_tables import ParticipantTables
from sleepfm_fast.cohorts.silent_nights import REMEDY, is_scored, is_silent, sentence
from sleepfm_fast.doctor.extremes import shared_extremes
from sleepfm_fast.doctor.findings import Finding, override
from sleepfm_fast.doctor.measures import POTENTIALS, begins_like, identical_samples
from sleepfm_fast.doctor.night_findings import minutes
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import counted, first_of
from sleepfm_fast.recordings import open_recording

if TYPE_CHECKING:
    from sleepfm_fast.doctor.inspection import NightReport

__all__ = ["cohort_findings"]

OUTLYING = 30.0
"""Between people amplitudes differ up to tenfold, between two units a thousandfold: the boundary lies between."""
MIN_NIGHTS = 5
"""Fewer nights have no median worth comparing with."""
GROUPS_SHOWN = 4


def cohort_findings(nights: Sequence[NightReport], tables: ParticipantTables, *, auto: bool = True) -> list[Finding]:
    """Compare the nights that can be ingested; ``auto``: their montage is that of ``--montage auto``."""
    copies = [*identical(nights, tables), *cut_short(nights, tables)]
    copies += same_nights(nights, tables, copies)
    return [
        *mixed_montages(nights), *silent(nights), *copies, *shared(nights, tables), *one_person(nights, tables, copies),
        *outlying(nights), *unused(nights), *unsuited(nights, auto=auto),
    ]  # fmt: skip


def named(nights: Sequence[Any]) -> str:
    return first_of([night.path.name for night in nights], 3)


def mixed_montages(nights: Sequence[NightReport]) -> Iterator[Finding]:
    """Groups of nights that fill the same slots at the same rates."""
    groups: dict[tuple[tuple[str, float], ...], list[NightReport]] = {}
    for night in nights:
        groups.setdefault(night.montage_key, []).append(night)
    if len(groups) < 2:
        return
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[1][0].path))
    usual = dict(ordered[0][0])
    texts = []
    for key, members in ordered[1 : 1 + GROUPS_SHOWN]:
        here = dict(key)
        lacks = [slot for slot in usual if slot not in here]
        more = [slot for slot in here if slot not in usual]
        rates = [f"{s} at {here[s]:g} instead of {usual[s]:g} Hz" for s in usual if s in here and here[s] != usual[s]]
        what = [f"lack {', '.join(lacks)}"] if lacks else []
        what += [f"have {', '.join(more)}"] if more else []
        what += [first_of(rates, 3)] if rates else []
        texts.append(f"{len(members)} ({named(members)}) {'; '.join(what)}")
    rest = f"; and {counted(len(ordered) - 1 - GROUPS_SHOWN, 'more group')}" if len(ordered) > 1 + GROUPS_SHOWN else ""
    yield Finding(
        "note", "mixed_montages", tuple(str(m.path) for _, members in ordered[1:] for m in members), "",
        f"{len(ordered)} montages: {counted(len(ordered[0][1]), 'night has', 'nights have')} the commonest; "
        f"{' | '.join(texts)}{rest}",
        "nothing to do: different rates are resampled to one, and missing channels are masked; aliases may fill "
        "slots that are not really missing",
        {"groups": [{"nights": len(members), "slots": dict(key)} for key, members in ordered]},
    )  # fmt: skip


def silent(nights: Sequence[NightReport]) -> Iterator[Finding]:
    """Scored nights without a respiratory event: a bias where others have some, else perhaps nobody scored events."""
    scored = [night for night in nights if is_scored(night.stages)]
    found = [night for night in scored if is_silent(night.stages, night.sdb)]
    if found:
        yield Finding(
            "warning" if len(found) < len(scored) else "note", "no_events", tuple(str(n.path) for n in found), "",
            f"{sentence(len(found), len(scored))}: {named(found)}", REMEDY,
            {"nights": len(found), "scored": len(scored)},
        )  # fmt: skip


def identical(nights: Sequence[NightReport], tables: ParticipantTables) -> Iterator[Finding]:
    """Recordings under several names; what agrees in the samples read is compared from beginning to end."""
    groups: dict[str, list[NightReport]] = {}
    for night in nights:
        if night.digest:
            groups.setdefault(night.digest, []).append(night)
    for members in groups.values():
        first, *others = members
        if not others:
            continue
        try:
            recording = open_recording(first.path)
            same = [m for m in others if identical_samples(recording, open_recording(m.path))]
        except SleepfmError:
            continue
        if not same:
            continue
        subjects = sorted({tables.of(m.path).subject or "" for m in (first, *same)})
        leak = (
            f", of {len(subjects)} subjects ({', '.join(subjects[:3])}): it would be in both training and test"
            if len(subjects) > 1
            else ""
        )
        # the one to keep is scored, and named by the table
        surplus = min((*reversed(same), first), key=lambda m: (is_scored(m.stages), tables.names(m.path)))
        yield Finding(
            "warning", "identical", tuple(str(m.path) for m in (first, *same)), "",
            f"hold the same samples from beginning to end: {named([first, *same])}{leak}",
            f'keep one: --overrides {{"{surplus.path.name}": "exclude"}}', {"subjects": subjects},
        )  # fmt: skip


def cut_short(nights: Sequence[NightReport], tables: ParticipantTables) -> Iterator[Finding]:
    """Recordings that are the beginning of another one, as an incomplete copy is."""
    groups: dict[str, dict[str, NightReport]] = {}
    for night in nights:
        if night.beginning:  # of copies that are identical one stands for all
            groups.setdefault(night.beginning, {}).setdefault(night.digest, night)
    for members in groups.values():
        longest, *others = sorted(members.values(), key=lambda m: (-m.duration_s, m.path))
        for night in others:
            try:
                if not begins_like(open_recording(longest.path), open_recording(night.path)):
                    continue
            except SleepfmError:
                continue
            subjects = sorted({tables.of(m.path).subject or "" for m in (longest, night)})
            leak = f", of another subject ({', '.join(subjects)})" if len(subjects) > 1 else ""
            yield Finding(
                "warning", "identical", (str(longest.path), str(night.path)), "",
                f"{night.path.name} holds the first {minutes(night.duration_s)} of {longest.path.name} "
                f"({minutes(longest.duration_s)}): a copy that was cut short{leak}",
                f'keep the longer: --overrides {{"{night.path.name}": "exclude"}}', {"subjects": subjects},
            )  # fmt: skip


def same_nights(
    nights: Sequence[NightReport], tables: ParticipantTables, known: Sequence[Finding]
) -> Iterator[Finding]:
    """Recordings of one night in two formats, or with other gains: their signals reach their extremes together.

    Headers decide nothing: those of different nights may all state one date, and of a copy another one.
    """
    told = [set(finding.paths) for finding in known]
    found = {
        two: shared
        for two, shared in shared_extremes([night.extremes for night in nights]).items()
        if not any({str(nights[i].path) for i in two} <= paths for paths in told)
    }
    groups: list[set[int]] = []
    for two in found:
        meeting = [group for group in groups if group & set(two)]
        groups = [group for group in groups if group not in meeting] + [set(two).union(*meeting)]
    for group in groups:
        least, of = min((n, of) for two, (n, of) in found.items() if set(two) <= group)
        members = sorted((nights[i] for i in group), key=lambda m: m.path)
        subjects = sorted({tables.of(m.path).subject or "" for m in members})
        leak = (
            f", of {len(subjects)} subjects ({', '.join(subjects[:3])}): it would be in both training and test"
            if len(subjects) > 1
            else ""
        )
        starts = sorted({str(m.start) for m in members})
        said = f"they all start at {starts[0]}" if len(starts) == 1 else f"their starts are {first_of(starts, 3)}"
        kept = max(members, key=lambda m: (is_scored(m.stages), tables.names(m.path), len(m.channels)))
        surplus = {m.path.name: "exclude" for m in members if m is not kept}
        yield Finding(
            "warning", "same_night", tuple(str(m.path) for m in members), "",
            f"are probably one night in two formats or with other gains: {named(members)} reach their extremes at the "
            f"same samples in {least} of {of} minutes of a channel; by the headers {said}{leak}",
            f"keep one: --overrides {json.dumps(surplus, ensure_ascii=False)}",
            {"shared": least, "compared": of, "subjects": subjects},
        )  # fmt: skip


def shared(nights: Sequence[NightReport], tables: ParticipantTables) -> Iterator[Finding]:
    """File names in several folders, whose nights count as one subject's."""
    for stem, paths in tables.shared_names(night.path for night in nights).items():
        yield Finding(
            "warning", "shared_name", tuple(map(str, paths)), "",
            f"{len(paths)} recordings in {counted(len({p.parent for p in paths}), 'folder')} are called {stem}: their "
            f"subject is taken to be one, '{tables.of(paths[0]).subject}'",
            "if they are several people, name them with --participants, with the folder before the file name "
            f"({paths[0].parent.name}/{paths[0].name})",
            {"recordings": len(paths)},
        )  # fmt: skip


def one_person(
    nights: Sequence[NightReport], tables: ParticipantTables, copies: Sequence[Finding]
) -> Iterator[Finding]:
    """Names that look like several nights of one person, who counts as several subjects.

    What are copies of one night, their headers need not say again.
    """
    alike = list(tables.perhaps_one_person(night.path for night in nights))
    for paths in alike:
        yield Finding(
            "warning", "perhaps_one_person", tuple(map(str, paths)), "",
            f"{len(paths)} names ({', '.join(p.stem for p in paths[:3])}) look like nights of one person, who counts "
            f"as {len(paths)} subjects and may be in both training and test",
            "if they are, give --participants with the columns recording and subject",
            {"recordings": len(paths)},
        )  # fmt: skip
    groups: dict[str, list[NightReport]] = {}
    for night in nights:
        if night.patient:
            groups.setdefault(night.patient, []).append(night)
    for members in groups.values():
        paths = [m.path for m in members]
        n_subjects = len({tables.of(path).subject for path in paths})
        of_most = len(nights) >= MIN_NIGHTS and 2 * len(members) > len(nights)
        # Named by their files or copies of one another, they have a finding already.
        known = any(set(paths) <= set(others) for others in (*alike, *(map(Path, c.paths) for c in copies)))
        told = all(tables.tells_person(path) for path in paths)
        if n_subjects > 1 and not of_most and not known and not told:
            yield Finding(
                "warning", "perhaps_one_person", tuple(map(str, paths)), "",
                f"the headers of {len(paths)} recordings ({named(members)}) name the same patient, who counts as "
                f"{counted(n_subjects, 'subject')} and may be in both training and test",
                "if they are one person, give --participants with the columns recording and subject",
                {"recordings": len(paths)},
            )  # fmt: skip


def outlying(nights: Sequence[NightReport]) -> Iterator[Finding]:
    """Potentials whose stored amplitude is far from that of the other nights' in the same slot."""
    by_slot: dict[str, list[tuple[NightReport, str, float]]] = {}
    for night in nights:
        for slot, (label, kind, amplitude) in night.amplitudes.items():
            if kind in POTENTIALS and math.isfinite(amplitude) and amplitude > 0:
                by_slot.setdefault(slot, []).append((night, label, amplitude))
    for slot, values in by_slot.items():
        if len(values) < MIN_NIGHTS:
            continue
        middle = statistics.median(amplitude for _, _, amplitude in values)
        for night, label, amplitude in values:
            ratio = amplitude / middle
            if any(f.code == "unit" and f.channel == label.strip() for f in night.findings):
                continue  # the night's own finding names the unit that fits
            if not 1 / OUTLYING <= ratio <= OUTLYING:
                yield Finding(
                    "warning", "outlier", (str(night.path),), label,
                    f"its amplitude in {slot} is {ratio:.3g} times the cohort's median",
                    f"another unit or gain? state it: {override(night.path, label, unit='mV')}",
                    {"ratio": ratio, "median": middle},
                )  # fmt: skip


def unused(nights: Sequence[NightReport]) -> Iterator[Finding]:
    """Labels that no slot uses: of unknown meaning, and all others."""
    spare = [[c["label"].strip() for c in night.channels if not c["used"]] for night in nights]
    unknown = unknown_labels(spare)
    if unknown:
        text, action = unknown_text(unknown, len(nights))
        paths = (str(n.path) for n, labels in zip(nights, spare, strict=True) if unknown.keys() & set(labels))
        yield Finding("warning", "unknown_label", tuple(paths), "", text, action, {"labels": unknown})
    counts = Counter(label for labels in spare for label in set(labels) if label and label not in unknown)
    if counts:
        listed = first_of([f"{label} ({n} of {len(nights)})" for label, n in counts.most_common()], 10)
        paths = (str(n.path) for n, labels in zip(nights, spare, strict=True) if counts.keys() & set(labels))
        yield Finding(
            "note", "unused_label", tuple(paths), "", f"no slot uses: {listed}",
            "nothing to do, unless one is meant: then give it the slot's name as alias with --overrides",
            {"labels": dict(counts)},
        )  # fmt: skip


def unsuited(nights: Sequence[NightReport], *, auto: bool) -> Iterator[Finding]:
    """Nights whose electrodes the montage does not suit."""
    seen = [eeg_of(night) for night in nights]
    found = eeg_slots.against_one(seen) if auto else []
    if found:
        yield Finding(
            "warning", "common_reference", tuple(str(n.path) for n in found), "",
            eeg_slots.against_one_text(found), eeg_slots.DERIVES, {"nights": len(found)},
        )  # fmt: skip
    found = eeg_slots.lost(seen)
    if found and len(found) < len(nights):
        yield Finding(
            "warning", "eeg_lost", tuple(str(n.path) for n in found), "",
            eeg_slots.lost_text(found), eeg_slots.remedy(auto=auto), {"nights": len(found)},
        )  # fmt: skip
    groups = eeg_slots.apart(seen, [slot.slot for slot in nights[0].slots] if nights else [])
    if groups:
        yield Finding(
            "warning", "eeg_apart", tuple(str(n.path) for _, members in groups[1:] for n in members), "",
            eeg_slots.apart_text(groups), eeg_slots.remedy(auto=auto), {"groups": [len(m) for _, m in groups]},
        )  # fmt: skip


def eeg_of(night: NightReport) -> NightEeg:
    spare = (c["label"].strip() for c in night.channels if c["kind"] == "eeg" and not c["used"])
    return NightEeg(night.path, tuple(s.slot for s in night.slots if s.kind == "eeg" and s.labels), tuple(spare))
