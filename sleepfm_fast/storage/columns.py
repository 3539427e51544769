"""A table as a folder: one ``.npy`` file per column, memory-mapped on reading, and the digests in ``columns.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.json_text import from_json, to_text
from sleepfm_fast.errors import SleepfmError, is_refusal, unreadable
from sleepfm_fast.plurals import counted
from sleepfm_fast.storage.array_file import map_array
from sleepfm_fast.storage.atomic import replace_folder, synchronise

__all__ = ["file_digest", "read_columns", "write_columns"]

Array = npt.NDArray[Any]
CATALOGUE = "columns.json"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of the file ``path``, in hexadecimal; read in blocks of 4 MiB."""
    digest = hashlib.sha256()
    block = bytearray(1 << 22)
    view = memoryview(block)
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(block):
            digest.update(view[:n])
    return digest.hexdigest()


def write_columns(folder: Path, columns: Mapping[str, Array], texts: Mapping[str, Any]) -> None:
    """Write ``columns`` (name to array) and ``texts`` (name to JSON value) into ``folder``, all or nothing.

    Parameters
    ----------
    folder : Path
        Appears, or is replaced, once everything is on the disk.
    columns : mapping of str to ndarray
        Each becomes ``<name>.npy``.
    texts : mapping of str to JSON value
        Each becomes ``<name>.json``: strings and other small values that do not fit a column.
    """
    with replace_folder(folder) as temporary:
        files = []
        for name, column in columns.items():
            np.save(temporary / f"{name}.npy", np.ascontiguousarray(column), allow_pickle=False)
            files.append(f"{name}.npy")
        for name, value in texts.items():
            (temporary / f"{name}.json").write_text(to_text(value), encoding="utf-8")
            files.append(f"{name}.json")
        catalogue = {}
        for file in files:
            synchronise(temporary / file)
            catalogue[file] = {"n_bytes": (temporary / file).stat().st_size, "sha256": file_digest(temporary / file)}
        (temporary / CATALOGUE).write_text(json.dumps(catalogue, indent=1), encoding="utf-8")
        synchronise(temporary / CATALOGUE)


def read_columns(
    folder: Path, schema: Mapping[str, str], texts: tuple[str, ...], *, remedy: str, verify: bool = False
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Open the columns of ``folder`` as read-only memory maps, and read its texts.

    Parameters
    ----------
    folder : Path
        Written by :func:`write_columns`.
    schema : mapping of str to str
        Column name to NumPy dtype string.
    texts : tuple of str
        Names of the JSON values wanted.
    remedy : str
        A sentence that tells the user what to do about a damaged file; the error message ends with it.
    verify : bool
        Compare the SHA-256 of every file too, not only its size.

    Returns
    -------
    dict of str to ndarray, dict of str to JSON value

    Raises
    ------
    SleepfmError
        When a file is missing, of another size or type than was written, or (``verify``) of another digest.
    """

    def damaged(file: str, what: str | Exception) -> SleepfmError:
        if isinstance(what, Exception) and is_refusal(what):
            return SleepfmError(unreadable(folder / file, what))
        return SleepfmError(f"{folder / file} is damaged: {what}. {remedy}")

    try:
        catalogue = from_json((folder / CATALOGUE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(CATALOGUE, error) from None
    if not isinstance(catalogue, dict) or not all(
        isinstance(entry, dict) and {"n_bytes", "sha256"} <= entry.keys() for entry in catalogue.values()
    ):
        raise damaged(CATALOGUE, "it does not list files with their sizes and digests")
    for file in [f"{name}.npy" for name in schema] + [f"{name}.json" for name in texts]:
        if file not in catalogue:
            raise damaged(file, f"it is not listed in {CATALOGUE}")
        try:
            n_bytes = (folder / file).stat().st_size
        except OSError as error:
            raise damaged(file, error) from None
        if n_bytes != catalogue[file]["n_bytes"]:
            raise damaged(file, f"it has {counted(n_bytes, 'byte')}, {catalogue[file]['n_bytes']} were written")
        if verify and file_digest(folder / file) != catalogue[file]["sha256"]:
            raise damaged(file, "its SHA-256 is not the one that was written")
    columns: dict[str, Array] = {}
    for name, dtype in schema.items():
        try:
            column = map_array(folder / f"{name}.npy")
        except (OSError, ValueError) as error:
            raise damaged(f"{name}.npy", error) from None
        if column.dtype != np.dtype(dtype):
            raise damaged(f"{name}.npy", f"its type is {column.dtype}, {np.dtype(dtype)} was expected")
        columns[name] = column
    values = {}
    for name in texts:
        try:
            values[name] = from_json((folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise damaged(f"{name}.json", error) from None
    return columns, values
