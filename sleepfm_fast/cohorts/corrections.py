"""Corrections that the user states (``--overrides``): channels renamed, units set, polarity turned, things left out.

Nothing is corrected that no entry names, and what was corrected stands in the night's record. The file is JSON:
patterns of recordings, each with patterns of channels, each with what is to be corrected::

    {
      "*":              {"ECG": {"invert": true}},
      "site-2/*.edf":   {"EEG 1": {"alias": "C3-M2", "unit": "mV"}, "#7": {"exclude": true}},
      "night-17.edf":   "exclude"
    }

A pattern without ``/`` is compared with the file name, one with ``/`` with the end of the path; ``*``, ``?`` and
``[...]`` are wildcards. A channel is named by its label as the header writes it, a pattern of labels, or ``#`` and its
number in the header from 0; case does not matter. Entries count in the order of the file: later ones add to earlier
ones, or replace them.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.storage.standing import digest_of_value

if TYPE_CHECKING:
    from sleepfm_fast.edf import Recording, Signal

__all__ = ["Corrected", "Corrections", "read_corrections"]

KEYS = {
    "alias": "a label",
    "unit": "a unit such as uV, mV or V",
    "scale": "a number other than 0, from 1e-30 to 1e30, that multiplies the values",
    "invert": "true or false",
    "exclude": "true or false",
}
EXCLUDE = "exclude"
MOST_SCALE = 1e30


@dataclass(frozen=True)
class Corrected:
    """Signals of a recording as they are to be used.

    Attributes
    ----------
    signals : tuple of Signal
        With labels, units and calibration corrected; excluded ones gone.
    trusted : frozenset of int
        Indices of signals whose unit the user stated: it is not doubted.
    applied : tuple of dict
        What was done: index and label in the header, and the keys of the entry.
    """

    signals: tuple[Signal, ...]
    trusted: frozenset[int]
    applied: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Corrections:
    """Entries of the file ``path``: (pattern of recordings, pattern of channels, keys), in order.

    ``left_out`` are the patterns of recordings that are not to be ingested.
    """

    path: Path | None = None
    entries: tuple[tuple[str, str, dict[str, Any]], ...] = ()
    left_out: tuple[str, ...] = ()

    @cached_property
    def _named(self) -> Patterns:
        return Patterns(pattern for pattern, _, _ in self.entries)

    @cached_property
    def _excluded(self) -> Patterns:
        return Patterns(self.left_out)

    def excludes(self, path: Path) -> bool:
        """Whether the recording is not to be ingested."""
        return bool(self._excluded.naming(path))

    def of(self, path: Path) -> Corrections:
        """Return the entries that count for a recording: all that the worker that reads it needs."""
        return Corrections(self.path, tuple(self.entries[i] for i in self._named.naming(path)))

    def digest(self, path: Path) -> str:
        """Digest of the entries that count for the recording; empty where there are none."""
        mine = [self.entries[i][1:] for i in self._named.naming(path)]
        return digest_of_value(mine)[:16] if mine else ""

    def apply(self, path: Path, signals: Sequence[Signal]) -> Corrected:
        """Correct the signals of the recording ``path``."""
        mine = [self.entries[i][1:] for i in self._named.naming(path)]
        if not mine:
            return Corrected(tuple(signals), frozenset(), ())
        corrected, trusted, applied = [], [], []
        for signal in signals:
            keys: dict[str, Any] = {}
            for channel, more in mine:
                if names_channel(channel, signal):
                    keys |= more
            if keys:
                applied.append({"index": signal.index, "label": signal.label, **keys})
            if keys.get("exclude"):
                continue
            if "unit" in keys:
                trusted.append(signal.index)
            corrected.append(correct(signal, keys))
        return Corrected(tuple(corrected), frozenset(trusted), tuple(applied))

    def apply_to(self, recording: Recording) -> tuple[Recording, Corrected]:
        """Correct a whole recording."""
        corrected = self.apply(recording.path, recording.signals)
        return (replace(recording, signals=corrected.signals) if corrected.applied else recording), corrected

    def unused(self, files: Iterable[tuple[Path, Sequence[Signal]]], left_out: Iterable[Path] = ()) -> list[str]:
        """Describe the entries that match nothing.

        Parameters
        ----------
        files : iterable of (Path, sequence of Signal)
            The recordings, with the headers as written.
        left_out : iterable of Path
            Those that the entries exclude, whose headers need not be known.
        """
        open_entries = {(pattern, channel) for pattern, channel, _ in self.entries}
        found = {i for path in left_out for i in self._excluded.naming(path)}
        open_files = {pattern for i, pattern in enumerate(self.left_out) if i not in found}
        for path, signals in files:
            if not open_entries:
                break
            for i in self._named.naming(path):
                pattern, channel, _ = self.entries[i]
                if (pattern, channel) in open_entries and any(names_channel(channel, s) for s in signals):
                    open_entries.discard((pattern, channel))
        return [f"'{pattern}'" for pattern in sorted(open_files)] + [
            f"'{channel}' of '{pattern}'" for pattern, channel in sorted(open_entries)
        ]


class Patterns:
    """Patterns of recordings. Those without wildcards are looked up: a large cohort may have one for every night."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.exact: dict[tuple[str, ...], list[int]] = {}
        self.wild: list[tuple[int, list[re.Pattern[str]]]] = []
        for i, pattern in enumerate(patterns):
            parts = PurePosixPath(pattern.casefold()).parts
            if any(c in pattern for c in "*?["):
                self.wild.append((i, [re.compile(fnmatch.translate(part)) for part in parts]))
            else:
                self.exact.setdefault(parts, []).append(i)
        self.lengths = sorted({len(parts) for parts in self.exact})

    def naming(self, path: Path) -> list[int]:
        """Return the numbers of the patterns that name a recording, in order."""
        if not self.exact and not self.wild:
            return []
        whole = tuple(part.casefold() for part in path.parts)
        found = [i for length in self.lengths for i in self.exact.get(whole[-length:], ())]
        found += [
            i
            for i, parts in self.wild
            if len(parts) <= len(whole)
            and all(part.match(name) for part, name in zip(parts, whole[-len(parts) :], strict=True))
        ]
        return sorted(found)


def names_channel(pattern: str, signal: Signal) -> bool:
    if re.fullmatch(r"#\d{1,9}", pattern):
        return int(pattern[1:]) == signal.index
    label, wanted = signal.label.strip().casefold(), pattern.strip().casefold()
    return label == wanted or fnmatch.fnmatchcase(label, wanted)


def correct(signal: Signal, keys: dict[str, Any]) -> Signal:
    factor = float(keys.get("scale", 1.0)) * (-1.0 if keys.get("invert") else 1.0)
    return replace(
        signal,
        label=keys.get("alias", signal.label),
        unit=keys.get("unit", signal.unit),
        gain=signal.gain * factor,
        offset=signal.offset * factor,
        physical_min=signal.physical_min * factor,
        physical_max=signal.physical_max * factor,
        calibrated=signal.calibrated or "unit" in keys,
    )


def read_corrections(path: Path | None) -> Corrections:
    """Read and check a file of corrections; None gives none.

    Raises
    ------
    SleepfmError
        When the file cannot be read, is not of the form above, or an entry says nothing or the impossible.
    """
    if path is None:
        return Corrections()
    if str(path).lstrip().startswith("{") and not os.path.exists(path):  # noqa: PTH110 - it may be too long for a name
        raise SleepfmError(
            f"--overrides {path} is the corrections themselves; expected the name of a file that holds them. Write "
            "them into one, corrections.json for instance, and give --overrides corrections.json."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys(path))
    except OSError as error:
        raise SleepfmError(f"--overrides {path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise SleepfmError(f"--overrides {path} is not JSON: {error}.") from None
    form = 'expected {"pattern of recordings": {"channel": {"alias": ..., "unit": ..., "invert": true}}}'
    if not isinstance(content, dict):
        raise SleepfmError(f"--overrides {path} holds {describe(content)}; {form}.")
    entries: list[tuple[str, str, dict[str, Any]]] = []
    left_out = []
    for pattern, channels in content.items():
        where = f"--overrides {path}: '{pattern}'"
        if not PurePosixPath(pattern).parts or pattern.startswith("/"):
            raise SleepfmError(f"{where} is not a pattern of recordings; give a file name or the end of a path.")
        if channels == EXCLUDE:
            left_out.append(pattern)
            continue
        if not isinstance(channels, dict) or not channels:
            raise SleepfmError(f'{where} has {describe(channels)}; expected channels with corrections, or "{EXCLUDE}".')
        entries += [(pattern, channel, checked(keys, f"{where}, '{channel}'")) for channel, keys in channels.items()]
    return Corrections(path, tuple(entries), tuple(left_out))


def unique_keys(path: Path) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = sorted(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        if twice:
            raise SleepfmError(f"--overrides {path} names '{twice[0]}' twice in one place; join the two entries.")
        return dict(pairs)

    return build


def describe(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def checked(keys: Any, where: str) -> dict[str, Any]:
    """Return the keys of an entry, or raise."""
    choices = "; ".join(f"{name}: {what}" for name, what in KEYS.items())
    if not isinstance(keys, dict) or not keys:
        raise SleepfmError(f"{where} has {describe(keys)}; expected one or more of: {choices}.")
    for name, value in keys.items():
        if name not in KEYS:
            raise SleepfmError(f"{where} has the key '{name}'; choose from: {choices}.")
        if name in ("alias", "unit"):
            good = isinstance(value, str) and bool(value.strip())
        elif name == "scale":
            good = isinstance(value, int | float) and not isinstance(value, bool)
            good = good and 1 / MOST_SCALE <= abs(value) <= MOST_SCALE
        else:
            good = isinstance(value, bool)
        if not good:
            raise SleepfmError(f"{where}: '{name}' is {json.dumps(value)}; expected {KEYS[name]}.")
    return dict(keys)
