"""What already stands where a command is to write: its own finished result, or something else, which is refused.

A folder's record keeps as ``made_of`` what the folder was computed from: the command, the version, the options, and
digests of what was read. A command that is run again compares this with what it would be now. If nothing differs there
is nothing to do; otherwise the refusal names the differences.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleepfm_fast import __version__
from sleepfm_fast.cli.command import plain, say
from sleepfm_fast.cli.json_text import read_object
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.storage.atomic import remove_leftovers_of
from sleepfm_fast.storage.claims import claim_to_write
from sleepfm_fast.storage.columns import file_digest
from sleepfm_fast.storage.definitions import ENTRY, FIRST, definitions_of

__all__ = [
    "FolderKind", "claimed_folder", "difference", "digest_of_file", "digest_of_files", "digest_of_value",
    "finished_record", "key_of", "refuse_standing", "say_finished",
]  # fmt: skip

UNNAMED = ("result", "predictions", "embeddings", "overwrite")
"""Options that say where to write and whether to replace, and so do not influence what is computed."""
SHORT = 40
"""Characters up to which a refusal shows a value; longer ones it only names."""
HINTS = {ENTRY: ": another version of sleepfm_fast computed it otherwise, see CHANGELOG.md"}
"""What a reader needs to know of an entry that is no option."""
DIGEST = re.compile("[0-9a-f]{32,}")


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that commands write all or nothing.

    Attributes
    ----------
    words : str
        Its name in a sentence, with the article.
    record : str
        Name of the JSON file that every such folder holds.
    beside : str
        What a refusal names where a folder was made of the same but is not whole.
    """

    words: str
    record: str
    beside: str = "its files"


def key_of(command: str, config: Any, inputs: Mapping[str, Any], *, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what a folder depends on, as JSON: the command, this version, its options, and digests of ``inputs``.

    Where a command has other definitions than its first (:mod:`sleepfm_fast.storage.definitions`), also their number.

    Parameters
    ----------
    command : str
    config : dataclass
        The options; those that say where to write are left out.
    inputs : mapping of str to any
        Digests and other facts of what is read; each replaces the option of the same name, which is a path.
    leave_out : tuple of str
        Further options that do not influence what is written.
    """
    options = {name: value for name, value in plain(config).items() if name not in (*UNNAMED, *leave_out)}
    number = definitions_of(command)
    definitions = {} if number == FIRST else {ENTRY: number}
    key: dict[str, Any] = plain({"command": command, "version": __version__, **definitions, **options, **inputs})
    return key


def digest_of_file(path: Path) -> str:
    """Return a file's SHA-256; empty where it cannot be read, which the code that opens it will report."""
    try:
        return file_digest(path)
    except OSError:
        return ""


def digest_of_files(folder: Path) -> str:
    """Return a digest of the files directly in a folder and of their names; empty where there are none."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return digest_of_value([[path.name, digest_of_file(path)] for path in files]) if files else ""


def digest_of_value(value: Any) -> str:
    """Return the SHA-256 of a value's JSON text, with sorted keys."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def difference(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name what two results of :func:`key_of` differ in, with both values where they are short; empty if nothing."""
    there = {ENTRY: FIRST, **there}
    names = [name for name in now if there.get(name) != now[name]]
    if "command" in names:
        names = ["command"]  # the options of another command say nothing
    return ", ".join(
        f"{name.replace('_', '-')} ({shown(there.get(name))} there, {shown(now[name])} now{HINTS.get(name, '')})"
        if is_short(there.get(name)) and is_short(now[name])
        else f"the {name.replace('_', ' ')}"
        for name in names
    )


def shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def is_short(value: Any) -> bool:
    return not isinstance(value, dict) and len(shown(value)) <= SHORT and not DIGEST.fullmatch(shown(value))


def finished_record(path: Path, kind: FolderKind, made_of: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the record of the folder at ``path`` if it was made of ``made_of``; else None."""
    record = {} if made_of is None else read_object(path / kind.record)
    return record if made_of is not None and record.get("made_of") == plain(dict(made_of)) else None


def refuse_standing(
    path: Path, kind: FolderKind, *, overwrite: bool = False, made_of: Mapping[str, Any] | None = None
) -> None:
    """Refuse to write where a folder with content, or anything else of that name, stands already.

    Parameters
    ----------
    path : Path
    kind : FolderKind
    overwrite : bool
        Refuse only what is not a folder of this kind.
    made_of : mapping, optional
        What the folder would be made of now, by :func:`key_of`.

    Raises
    ------
    SleepfmError
        Its message names what differs.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    record = read_object(path / kind.record)
    if overwrite:
        if not (path / kind.record).is_file():
            raise SleepfmError(f"{path} is not {kind.words} and is not overwritten. Give another folder.")
        return
    why = ""
    if made_of is not None and isinstance(there := record.get("made_of"), dict) and there:
        differ = difference(there, plain(dict(made_of))) or kind.beside
        why = f": the existing one differs in {differ}"
    raise SleepfmError(f"{path} exists and is not overwritten{why}. Give another folder, or add --overwrite.")


def say_finished(path: Path) -> None:
    """Tell the user that the folder is finished and there is nothing to do."""
    say(f"{path} is already finished: this same command wrote it. To make it again, add --overwrite.")


@contextmanager
def claimed_folder(
    path: Path | None,
    kind: FolderKind,
    *,
    overwrite: bool = False,
    made_of: Mapping[str, Any] | None = None,
    is_whole: Callable[[dict[str, Any]], bool] = bool,
) -> Iterator[dict[str, Any] | None]:
    """Claim a folder for this process while it computes what will stand there; a ``path`` of None claims nothing.

    Yields None, or the record of a folder that stands there and was made of ``made_of``, as after a kill that came when
    everything was written: then there is nothing to do.

    Parameters
    ----------
    path : Path, optional
    kind : FolderKind
    overwrite : bool
        Make it again, whatever it was made of.
    made_of : mapping, optional
        What it is made of, by :func:`key_of`; without it nothing counts as finished.
    is_whole : callable
        Takes a record and returns whether everything that it lists is there.

    Raises
    ------
    SleepfmError
        When another process is computing it, or something stands there that may not be replaced.
    """
    if path is None:
        yield None
        return
    folder = path

    def found() -> dict[str, Any] | None:
        record = None if overwrite else finished_record(folder, kind, made_of)
        if record is not None and is_whole(record):
            return record
        refuse_standing(folder, kind, overwrite=overwrite, made_of=made_of)
        return None

    found()
    made = [parent for parent in path.resolve().parents if not parent.exists()]
    claim = claim_to_write(path)
    try:
        record = found()  # again, as a process that held the claim until now may have finished the folder
        remove_leftovers_of(path.resolve())
        if record is not None:
            say_finished(path)
        yield record
    finally:
        claim.release()
        # Remove the parents that the claim had made, if they are empty: training would refuse a RUN that exists.
        with suppress(OSError):
            for parent in made:
                parent.rmdir()
