"""Which file of labels belongs to which recording: by its name, and by its folders where names repeat."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from sleepfm_fast.cli.path_kinds import RECORDINGS
from sleepfm_fast.scoring.folder_owners import FolderOwners
from sleepfm_fast.scoring.timed_texts import ScoringError

__all__ = [
    "NOT_USED", "SEEMS_TO_LIE", "Namesakes", "ending", "find_scoring", "find_scorings", "namesakes_of",
    "scoring_folder", "similar_scorings",
]  # fmt: skip

# Beside a recording, in this order: S is the recording's name without its suffix.
BESIDE = (
    *(
        "-nsrr.xml",
        "-profusion.xml",
        ".xml",
        ".edf.xml",
        ".rml",
        "-hypnogram.edf",
        "_hypnogram.edf",
        "_sleepscoring.edf",
    ),
    *(".st", ".arousal", ".allscore.txt", ".stg.txt"),
    *(".csv", ".tsv", "-stages.csv", "_stages.csv", "-hypnogram.csv", "_hypnogram.csv", "-annotations.csv"),
    *("_annotations.csv", "-scoring.csv", "_scoring.csv", "-events.csv", "_events.csv", "_events.tsv"),
    *(".txt", "-stages.txt", "_stages.txt", "-hypnogram.txt", "_hypnogram.txt", "_hypnogram.tsv"),
    *("-annotations.txt", "_annotations.txt", "-scoring.txt", "_scoring.txt", "-events.txt", "_events.txt"),
    *("_sleepscoring.txt", "_stage.txt", "_1.txt", ".annot", ".eannot", "_respevt.txt", ".sco.txt"),
)
BESIDE_PSG = ("-hypnogram.edf", "_hypnogram.edf", " hypnogram.edf", " base.edf", "-base.edf", "_base.edf")
"""Of ``S-PSG.edf``, ``S PSG.edf`` and the like, behind ``S``."""
BESIDE_BIDS = (
    *("_hypnogram.tsv", "_events.tsv", "_hypnogram.csv", "_annotations.csv"),
    *("_sleep_annotations.csv", "_events_annotations.csv", "_sleepannotations.csv", "_eventannotations.csv"),
)
"""Of ``sub-01_task-sleep_eeg.edf``, behind ``sub-01_task-sleep`` or ``sub-01``: those of BIDS, and of the Human Sleep
Project's sites."""
FIRST_SCORER = "_1.txt"
"""``1_1.txt`` is the first of two scorings of ``1.rec`` (ISRUC), unless there is a recording ``1_1``."""

NOT_USED = "beside the recording was not used as its scoring"
"""Stands in the remark on a file that is named like a scoring and cannot be read."""
SEEMS_TO_LIE = "seems to lie in"
"""Stands in the remark that names the folder of :func:`scoring_folder`."""
SCORINGS = re.compile(r"annot|scor|hypno|label|staging|stages|events", re.IGNORECASE)
MANY_FOLDERS = 8
SETTLED_NS = 2_000_000_000
"""A folder that was changed less than this ago may change once more without another time: some systems count in 2 s."""
FOLDERS_UP = 4
"""``edfs/lab/full/homepap-lab-full-1600001.edf`` has its scoring beside ``edfs``."""

ENDINGS = (
    "hypnogram.edf",
    "scoring.edf",
    "base.edf",
    ".xml",
    ".rml",
    ".st",
    ".arousal",
    ".csv",
    ".tsv",
    ".txt",
    ".annot",
    ".eannot",
)
"""How the names of all of them end."""
MANY = 2
"""Stages and events may lie in two files; numbers that more files share say nothing."""


@dataclass(frozen=True)
class Namesakes:
    """Recordings that share a file name without suffix with another one, in a folder of their own.

    They are kept as one text: a cohort may have a ``night1.edf`` in each of 15,000 folders, and all of them go to a
    worker process with every night.

    ``asked`` is another text for every cohort that is looked through: one process may do so again and again, and a
    scoring that came into a subfolder meanwhile leaves the time of the folder of labels as it was.
    """

    text: str = ""
    asked: str = field(default="", compare=False)

    def of(self, stem: str) -> tuple[Path, ...]:
        """Return the recordings of a name in lower case; none where at most one recording has it."""
        return by_stem(self.text).get(stem, ()) if self.text else ()


@lru_cache(maxsize=4)
def by_stem(text: str) -> dict[str, tuple[Path, ...]]:
    found: dict[str, list[Path]] = {}
    for path in map(Path, text.split("\0")):
        found.setdefault(path.stem.casefold(), []).append(path)
    return {stem: tuple(paths) for stem, paths in found.items()}


def namesakes_of(recordings: Iterable[Path]) -> Namesakes:
    """Recordings of a cohort that share a name, in different folders."""
    found: dict[str, list[Path]] = {}
    for path in recordings:
        found.setdefault(path.stem.casefold(), []).append(path)
    shared = [paths for paths in found.values() if len({path.parent for path in paths}) > 1]
    return Namesakes("\0".join(str(path) for paths in shared for path in paths), secrets.token_hex(8))


def find_scoring(
    recording_path: str | Path,
    labels: str | Path | None = None,
    namesakes: Namesakes | None = None,
) -> Path | None:
    """Return the first of :func:`find_scorings`, None where there is none."""
    return next(iter(find_scorings(recording_path, labels, namesakes)), None)


def find_scorings(
    recording_path: str | Path,
    labels: str | Path | None = None,
    namesakes: Namesakes | None = None,
) -> tuple[Path, ...]:
    """Find the files of labels that belong to a recording, the one to be preferred first.

    Parameters
    ----------
    recording_path : str or Path
        The recording ``S.edf``.
    labels : str or Path, optional
        A file, which is taken as it is, or a folder, searched with all its subfolders. By default the recording's own
        folder is searched, without subfolders.
    namesakes : Namesakes, optional
        The cohort's recordings that share a name, as :func:`namesakes_of` gives them.

    Returns
    -------
    tuple of Path
        Those that are there, in the order ``S-nsrr.xml``, ``S-profusion.xml``, ``S.xml``, ``S-Hypnogram.edf``,
        ``S.st``, ``S.arousal``, ``S.csv``, ``S.txt`` and the like; for Sleep-EDF, ``SC4001EC-Hypnogram.edf`` belongs to
        ``SC4001E0-PSG.edf``, for MASS ``S Base.edf`` to ``S PSG.edf``. Of several files of one name in ``labels``, the
        one whose folders are named like the recording's: ``scoring/site/s1/night1.csv`` for
        ``edf/site/s1/night1.edf``; and never one whose folders are more like those of a namesake. Empty
        where there is none: the recording's own annotations may still hold the scoring.

    Raises
    ------
    SleepfmError
        When ``labels`` does not exist, or the folders do not tell whose a scoring is.
    """
    recording_path = Path(recording_path)
    stem = recording_path.stem.casefold()
    sleep_edf = re.fullmatch(r"(s[ct]\d{4}[a-z])\w-psg", stem)
    bids = re.fullmatch(r"(.+)_(?:eeg|psg)", stem)
    psg = re.fullmatch(r"(.+)[-_ ](?:eeg|psg)", stem)
    if labels is None:
        files = listed(recording_path.parent)
    else:
        labels = Path(labels)
        if labels.is_file():
            return (labels,)
        if not labels.is_dir():
            raise ScoringError(f"labels {labels}: there is no such file or folder.")
        files = files_below(labels, labels.stat().st_mtime_ns, "" if namesakes is None else namesakes.asked)
    names = [stem + suffix for suffix in BESIDE if suffix != FIRST_SCORER]
    if psg:
        names += [psg[1] + suffix for suffix in BESIDE_PSG]
    if sleep_edf:
        pattern = re.compile(re.escape(sleep_edf[1]) + r"\w-hypnogram\.edf")
        names += [name for name in files.starting(sleep_edf[1]) if pattern.fullmatch(name)]
    if bids:
        without_task = re.sub(r"_task-[^_]+", "", bids[1])
        names += [start + s for start in dict.fromkeys((bids[1], without_task)) for s in BESIDE_BIDS]
    first = stem + FIRST_SCORER
    if files.get(first) and not is_recording(recording_path, FIRST_SCORER.partition(".")[0]):
        names.append(first)
    same = recording_path.resolve()
    found: dict[Path, None] = {}
    for name in names:
        group = files.get(name)
        if not group:
            continue
        if labels is None:
            found |= dict.fromkeys(path for path in group if path.resolve() != same)
            continue
        try:
            own = owned(recording_path, labels, files, name, namesakes or Namesakes())
        except ScoringError:
            if not found:  # what only completes a scoring need not be told apart
                raise
        else:
            found |= {} if own is None or own.resolve() == same else {own: None}
    return tuple(found)


def is_recording(path: Path, behind: str) -> bool:
    """Whether a recording's neighbour, of its name with ``behind``, is a recording too."""
    return any(os.path.isfile(path.with_name(f"{path.stem}{behind}{suffix}")) for suffix in RECORDINGS)  # noqa: PTH113


def similar_scorings(recording_path: str | Path, labels: str | Path | None = None) -> tuple[Path, ...]:
    """Find files that may be a recording's scoring although :func:`find_scorings` does not take their names.

    Parameters
    ----------
    recording_path : str or Path
        The recording.
    labels : str or Path, optional
        As for :func:`find_scorings`.

    Returns
    -------
    tuple of Path
        Files of labels with the recording's numbers in their names: ``night-01_scored.csv`` for ``Night 01.edf``. None
        where the recording's name has no number or several files have the same, as then any might be meant.
    """
    recording_path = Path(recording_path)
    folder = recording_path.parent if labels is None else Path(labels)
    numbers = numbers_in(recording_path.stem)
    if not numbers or not folder.is_dir():
        return ()
    taken = {recording_path.stem.casefold() + suffix for suffix in BESIDE}  # if not used, then for their folders
    files = files_by_numbers(folder, labels is not None, folder.stat().st_mtime_ns).get(numbers, ())
    similar = tuple(itertools.islice((file for file in files if file.name.casefold() not in taken), MANY + 1))
    return similar if len(similar) <= MANY else ()


def scoring_folder(recording_path: Path) -> Path | None:
    """Find a folder for ``--labels``, beside the recordings' or one of its parents, that holds a recording's scoring.

    The NSRR's cohorts have recordings in ``polysomnography/edfs`` and their scoring in
    ``polysomnography/annotations-events-nsrr``. Only folders with such names are looked into.
    """
    for parent in recording_path.resolve().parents[:FOLDERS_UP]:
        for folder in folders_of_scorings(parent, changed_ns(parent)):
            try:
                if find_scorings(recording_path, folder):
                    return folder
            except (OSError, ScoringError):
                continue
    return None


def changed_ns(folder: Path) -> int:
    """When something was put into a folder or taken out of it; 0 where the system does not say."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=64)
def folders_of_scorings(parent: Path, modified_ns: int) -> tuple[Path, ...]:
    """Subfolders whose names say that they hold scorings, in the order of their names; none where there are many.

    A folder for every night is none to search for all of them. They are listed again when ``modified_ns`` has changed.
    """
    try:
        with os.scandir(parent) as entries:
            found = sorted(parent / e.name for e in entries if SCORINGS.search(e.name) and e.is_dir())
    except OSError:
        return ()
    return tuple(found) if len(found) <= MANY_FOLDERS else ()


def ending(path: Path) -> str:
    """What a scoring's name adds to its recording's."""
    return "-Hypnogram.edf" if path.suffix.casefold() == ".edf" else path.suffix


def numbers_in(name: str) -> tuple[int, ...]:
    """Whole numbers in a name, in order: (1, 12) of ``sub-01 night12``."""
    return tuple(int(digits) for digits in re.findall(r"[0-9]+", name))


@lru_cache(maxsize=8)
def files_by_numbers(folder: Path, deep: bool, modified_ns: int) -> dict[tuple[int, ...], tuple[Path, ...]]:
    """List what may be scorings by the numbers in their names; again when ``modified_ns`` has changed."""
    found: dict[tuple[int, ...], list[Path]] = {}
    for path in sorted(folder.rglob("*") if deep else folder.iterdir()):
        if path.name.casefold().endswith(ENDINGS) and os.path.isfile(path):  # noqa: PTH113
            found.setdefault(numbers_in(path.stem), []).append(path)
    return {numbers: tuple(paths) for numbers, paths in found.items()}


def owned(recording: Path, labels: Path, below: Names, name: str, namesakes: Namesakes) -> Path | None:
    """Return the one of the scorings of a name that is this recording's by its folders, None where none is."""
    files = below.get(name)
    recordings = namesakes.of(recording.stem.casefold())
    if not recordings and len(files) == 1:
        return files[0]
    owners = below.owners(name, recordings, namesakes.text) if recordings else None
    if owners is None or recording not in owners:  # it is not of the cohort that the namesakes were taken from
        owners = FolderOwners(files, (*recordings, recording))
    mine = owners.of(recording)
    if not mine:
        return None
    if len(mine) > 1:
        raise ScoringError(
            f"{recording}: {labels} holds {len(files)} files named {mine[0].name}, and the folders do not tell which "
            "is its scoring. Put scorings in folders named like the recordings' (site/subject/...), or give them "
            "different names."
        )
    if (n := owners.n_owners(mine[0])) > 1:
        raise ScoringError(
            f"{recording}: {mine[0]} is named like {n} of the recordings given, and the folders do not tell whose "
            "scoring it is. Put scorings in folders named like the recordings' (site/subject/...), or give the "
            "recordings different names."
        )
    return mine[0]


class Names:
    """Files by their case-folded names; if not ``checked``, what a name stands for may be a folder, or gone by now."""

    def __init__(self, paths: Iterable[Path], *, checked: bool) -> None:
        found: dict[str, list[Path]] = {}
        for path in sorted(paths):
            found.setdefault(path.name.casefold(), []).append(path)
        self.files = {name: tuple(group) for name, group in found.items()}
        self.checked = checked
        self.found: dict[tuple[str, Path, str], FolderOwners] = {}

    @cached_property
    def order(self) -> list[str]:
        """The names in their order."""
        return sorted(self.files)

    def get(self, name: str) -> tuple[Path, ...]:
        """Return the files of a name, in the order of their paths; none where there are none."""
        files = self.files.get(name, ())
        # isfile gives false, not an exception, where a folder is closed to us
        return files if self.checked else tuple(path for path in files if os.path.isfile(path))  # noqa: PTH113

    def starting(self, start: str) -> Iterator[str]:
        """Yield the names that begin with ``start``, in their order."""
        for i in range(bisect_left(self.order, start), len(self.order)):
            if not self.order[i].startswith(start):
                break
            yield self.order[i]

    def owners(self, name: str, recordings: Sequence[Path], namesakes: str) -> FolderOwners:
        """Return whose the files of a name are, found out once for all ``recordings`` of one name of ``namesakes``."""
        key = name, recordings[0], namesakes
        if key not in self.found:
            self.found[key] = FolderOwners(self.get(name), recordings)
        return self.found[key]


def listed(folder: Path) -> Names:
    """Names in a folder, which is listed once for all of its recordings, or again when it has changed.

    A cohort may keep thousands of nights in one folder: to list it for each of them takes longer than to read them.
    """
    modified_ns = folder.stat().st_mtime_ns
    if time.time_ns() - modified_ns < SETTLED_NS:
        return listing.__wrapped__(folder, modified_ns)
    return listing(folder, modified_ns)


@lru_cache(maxsize=8)
def listing(folder: Path, modified_ns: int) -> Names:
    with os.scandir(folder) as entries:
        return Names((folder / entry.name for entry in entries), checked=False)


@lru_cache(maxsize=8)
def files_below(folder: Path, modified_ns: int, asked: str = "") -> Names:
    """List a folder and its subfolders once for all recordings of a cohort, which ``asked`` names (:class:`Namesakes`).

    Without a cohort it is listed again when ``modified_ns`` has changed.
    """
    try:
        os.scandir(folder).close()  # rglob would find nothing, without a word
    except OSError as error:
        raise ScoringError(f"labels {folder}: the folder cannot be listed ({error.strerror}).") from None
    return Names((path for path in folder.rglob("*") if os.path.isfile(path)), checked=True)  # noqa: PTH113
