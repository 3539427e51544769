"""Files and folders that are absent, old or whole: written under a temporary name, synchronised, then renamed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sleepfm_fast.cli.json_text import to_text
from sleepfm_fast.system import synchronise_descriptor

__all__ = [
    "TEMPORARY_SUFFIX",
    "is_leftover",
    "named_errors",
    "remove_leftovers",
    "remove_leftovers_of",
    "replace_file",
    "replace_folder",
    "synchronise",
    "synchronise_below",
    "write_json",
]

TEMPORARY_SUFFIX = ".tmp"
WAITING = 8
"""Threads that wait for the disk."""
SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
"""NumPy's words where the system took a part, which name neither the file nor the reason."""
LEFTOVER = re.compile(r".+\.\d+-\d+(\.new)?\.tmp|\..+\.(\d+|\w+\.clock)\.tmp")
"""Temporary names of this module, of claims and of the simulator; other files that end in .tmp are the user's."""


def temporary_name(path: Path) -> Path:
    # Two writers of one file must not share a temporary file; one may be a worker that outlived its killed parent.
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{TEMPORARY_SUFFIX}")


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Give system errors that name no file, as that of a full disk during a write, the file name ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        if SHORT_WRITE.fullmatch(str(error)):
            text = f"not all of it could be written ({error}); the disk may be full, or a limit reached"
            raise OSError(errno.EIO, text, str(path)) from error
        raise


def synchronise(path: Path) -> None:
    """Wait until the file or folder ``path`` is on the disk; a rename is only durable once its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        synchronise_descriptor(descriptor)
    except OSError as error:
        # On some network file systems, as mounted by macOS, a folder cannot be synchronised.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def synchronise_below(folder: Path) -> None:
    """Wait until a folder and everything in it is on the disk.

    Many small files are waited for side by side, of which a disk makes few commits of its journal: four times as fast
    on ext4 as waiting for each when it is written.
    """
    folders, files = [], []
    for root, _, names in os.walk(folder):
        folders.append(Path(root))
        files += [Path(root, name) for name in names]
    with ThreadPoolExecutor(WAITING) as pool:
        list(pool.map(synchronise, files))
    for path in folders:
        synchronise(path)


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the name ``path`` only when the block ends without an exception."""
    temporary = temporary_name(path)
    try:
        with named_errors(path), temporary.open("wb") as file:
            yield file
            file.flush()
            synchronise_descriptor(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    synchronise(path.parent)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a fresh folder that takes the name ``path`` only when the block ends without an exception.

    A folder that already has the name is renamed before and removed after the new one takes it. Where the name is a
    symbolic link, its target is replaced. The caller must synchronise the files that it writes.
    """
    path = path.resolve()
    temporary = temporary_name(path)
    old = temporary.with_name(f"old-{temporary.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with named_errors(path):
            yield temporary
            synchronise(temporary)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        # After a failure or Ctrl-C between the two renames: nobody would find the old one, and the next run deletes it.
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    synchronise(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any, *, indent: int | None = None) -> bytes:
    """Write ``value`` as strict JSON (no NaN) to ``path``, all or nothing, and return the bytes written."""
    content = (to_text(value, indent=indent) + "\n").encode()
    with replace_file(path) as file:
        file.write(content)
    return content


def remove_leftovers_of(path: Path) -> None:
    """Delete what killed writers of ``path`` left beside it; only to be called while nobody else writes ``path``."""
    pattern = re.compile(rf"(old-)?{re.escape(path.name)}\.\d+-\d+{re.escape(TEMPORARY_SUFFIX)}")
    if path.parent.is_dir():
        for leftover in path.parent.iterdir():
            if pattern.fullmatch(leftover.name):
                remove(leftover)


def is_leftover(path: Path) -> bool:
    """Whether a file or folder has a temporary name of this package's writers."""
    return LEFTOVER.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Delete what an interrupted writer left under temporary names directly in ``folder``."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        if is_leftover(path):
            remove(path)


def remove(path: Path) -> None:
    """Delete a file, or a folder with its content."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
