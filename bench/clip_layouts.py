"""Which file layout suits random clips: ``python bench/clip_layouts.py FOLDER`` writes the candidates and times them.

A clip is 30 s with the context that its filter needs on both sides; it is asked for with all slots, with one modality
or with one slot. Each layout says which byte ranges hold that; ranges that touch or nearly touch are read as one. Cold:
the files are dropped from the page cache before each run (posix_fadvise DONTNEED; the host below a virtual machine may
still hold them). Taking the slots of an interleaved layout apart again is not charged to it.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import machine
import numba
import numpy as np

from sleepfm_fast.execution.addresses import copy_bytes

FS_HZ, CLIP_S, HOURS = 200, 30, 8
CONTEXT_S = 5.5  # of the figures in docs/clip-store.md; the filters of an EEG need 8.3 s now
MODALITIES = {"respiratory": 4, "brain": 8, "ecg": 1}
N_SLOTS = sum(MODALITIES.values())
FIRST_SLOT = {"respiratory": 0, "brain": 4, "ecg": 12}
SAMPLE_BYTES = 2
NIGHT_S = HOURS * 3600
MERGE_BYTES = 16 << 10  # a gap this small is read over: a request costs more
CHOICES = {"13 slots": range(N_SLOTS), "brain, 8 slots": range(4, 12), "ecg, 1 slot": range(12, 13)}

Range = tuple[int, int]


def planes(slots: range, begin: int, end: int) -> list[Range]:
    """``[slot][time]``: one range a slot."""
    return [(SAMPLE_BYTES * (s * NIGHT_S * FS_HZ + begin), SAMPLE_BYTES * (end - begin)) for s in slots]


def interleaved(block_s: int) -> Callable[[range, int, int], list[Range]]:
    """``[block][slot][time]``: one range for neighbouring slots of a block, without what the ends do not need."""
    width = block_s * FS_HZ

    def ranges(slots: range, begin: int, end: int) -> list[Range]:
        found = []
        for block in range(begin // width, -(-end // width)):
            low = max(begin - block * width, 0)
            high = min(end - block * width, width)
            for s in slots:
                at = SAMPLE_BYTES * ((block * N_SLOTS + s) * width + low)
                found.append((at, SAMPLE_BYTES * (high - low)))
        return found

    return ranges


def modality_planes(block_s: int) -> Callable[[range, int, int], list[Range]]:
    """``[modality][block][slot][time]``: a modality's clip is one range."""
    width = block_s * FS_HZ

    def ranges(slots: range, begin: int, end: int) -> list[Range]:
        found = []
        for name, n_slots in MODALITIES.items():
            own = [s - FIRST_SLOT[name] for s in slots if 0 <= s - FIRST_SLOT[name] < n_slots]
            plane = SAMPLE_BYTES * FIRST_SLOT[name] * NIGHT_S * FS_HZ
            for block in range(begin // width, -(-end // width)) if own else ():
                low = max(begin - block * width, 0)
                high = min(end - block * width, width)
                for s in own:
                    at = plane + SAMPLE_BYTES * ((block * n_slots + s) * width + low)
                    found.append((at, SAMPLE_BYTES * (high - low)))
        return found

    return ranges


LAYOUTS: dict[str, Callable[[range, int, int], list[Range]]] = {
    "[slot][time]": planes,
    "[30 s][slot][time]": interleaved(30),
    "[5 s][slot][time]": interleaved(5),
    "[modality][5 s][slot][time]": modality_planes(5),
}


def merged(ranges: list[Range]) -> list[Range]:
    """Join ranges that touch or nearly touch."""
    joined: list[list[int]] = []
    for at, n in sorted(ranges):
        if joined and at - (joined[-1][0] + joined[-1][1]) <= MERGE_BYTES:
            joined[-1][1] = at + n - joined[-1][0]
        else:
            joined.append([at, n])
    return [(at, n) for at, n in joined]


@numba.njit(nogil=True)
def copy_ranges(source, starts, lengths, target):
    position = target
    for i in range(starts.size):
        copy_bytes(position, source + starts[i], lengths[i])
        position += lengths[i]
    return position


class Reader:
    """Reads the clips of one layout from the files of a folder in one of several ways."""

    def __init__(self, folder: Path, n_nights: int, layout: str) -> None:
        self.ranges = LAYOUTS[layout]
        self.files = [os.open(folder / f"{i}.bin", os.O_RDONLY) for i in range(n_nights)]
        self.target = np.ones(32 << 20, np.uint8)

    def plan(self, clips: np.ndarray, slots: range, *, merge: bool) -> list[tuple[int, list[Range]]]:
        context = round(CONTEXT_S * FS_HZ)
        result = []
        for clip in clips:
            night, index = divmod(int(clip), NIGHT_S // CLIP_S)
            begin = max(index * CLIP_S * FS_HZ - context, 0)
            end = min((index + 1) * CLIP_S * FS_HZ + context, NIGHT_S * FS_HZ)
            ranges = self.ranges(slots, begin, end)
            result.append((self.files[night], merged(ranges) if merge else ranges))
        return result

    def announce(self, plan: list[tuple[int, list[Range]]]) -> None:
        """Ask the kernel to read ranges into the page cache, without waiting for them."""
        for file, ranges in plan:
            for at, n in ranges:
                os.posix_fadvise(file, at, n, os.POSIX_FADV_WILLNEED)

    def pread(self, plan: list[tuple[int, list[Range]]], *, announce: bool, batch: int = 32) -> None:
        view = memoryview(self.target)
        for first in range(0, len(plan), batch):
            if announce:
                self.announce([*(plan[:batch] if first == 0 else ()), *plan[first + batch : first + 2 * batch]])
            for file, ranges in plan[first : first + batch]:
                for at, n in ranges:
                    os.preadv(file, [view[:n]], at)

    def mapped(
        self,
        maps: dict[int, np.ndarray],
        plan: list[tuple[int, np.ndarray, np.ndarray]],
        *,
        announce: bool,
        batch: int = 32,
    ) -> None:
        for first in range(0, len(plan), batch):
            if announce:
                ahead = [*(plan[:batch] if first == 0 else ()), *plan[first + batch : first + 2 * batch]]
                self.announce([(f, list(zip(a.tolist(), n.tolist(), strict=True))) for f, a, n in ahead])
            for file, starts, lengths in plan[first : first + batch]:
                copy_ranges(maps[file].ctypes.data, starts, lengths, self.target.ctypes.data)

    def map(self) -> dict[int, np.ndarray]:
        result = {}
        for file in self.files:
            mapped = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
            mapped.madvise(mmap.MADV_RANDOM)
            result[file] = np.frombuffer(mapped, np.uint8)
        return result

    def drop(self) -> None:
        for file in self.files:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)


def rates(folder: Path, n_nights: int, layout: str, n_clips: int, seed: int) -> dict[str, dict[str, float]]:
    """Clips a second of one process, by way of reading and choice of slots."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, float]] = {}
    reader = Reader(folder, n_nights, layout)

    def timed(way: str, choice: str, n: int, work: Callable[[], None], repeat: int, before: Callable[[], None]) -> None:
        seconds = []
        for _ in range(repeat):
            before()
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        found.setdefault(way, {})[choice] = n / statistics.median(seconds)

    for choice, slots in CHOICES.items():
        clips = rng.choice(n_nights * (NIGHT_S // CLIP_S), n_clips, replace=False)
        joined = reader.plan(clips, slots, merge=True)
        timed("cold, pread", choice, n_clips, lambda p=joined: reader.pread(p, announce=False), 1, reader.drop)
        timed(
            "cold, announced, pread", choice, n_clips, lambda p=joined: reader.pread(p, announce=True), 1, reader.drop
        )
        pieces = [
            (f, np.array([a for a, _ in r], np.int64), np.array([n for _, n in r], np.int64))
            for f, r in reader.plan(clips, slots, merge=False)
        ]
        joined_pieces = [
            (f, np.array([a for a, _ in r], np.int64), np.array([n for _, n in r], np.int64)) for f, r in joined
        ]
        few = joined_pieces[: n_clips // 4]
        reader.drop()
        maps = reader.map()
        reader.mapped(maps, pieces[:0], announce=False)
        copy_ranges(reader.target.ctypes.data, np.zeros(1, np.int64), np.ones(1, np.int64), reader.target.ctypes.data)
        timed("cold, mmap", choice, len(few), lambda m=maps, p=few: reader.mapped(m, p, announce=False), 1, int)
        del maps
        reader.drop()
        maps = reader.map()
        timed(
            "cold, announced, mmap", choice, n_clips,
            lambda m=maps, p=joined_pieces: reader.mapped(m, p, announce=True), 1, int,
        )  # fmt: skip
        timed("warm, mmap", choice, n_clips, lambda m=maps, p=pieces: reader.mapped(m, p, announce=False), 5, int)
        timed("warm, pread", choice, n_clips, lambda p=joined: reader.pread(p, announce=False), 5, int)
        del maps
    return found


def one_of_two(arguments: tuple[Path, int, str, int, int]) -> dict[str, dict[str, float]]:
    return rates(*arguments)


def write(folder: Path, n_nights: int) -> None:
    """All layouts hold as many bytes, and noise is noise in any order: one set of files serves them all."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    n_bytes = N_SLOTS * NIGHT_S * FS_HZ * SAMPLE_BYTES
    for i in range(n_nights):
        path = folder / f"{i}.bin"
        if path.exists() and path.stat().st_size == n_bytes:
            continue
        with path.open("wb") as file:
            file.write(rng.bytes(n_bytes))
            file.flush()
            os.fsync(file.fileno())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nights", type=int, default=6)
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--layouts", nargs="*", default=list(LAYOUTS))
    arguments = parser.parse_args()
    write(arguments.folder, arguments.nights)
    results = {}
    for layout in arguments.layouts:
        tasks = [
            (arguments.folder, arguments.nights, layout, arguments.clips, seed) for seed in range(arguments.processes)
        ]
        if arguments.processes == 1:
            each = [rates(*tasks[0])]
        else:
            with multiprocessing.get_context("spawn").Pool(len(tasks)) as pool:
                each = pool.map(one_of_two, tasks)
        results[layout] = {way: {choice: sum(e[way][choice] for e in each) for choice in CHOICES} for way in each[0]}
        for way, by_choice in results[layout].items():
            text = " / ".join(f"{rate:,.0f}" for rate in by_choice.values())
            print(f"{layout:<30} {way:<24} {text}", file=sys.stderr, flush=True)
    print(json.dumps({"machine": machine.record(), "processes": arguments.processes, "clips_per_s": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
