"""Which files below the paths given are recordings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sleepfm_fast.cli.command import say
from sleepfm_fast.cli.misplaced import mistaken
from sleepfm_fast.cli.path_kinds import RECORDINGS, Kind
from sleepfm_fast.cohorts.folders import files_under
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import agreeing, counted, first_of
from sleepfm_fast.recordings import WFDB_SUFFIX
from sleepfm_fast.scoring.folder_owners import in_place

__all__ = ["find_recordings"]


def find_recordings(paths: Sequence[Path]) -> tuple[list[Path], set[Path]]:
    """Find the recordings among files and folders.

    Parameters
    ----------
    paths : sequence of Path
        Files, which are taken whatever their suffix, and folders, searched with their subfolders (links followed) for
        ``.edf``, ``.bdf``, ``.rec`` and ``.hea`` in any case. Passed over are hidden files, ``*-Hypnogram.edf``, and a
        ``.hea`` beside an EDF or BDF file of the same name: it gives that one's annotations their times.

    Returns
    -------
    list of Path
        Absolute, as :func:`in_place` gives them, sorted, each file once.
    set of Path
        Those that were named one by one.

    Raises
    ------
    SleepfmError
        When a path does not exist, or nothing is found.
    """
    found: set[Path] = set()
    named: set[Path] = set()
    for path in paths:
        if path.is_dir():
            # A link to nothing is a night that is missing, as of a data set whose content was not fetched: it fails.
            found |= {in_place(p) for p in recordings_under(path) if may_be_file(p)}
        elif path.is_file():
            named.add(in_place(path))
        elif path.exists():  # to read from a pipe may wait for ever
            raise SleepfmError(f"{path} is a device or a pipe; give the file of a recording, or a folder.")
        else:
            raise SleepfmError(f"{path}: there is no such file or folder.")
    if not found | named:
        recordings = (Kind.RECORDINGS, Kind.RECORDING, Kind.COHORT)
        given_instead = next(filter(None, (mistaken(path, *recordings) for path in paths)), "")
        raise SleepfmError(
            given_instead
            or f"no recordings were found in {', '.join(map(str, paths))}; files ending in "
            f"{', '.join(RECORDINGS)} (upper or lower case) are looked for, in all subfolders."
        )
    # One file under several names is one recording: under its own name where that is given, else under the first link.
    kept: dict[str, Path] = {}
    linked = {path for path in found | named if os.path.islink(path)}  # noqa: PTH114 - Path's raises in closed folders
    for path in sorted(found | named, key=lambda p: (p not in named, p in linked, p)):
        kept.setdefault(os.path.realpath(path), path)
    return sorted(kept.values()), named & set(kept.values())


def may_be_file(path: Path) -> bool:
    """Whether a name found in a folder is a file, a link to nothing, or cannot be looked at, as its night will say."""
    try:
        return path.is_file() or is_dangling(path)
    except OSError:
        return True


def is_dangling(path: Path) -> bool:
    """Whether the path is a link to what does not exist."""
    return path.is_symlink() and not os.path.exists(path)  # noqa: PTH110 - Path.exists raises where links go round


def recordings_under(folder: Path) -> Iterable[Path]:
    """Files in ``folder`` and below that may be recordings."""
    hidden: list[Path] = []
    for root, files in files_under(folder, hidden):
        split = [os.path.splitext(file) for file in files]  # noqa: PTH122 - strings
        found = [(stem, suffix) for stem, suffix in split if suffix.lower() in RECORDINGS]
        named = {stem for stem, suffix in found if suffix.lower() != WFDB_SUFFIX}
        for stem, suffix in found:
            is_annotation = suffix.lower() == WFDB_SUFFIX and stem in named
            if not is_annotation and not stem.lower().endswith("hypnogram"):
                yield root / (stem + suffix)
    # macOS puts a ._night1.edf beside each night1.edf on a disk that cannot hold its attributes.
    passed_over = [p for p in hidden if p.suffix.lower() in RECORDINGS and not p.name.startswith("._")]
    if passed_over:
        n = len(passed_over)
        say(
            f"notice: {counted(n, 'file')} in {folder} {agreeing(n, 'is', 'are')} passed over, as the "
            f"{agreeing(n, 'name begins', 'names begin')} with a dot: {first_of([p.name for p in passed_over], 3)}. "
            f"Rename what is a recording"
        )
