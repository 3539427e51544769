"""Folders of clips as the original SleepFM code writes them: ``X/<record>/<record>_<number>.npy``.

Each file is float64 [13, 7680]: 30 s at 256 Hz of the channels of CinC 2018 in a fixed order, as the recorder's own
numbers. The labels beside them are pickles, which can run any code and are never opened: stages are read from
``Y/<record>.csv`` or a folder of such files instead, with the columns ``clip`` (file name or number) and ``stage``.

A file says which clip of its recording it is, not when it was: clips of one number less or more need not touch.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from fractions import Fraction
from pathlib import Path

import numpy as np

from sleepfm_fast.cohorts.folders import files_of
from sleepfm_fast.cohorts.foreign import ForeignNight
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.scoring.labels import ClipGrid
from sleepfm_fast.scoring.stages import EPOCH_S, NO_STAGE, STAGES, stage_of
from sleepfm_fast.storage.array_file import map_array

__all__ = ["CHANNELS", "FS_HZ", "clip_files", "find_nights", "label_file", "read_night"]

CHANNELS = (
    *("F3-M2", "F4-M1", "C3-M2", "C4-M1", "O1-M2", "O2-M1", "E1-M2", "Chin1-Chin2"),
    *("ABD", "CHEST", "AIRFLOW", "SaO2", "ECG"),
)
"""Rows of a file, in order."""
FS_HZ = 256
SHAPE = (len(CHANNELS), EPOCH_S * FS_HZ)
NUMBER = re.compile(r".*_(\d{1,9})")


def find_nights(source: Path) -> list[Path]:
    """Folders of clips below ``source``: of its ``X``, of itself, or itself; sorted."""
    root = source / "X" if (source / "X").is_dir() else source
    entries = files_of(root)
    folders = [root / name for name in entries if (root / name).is_dir() and holds_clips(files_of(root / name))]
    if not folders and holds_clips(entries):
        folders = [root]
    if not folders:
        raise SleepfmError(
            f"{source} holds no folders of clips named <record>_<number>.npy, as the original SleepFM code writes them "
            "into its folder X."
        )
    return folders


def holds_clips(names: Iterable[str]) -> bool:
    """Whether a name is that of a clip, more or less: what is wrong with a file is for its night to say."""
    return any(fnmatch(name, "*_*.npy") for name in names)


def clip_files(folder: Path) -> dict[int, Path]:
    """Files of a night by their number, in order."""
    found = {int(match[1]): path for path in folder.glob("*.npy") if (match := NUMBER.fullmatch(path.stem))}
    return dict(sorted(found.items()))


def read_night(folder: Path, labels: Path | None, *, joined: bool) -> ForeignNight:
    """Look at a night's files.

    Parameters
    ----------
    folder : Path
    labels : Path or None
        Folder of the CSV files; None looks into the folder ``Y`` beside ``X``.
    joined : bool
        Clips with consecutive numbers touch, so that filters may look from one into the next.

    Raises
    ------
    SleepfmError
        When no file can be used, or a label file cannot be read.
    """
    issues: list[str] = []
    files: dict[int, Path] = {}
    for number, path in clip_files(folder).items():
        try:
            clip = map_array(path)
        except (OSError, ValueError) as error:
            issues.append(f"{path.name} is left out: {error}")
            continue
        if clip.shape != SHAPE or clip.dtype.kind != "f":
            issues.append(f"{path.name} is left out: it holds {clip.dtype}{list(clip.shape)}, expected {list(SHAPE)}")
            continue
        files[number] = path
    if not files:
        raise SleepfmError(f"{folder}: no clip can be used; {issues[0] if issues else 'there is none'}.")
    numbers = np.array(list(files), np.int64)
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1 if joined else np.arange(1, numbers.size)
    bounds = [0, *breaks.tolist(), numbers.size]
    stretches = tuple((Fraction(EPOCH_S * int(numbers[a])), (b - a) * SHAPE[1]) for a, b in itertools.pairwise(bounds))
    paths = list(files.values())
    stage = stages(folder, labels, numbers.tolist(), issues)
    return ForeignNight(
        path=folder,
        labels=CHANNELS,
        fs_hz=Fraction(FS_HZ),
        stretches=stretches,
        # A night's files are as many as a process may hold open: each is mapped for a moment only.
        read=lambda channel: np.concatenate([np.array(map_array(path)[channel]) for path in paths]),
        grid=ClipGrid(
            np.array([float(EPOCH_S) * n for n in files]), np.array(stage, np.int8), np.full(numbers.size, -1, np.int8)
        ),
        clip_stretches=tuple(np.repeat(np.arange(len(stretches)), np.diff(bounds)).tolist()),
        kind="the recorder's own numbers",
        issues=tuple(issues),
    )  # fmt: skip


def label_file(folder: Path, labels: Path | None) -> Path:
    """Where the stages of a night are looked for."""
    return (labels or folder.parent.parent / "Y") / f"{folder.name}.csv"


def stages(folder: Path, labels: Path | None, numbers: list[int], issues: list[str]) -> list[int]:
    """Stage code of each clip, from a CSV; none where there is no such file."""
    path = label_file(folder, labels)
    none = [NO_STAGE] * len(numbers)
    if not path.is_file():
        if labels is not None:
            issues.append(f"no labels: {path} does not exist")
        elif path.with_suffix(".pickle").exists():
            issues.append(
                f"no labels: {path.with_suffix('.pickle')} is a pickle, which can run any code and is not opened; "
                f"write its stages to {path} (columns clip, stage)"
            )
        return none
    codes: dict[int, int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"clip", "stage"} <= set(rows.fieldnames or ()):
                raise SleepfmError(f"{path} has the columns {rows.fieldnames}; expected: clip, stage.")
            for row in rows:
                name, stage = str(row["clip"]).removesuffix(".npy"), stage_of(str(row["stage"]))
                match = NUMBER.fullmatch(name)
                if stage is None or not (match or re.fullmatch(r"\d{1,9}", name)):
                    raise SleepfmError(
                        f"{path}, line {rows.line_num}: clip '{row['clip']}', stage '{row['stage']}'; expected a "
                        f"clip's file name or number, and one of {', '.join(STAGES)} or another name of a stage."
                    )
                codes[int(match[1] if match else name)] = STAGES.index(stage) if stage in STAGES else NO_STAGE
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SleepfmError(f"{path} cannot be read as CSV: {error}.") from None
    missing = sum(number not in codes for number in numbers)
    if missing:
        issues.append(
            f"{missing} of {counted(len(numbers), 'clip')} {agreeing(missing, 'has', 'have')} no row in {path.name}"
        )
    return [codes.get(number, NO_STAGE) for number in numbers]
