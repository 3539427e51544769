"""The folders of a cohort, listed; one that the system does not let be listed is named, not passed over in silence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sleepfm_fast.cli.command import say

__all__ = ["files_of", "files_under"]


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


def files_under(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder at and below ``folder`` with the names of its files, but for hidden ones.

    Links are followed; a folder reached twice through them is listed once.
    """
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, onerror=say_unlisted, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield Path(root), [file for file in files if not file.startswith(".")]
