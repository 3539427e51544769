"""A ``.npy`` file written front to back, with a digest of its values: a full disk is an error and not a signal."""

from __future__ import annotations

import hashlib
import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.plurals import counted
from sleepfm_fast.system import synchronise_descriptor

__all__ = ["ArrayFile", "map_array"]

BLOCK_BYTES = 1 << 22


def map_array(path: Path) -> npt.NDArray[Any]:
    """Map a ``.npy`` file read-only; nothing in it is unpickled.

    Raises
    ------
    OSError
        When the file cannot be opened.
    ValueError
        When it holds anything but one whole array.
    """
    try:
        array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # NumPy's reader says of none which it raises on a damaged header
        raise ValueError(f"it is no whole array: {error}") from error
    return array


class ArrayFile:
    """One array, appended to row by row.

    Parameters
    ----------
    path : Path
        The file.
    dtype : str
        NumPy type of the values.
    shape : tuple of int
        Of the whole array.
    n_kept : int
        Rows of a file that another writer began; they are read again for the digest, and what follows is cut off.
        With 0 a file that stands there is replaced.

    Raises
    ------
    OSError
        When the file cannot be opened, or holds fewer rows than are to be kept.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...], n_kept: int = 0) -> None:
        self.dtype = np.dtype(dtype)
        self._digest = hashlib.blake2b(digest_size=16)
        header = io.BytesIO()
        about = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, about)
        self.file = path.open("r+b" if n_kept else "wb")
        if not n_kept:
            self.file.write(header.getvalue())
            return
        left = n_kept * self.dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        self.file.seek(len(header.getvalue()))
        while left:
            block = self.file.read(min(left, BLOCK_BYTES))
            if not block:
                self.file.close()
                raise OSError(
                    f"{path.name} is shorter than the {counted(n_kept, 'row that was', 'rows that were')} written"
                )
            self._digest.update(block)
            left -= len(block)
        self.file.truncate(self.file.tell())

    def write(self, rows: npt.NDArray[Any]) -> None:
        """Append rows."""
        if rows.size:
            data = np.ascontiguousarray(rows, dtype=self.dtype).data.cast("B")
            self._digest.update(data)
            self.file.write(data)

    def digest(self) -> str:
        """BLAKE2b of the values so far, 128 bits in hexadecimal."""
        return self._digest.hexdigest()

    def synchronise(self) -> None:
        """Wait until what was written is on the disk."""
        self.file.flush()
        synchronise_descriptor(self.file.fileno())

    def close(self) -> str:
        """Synchronise and close; returns the digest."""
        self.synchronise()
        self.file.close()
        return self.digest()

    def abandon(self) -> None:
        """Close whatever the disk says to what is still to be written."""
        with suppress(OSError):
            self.file.close()
