"""A path of one kind where another was expected: what was given, what was expected, and where the likely one is."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from sleepfm_fast.cli.path_kinds import UNKNOWN, Kind, kind_of, likely_paths
from sleepfm_fast.errors import SleepfmError

__all__ = ["Place", "mistaken", "reads", "refuse_misplaced", "writes"]

COMMAND = "python -m sleepfm_fast"
EMBEDDED = (Kind.EMBEDDINGS, Kind.FEATURES)
# How a path of the first kind is made into one of the second.
MAKERS: dict[tuple[Kind, Kind], str] = {
    **{(kind, Kind.STORE): "preprocess {} STORE" for kind in (Kind.RECORDING, Kind.RECORDINGS, Kind.COHORT)},
    (Kind.NIGHTS_H5, Kind.STORE): "convert {} STORE --from clinical",
    (Kind.SCRIPT_CLIPS, Kind.STORE): "convert {} STORE --from seed",
    (Kind.STORE, Kind.RUN): "train {} RUN",
    (Kind.STORE, Kind.SUPERVISED): "supervise {} RUN --task stage",
    (Kind.STORE, Kind.EMBEDDINGS): "embed RUN {} EMBEDDINGS",
    (Kind.RUN, Kind.EMBEDDINGS): "embed {} STORE {}/embeddings",
    (Kind.CHECKPOINT, Kind.EMBEDDINGS): "embed {} STORE EMBEDDINGS",
    **{(kind, Kind.RESULT): "probe {} RESULT --task stage" for kind in EMBEDDED},
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A positional argument: how help calls it, what was given (None: left out), the kinds it takes, who writes it."""

    name: str
    path: Path | None
    kinds: tuple[Kind, ...]
    is_written: bool = False

    @property
    def found(self) -> Kind:
        """What was given."""
        return Kind.NOTHING if self.path is None else kind_of(self.path)

    @property
    def is_wrong(self) -> bool:
        """Whether what was given is known and of no kind that belongs here; what is unknown its reader judges."""
        return self.found not in (*UNKNOWN, *self.kinds)


def reads(name: str, path: Path | None, *kinds: Kind) -> Place:
    """An argument that a command reads."""
    return Place(name, path, kinds)


def writes(name: str, path: Path | None, *kinds: Kind) -> Place:
    """A folder that a command writes, new or of the kinds it goes on with or may replace."""
    return Place(name, path, kinds, is_written=True)


def mistaken(path: Path, *expected: Kind) -> str:
    """Sentence about a path that is known and of another kind than ``expected``; empty where it is not known."""
    found = kind_of(path)
    if found in (*UNKNOWN, *expected):
        return ""
    likely = likely_paths(path, expected)
    if likely:
        more = f" ({len(likely) - 1} more there)" if len(likely) > 1 else ""
        remedy = f"Give {shown(likely[0])}{more}."
    else:
        maker = next((MAKERS[found, kind] for kind in expected if (found, kind) in MAKERS), None)
        remedy = "" if maker is None else f"Make one: {COMMAND}.{maker.format(*[shlex.quote(str(path))] * 2)}"
    return f"{path} is {found.value}; {expected[0].value} was expected. {remedy}".rstrip()


def shown(path: Path) -> str:
    """A path as one would type it here."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # on another drive
        return str(path)
    return relative if len(relative) < len(str(path)) else str(path)


def refuse_misplaced(command: str, places: Sequence[Place]) -> None:
    """Refuse arguments whose paths are of other kinds than their places take.

    Parameters
    ----------
    command : str
        Its module, for the sentence.
    places : sequence of Place
        In the order in which they are typed.

    Raises
    ------
    SleepfmError
        Where two are exchanged, with the order; else with what was expected and where the likely one is. Also where
        what is read would be written.
    """
    wrong = [place for place in places if place.is_wrong]
    for place in wrong:
        for other in places:
            fits = place.found in other.kinds and (
                other.found in place.kinds or (place.is_written and other.found in (Kind.NOTHING, Kind.EMPTY))
            )
            if other is not place and fits:
                there = "does not exist" if other.found is Kind.NOTHING else f"is {other.found.value}"
                raise SleepfmError(
                    f"the order is {' '.join(p.name for p in places)}: {place.path} is {place.found.value} and was "
                    f"given as {place.name}, {other.path} {there} and was given as {other.name}. Swap the two."
                )
    for place in wrong:
        assert place.path is not None
        if place.is_written:
            usage = f"python -m {command} {' '.join(p.name for p in places)}"
            raise SleepfmError(
                f"{place.path} is {place.found.value}; {place.name} is what {command.rpartition('.')[2]} writes "
                f"({usage}). Name a new folder."
            )
        raise SleepfmError(f"{place.name}: {mistaken(place.path, *place.kinds)}")
    for place in places:
        for other in places:
            if place.is_written and place.found in place.kinds and not other.is_written and is_same(place, other):
                raise SleepfmError(
                    f"{place.path} was given as {other.name}, which is read, and as {place.name}, which is written and "
                    f"would replace it. Name another folder as {place.name}."
                )


def is_same(place: Place, other: Place) -> bool:
    """Whether two arguments name one path."""
    return place.path is not None and other.path is not None and place.path.resolve() == other.path.resolve()
