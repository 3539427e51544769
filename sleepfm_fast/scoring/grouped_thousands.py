"""Times whose thousands are grouped, as spreadsheets write them: 990 is followed by 1,020 and not by 1.02."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from sleepfm_fast.scoring.clock import number

__all__ = ["without_groups"]

SEPARATORS = (",", ".")


def without_groups(cells: Sequence[str]) -> list[str]:
    """Take the separators out of a column of numbers if they group thousands.

    A cell alone does not tell: ``1,020`` may have a decimal comma. But then all cells have as many decimals or none,
    some begin with 0, and the numbers, in the order of the rows, seldom fall.

    Parameters
    ----------
    cells : sequence of str
        Of a column, in the order of the rows.
    """
    for separator in SEPARATORS:
        grouped = re.compile(rf"[1-9]\d{{0,2}}(?:{re.escape(separator)}\d{{3}})+")
        with_it = [cell for cell in cells if separator in cell]
        if not with_it or not all(grouped.fullmatch(cell.strip()) for cell in with_it):
            continue
        whole = [cell.replace(separator, "") for cell in cells]
        if falls(whole) < falls(cells):
            return whole
    return list(cells)


def falls(cells: Sequence[str]) -> int:
    """Count how often a number is below the one before it."""
    values = [value for cell in cells if (value := number(cell)) is not None]
    return sum(b < a for a, b in itertools.pairwise(values))
