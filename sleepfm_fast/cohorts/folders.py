"""The folders of a cohort, listed; one that the system does not let be listed is named, not passed over in silence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sleepfm_fast.cli.command import say
from sleepfm_fast.cli.json_text import is_encodable

__all__ = ["files_of", "files_under", "name_fault", "path_text"]


def path_text(path: Path | str) -> str:
    r"""A path, or a text with paths, as a table can hold it: bytes that are not UTF-8 become ``\xe4``."""
    text = str(path)
    return text if is_encodable(text, "utf-8") else os.fsencode(path).decode("utf-8", "backslashreplace")


def name_fault(path: Path) -> str | None:
    """Say what is wrong with a name that is not UTF-8; None where nothing is."""
    if is_encodable(str(path), "utf-8"):
        return None
    return (
        f"the name of {path_text(path)} is not valid UTF-8, so that no table or index can hold it. Rename the file or "
        "folder (the program convmv does so for many at once), and repeat the command."
    )


def say_unlisted(error: OSError) -> None:
    """Name a folder that cannot be listed: its recordings would be missing without a word."""
    say(
        f"notice: the folder {error.filename} cannot be listed ({error.strerror}); recordings in it are left out. Make "
        "it readable and repeat the command, which adds them."
    )


def files_of(folder: Path) -> list[str]:
    """Names in a folder, sorted; none where it cannot be listed, which is said."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        say_unlisted(error)
        return []


def files_under(folder: Path, hidden: list[Path] | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Each folder at and below ``folder`` with the names of its files, but for hidden ones, which ``hidden`` gets.

    Links are followed; a folder reached twice through them is listed once. Hidden folders are not looked into.
    """
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, onerror=say_unlisted, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if hidden is not None:
            hidden += [Path(root, file) for file in files if file.startswith(".")]
        yield Path(root), [file for file in files if not file.startswith(".")]
