"""Numba functions that are kept compiled where a folder can be written, and work where none can."""

from __future__ import annotations

import glob
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numba

__all__ = ["compiled"]

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(*, parallel: bool = False) -> Callable[[Function], Function]:
    """Compile a function that needs no Python, and keep it on the disk for later processes.

    It is kept beside the source, in the user's cache folder, or in ``NUMBA_CACHE_DIR``. In a container or on a cluster
    none of them may be writable, or the quota may be used up: then every process compiles for itself, some seconds.
    """

    def decorate(function: Function) -> Function:
        options: dict[str, Any] = {"nogil": True, "parallel": parallel}
        found: Any
        try:
            found = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # numba finds no folder to write
            found = numba.njit(**options)(function)
        else:
            found._cache.save_overload = forgiving(found._cache.save_overload)
            with suppress(AttributeError):  # these names are Numba's own: another version may have others
                files = found._cache._cache_file
                files._data_name = unshared(files._data_name)
                files.save = tidied(files)
        compiled_function: Function = found
        return compiled_function

    return decorate


def forgiving(save: Callable[..., None]) -> Callable[..., None]:
    """Save what can be saved."""

    def save_if_possible(*arguments: Any) -> None:
        with suppress(OSError):
            save(*arguments)

    return save_if_possible


def unshared(numbered: Callable[[int], str]) -> Callable[[int], str]:
    """Name a file of machine code as no other process does.

    Numba takes the next number that its list of files does not hold. Two processes that compile a function for
    different types at once read the same list, take the same number, and the list that is left may name the code of
    one for the types of the other: a later process would compute wrong numbers without a word.
    """

    def name(_: int) -> str:
        return numbered(secrets.randbits(63))

    return name


def tidied(files: Any) -> Callable[..., None]:
    """Save, and remove what an earlier source of the function left: nothing would ever be written over it.

    Numba's names have the line of the function before the version of Python: ``copy_records-42.py311``.
    """
    save, index, folder = files.save, files._load_index, Path(files._cache_path)
    function, _, line_and_python = files._index_name.removesuffix(".nbi").rpartition("-")
    python = line_and_python.partition(".")[2]

    def save_and_tidy(*arguments: Any) -> None:
        save(*arguments)
        names = (f"{glob.escape(function)}-*.{python}.{suffix}" for suffix in ("nbi", "*.nbc"))
        found = [path for name in names for path in folder.glob(name)]
        # Read after the folder: what another process writes now is in the index before it is in the folder.
        in_use = {files._index_name, *index().values()}
        for path in found:
            if path.name not in in_use:
                path.unlink(missing_ok=True)

    return save_and_tidy
