"""Numbers of rows as callers give them: lists, arrays of any integers, tensors, or one truth value for every row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["row_numbers"]


def row_numbers(given: Any, n_rows: int, name: str) -> npt.NDArray[np.int64]:
    """Return chosen rows as int64 [n], not yet checked for their range.

    NumPy would take a truth value for the number 0 or 1, and a number with a fraction for the one below it.

    Parameters
    ----------
    given : array-like
        Integers [n], or bool [n_rows] that is True for the rows to choose.
    n_rows : int
        How many rows there are.
    name : str
        What the rows are called in messages, in the plural.

    Raises
    ------
    TypeError
        For anything but a sequence of integers or truth values.
    IndexError
        For truth values that are not one for each row.
    """
    numbers = np.asarray(given)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iub"):
        what = f"{numbers.dtype} of shape {numbers.shape}" if numbers.dtype != object else f"a {type(given).__name__}"
        raise TypeError(
            f"{name} is {what}; expected their numbers, integers [n] such as [0, 5], or bool [{n_rows}], True for each "
            "that is wanted."
        )
    if numbers.dtype == bool:
        if len(numbers) != n_rows:
            raise IndexError(
                f"{name} is bool [{len(numbers)}]; expected one value for each of the {n_rows}, or numbers."
            )
        return np.flatnonzero(numbers)
    return np.ascontiguousarray(numbers, np.int64)
