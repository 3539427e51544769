"""A night that other software has prepared: named channels of one rate in memory or on disk, cut into stretches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.channels import Assignment, Montage, assign
from sleepfm_fast.cohorts.quantise import Quantised, quantise
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.formats.edf_header import Signal
from sleepfm_fast.scoring.labels import ClipGrid
from sleepfm_fast.store.clip_writer import write_night

__all__ = ["ForeignNight", "signals_of", "write_foreign"]


@dataclass(frozen=True)
class ForeignNight:
    """What an importer found.

    Attributes
    ----------
    path : Path
        File or folder.
    labels : tuple of str
        Names of the channels.
    fs_hz : Fraction
        Rate of all channels.
    stretches : tuple of (Fraction, int)
        Onset [s] and samples of each contiguous stretch.
    read : callable
        Takes a channel's number, returns its samples, all stretches one after the other: float [n].
    grid : ClipGrid
        Onsets and labels of the clips.
    clip_stretches : tuple of int
        The stretch that holds each clip.
    kind : str
        What the numbers are, for the channels' notes.
    issues : tuple of str
    events : mapping of str to int, optional
        Respiratory events, as :func:`sleepfm_fast.scoring.respiratory_counts.respiratory_counts` counts them.
    """

    path: Path
    labels: tuple[str, ...]
    fs_hz: Fraction
    stretches: tuple[tuple[Fraction, int], ...]
    read: Callable[[int], npt.NDArray[Any]]
    grid: ClipGrid
    clip_stretches: tuple[int, ...]
    kind: str
    issues: tuple[str, ...] = ()
    events: Mapping[str, int] | None = None


def signals_of(labels: Sequence[str], fs_hz: Fraction) -> tuple[Signal, ...]:
    """Channels without a unit as signals, for :func:`sleepfm_fast.channels.assign`."""
    return tuple(
        Signal(
            index, label, "", "", "", np.nan, np.nan, -32768.0, 32767.0, 1, 0, fs_hz, 1.0, 0.0, calibrated=False
        )
        for index, label in enumerate(labels)
    )  # fmt: skip


def write_foreign(folder: Path, name: str, night: ForeignNight, montage: Montage, facts: dict[str, Any]) -> list[str]:
    """Quantise a night's channels and write them into ``folder``, the ``recordings`` of a store.

    A slot takes a channel that is one of its aliases or substitutes; channels without a unit are never subtracted.

    Parameters
    ----------
    folder : Path
    name : str
        The recording's id.
    night : ForeignNight
    montage : Montage
    facts : dict
        JSON values added to the record.

    Returns
    -------
    list of str
        What is doubtful, as written into the record.

    Raises
    ------
    SleepfmError
        When no channel fills a slot, or there is no clip.
    """
    if not len(night.grid.onsets_s):
        raise SleepfmError(f"{night.path}: no whole clip of 30 s fits.")
    issues = [*night.issues, *night.grid.issues]
    filled: list[tuple[Assignment, Quantised | None]] = []
    for assignment in assign(signals_of(night.labels, night.fs_hz), montage):
        signal = assignment.signal if assignment.minus is None else None
        quantised = None if signal is None else quantise(night.read(signal.index), signal.label)
        if signal is not None and quantised is None:
            issues.append(f"{signal.label}: none of its samples is finite; it counts as missing")
        if quantised is not None:
            issues += [i for i in assignment.issues if "not calibrated" not in i]
            issues += quantised.issues
        filled.append((assignment, quantised))
    if all(q is None for _, q in filled):
        raise SleepfmError(
            f"{night.path}: none of its channels ({', '.join(night.labels)}) fills a slot of the montage "
            f"'{montage.name}'. Choose another montage."
        )
    starts = np.cumsum([0, *(n for _, n in night.stretches)]).tolist()
    write_night(
        folder,
        name,
        [(onset_s, Fraction(n) / night.fs_hz) for onset_s, n in night.stretches],
        ([None if q is None else [q.integers[a:b]] for _, q in filled] for a, b in itertools.pairwise(starts)),
        [channel_facts(a, q, night) for a, q in filled],
        night.grid,
        night.clip_stretches,
        {**facts, "issues": issues},
    )
    return issues


def channel_facts(assignment: Assignment, quantised: Quantised | None, night: ForeignNight) -> dict[str, Any]:
    slot, signal = assignment.slot, assignment.signal
    if quantised is None or signal is None:
        return {"slot": slot.name, "kind": slot.kind, "present": False}
    return {
        "slot": slot.name,
        "kind": slot.kind,
        "present": True,
        "labels": [signal.label],
        "unit": "",
        "fs_hz": [night.fs_hz.numerator, night.fs_hz.denominator],
        "gain": quantised.gain,
        "offset": quantised.offset,
        "dtype": quantised.integers.dtype.str,
        "note": f"{quantised.note}; {night.kind}",
    }
