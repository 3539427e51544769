"""A result on disk: what an evaluation printed, and the arrays behind it, so that a report can be traced to files.

::

    RESULT/
      result.json   the command's last line of JSON with "format", "version", the shapes of the arrays, and "made_of":
                    what few_shot and retrieve, which go on when they are repeated, computed it from
      NAME.npy      arrays with one row a test clip, such as clip, label, score (see each command)

By convention a run keeps its results in ``RUN/results/``; :func:`find_results` looks there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast import __version__
from sleepfm_fast.cli.command import plain, say, to_json
from sleepfm_fast.cli.misplaced import mistaken
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.storage.array_file import map_array
from sleepfm_fast.storage.atomic import TEMPORARY_SUFFIX, remove_leftovers_of, replace_folder
from sleepfm_fast.storage.claims import claim_to_write
from sleepfm_fast.storage.columns import file_digest
from sleepfm_fast.system import synchronise_descriptor

__all__ = [
    "FOLDER", "Result", "claimed_result", "find_results", "finished_result", "key_of", "read_result", "refuse_result",
    "write_result",
]  # fmt: skip

FORMAT = "sleepfm_fast result"
VERSION = 1
FOLDER = "results"
HEAD = ("format", "version", "arrays", "made_of")


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
        return {name: value for name, value in self.record.items() if name not in HEAD}

    @property
    def command(self) -> str:
        """The command that wrote it."""
        return str(self.record["command"])

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
        file = self.path / f"{name}.npy"
        try:
            values = map_array(file)
        except (OSError, ValueError, EOFError) as error:
            raise SleepfmError(f"{file} cannot be read ({error}). Run its command again.") from error
        if [str(values.dtype), *values.shape] != expected:
            raise SleepfmError(
                f"{file} holds {values.dtype} {values.shape}, expected {expected[0]} {tuple(expected[1:])}. "
                "Run its command again."
            )
        return values


def refuse_result(path: Path | None, *, overwrite: bool = False) -> None:
    """Refuse, before any work, a result folder that stands already, or anything else of that name."""
    if path is None or not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise SleepfmError(f"{path} exists and is not overwritten. Give another folder, or add --overwrite.")
    if not (path / "result.json").is_file():
        raise SleepfmError(f"{path} is not a result folder and is not overwritten. Give another folder.")


def key_of(config: Any) -> dict[str, Any]:
    """What a result of EMBEDDINGS depends on, as JSON: this version, the embeddings to the byte, and the options."""
    try:
        digest = file_digest(config.embeddings / "embeddings.json")
    except OSError:  # whoever opens the embeddings says what is wrong
        digest = ""
    options = {name: value for name, value in plain(config).items() if name not in ("result", "overwrite")}
    return {"version": __version__, **options, "embeddings": digest}


def finished_result(path: Path | None, made_of: Mapping[str, Any]) -> Result | None:
    """The result at ``path`` if it is of this version, these embeddings and these options."""
    if path is None:
        return None
    with suppress(SleepfmError):
        result = read_result(path)
        if result.record.get("made_of") == plain(dict(made_of)):
            return result
    return None


@contextmanager
def claimed_result(
    path: Path | None, *, overwrite: bool = False, made_of: Mapping[str, Any] | None = None
) -> Iterator[Result | None]:
    """Keep a result folder for this process while it computes what will stand there; None needs no keeping.

    Yields the result that stands there where it is what ``made_of`` would make again, as after a kill that came when
    all was written: then there is nothing to do.

    Raises
    ------
    SleepfmError
        When another process computes it, or something stands there that is not to be replaced.
    """

    def found() -> Result | None:
        finished = None if overwrite or made_of is None else finished_result(path, made_of)
        if finished is None:
            refuse_result(path, overwrite=overwrite)
        return finished

    found()
    if path is None:
        yield None
        return
    made = [folder for folder in path.resolve().parents if not folder.exists()]
    claim = claim_to_write(path)
    try:
        finished = found()  # whoever held the claim until now may have finished
        remove_leftovers_of(path.resolve())
        if finished is not None:
            say(f"{path} is finished: this command has written it. To compute it again add --overwrite.")
        yield finished
    finally:
        claim.release()
        # A refusal leaves no RUN/results behind: training would refuse a RUN that exists.
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


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
        What it depends on (:func:`key_of`), by which the same command knows it again.

    Raises
    ------
    SleepfmError
        Where something stands that is not to be replaced.
    """
    refuse_result(path, overwrite=overwrite)
    shapes = {name: [str(values.dtype), *values.shape] for name, values in arrays.items()}
    head: dict[str, Any] = {"format": FORMAT, "version": VERSION, "arrays": shapes}
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


def read_result(path: Path) -> Result:
    """Open a result folder.

    Raises
    ------
    SleepfmError
        When it is missing, unfinished, or of another format.
    """
    try:
        record = json.loads((path / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SleepfmError(
            mistaken(path, Kind.RESULT)
            or f"{path} holds no result (result.json is missing). Give the folder that probe, retrieve or another "
            "evaluation wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise SleepfmError(f"{path / 'result.json'} cannot be read ({error}). Run its command again.") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
        found = f"{record.get('format')} {record.get('version')}" if isinstance(record, dict) else type(record).__name__
        raise SleepfmError(f"{path / 'result.json'} says '{found}'; this version reads '{FORMAT} {VERSION}'.")
    return Result(path, record)


def find_results(run: Path) -> tuple[Result, ...]:
    """All finished results in ``RUN/results/``, at any depth, by name."""
    files = sorted((run / FOLDER).rglob("result.json"))
    # What a killed writer left under a temporary name is no result.
    return tuple(read_result(file.parent) for file in files if file.parent.suffix != TEMPORARY_SUFFIX)
