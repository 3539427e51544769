"""What a path is: a clip store, a run folder, recordings, ...; by what lies in it, without opening any of it."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from sleepfm_fast.cli.json_text import read_object

__all__ = ["UNKNOWN", "Kind", "kind_of", "likely_paths", "places_of"]

RECORDINGS = (".edf", ".bdf", ".rec", ".hea")
PREPARED = (".hdf5", ".h5")
"""Nights as the authors' clinical code keeps them, for convert."""
"""How the names of recordings end, in lower case; a file that is named one by one may have another suffix."""
CHECKPOINTS = (".safetensors", ".pt", ".pth")
ENTRIES_SEEN = 500
"""Entries of a folder that are looked at."""


class Kind(enum.Enum):
    """What commands read and write; the value is how a sentence calls it."""

    STORE = "a clip store"
    RUN = "a run folder"
    SUPERVISED = "a run folder of supervise"
    EMBEDDINGS = "an embeddings folder"
    FEATURES = "a folder of hand-made features"
    RESULT = "a result folder"
    PREDICTIONS = "a folder of predictions"
    REPRODUCTION = "the folder of a reproduction"
    COHORT = "a folder of simulated recordings"
    RECORDINGS = "a folder of recordings"
    RECORDING = "a recording"
    CHECKPOINT = "a checkpoint"
    SCRIPT_CLIPS = "a folder of clips (.npy) of the authors' code"
    NIGHTS_H5 = "nights (HDF5) of the clinical code"
    OTHER = "something else"
    EMPTY = "an empty folder"
    NOTHING = "nothing that exists"


RECORDS = {
    "store.json": Kind.STORE,
    "embeddings.json": Kind.EMBEDDINGS,
    "config.json": Kind.RUN,
    "result.json": Kind.RESULT,
    "predictions.json": Kind.PREDICTIONS,
    "reproduction.json": Kind.REPRODUCTION,
}
"""The file that says what a folder is; one that is damaged says nothing, and its reader tells."""
UNKNOWN = (Kind.OTHER, Kind.EMPTY, Kind.NOTHING)


def kind_of(path: Path) -> Kind:
    """Recognise a file or folder; what cannot be looked at is something else."""
    try:
        if path.is_file():
            return kind_of_file(path)
        if not path.is_dir():
            return Kind.NOTHING
        return kind_of_folder(path)
    except OSError:
        return Kind.OTHER


def kind_of_file(path: Path) -> Kind:
    """By its suffix."""
    suffix = path.suffix.lower()
    if suffix in RECORDINGS:
        return Kind.RECORDING
    if suffix in CHECKPOINTS:
        return Kind.CHECKPOINT
    return Kind.NIGHTS_H5 if suffix in (".h5", ".hdf5") else Kind.OTHER


def kind_of_folder(path: Path) -> Kind:
    """By the record that its command writes, or by the recordings in it."""
    for file, kind in RECORDS.items():
        record = read_object(path / file)
        if str(record.get("format", "")).startswith("sleepfm_fast"):
            if kind is Kind.EMBEDDINGS and record.get("kind") == "feature":
                return Kind.FEATURES
            return Kind.SUPERVISED if kind is Kind.RUN and record.get("command") == "supervise" else kind
    if (path / "simulation.json").is_file():
        return Kind.COHORT
    names = [entry for entry in entries(path) if not entry.name.startswith(".")]
    if not names:
        return Kind.EMPTY
    for kind, suffixes in ((Kind.RECORDINGS, RECORDINGS), (Kind.NIGHTS_H5, (".h5", ".hdf5"))):
        if any(holds(folder, suffixes) for folder in (path, *(e for e in names if e.is_dir()))):
            return kind
    if (path / "X").is_dir() or any(holds(e, (".npy",)) for e in names if e.is_dir() and not (e / "mask.npy").exists()):
        return Kind.SCRIPT_CLIPS
    return Kind.OTHER


def entries(folder: Path) -> list[Path]:
    """Entries of a folder in order, of a large one some; none where it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            return sorted(Path(e.path) for e in islice(found, ENTRIES_SEEN))
    except OSError:
        return []


def holds(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether a folder has a file of that kind."""
    return any(entry.suffix.lower() in suffixes for entry in entries(folder))


def likely_paths(path: Path, kinds: Iterable[Kind]) -> list[Path]:
    """Paths of some kinds that belong to ``path``: of the first kind before others, the likeliest first.

    They are what its own record names, what lies in it, what it lies in, and what lies beside it.
    """
    kinds = tuple(kinds)
    places: dict[str, Path] = {}
    for place in (*named_by(path), *inside(path), *around(path), *beside(path)):
        places.setdefault(os.path.abspath(place), place)  # noqa: PTH100 - ".." goes, links stay
    places.pop(os.path.abspath(path), None)  # noqa: PTH100
    found = [(place, kind_of(place)) for place in places.values()]
    return [place for kind in kinds for place, its in found if its is kind]


def named_by(path: Path) -> Iterator[Path]:
    """What the record of a folder says that it was made from: as written, or beside it if both were moved."""
    for file in RECORDS:
        record = read_object(path / file)
        sources = [record, *(inner for key in ("config", "settings") if isinstance(inner := record.get(key), dict))]
        texts = [source.get(entry) for source in sources for entry in ("store", "run", "embeddings", "result")]
        for named in (Path(text) for text in texts if isinstance(text, str) and text):
            yield named
            if not named.is_absolute():
                yield from (parent / named for parent in islice(path.absolute().parents, 4))


def inside(path: Path) -> Iterator[Path]:
    """Entries of a folder, and of the folders that commands write into by convention."""
    yield from (path / name for name in ("best.safetensors", "embeddings", "store"))
    for folder in (path, path / "results", path / "runs", path / "embeddings"):
        for entry in entries(folder):
            yield entry
            yield entry / "embeddings"


def around(path: Path) -> Iterator[Path]:
    """The folder of a file, and those above that a command has written: any folder may have recordings below it."""
    parent, *others = islice(path.absolute().parents, 3)
    if path.is_file():
        yield parent
    yield from (folder for folder in (parent, *others) if any((folder / file).is_file() for file in RECORDS))


def beside(path: Path) -> Iterator[Path]:
    """Entries of the folder that the path lies in, with their embeddings and results."""
    for entry in entries(path.absolute().parent):
        yield entry
        yield entry / "embeddings"
        yield from entries(entry / "results" if entry.name != "results" else entry)


def places_of(named: str, beside: Path) -> list[Path]:
    """Where a folder may be that files in ``beside`` name: as written, or relative to a folder around them.

    So it is found where both were moved, or the command is given in another folder than then.
    """
    path = Path(named)
    return [path] if path.is_absolute() else [path, *(parent / path for parent in beside.resolve().parents)]
