"""Channels of a network that nights lack: what is predicted for these nights rests on the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleepfm_fast.channels import Montage, channel_of
from sleepfm_fast.cli.json_text import read_object
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import counted, first_of

__all__ = ["MissingChannels", "missing_channels"]

WORDS = {
    **{"eeg": "EEG", "eog": "EOG", "emg": "EMG", "ecg": "ECG", "respiration": "airflow and belts", "snore": "snoring"},
    "step": "saturation and pulse rate",
}


@dataclass(frozen=True)
class MissingChannels:
    """``slots``: of each recording the slots that it has no channel for; ``kinds``: the slots of each kind."""

    slots: dict[str, list[str]]
    kinds: dict[str, list[str]]

    def notices(self) -> list[str]:
        """Sentences on the recordings that lack all channels of a kind."""
        said = []
        for kind, names in self.kinds.items():
            lacking = [recording for recording, slots in self.slots.items() if set(names) <= set(slots)]
            if lacking:
                said.append(
                    f"{counted(len(lacking), 'night has', 'nights have')} no {WORDS[kind]} ({', '.join(names)}), which "
                    "the classifier's inputs are made of: what is predicted there rests on other channels and may be "
                    f"far off ({first_of(lacking, 3)}). If the recordings have it under other names, give these to "
                    "preprocess, with --overrides, and embed the store again"
                )
        return said


def missing_channels(
    store: Path, run: Path | None, recordings: Iterable[str], modalities: Sequence[str]
) -> MissingChannels:
    """Slots of some modalities that the recordings of a store have no channel for.

    Parameters
    ----------
    store : Path
    run : Path or None
        The network's run, whose slots count; without a readable one, those of the store.
    recordings : iterable of str
        Those whose records are unreadable are left out of the result.
    modalities : sequence of str
    """
    montage = montage_of(run / "config.json" if run is not None else None) or montage_of(store / "store.json")
    wanted = [] if montage is None else [slot for m in montage.modalities if m.name in modalities for slot in m.slots]
    kinds: dict[str, list[str]] = {}
    for slot in wanted:
        kinds.setdefault(slot.kind, []).append(slot.name)
    found: dict[str, list[str]] = {}
    for name in recordings if wanted else ():
        channels = read_object(store / "recordings" / f"{name}.json").get("channels")
        if isinstance(channels, list) and all(isinstance(c, dict) and isinstance(c.get("slot"), str) for c in channels):
            there = {c["slot"] for c in channels if c.get("present")}
            there |= {channel_of(slot)[0] for slot in there}
            found[name] = [s.name for s in wanted if not there & {s.name, channel_of(s.name)[0]}]
    return MissingChannels(found, kinds)


def montage_of(path: Path | None) -> Montage | None:
    """The montage in a record of a run or a store; None where there is none that can be read."""
    plain: Any = None if path is None else read_object(path).get("montage")
    if not isinstance(plain, dict):
        return None
    try:
        return Montage.from_dict(plain)
    except SleepfmError:
        return None
