"""HDF5 files as the clinical SleepFM code writes them: one float16 data set a channel, scaled by the night.

Every channel is resampled to one rate, which the file does not state, and has mean 0 and standard deviation 1 over the
night; the physical units are gone. Reading needs h5py, which ``pip install 'sleepfm_fast[clinical]'`` brings.
"""

from __future__ import annotations

import csv
import io
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.annotations import MAX_TEXT_BYTES, read_scoring
from sleepfm_fast.cli.path_kinds import PREPARED
from sleepfm_fast.cohorts.folders import files_under
from sleepfm_fast.cohorts.foreign import ForeignNight
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import counted
from sleepfm_fast.scoring.csv_files import decoded
from sleepfm_fast.scoring.labels import clip_labels, refuse_endless
from sleepfm_fast.scoring.respiratory_counts import respiratory_counts
from sleepfm_fast.scoring.timed_texts import Event, Scoring, ScoringError

__all__ = ["find_nights", "h5", "label_file", "read_night"]


def h5() -> Any:
    """Return the module h5py.

    Raises
    ------
    SleepfmError
        Where it is not installed.
    """
    try:
        import h5py  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise SleepfmError(
            "reading HDF5 needs h5py, which is not installed; run `pip install 'sleepfm_fast[clinical]'`."
        ) from None
    return h5py


def find_nights(source: Path) -> list[Path]:
    """HDF5 files: ``source`` itself, or those in it and its subfolders, links followed; sorted."""
    if source.is_file():
        return [source]
    below = (folder / name for folder, names in files_under(source) for name in names)
    files = sorted(file for file in below if file.suffix.lower() in PREPARED)
    if not files:
        raise SleepfmError(f"{source} holds no files ending in {' or '.join(PREPARED)}, in any subfolder.")
    return files


def read_night(path: Path, labels: Path | None, fs_hz: Fraction) -> ForeignNight:
    """Look at a file's channels and its scoring.

    Parameters
    ----------
    path : Path
    labels : Path or None
        Folder that holds ``<name>.csv`` with the columns Start, Stop (seconds) and StageName, or any scoring that
        preprocess reads; or such a file.
    fs_hz : Fraction
        Rate of all channels.

    Raises
    ------
    SleepfmError
        When the file is no HDF5 file or has no channels, or its scoring cannot be read.
    """
    issues: list[str] = []
    lengths = channel_lengths(path, issues)
    if not lengths:
        raise SleepfmError(f"{path} holds no channels: one-dimensional data sets of numbers at its top level.")
    n_samples = Counter(lengths.values()).most_common(1)[0][0]
    names = tuple(name for name, n in lengths.items() if n == n_samples)
    issues += [
        f"{name} is left out: it has {counted(n, 'sample')}, the other channels {n_samples}"
        for name, n in lengths.items()
        if n != n_samples
    ]

    refuse_endless(path, Fraction(n_samples) / fs_hz)

    def read(channel: int) -> npt.NDArray[Any]:
        with opened(path) as file:
            return np.asarray(file[names[channel]])

    length_s = Fraction(n_samples) / fs_hz
    scoring = night_scoring(path, labels, float(length_s), issues)
    issues += scoring.issues if scoring is not None else ()
    grid = clip_labels(scoring, length_s)
    return ForeignNight(
        path=path,
        labels=names,
        fs_hz=fs_hz,
        stretches=((Fraction(0), n_samples),),
        read=read,
        grid=grid,
        clip_stretches=(0,) * len(grid.onsets_s),
        kind="scaled to the night's standard deviation by the source",
        issues=tuple(issues),
        events=respiratory_counts(scoring, grid),
    )


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file for reading; what a damaged one raises, then or later, becomes a sentence that names it."""
    h5py = h5()
    with suppress(OSError):  # of which the attempt to open it says more
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe waits for its writer, which may never come
            raise SleepfmError(f"{path}: this is no regular file, expected an HDF5 file.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, MemoryError) as error:
        raise SleepfmError(
            f"{path} cannot be read as HDF5: {str(error).rstrip('.')}. Was it transferred whole?"
        ) from None


def channel_lengths(path: Path, issues: list[str]) -> dict[str, int]:
    """Samples of each channel; what looks like one and cannot be read is left out and named."""
    lengths = {}
    with opened(path) as file:
        for name in file:
            if not isinstance(name, str):
                issues.append(f"{name!r} is left out: its name is not UTF-8")
                continue
            try:
                if lies_elsewhere(file, name):
                    issues.append(f"{name} is left out: its samples lie in another file, to which this one only points")
                    continue
                item = file[name]
                if not isinstance(item, h5().Dataset) or item.ndim != 1 or item.dtype.kind not in "fiu":
                    continue
                n_samples, n_bytes = int(item.shape[0]), item.id.get_storage_size()
            except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
                issues.append(f"{name} is left out: {error}")
                continue
            if n_samples and not n_bytes:
                issues.append(f"{name} is left out: none of its {counted(n_samples, 'sample')} was ever written")
            elif n_samples:
                lengths[name] = n_samples
    return lengths


def lies_elsewhere(file: Any, name: str) -> bool:
    """Whether a name stands for what another file holds, whose changes nobody would see and which may be any file."""
    h5py = h5()
    if isinstance(file.get(name, getlink=True), h5py.ExternalLink):
        return True
    item = file[name]
    # The name may also be a link within the file to a link out of it: HDF5 numbers the files that are open.
    if h5py.h5o.get_info(item.id).fileno != h5py.h5o.get_info(file.id).fileno:
        return True
    return isinstance(item, h5py.Dataset) and bool(item.is_virtual or item.external)


def label_file(path: Path, labels: Path | None) -> Path | None:
    """Where the scoring of a night is looked for."""
    if labels is None:
        return None
    return labels if labels.is_file() else labels / f"{path.stem}.csv"


def night_scoring(path: Path, labels: Path | None, length_s: float, issues: list[str]) -> Scoring | None:
    """Scoring of a night of this length, None where there is none."""
    file = label_file(path, labels)
    if file is None:
        return None
    if not file.is_file():
        issues.append(f"no labels: {file} does not exist")
        return None
    return stage_table(file) or read_scoring(file, length_s=length_s)


def stage_table(file: Path) -> Scoring | None:
    """Read a table with Start, Stop and StageName; None where it has other columns, or is no table."""
    events: list[Event] = []
    issues: list[str] = []
    try:
        if file.stat().st_size > MAX_TEXT_BYTES:
            return None
        text = decoded(file.read_bytes(), str(file), issues)
        rows = csv.DictReader(io.StringIO(text, newline=""))
        if not {"Start", "Stop", "StageName"} <= set(rows.fieldnames or ()):
            return None
    except OSError as error:
        raise SleepfmError(f"{file} cannot be read: {error.strerror or error}.") from None
    except (ScoringError, csv.Error):  # what else it may be, `read_scoring` knows
        return None
    try:
        for row in rows:
            start_s, stop_s = float(row["Start"]), float(row["Stop"])
            events.append(Event(start_s, stop_s - start_s, str(row["StageName"])))
    except csv.Error as error:
        raise SleepfmError(f"{file} cannot be read as CSV: {error}.") from None
    except (TypeError, ValueError):
        raise SleepfmError(
            f"{file}, line {rows.line_num}: Start '{row['Start']}' and Stop '{row['Stop']}' are not both numbers of "
            "seconds."
        ) from None
    return Scoring(tuple(events), str(file), tuple(issues))
