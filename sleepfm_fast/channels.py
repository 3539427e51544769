"""Which signal of a recording fills which slot of a montage, in which unit."""

from __future__ import annotations

import itertools
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

from sleepfm_fast.montages import (
    CHANNELS,
    KINDS,
    MODALITIES,
    MODALITY_OF_KIND,
    MONTAGES,
    ChannelError,
    Modality,
    Montage,
    Slot,
)
from sleepfm_fast.units import unit_of

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
    "kind_of",
    "likely_slot",
    "montage_named",
    "passed_over",
    "passed_over_text",
    "resolve_auto",
    "unassigned",
    "unit_of",
]

AUTO_SHARE = 0.5
"""Part of a cohort's recordings that must have a channel for ``auto`` to give it a slot."""

EXACT, DERIVED, SUBSTITUTE = range(3)
"""How a signal comes to fill a slot, the best way first."""
Offer = tuple[int, int, int, int, Fraction, int, int]
"""Order in which signals are taken: way, prefix taken off, rank among the aliases, slot, rate, signal, subtracted."""

# 10-20 names that changed (T3 -> T7 and so on) and the two names of the mastoid reference.
RENAMED = {"a1": "m1", "a2": "m2", "t3": "t7", "t4": "t8", "t5": "p7", "t6": "p8"}
ELECTRODE = re.compile(r"(?:fp|af|fc|ft|cp|tp|po|f|c|t|p|o)(?:10|[1-9]|z)|[ni]z|[am][12]|e[12]|pg[12]")
PREFIX = re.compile(r"(eeg|eog|ecg|ekg|emg|resp|resp\.|respiration)[\s_.:/(-]+(?=\S)")
REFERENCE = re.compile(r"[\s_.:/-]+(?:ref|reference|le)\d*$")
UNIT_BEHIND = re.compile(r"\s*[\[(]\s*(?:[numµμ]?v|%|bpm|cmh2o)\s*[\])]\s*$")
"""``EEG F3-M2 [uV]``: some exports write the unit into the label."""
KIND_OF_PREFIX = {
    **{"eeg": ("eeg", "eog"), "eog": ("eog",), "ecg": ("ecg",), "ekg": ("ecg",), "emg": ("emg",)},
    **{"resp": ("respiration", "snore", "step"), "respiration": ("respiration", "snore", "step")},
}

# What a label says of its signal's kind, tried in this order on the words of the label. None: not a signal to learn
# from (scored, technical, or of no modality).
KIND_RULES: tuple[tuple[str | None, str], ...] = (
    (None, r"hypnogram|stages?|status|trigger|trig|marker|events?|annotations?|epoch|scoring|lights?|photic|battery"),
    (None, r"imp|impedance|temp|temperature|rectal|position|pos|body|posture|activity|actigraphy|acc|accel\w*|gravity"),
    (None, r"(?:[xyz] axis|elevation|ambient|humidity|unused|dc ?\d+|off|none|empty|ptt|rr|rri|phase|quality|bp|abp)"),
    (
        None,
        r"(?:video|camera|cpap|leak|tidal|pleth\w* ?rate|derived|flow ?limit\w*|rmi|technical)",
    ),
    (
        "emg",
        r"emg\w*|chin\w*|submental\w*|mentalis|masseter|[lr]?leg\w*|tib\w*|lat|rat|plm\w*|limb\w*|kinn|menton|jambe\w*|bein\w*",
    ),
    ("eog", r"eog\w*|loc|roc|leog|reog|e[12]|pg[12]|pos8|pos18"),
    ("ecg", r"[ex]?[ec][ck]g\w*|ekg\w*|lead|cardio|electrocardiogramme"),
    ("snore", r"snor\w*|ronfl\w*|schnarch\w*|mic\w*|sound|audio|larynx"),
    (
        "step",
        r"sp ?o2\w*|sa ?o2\w*|o2 ?sat\w*|sat|sat o2|osat|saturation|oxi\w*|oxym\w*|sattigung",
    ),
    ("step", r"(?:et|tc|p)co2|co2|capno\w*|pulse?|pulse ?rate|pr|hr|heart\w*|bpm|pouls|\w*frequenz"),
    (
        "respiration",
        r"resp\w*|flow\w*|\w*flow|air|therm\w*|nasal|oronasal|oro|pres|press|pressure|cannula|canule|ptaf|pap",
    ),
    (
        "respiration",
        r"chest|tho\w*|thx|abd\w*|rip\w*|effort\w*|belt|rib\w*|sangle|bauch|brust\w*|pleth\w*|flux|debit|naf",
    ),
    (
        "respiration",
        r"npress|pes|sum|ripsum|xsum|esoph\w*|intercost\w*|diaphragm|atem\w*|torax|torace|addome|vth|vto|vab",
    ),
    ("eeg", r"eeg\w*"),
)


@dataclass(frozen=True)
class Name:
    """A label without its spelling: the key, and, where a prefix such as ``EEG`` was taken off, the kinds it allows."""

    key: str
    kinds: tuple[str, ...] = ()


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


@lru_cache(maxsize=65536)
def canonical(label: str) -> tuple[Name, ...]:
    """Reduce a label to names that do not depend on spelling, the fullest first.

    Case, accents, spaces and separators go; A1, A2, T3-T6 become M1, M2, T7, T8, P7, P8; a trailing ``-Ref`` or
    ``-LE`` goes; and a prefix such as ``EEG`` goes in the second name, which then only fits slots of that kind.
    """
    plain = unicodedata.normalize("NFKD", label.replace("μ", "u").replace("µ", "u")).casefold()
    plain = "".join(c for c in plain if not unicodedata.combining(c)).strip()
    plain = REFERENCE.sub("", UNIT_BEHIND.sub("", plain))
    names = [Name(key(plain))]
    if match := PREFIX.match(plain):
        names.append(Name(key(plain[match.end() :]), KIND_OF_PREFIX[match[1].rstrip(".")]))
    return tuple(name for name in names if name.key)


def key(plain: str) -> str:
    """Join the words of a case-folded label; words made of electrode names get their present names."""
    return "".join(present_names(word) for word in re.findall(r"[a-z0-9+]+", plain))


def present_names(word: str) -> str:
    """``c3a2`` -> ``c3m2``; words that are not made of electrode names alone stay."""
    found = ELECTRODE.findall(word)
    if "".join(found) != word:
        return word
    return "".join(RENAMED.get(electrode, electrode) for electrode in found)


def fits(label: str, alias: str, kind: str) -> bool:
    """Whether a label is a spelling of an alias of a slot of some kind."""
    return matched_as(label, alias, kind) is not None


def matched_as(label: str, alias: str, kind: str) -> int | None:
    """0 where the whole label is a spelling of the alias, 1 where it is without its prefix, None where it is not."""
    wanted = canonical(alias)[0].key
    for place, name in enumerate(canonical(label)):
        if name.key == wanted and (not name.kinds or kind in name.kinds):
            return place
    return None


def montage_named(name: str) -> Montage:
    """Return a montage by its name.

    Raises
    ------
    ChannelError
        When there is none; lists the choices.
    """
    if name in MONTAGES:
        return MONTAGES[name]
    hint = " ('auto' is made from a cohort's signals by resolve_auto)" if name == "auto" else ""
    raise ChannelError(f"there is no montage '{name}'{hint}; choose one of: {', '.join(sorted(MONTAGES))}, auto.")


def kind_of(label: str) -> str | None:
    """Tell a signal's kind by its label; None where the label does not say, or names no signal to learn from."""
    plain = unicodedata.normalize("NFKD", label).casefold()
    plain = UNIT_BEHIND.sub("", "".join(c for c in plain if not unicodedata.combining(c)).strip())
    plain = REFERENCE.sub("", plain)
    words = re.findall(r"[a-z0-9+]+", plain)
    text = " ".join(words)
    # A prefix that the standard texts of EDF+ define overrules everything behind it.
    prefix = words[0] if len(words) > 1 else ""
    if prefix in ("eeg", "eog", "ecg", "ekg", "emg"):
        return "ecg" if prefix == "ekg" else prefix
    for rule_kind, rule in KIND_RULES:
        if re.search(rf"(?:^| )(?:{rule})(?: |$)", text):
            return rule_kind
    # any pair of electrodes: C3-M2, Fp1A2, Cz
    if words and all("".join(ELECTRODE.findall(word)) == word or word in REFERENCES for word in words):
        return "eeg" if any(ELECTRODE.match(word) for word in words) else None
    for slot in CHANNELS.values():
        if any(fits(label, alias, slot.kind) for alias in slot.aliases):
            return slot.kind
    return None


REFERENCES = frozenset(("avg", "ave", "ar", "av", "lm", "ref", "le", "g1", "g2", "gnd"))


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
        for signal in sorted(signals, key=lambda s: s.index):
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
            f"no channel with a known kind is in half of the {len(recordings)} recordings; their labels are: {seen}. "
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


def passed_over(recordings: Sequence[Sequence[Signal]], montage: Montage) -> dict[str, int]:
    """Kinds that most recordings have a channel of and the montage has no slot for, with how many have one.

    Laboratories that record other electrodes leave none that half of a cohort has, though all have an EEG.
    """
    counts: Counter[str] = Counter()
    for signals in recordings:
        counts.update({kind for s in signals if (kind := channel_of(s.label)[1]) is not None})
    there = {slot.kind for slot in montage.slots}
    return {kind: n for kind in KINDS if kind not in there and (n := counts[kind]) >= AUTO_SHARE * len(recordings)}


def passed_over_text(kinds: dict[str, int], n_recordings: int) -> str:
    """Sentence about :func:`passed_over`."""
    words = {"eeg": "EEG", "eog": "EOG", "emg": "EMG", "ecg": "ECG", "step": "saturation or pulse rate"}
    listed = ", ".join(f"{words.get(kind, kind)} ({n} of {n_recordings})" for kind, n in kinds.items())
    return (
        "most recordings have channels of a kind of which no single one is in half of them, so that --montage auto "
        f"takes none: {listed}. Choose --montage aasm, where other electrodes stand in, or give channels one name with "
        "--overrides"
    )


def likely_slot(label: str, slots: Iterable[Slot]) -> Slot | None:
    """First slot of the kind that a label says, None where it says none or there is no such slot."""
    kind = kind_of(label)
    return next((slot for slot in slots if slot.kind == kind), None)


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
