"""Whose scorings of one name are, where several recordings share a name too: the folders of both decide."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

__all__ = ["FolderOwners", "in_place"]

FEW = 32
"""Up to so many recordings are compared with a file one by one."""
Group: TypeAlias = "range | frozenset[int]"
Fit: TypeAlias = tuple[tuple[int, int], Path]
LAST = "\U0010ffff"
"""Comes after the names of folders."""


class FolderOwners:
    """Which recordings a scoring fits best by its folders, for all scorings of one name.

    A recording and a file are alike by how many folders, from the file up, have the same names, and then by how many
    names of folders both have anywhere. A file belongs to the recordings that it is most like.

    With 15,000 recordings ``night1.edf`` and as many ``night1.csv``, not every pair can be compared. The recordings
    are sorted by their folders from the file up, so that those that share most of them with a file are neighbours;
    among these only folders count that not every recording has.

    Parameters
    ----------
    files : sequence of Path
        The scorings.
    recordings : sequence of Path
        All that share a name.
    """

    def __init__(self, files: Sequence[Path], recordings: Sequence[Path]) -> None:
        folders = {path: folders_up(path) for path in dict.fromkeys(map(in_place, recordings))}
        ordered = sorted(folders.items(), key=lambda item: item[1])
        self.places = {path: i for i, (path, _) in enumerate(ordered)}
        self.folders = [up for _, up in ordered]
        sets = [frozenset(up) for up in self.folders]
        self.common = frozenset.intersection(*sets)
        self.having: dict[str, list[int]] = {}
        for i, names in enumerate(sets):
            for name in names - self.common:
                self.having.setdefault(name, []).append(i)
        self.groups: dict[tuple[int, int, frozenset[str]], Group] = {}
        self.owners: dict[Path, Group] = {}
        self.own: dict[int, list[Fit]] = {}
        """By recording, the files that few recordings are most like."""
        self.open: dict[int, tuple[Group, list[Fit]]] = {}
        """Groups of many recordings that are equally like a file, each with the two files that fit it best."""
        for file in files:
            self.add(file)

    def __contains__(self, recording: Path) -> bool:
        """Whether the recording is one of those compared."""
        return in_place(recording) in self.places

    def of(self, recording: Path) -> list[Path]:
        """Return the file that is the recording's; of several that fit it equally well two or more; or none."""
        place = self.places[in_place(recording)]
        fits = [*self.own.get(place, ())]
        for group, best in self.open.values():
            fits += best if place in group else ()
        most = max((likeness for likeness, _ in fits), default=None)
        return [file for likeness, file in fits if likeness == most]

    def n_owners(self, file: Path) -> int:
        """Count the recordings that fit a file best."""
        return len(self.owners[file])

    def add(self, file: Path) -> None:
        """Find the recordings that fit a file best."""
        up = folders_up(file)
        at = bisect_left(self.folders, up)
        n_equal = max(n_common(self.folders[i], up) for i in (at - 1, at) if 0 <= i < len(self.folders))
        start = up[:n_equal]
        first, after = bisect_left(self.folders, start), bisect_left(self.folders, (*start, LAST))
        telling = frozenset(name for name in up if name in self.having)
        key = first, after, telling
        if key not in self.groups:
            self.groups[key] = self.group(*key)
        group = self.groups[key]
        likeness = n_equal, len({*up}.intersection(self.folders[next(iter(group))]))
        self.owners[file] = group
        if len(group) <= FEW:
            for i in group:
                self.own.setdefault(i, []).append((likeness, file))
        else:
            _, best = self.open.setdefault(id(group), (group, []))
            best.append((likeness, file))
            best.sort(key=lambda fit: fit[0], reverse=True)
            del best[2:]

    def group(self, first: int, after: int, telling: frozenset[str]) -> Group:
        """Return which recordings of a range have most of the folders ``telling``: all of it where none has any."""
        counts: Counter[int] = Counter()
        for name in telling:
            having = self.having[name]
            counts.update(having[bisect_left(having, first) : bisect_left(having, after)])
        most = max(counts.values(), default=0)
        return frozenset(i for i, n in counts.items() if n == most) if most else range(first, after)


def in_place(path: Path) -> Path:
    """Absolute path with the links among its folders resolved; a link to a file keeps its own name and place.

    Data sets under git-annex link ``sub-01.edf`` to an object named by a hash: the link is what has a meaning.
    """
    return Path(os.path.realpath(path.parent), path.name)


def folders_up(path: Path) -> tuple[str, ...]:
    """Names of the folders that a file lies in, from the file up, in lower case."""
    return tuple(part.casefold() for part in reversed(in_place(path).parts[:-1]))


def n_common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many elements two sequences share from their beginning on."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
