"""Numba functions whose machine code is cached on disk where a folder can be written, and which work where none can."""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numba

__all__ = ["compiled"]

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(*, parallel: bool = False) -> Callable[[Function], Function]:
    """Compile a function to code that needs no Python objects and no lock, and cache it on disk for later processes.

    The cache is in ``NUMBA_CACHE_DIR``, beside the source, or in the user's cache folder. In a container or on a
    cluster none of them may be writable, or the quota may be used up: every process then compiles for itself, which
    takes some seconds.
    """

    def decorate(function: Function) -> Function:
        options: dict[str, Any] = {"nogil": True, "parallel": parallel}
        found: Any
        try:
            found = numba.njit(cache=may_cache(function), **options)(function)
        except RuntimeError:  # Numba found no folder that it can write
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


def may_cache(function: Callable[..., Any]) -> bool:
    """Whether Numba would cache a function where only this user, or whoever installed the package, puts code.

    Of a user without a home (`docker run --user 1234`), it takes ``~`` for a folder of the working directory: one that
    holds recordings, perhaps, and that others can write. It would load machine code from there.
    """
    chosen = getattr(numba.config, "CACHE_DIR", "")
    if chosen or os.path.isabs(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~")):  # noqa: PTH111, PTH117
        return True
    source = Path(function.__code__.co_filename).parent
    beside = source / "__pycache__"
    return os.access(beside if beside.is_dir() else source, os.W_OK)


def forgiving(save: Callable[..., None]) -> Callable[..., None]:
    """Wrap Numba's saving of machine code so that a failure of the disk is ignored: the cache is only a cache."""

    def save_if_possible(*arguments: Any) -> None:
        with suppress(OSError):
            save(*arguments)

    return save_if_possible


def unshared(numbered: Callable[[int], str]) -> Callable[[int], str]:
    """Wrap Numba's naming of files of machine code so that no two processes choose the same name.

    Numba itself takes the next number that its list of files does not hold. Two processes that compile a function for
    different types at the same time read the same list and take the same number. The list that remains may then give
    the code of one for the types of the other, and a later process would silently compute wrong numbers.
    """

    def name(_: int) -> str:
        return numbered(secrets.randbits(63))

    return name


def tidied(files: Any) -> Callable[..., None]:
    """Wrap Numba's saving so that it also removes files of earlier versions of the function's source.

    Under the random names of :func:`unshared` nothing ever overwrites them. In Numba's names the function's line stands
    before the version of Python, as in ``copy_records-42.py311``.
    """
    save, index, folder = files.save, files._load_index, Path(files._cache_path)
    function, _, line_and_python = files._index_name.removesuffix(".nbi").rpartition("-")
    python = line_and_python.partition(".")[2]

    def save_and_tidy(*arguments: Any) -> None:
        save(*arguments)
        names = (f"{glob.escape(function)}-*.{python}.{suffix}" for suffix in ("nbi", "*.nbc"))
        found = [path for name in names for path in folder.glob(name)]
        # The index is read after the folder was listed: another process enters a file into the index before it writes
        # it, so that every listed file that is in use is in the index by now.
        in_use = {files._index_name, *index().values()}
        for path in found:
            if path.name not in in_use:
                path.unlink(missing_ok=True)

    return save_and_tidy
