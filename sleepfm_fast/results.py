"""A result on disk: what an evaluation printed and the arrays behind it, so that a report can be traced to files.

::

    RESULT/
      result.json   the command's last line of JSON with "format", "version", "definitions" (their number, see
                    :mod:`sleepfm_fast.storage.definitions`), the shapes of the arrays, and "made_of": what it was
                    computed from, by which the same command knows it again
      NAME.npy      arrays with one row a test clip, such as clip, label, score (see each command)

By convention a run keeps its results in ``RUN/results/``; :func:`find_results` looks there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.command import plain, to_json
from sleepfm_fast.cli.given_paths import as_path
from sleepfm_fast.cli.json_text import are, are_texts, from_json, is_count, is_text
from sleepfm_fast.cli.misplaced import mistaken
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError, is_refusal, unreadable
from sleepfm_fast.plurals import agreeing, counted, first_of
from sleepfm_fast.runs.splits import SPLITS
from sleepfm_fast.storage.array_file import map_array
from sleepfm_fast.storage.atomic import TEMPORARY_SUFFIX, replace_folder
from sleepfm_fast.storage.definitions import ENTRY, definitions_of, recorded_definitions
from sleepfm_fast.storage.standing import FolderKind, claimed_folder, refuse_standing
from sleepfm_fast.system import synchronise_descriptor

__all__ = [
    "CLASSIFIERS", "FOLDER", "Result", "claimed_result", "definitions_note", "find_results", "read_result",
    "result_folders", "write_result",
]  # fmt: skip

FORMAT = "sleepfm_fast result"
VERSION = 1
FOLDER = "results"
CLASSIFIERS = ("probe", "supervise", "classify")  # commands whose results are a classifier's test
HEAD = ("format", "version", ENTRY, "arrays", "made_of")
UNPRINTED = ("subjects", "recordings", "subject_splits", "examples")
"""What a result has besides the line that is printed."""
KIND = FolderKind("a result folder", "result.json")


def are_codes(value: Any) -> bool:
    return are(value, lambda code: is_count(code) and code < 128)


def are_shapes(value: Any) -> bool:
    """Whether a value gives the type and the shape of every array."""
    return isinstance(value, dict) and all(
        isinstance(shape, list) and are_texts(shape[:1]) and all(type(n) is int for n in shape[1:])
        for shape in value.values()
    )


ENTRIES: Mapping[str, Callable[[Any], bool]] = {
    "arrays": are_shapes,
    **dict.fromkeys(("command", "task"), is_text),
    **dict.fromkeys(("subjects", "recordings", "modalities", "class_names"), are_texts),
    "subject_splits": lambda value: are_texts(value) and set(value) <= {*SPLITS, ""},
    "trained_classes": are_codes,
}
"""Checks of the entries that say what the numbers of arrays mean; a result need not have all of them."""
NAMED_BY = {"subject": "subjects", "recording": "recordings", "label": "class_names"}
"""Arrays that hold indices into a list of the record, and the entry that is the list."""
KNOWN = ("score", "probability", "coef", "intercept", "fill", "onset_s")
"""Arrays that must not hold NaN."""


@dataclass(frozen=True)
class Result:
    """A finished result.

    Attributes
    ----------
    path : Path
        Its folder.
    record : dict
        The JSON; ``record["command"]`` says which command wrote it.
    """

    path: Path
    record: dict[str, Any]

    @property
    def printed(self) -> dict[str, Any]:
        """What the command printed of it, but for what it leaves to the file."""
        return {name: value for name, value in self.record.items() if name not in (*HEAD, *UNPRINTED)}

    @property
    def command(self) -> str:
        """The command that wrote it."""
        return str(self.record["command"])

    @property
    def record_file(self) -> Path:
        """The file of the record."""
        return self.path / KIND.record

    def array_file(self, name: str) -> Path:
        """The file of one of the arrays."""
        return self.path / f"{name}.npy"

    def require(self, *names: str) -> None:
        """Refuse a result that lacks one of the entries.

        Raises
        ------
        SleepfmError
            Naming the first.
        """
        if lacking := [name for name in names if self.record.get(name) is None]:
            raise SleepfmError(
                f"{self.record_file} is damaged: the entry '{lacking[0]}' is missing. Run its command again."
            )

    def array(self, name: str) -> npt.NDArray[Any]:
        """Map one of the arrays.

        Raises
        ------
        SleepfmError
            When the result has no such array, or the file is damaged.
        """
        expected = self.record["arrays"].get(name)
        if expected is None:
            has = ", ".join(self.record["arrays"]) or "none"
            raise SleepfmError(f"the result {self.path} has no array '{name}'; it has {has}.")
        file = self.array_file(name)
        try:
            values = map_array(file)
        except (OSError, ValueError, EOFError) as error:
            if is_refusal(error):
                raise SleepfmError(unreadable(file, error)) from error
            raise SleepfmError(f"{file} cannot be read ({error}). Run its command again.") from error
        if [str(values.dtype), *values.shape] != expected:
            raise SleepfmError(
                f"{file} holds {values.dtype} {values.shape}, expected {expected[0]} {tuple(expected[1:])}. "
                "Run its command again."
            )
        names = self.record.get(NAMED_BY.get(name, ""))
        if names is not None and values.size:
            within = values.dtype.kind in "iu" and 0 <= values.min() <= values.max() < len(names)
            if not within:
                raise SleepfmError(
                    f"{file} is damaged: it holds values from {values.min()} to {values.max()}, expected places among "
                    f"the {len(names)} {NAMED_BY[name].replace('_', ' ')}. Run its command again."
                )
        if name in KNOWN and values.dtype.kind == "f" and np.isnan(values).any():
            raise SleepfmError(f"{file} is damaged: it holds NaN. Run its command again.")
        return values


@contextmanager
def claimed_result(
    path: Path | None, *, overwrite: bool = False, made_of: Mapping[str, Any] | None = None
) -> Iterator[Result | None]:
    """Keep a result folder for this process (:func:`sleepfm_fast.storage.standing.claimed_folder`).

    Yields the result that stands there where it is what ``made_of`` would make again.

    Raises
    ------
    SleepfmError
        When another process computes it, or something stands there that is not to be replaced.
    """

    def is_whole(record: dict[str, Any]) -> bool:
        try:
            result = read_result(path or Path())
            for name in record["arrays"]:
                result.array(name)
        except SleepfmError:
            return False
        return True

    with claimed_folder(path, KIND, overwrite=overwrite, made_of=made_of, is_whole=is_whole) as record:
        yield None if path is None or record is None else Result(path, record)


def write_result(
    path: Path,
    record: Mapping[str, Any],
    arrays: Mapping[str, npt.NDArray[Any]],
    *,
    overwrite: bool = False,
    made_of: Mapping[str, Any] | None = None,
) -> None:
    """Write a result folder, whole or not at all.

    Parameters
    ----------
    path : Path
        The folder.
    record : mapping
        What the command returns; ``"command"`` names it.
    arrays : mapping of str to array
        Any NumPy types but objects.
    overwrite : bool
        Replace a result that stands there.
    made_of : mapping, optional
        What it depends on (:func:`sleepfm_fast.storage.standing.key_of`), by which the same command knows it again.

    Raises
    ------
    SleepfmError
        Where something stands that is not to be replaced.
    """
    refuse_standing(path, KIND, overwrite=overwrite, made_of=made_of)
    shapes = {name: [str(values.dtype), *values.shape] for name, values in arrays.items()}
    number = definitions_of(str(record.get("command")))
    head: dict[str, Any] = {"format": FORMAT, "version": VERSION, ENTRY: number, "arrays": shapes}
    if made_of is not None:
        head["made_of"] = made_of
    with replace_folder(path) as folder:
        for name, values in arrays.items():
            with (folder / f"{name}.npy").open("wb") as file:
                np.save(file, values, allow_pickle=False)
                file.flush()
                synchronise_descriptor(file.fileno())
        with (folder / "result.json").open("w", encoding="utf-8") as out:
            out.write(to_json({**head, **plain(dict(record))}, indent=1) + "\n")
            out.flush()
            synchronise_descriptor(out.fileno())


def read_result(path: str | Path) -> Result:
    """Open a result folder.

    Raises
    ------
    SleepfmError
        When it is missing, unfinished, or of another format.
    """
    path = as_path(path)
    try:
        record = from_json((path / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SleepfmError(
            mistaken(path, Kind.RESULT)
            or f"{path} holds no result (result.json is missing). Give the folder that probe, retrieve or another "
            "evaluation wrote."
        ) from None
    except (OSError, ValueError) as error:
        if is_refusal(error):
            raise SleepfmError(unreadable(path / "result.json", error)) from error
        raise SleepfmError(f"{path / 'result.json'} cannot be read ({error}). Run its command again.") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
        found = f"{record.get('format')} {record.get('version')}" if isinstance(record, dict) else type(record).__name__
        raise SleepfmError(f"{path / 'result.json'} says '{found}'; this version reads '{FORMAT} {VERSION}'.")
    given = {"arrays": None, "command": None, **record}
    wrong = next((name for name, is_right in ENTRIES.items() if name in given and not is_right(given[name])), None)
    if wrong is not None:
        raise SleepfmError(
            f"{path / 'result.json'} is damaged: the entry '{wrong}' is missing or of the wrong kind. Run its command "
            "again."
        )
    return Result(path, record)


def find_results(run: str | Path) -> tuple[Result, ...]:
    """All finished results in ``RUN/results/``, at any depth, by name."""
    return tuple(map(read_result, result_folders(as_path(run))))


def result_folders(run: Path) -> list[Path]:
    """The folders of :func:`find_results`, whatever they hold."""
    files = sorted((run / FOLDER).rglob("result.json"))
    # What a killed writer left under a temporary name is no result.
    return [file.parent for file in files if file.parent.suffix != TEMPORARY_SUFFIX]


def definitions_note(results: Iterable[Result], remedy: str) -> str:
    """Return which results were computed by other definitions than this version's; empty if none.

    Parameters
    ----------
    results : iterable of Result
    remedy : str
        The sentence that says how to make them again.
    """
    others = [r for r in results if recorded_definitions(r.record) != definitions_of(r.command)]
    if not others:
        return ""
    n, named = len(others), first_of([str(r.path) for r in others], 3)
    return (
        f"{counted(n, 'result')} ({named}) {agreeing(n, 'was', 'were')} computed by the definitions of another version "
        f"of sleepfm_fast: figures or intervals are not what the same command computes now (CHANGELOG.md). {remedy}"
    )
