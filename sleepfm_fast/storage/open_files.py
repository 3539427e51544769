"""A bounded number of open files, either mapped or as descriptors; the least recently used is closed first."""

from __future__ import annotations

import itertools
import mmap
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from sleepfm_fast.system import files_allowed, read_no_more_than_asked

__all__ = ["Descriptor", "Opened", "Recent", "RecentFiles", "fits_in_memory", "map_file", "open_limit"]

Way = Literal["mmap", "pread"]
Item = TypeVar("Item")

LARGEST_LIMIT = 16384  # a quarter of the 65,530 maps that Linux allows a process by default
MEMORY_SHARE = 0.5
"""Share of the machine's memory up to which a store is read through maps."""


def fits_in_memory(n_bytes: int) -> bool:
    """Whether files of so many bytes take at most half of the machine's memory, and so stay cached once read."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return False
    return n_bytes <= MEMORY_SHARE * memory


def open_limit() -> int:
    """Return half of the files that this process may have open (``ulimit -n``), at most :data:`LARGEST_LIMIT`."""
    allowed = files_allowed()
    return LARGEST_LIMIT if allowed is None else max(1, min(allowed // 2, LARGEST_LIMIT))


def map_file(path: Path) -> npt.NDArray[np.uint8]:
    """Map a whole file, read-only; an empty file, which cannot be mapped, gives an empty array."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


class Descriptor:
    """An open file that is closed when the last reference to it goes."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)
        # Otherwise two windows near each other look like a sequential reader, and the system reads far ahead.
        read_no_more_than_asked(self.number)

    def __del__(self) -> None:
        """Close."""
        number = getattr(self, "number", -1)
        if number >= 0:
            os.close(number)


@dataclass(frozen=True)
class Opened:
    """Recordings held open: addresses of their maps (0 where not mapped) and descriptors (-1 where there is none).

    ``maps`` or ``files``, of which one is None, hold references that keep them open as long as this object lives, also
    where :class:`Recent` has dropped them.
    """

    addresses: npt.NDArray[np.int64]
    descriptors: npt.NDArray[np.int64]
    maps: Sequence[npt.NDArray[np.uint8]] | None
    files: Sequence[Descriptor] | None


class Recent(Generic[Item]):
    """A cache of the ``limit`` most recently used items, safe to use from several threads.

    Two threads that miss the same key at once may both make it; the later item stays, and both are valid.
    """

    uses: ClassVar[itertools.count[int]] = itertools.count()

    def __init__(self, limit: int) -> None:
        self.limit = max(1, limit)
        # Each item with the number of its last use, which all caches count together.
        self._items: OrderedDict[int, tuple[Item, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Count what is open."""
        return len(self._items)

    def get(self, key: int, make: Callable[[int], Item]) -> Item:
        """Return the item of ``key``, made by ``make(key)`` where the cache does not hold it."""
        with self._lock:
            found = self._items.get(key)
            if found is not None:
                self._items[key] = found[0], next(self.uses)
                self._items.move_to_end(key)
                return found[0]
        self.make_room()
        item = make(key)
        with self._lock:
            self._items[key] = item, next(self.uses)
            while len(self._items) > self.limit:
                self._items.popitem(last=False)
        return item

    def make_room(self) -> None:
        """Is called before a further item is made."""

    def longest_unused(self) -> int | None:
        """Return the number of the last use of the item that was used longest ago; None where there is no item."""
        with self._lock:
            return next(iter(self._items.values()))[1] if self._items else None

    def drop(self) -> None:
        """Forget the item that was used longest ago, if there is one."""
        with self._lock:
            if self._items:
                self._items.popitem(last=False)


class RecentFiles(Recent[Item]):
    """As :class:`Recent`, of open files, of which all these caches of a process together hold :func:`open_limit`.

    A process may have several stores open, or one that it both maps and reads.
    """

    everywhere: ClassVar[weakref.WeakSet[RecentFiles[Any]]] = weakref.WeakSet()
    everywhere_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        with self.everywhere_lock:
            self.everywhere.add(self)

    def make_room(self) -> None:
        """Close the files that were used longest ago, of whichever store, until there is room for another one."""
        with self.everywhere_lock:  # a set must not grow while it is gone through
            caches = list(self.everywhere)
        limit = open_limit()
        while sum(map(len, caches)) >= limit:
            last = [(use, cache) for cache in caches if (use := cache.longest_unused()) is not None]
            if not last:  # another thread was faster
                return
            min(last, key=lambda pair: pair[0])[1].drop()


def opened_maps(maps: Sequence[npt.NDArray[Any]]) -> Opened:
    """Hold recordings open by their maps."""
    addresses = np.array([m.ctypes.data for m in maps], np.int64)
    return Opened(addresses, np.full(len(maps), -1, np.int64), maps, None)


def opened_files(files: Sequence[Descriptor]) -> Opened:
    """Hold recordings open by their descriptors."""
    numbers = np.array([f.number for f in files], np.int64)
    return Opened(np.zeros(len(files), np.int64), numbers, None, files)
