"""Which signal of a recording fills which slot of a montage, in which unit."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

from sleepfm_fast.formats.units import unit_of
from sleepfm_fast.montage.channel_names import canonical, fits, is_unknown, kind_of, matched_as, numbered_contacts
from sleepfm_fast.montage.montages import CHANNELS, MONTAGES
from sleepfm_fast.montage.slots import KINDS, MODALITIES, MODALITY_OF_KIND, ChannelError, Modality, Montage, Slot
from sleepfm_fast.plurals import agreeing, counted, first_of

if TYPE_CHECKING:
    from sleepfm_fast.edf import Signal

__all__ = [
    "KINDS",
    "MODALITIES",
    "MONTAGES",
    "Assignment",
    "ChannelError",
    "Modality",
    "Montage",
    "Slot",
    "assign",
    "canonical",
    "channel_of",
    "fits",
    "kind_of",
    "likely_slot",
    "meant_slot",
    "passed_over",
    "passed_over_text",
    "resolve_auto",
    "unassigned",
    "unit_of",
    "unknown_labels",
    "unknown_text",
    "unused_by_slot",
    "with_stand_ins",
]

AUTO_SHARE = 0.5
"""Part of a cohort's recordings that must have a channel for ``auto`` to give it a slot."""

EXACT, DERIVED, SUBSTITUTE = range(3)
"""How a signal comes to fill a slot, the best way first."""
Offer = tuple[int, int, int, int, Fraction, int, int]
"""Order in which signals are taken: way, prefix taken off, rank among the aliases, slot, rate, signal, subtracted."""


@dataclass(frozen=True)
class Assignment:
    """What fills a slot.

    Attributes
    ----------
    slot : Slot
    signal : Signal or None
        None: the recording does not have it.
    minus : Signal or None
        Subtracted from ``signal``, of the same rate and unit, where the slot is derived.
    unit : str
        Unit after conversion: ``"uV"`` for potentials; the header's unit elsewhere and where it cannot be trusted.
    unit_scale : float
        Factor from the header's unit to ``unit``.
    issues : tuple of str
        What is doubtful, one sentence each.
    """

    slot: Slot
    signal: Signal | None
    minus: Signal | None
    unit: str
    unit_scale: float
    issues: tuple[str, ...] = ()


def assign(signals: Sequence[Signal], montage: Montage, *, trusted: Collection[int] = ()) -> tuple[Assignment, ...]:
    """Fill the slots of a montage from a recording's signals.

    A slot takes the signal whose label is its earliest alias; else the difference of two signals of one rate and unit
    that are one of its derivations; else a substitute. A signal fills one slot at most (it may be subtracted in
    several); of signals with equally good labels the one with the highest rate is taken, then the first. The order of
    the recording's signals matters in nothing else.

    Parameters
    ----------
    signals : sequence of Signal
    montage : Montage
    trusted : collection of int
        Indices of the signals whose unit is known to be right, whatever their range.

    Returns
    -------
    tuple of Assignment
        One per slot, in the montage's order.
    """
    signals = without_numbered_contacts(signals)
    offers: list[tuple[Offer, int, Signal, Signal | None]] = []
    for place, slot in enumerate(montage.slots):
        for tier, aliases in ((EXACT, slot.aliases), (SUBSTITUTE, slot.substitutes)):
            for rank, alias in enumerate(aliases):
                for shortened, s in matching(signals, alias, slot):
                    offers.append(((tier, shortened, rank, place, -s.fs_hz, s.index, 0), place, s, None))
        for rank, pair in enumerate(slot.derivations):
            for (_, s), (_, t) in itertools.product(*(matching(signals, label, slot) for label in pair)):
                if s is not t and subtractable(s, t, slot.kind, trusted):
                    offers.append(((DERIVED, 0, rank, place, -s.fs_hz, s.index, t.index), place, s, t))
    taken: dict[int, tuple[int, Signal, Signal | None]] = {}
    used: set[int] = set()
    for order, place, plus, minus in sorted(offers, key=lambda offer: offer[0]):
        if place not in taken and plus.index not in used:
            taken[place] = (order[0], plus, minus)
            used.add(plus.index)
    assignments = []
    for place, slot in enumerate(montage.slots):
        if place not in taken:
            assignments.append(Assignment(slot, None, None, "", 1.0))
            continue
        tier, signal, minus = taken[place]
        left = {s.index: s for o, p, s, _ in offers if p == place and o[0] == EXACT and s.index not in used}
        others = [*left.values()] if tier == EXACT else []
        assignments.append(filled(slot, signal, minus, tier == SUBSTITUTE, others, trusted))
    return tuple(assignments)


def without_numbered_contacts(signals: Sequence[Signal]) -> list[Signal]:
    """Signals but for those whose labels look like electrodes and only number contacts."""
    numbered = numbered_contacts(signal.label for signal in signals)
    return [signal for signal in signals if signal.label not in numbered]


def matching(signals: Sequence[Signal], alias: str, slot: Slot) -> list[tuple[int, Signal]]:
    """Signals whose label is a spelling of an alias, each with whether its prefix had to be taken off."""
    found = ((matched_as(signal.label, alias, slot.kind), signal) for signal in signals)
    return [(shortened, signal) for shortened, signal in found if shortened is not None]


def subtractable(signal: Signal, minus: Signal, kind: str, trusted: Collection[int] = ()) -> bool:
    """Whether two signals share rate and unit, so that their difference has a meaning."""
    units = [unit_of(s, kind, trusted=s.index in trusted)[:2] for s in (signal, minus)]
    return signal.fs_hz == minus.fs_hz and units[0] == units[1]


def filled(
    slot: Slot,
    signal: Signal,
    minus: Signal | None,
    stands_in: bool,
    left: Sequence[Signal],
    trusted: Collection[int] = (),
) -> Assignment:
    """Describe a filled slot: its unit and what is doubtful about it."""
    unit, unit_scale, issues = unit_of(signal, slot.kind, trusted=signal.index in trusted)
    if minus is not None:
        issues += unit_of(minus, slot.kind, trusted=minus.index in trusted)[2]
    if stands_in:
        issues += (
            f"signal '{signal.label}' stands in for {slot.name}: its electrodes or reference differ or are not named.",
        )
    if left:
        names = ", ".join(f"'{s.label}' (signal {s.index})" for s in left)
        issues += (f"{names} would fill {slot.name} too; '{signal.label}' (signal {signal.index}) was taken.",)
    return Assignment(slot, signal, minus, unit, unit_scale, tuple(dict.fromkeys(issues)))


def unassigned(signals: Sequence[Signal], assignments: Iterable[Assignment]) -> tuple[Signal, ...]:
    """Signals that fill no slot and are subtracted in none, in the recording's order."""
    used = {part.index for a in assignments for part in (a.signal, a.minus) if part is not None}
    return tuple(signal for signal in signals if signal.index not in used)


def resolve_auto(recordings: Sequence[Sequence[Signal]]) -> Montage:
    """Make a montage of what a cohort has.

    A channel that at least half of the recordings have gets a slot, if its label tells its kind. Labels that differ
    in spelling, or that are known names of one channel (``Thor`` and ``Chest``), are one channel. Slots stand by kind,
    then by their usual place in the recordings; the order of the recordings does not matter.

    Parameters
    ----------
    recordings : sequence of sequences of Signal
        The signals of each recording of the cohort.

    Raises
    ------
    ChannelError
        When no label tells its kind, or no channel is in half of the recordings.
    """
    labels: dict[str, Counter[str]] = {}
    places: dict[str, list[int]] = {}
    kinds: dict[str, str] = {}
    for signals in recordings:
        first: dict[str, Signal] = {}
        for signal in sorted(without_numbered_contacts(signals), key=lambda s: s.index):
            name, kind = channel_of(signal.label)
            if kind is not None:
                first.setdefault(name, signal)
                kinds[name] = kind
                labels.setdefault(name, Counter())[signal.label.strip()] += 1
        for name, signal in first.items():
            places.setdefault(name, []).append(signal.index)
    kept = [name for name, found in places.items() if len(found) >= AUTO_SHARE * len(recordings)]
    if not kept:
        seen = ", ".join(sorted({f"'{s.label}'" for signals in recordings for s in signals})[:20]) or "none"
        raise ChannelError(
            f"no channel of a known kind occurs in at least half of the {counted(len(recordings), 'recording')}; their "
            f"labels are: {seen}. "
            'Say what they are in a file for --overrides, such as {"*": {"EEG 1": {"alias": "C3-M2"}}}, or choose a '
            f"montage by name: {', '.join(MONTAGES)}."
        )
    kept.sort(key=lambda name: (KINDS.index(kinds[name]), statistics.median(places[name]), name))
    slots = [auto_slot(name, kinds[name], labels[name]) for name in kept]
    return Montage(
        "auto",
        tuple(
            Modality(modality, chosen)
            for modality in MODALITIES
            if (chosen := tuple(slot for slot in slots if MODALITY_OF_KIND[slot.kind] == modality))
        ),
    )


def with_stand_ins(montage: Montage) -> Montage:
    """A montage whose slots accept the stand-ins of the channel that they are, as those of ``aasm`` do.

    ``auto`` makes slots without any; of another laboratory's recordings they would stay empty. A slot may have the name
    under which a cohort records the channel: SHHS' ``EEG`` and MESA's ``EEG3`` are both C4-M1.
    """
    modalities = (Modality(m.name, tuple(map(with_stand_in, m.slots))) for m in montage.modalities)
    return Montage(montage.name, tuple(modalities))


def with_stand_in(slot: Slot) -> Slot:
    known = aasm_slot(slot.name, slot.kind)
    if slot.substitutes or known is None:
        return slot
    if known.name == slot.name:
        return replace(slot, substitutes=known.substitutes)
    others = tuple(label for label in (*known.aliases, *known.substitutes) if not fits(label, slot.name, slot.kind))
    return replace(slot, substitutes=others)


def aasm_slot(label: str, kind: str) -> Slot | None:
    """The slot of ``aasm`` that a label fills, itself or as a stand-in."""
    slots = [slot for slot in MONTAGES["aasm"].slots if slot.kind == kind]
    for names in (lambda slot: (slot.name, *slot.aliases), lambda slot: slot.substitutes):
        for slot in slots:
            if any(fits(label, alias, kind) for alias in names(slot)):
                return slot
    return None


def unused_by_slot(recordings: Iterable[Sequence[Signal]], montage: Montage) -> dict[str, list[str]]:
    """Labels that no slot uses and that a slot may mean: of its kind, else of unknown meaning; the commonest first."""
    counts: Counter[str] = Counter()
    for signals in recordings:
        counts.update({signal.label.strip() for signal in unassigned(signals, assign(signals, montage))})
    labels = sorted((label for label in counts if label), key=lambda label: (-counts[label], label))
    unknown = [label for label in labels if is_unknown(label)]
    return {slot.name: [x for x in labels if kind_of(x) == slot.kind] or unknown for slot in montage.slots}


def passed_over(recordings: Sequence[Sequence[Signal]], montage: Montage) -> dict[str, int]:
    """Kinds that most recordings have a channel of and the montage has no slot for, with how many have one.

    Laboratories that record other electrodes leave none that half of a cohort has, though all have an EEG.
    """
    counts: Counter[str] = Counter()
    for signals in recordings:
        counts.update(
            {kind for s in without_numbered_contacts(signals) if (kind := channel_of(s.label)[1]) is not None}
        )
    there = {slot.kind for slot in montage.slots}
    return {kind: n for kind in KINDS if kind not in there and (n := counts[kind]) >= AUTO_SHARE * len(recordings)}


def passed_over_text(kinds: dict[str, int], n_recordings: int) -> str:
    """Sentence about :func:`passed_over`."""
    words = {"eeg": "EEG", "eog": "EOG", "emg": "EMG", "ecg": "ECG", "step": "saturation or pulse rate"}
    listed = ", ".join(f"{words.get(kind, kind)} ({n} of {n_recordings})" for kind, n in kinds.items())
    return (
        "of some kinds most recordings have a channel, but no single channel occurs in half of them, so --montage "
        f"auto takes none: {listed}. Choose --montage aasm, which accepts other electrodes in their place, or give the "
        "channels one name with --overrides"
    )


def unknown_labels(recordings: Iterable[Iterable[str]]) -> dict[str, int]:
    """Labels that are not understood, the commonest first, with how many recordings have them."""
    counts: Counter[str] = Counter()
    for labels in recordings:
        counts.update({label.strip() for label in labels if label.strip() and is_unknown(label)})
    return {label: counts[label] for label in sorted(counts, key=lambda label: (-counts[label], label))}


def unknown_text(labels: Mapping[str, int], n_recordings: int) -> tuple[str, str]:
    """What was found about :func:`unknown_labels`, and what to do."""
    listed = first_of([f"{label} ({n} of {n_recordings})" for label, n in labels.items()], 10)
    example = json.dumps({"*": {next(iter(labels)): {"alias": "Chest"}}}, ensure_ascii=False)
    return (
        f"no slot uses {agreeing(len(labels), 'this label', 'these labels')}, whose meaning is not known: {listed}",
        f"if one is a channel of sleep, say which, as with --overrides {example} (names: {', '.join(CHANNELS)}); "
        "with exclude in place of alias it is left out without this remark",
    )


def likely_slot(label: str, slots: Iterable[Slot]) -> Slot | None:
    """First slot of the kind that a label says, None where it says none or there is no such slot."""
    kind = kind_of(label)
    return next((slot for slot in slots if slot.kind == kind), None)


def meant_slot(label: str, slots: Sequence[Slot]) -> Slot | None:
    """The slot that a label may mean: of an EEG only one that the table knows, as another electrode is another signal.

    SHHS' ``EEG`` and MESA's ``EEG3`` are the same electrodes, ``EEG`` and ``EEG1`` are not.
    """
    if kind_of(label) != "eeg":
        return likely_slot(label, slots)
    known = aasm_slot(label, "eeg")
    return next((slot for slot in slots if known is not None and aasm_slot(slot.name, slot.kind) == known), None)


@lru_cache(maxsize=65536)
def channel_of(label: str) -> tuple[str, str | None]:
    """Canonical name of the channel that a label means, and its kind; unknown labels stand for themselves."""
    kind = kind_of(label)
    for slot in CHANNELS.values():
        if (kind is None or slot.kind == kind) and any(fits(label, alias, slot.kind) for alias in slot.aliases):
            return slot.name, kind
    names = canonical(label)
    return f"={kind}:{names[-1].key if names else label.casefold()}", kind


def auto_slot(name: str, kind: str, labels: Counter[str]) -> Slot:
    """Slot of a cohort's channel: a known one with its aliases, another under its commonest label."""
    common = sorted(labels, key=lambda label: (-labels[label], label))
    if name in CHANNELS:
        known = CHANNELS[name]
        return Slot(known.name, kind, known.aliases, known.derivations)
    return Slot(common[0], kind, tuple(common))
