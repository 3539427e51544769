"""A ``.npy`` file that is written front to back, with a digest of its values.

It is written through a file and not a memory map, where a full disk would be a signal (SIGBUS) and not an exception.
"""

from __future__ import annotations

import hashlib
import io
import stat
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
    """Map a ``.npy`` file into memory, read-only; arrays of objects are refused, so that nothing is unpickled.

    Raises
    ------
    OSError
        When the file cannot be opened.
    ValueError
        When it does not hold one whole array, or holds an array of objects, or is no file that ends, such as a pipe.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe waits for its writer, which may never come
        raise ValueError("it is no regular file")
    try:
        array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # NumPy does not document what its reader raises on a damaged header
        raise ValueError(f"it is no whole array: {error}") from error
    return array


class ArrayFile:
    """One array, appended to row by row.

    Parameters
    ----------
    path : Path
        Name of the file.
    dtype : str
        NumPy type of the values.
    shape : tuple of int
        Shape of the whole array, which the header states from the beginning.
    n_kept : int
        Rows to keep of a file that an earlier writer began: they are read for the digest, and what follows them is cut
        off. With 0 an existing file is replaced.

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
        """Append rows, converted to the file's type."""
        if rows.size:
            data = np.ascontiguousarray(rows, dtype=self.dtype).data.cast("B")
            self._digest.update(data)
            self.file.write(data)

    def digest(self) -> str:
        """Return the BLAKE2b digest of the values so far, 128 bits in hexadecimal."""
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
        """Close the file of an array that is given up, ignoring errors of writing what is still buffered."""
        with suppress(OSError):
            self.file.close()
