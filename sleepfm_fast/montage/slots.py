"""What a montage is: modalities, and in each of them slots, one for a signal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sleepfm_fast.errors import SleepfmError

__all__ = ["KINDS", "MODALITIES", "MODALITY_OF_KIND", "ChannelError", "Modality", "Montage", "Slot"]

MODALITIES = ("respiratory", "brain", "ecg")
"""Modalities in the order in which they are stacked."""
KINDS = ("eeg", "eog", "emg", "ecg", "respiration", "snore", "step")
"""Kinds of channel; they choose the filter. ``step`` is a trend in steps: oxygen saturation, pulse rate."""
MODALITY_OF_KIND = {
    **{"eeg": "brain", "eog": "brain", "emg": "brain", "ecg": "ecg"},
    **{"respiration": "respiratory", "snore": "respiratory", "step": "respiratory"},
}


class ChannelError(SleepfmError):
    """A montage or channel that does not exist or cannot be used, and the choices."""


@dataclass(frozen=True)
class Slot:
    """A place in a montage for one signal.

    Attributes
    ----------
    name : str
        Canonical name.
    kind : str
        One of :data:`KINDS`.
    aliases : tuple of str
        Labels that mean this channel, best first; the name itself is always among them.
    derivations : tuple of (str, str)
        Pairs of labels whose difference is this channel, used where no alias is there.
    substitutes : tuple of str
        Labels of channels that may stand in, best first, at last; each use is reported.
    """

    name: str
    kind: str
    aliases: tuple[str, ...]
    derivations: tuple[tuple[str, str], ...] = ()
    substitutes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Modality:
    """An ordered list of slots under one of the names in :data:`MODALITIES`."""

    name: str
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Montage:
    """The modalities that a model is fed, in the order respiratory, brain, ecg."""

    name: str
    modalities: tuple[Modality, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All slots, modality by modality."""
        return tuple(slot for modality in self.modalities for slot in modality.slots)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and strings, fit for JSON."""
        plain = asdict(self)
        for modality in plain["modalities"]:
            for slot in modality["slots"]:
                slot["aliases"], slot["substitutes"] = list(slot["aliases"]), list(slot["substitutes"])
                slot["derivations"] = [list(pair) for pair in slot["derivations"]]
            modality["slots"] = list(modality["slots"])
        plain["modalities"] = list(plain["modalities"])
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Montage:
        """Rebuild what :meth:`to_dict` gave.

        Raises
        ------
        ChannelError
            When a field is missing, a kind or modality does not exist, or two slots share a name.
        """
        try:
            modalities = tuple(
                Modality(
                    str(modality["name"]),
                    tuple(
                        Slot(
                            str(slot["name"]),
                            str(slot["kind"]),
                            tuple(map(str, slot["aliases"])),
                            tuple((str(plus), str(minus)) for plus, minus in slot.get("derivations", ())),
                            tuple(map(str, slot.get("substitutes", ()))),
                        )
                        for slot in modality["slots"]
                    ),
                )
                for modality in plain["modalities"]
            )
            montage = cls(str(plain["name"]), modalities)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ChannelError(
                f"a montage could not be rebuilt ({type(error).__name__}: {error}); expected a name and modalities, "
                "each with slots of name, kind and aliases."
            ) from error
        check(montage)
        return montage


def check(montage: Montage) -> None:
    """Raise ChannelError unless modalities, kinds and slot names are in order."""
    names = [modality.name for modality in montage.modalities]
    if [name for name in MODALITIES if name in names] != names:
        raise ChannelError(
            f"montage '{montage.name}' has the modalities {names}; expected {list(MODALITIES)}, in order."
        )
    for slot in montage.slots:
        if slot.kind not in KINDS:
            raise ChannelError(f"slot '{slot.name}' has the kind '{slot.kind}'; choose one of: {', '.join(KINDS)}.")
        labels = (*slot.aliases, *slot.substitutes, *(label for pair in slot.derivations for label in pair))
        if not all(label.strip() for label in labels):
            raise ChannelError(f"slot '{slot.name}' has an alias, or part of a derivation, without a name.")
    slots = [slot.name for slot in montage.slots]
    if repeated := sorted({name for name in slots if slots.count(name) > 1}):
        raise ChannelError(f"montage '{montage.name}' has two slots named {', '.join(repeated)}; names must differ.")
