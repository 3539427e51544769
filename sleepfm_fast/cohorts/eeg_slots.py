"""Nights whose electrodes a montage does not suit: EEG that is lost, or in slots of its own; mastoids taken for EEG."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepfm_fast.channels import Montage, assign, channel_of, unassigned
from sleepfm_fast.montage.channel_names import canonical
from sleepfm_fast.plurals import agreeing, counted, first_of

if TYPE_CHECKING:
    from sleepfm_fast.edf import Signal

__all__ = [
    "DERIVES",
    "NightEeg",
    "against_one",
    "against_one_text",
    "apart",
    "apart_text",
    "lost",
    "lost_text",
    "remedy",
]

DERIVES = "--montage aasm derives C3-M2 and the like, and the bipolar chin and ECG"
MASTOIDS = {"m1", "m2"}
GROUPS_SHOWN = 4
LABELS_SHOWN = 4
NIGHTS_SHOWN = 3


@dataclass(frozen=True)
class NightEeg:
    """The slots of EEG that a night fills, in the montage's order; the labels of its EEG channels that fill none."""

    path: Path
    filled: tuple[str, ...]
    spare: tuple[str, ...] = ()

    @staticmethod
    def of(path: Path, signals: Sequence[Signal], montage: Montage) -> NightEeg:
        """Take it from a header."""
        assignments = assign(signals, montage)
        slots = [a.slot for a in assignments if a.signal is not None]
        labels = [signal.label for signal in unassigned(signals, assignments)]
        return NightEeg(
            path,
            tuple(slot.name for slot in slots if slot.kind == "eeg"),
            tuple(label.strip() for label in labels if channel_of(label)[1] == "eeg"),
        )

    @staticmethod
    def of_record(record: Mapping[str, Any], montage: Montage) -> NightEeg:
        """Take what a night fills from its record in a store."""
        channels = zip(montage.slots, record["channels"], strict=True)
        filled = tuple(slot.name for slot, channel in channels if slot.kind == "eeg" and channel["present"])
        return NightEeg(Path(record["source"]["path"]), filled)


def remedy(*, auto: bool) -> str:
    """What to do about EEG that is lost or apart; ``auto``: the montage is that of ``--montage auto``."""
    alike = "name the same electrodes alike with --overrides"
    if not auto:
        return alike
    return (
        "--montage aasm gives all of them the same slots, where other electrodes may stand in (each use is a remark); "
        f"or {alike}"
    )


def lost(nights: Sequence[NightEeg]) -> list[NightEeg]:
    """Nights that have an EEG, of which the montage uses none."""
    return [night for night in nights if night.spare and not night.filled]


def lost_text(nights: Sequence[NightEeg]) -> str:
    """Sentence about :func:`lost`."""
    counts = Counter(label for night in nights for label in night.spare)
    return (
        f"{counted(len(nights), 'night goes', 'nights go')} without EEG, though "
        f"{agreeing(len(nights), 'it has', 'they have')} "
        f"{first_of([label for label, _ in counts.most_common()], LABELS_SHOWN)}: {named(nights)}"
    )


def apart(nights: Sequence[NightEeg], order: Sequence[str]) -> list[tuple[list[str], list[NightEeg]]]:
    """Groups of nights whose EEG fills slots that no night of another group fills, the largest first; [] where one.

    Their slots stand in ``order``, that of the montage.
    """
    groups: list[tuple[set[str], list[NightEeg]]] = []
    for night in nights:
        slots, members = set(night.filled), [night]
        if not slots:
            continue
        for other in [group for group in groups if group[0] & slots]:
            groups.remove(other)
            slots, members = slots | other[0], other[1] + members
        groups.append((slots, members))
    if len(groups) < 2:
        return []
    ordered = [(sorted(slots, key=order.index), members) for slots, members in groups]
    return sorted(ordered, key=lambda group: (-len(group[1]), order.index(group[0][0])))


def apart_text(groups: Sequence[tuple[Sequence[str], Sequence[NightEeg]]]) -> str:
    """Sentence about :func:`apart`."""
    shown = [f"{', '.join(slots)} ({named(members)})" for slots, members in groups]
    return (
        f"the EEG of {len(groups)} groups of nights never fills the same slot, so a model could tell the groups by "
        f"their slots: {first_of(shown, GROUPS_SHOWN)}"
    )


def against_one(nights: Sequence[NightEeg]) -> list[NightEeg]:
    """Nights whose mastoids are channels of their own and fill slots, as if they were EEG."""
    return [n for n in nights if MASTOIDS & {name.key for slot in n.filled for name in canonical(slot)}]


def against_one_text(nights: Sequence[NightEeg]) -> str:
    """Sentence about :func:`against_one`."""
    return (
        f"{counted(len(nights), 'night was', 'nights were')} recorded against a common reference, with the mastoids "
        f"(A1, A2) as channels of their own, which would be taken for EEG: {named(nights)}"
    )


def named(nights: Sequence[NightEeg]) -> str:
    return first_of([night.path.name for night in nights], NIGHTS_SHOWN)
