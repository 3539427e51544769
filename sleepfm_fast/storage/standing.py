"""What stands where a command is to write: finished by the same command, or something else, which is refused.

A folder's record keeps as ``made_of`` what the folder was computed from: the command, the version, the options, and
digests of what was read. A command that is given again compares that with what it would be now. Where nothing differs
there is nothing to do; otherwise the refusal names what does.
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
from sleepfm_fast.cli.json_text import from_json
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.storage.atomic import remove_leftovers_of
from sleepfm_fast.storage.claims import claim_to_write
from sleepfm_fast.storage.columns import file_digest

__all__ = [
    "FolderKind", "claimed_folder", "difference", "digest_of_file", "digest_of_files", "digest_of_value",
    "finished_record", "key_of", "refuse_standing", "say_finished",
]  # fmt: skip

UNNAMED = ("result", "predictions", "embeddings", "overwrite")
"""Options that say where to write, and whether to replace: nothing that is computed depends on them."""
SHORT = 40
"""Characters of a value that a sentence shows; of others it has the name."""
DIGEST = re.compile("[0-9a-f]{32,}")


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that commands write whole.

    Attributes
    ----------
    words : str
        What it is called, with its article.
    record : str
        The file of JSON that is in every such folder.
    beside : str
        What a folder may differ in although it was made of the same.
    """

    words: str
    record: str
    beside: str = "its files"


def key_of(command: str, config: Any, inputs: Mapping[str, Any], *, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a folder depends on, as JSON: the command, this version, its options, and ``inputs`` by their content.

    Parameters
    ----------
    command : str
    config : dataclass
        The options; those that say where to write are left out.
    inputs : mapping of str to any
        Digests and other facts of what is read, each in place of the option of that name, which is a path.
    leave_out : tuple of str
        More options that change nothing of what is written.
    """
    options = {name: value for name, value in plain(config).items() if name not in (*UNNAMED, *leave_out)}
    key: dict[str, Any] = plain({"command": command, "version": __version__, **options, **inputs})
    return key


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file; empty where it cannot be read, of which whoever opens it says what is wrong."""
    try:
        return file_digest(path)
    except OSError:
        return ""


def digest_of_files(folder: Path) -> str:
    """Digest of the files that lie in a folder, with their names; empty where there are none."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return digest_of_value([[path.name, digest_of_file(path)] for path in files]) if files else ""


def digest_of_value(value: Any) -> str:
    """Digest of what JSON can hold."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def difference(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name what two keys differ in, with both values where they are short; empty where nothing does."""
    names = [name for name in now if there.get(name) != now[name]]
    if "command" in names:
        names = ["command"]  # the options of another command say nothing
    return ", ".join(
        f"{name.replace('_', '-')} ({shown(there.get(name))} there, {shown(now[name])} now)"
        if is_short(there.get(name)) and is_short(now[name])
        else f"the {name.replace('_', ' ')}"
        for name in names
    )


def shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def is_short(value: Any) -> bool:
    return not isinstance(value, dict) and len(shown(value)) <= SHORT and not DIGEST.fullmatch(shown(value))


def record_in(path: Path, kind: FolderKind) -> dict[str, Any]:
    """The record of a folder; empty where there is none that can be read."""
    try:
        record = from_json((path / kind.record).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def finished_record(path: Path, kind: FolderKind, made_of: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The record of the folder at ``path`` where it was made of that; else None."""
    record = {} if made_of is None else record_in(path, kind)
    return record if made_of is not None and record.get("made_of") == plain(dict(made_of)) else None


def refuse_standing(
    path: Path, kind: FolderKind, *, overwrite: bool = False, made_of: Mapping[str, Any] | None = None
) -> None:
    """Refuse a folder that stands already, or anything else of that name; ``made_of`` is what would be made.

    Raises
    ------
    SleepfmError
        It names what differs.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    record = record_in(path, kind)
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
    """Tell that there is nothing to do."""
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
    """Keep a folder for this process while it computes what will stand there; None needs no keeping.

    Yields the record of the folder that stands there where it is what ``made_of`` would make again, as after a kill
    that came when all was written: then there is nothing to do.

    Parameters
    ----------
    path : Path, optional
    kind : FolderKind
    overwrite : bool
        Make it again, whatever it was made of.
    made_of : mapping, optional
        By :func:`key_of`; without it nothing counts as finished.
    is_whole : callable
        Of a record: whether what it lists is there.

    Raises
    ------
    SleepfmError
        When another process computes it, or something stands there that is not to be replaced.
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
        record = found()  # whoever held the claim until now may have finished
        remove_leftovers_of(path.resolve())
        if record is not None:
            say_finished(path)
        yield record
    finally:
        claim.release()
        # A refusal leaves no RUN/results behind: training would refuse a RUN that exists.
        with suppress(OSError):
            for parent in made:
                parent.rmdir()
