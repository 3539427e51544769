"""Nouns and verbs that agree with a number, lists that end before they are long, and durations."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["agreeing", "clock", "counted", "first_lines", "first_of"]


def agreeing(n: float, one: str, many: str | None = None) -> str:
    """Return the form that agrees with ``n``: ``one`` for 1, else ``many``, by default ``one`` with an s appended."""
    if n == 1:
        return one
    return f"{one}s" if many is None else many


def counted(n: float, one: str, many: str | None = None, spec: str = "") -> str:
    """Return the number, formatted by ``spec``, and the form that agrees with the number as it is written.

    Examples
    --------
    >>> counted(1, "night"), counted(1200, "night", spec=",")
    ('1 night', '1,200 nights')
    >>> counted(0.998, "night/s", "nights/s", spec=".3g"), counted(0.998, "night/s", "nights/s", spec=".2g")
    ('0.998 nights/s', '1 night/s')
    >>> counted(1, "class", "classes"), counted(1, "row has", "rows have"), counted(0, "clip")
    ('1 class', '1 row has', '0 clips')
    """
    written = f"{n:{spec}}"
    return f"{written} {agreeing(1 if written == '1' else n, one, many)}"


def clock(seconds: float) -> str:
    """Write a duration, or a time since a start, as hours, minutes and seconds.

    Examples
    --------
    >>> clock(3661.4), clock(36 * 3600)
    ('1:01:01', '36:00:00')
    """
    minutes, whole = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{whole:02d}"


def first_of(names: Sequence[str], most: int) -> str:
    """Join the first ``most`` names with commas, and say how many more there are.

    Examples
    --------
    >>> first_of(["a", "b", "c", "d"], 2), first_of(["a", "b"], 2)
    ('a, b and 2 more', 'a, b')
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_lines(lines: Sequence[str], where: str, one: str, many: str, most: int = 5) -> list[str]:
    """Return the first ``most`` lines, and one that counts the others: what is said of a row may be true of all.

    Examples
    --------
    >>> first_lines(["a", "b", "c", "d"], "table.csv:", "more row is left out", "more rows are left out", 2)
    ['a', 'b', 'table.csv: 2 more rows are left out.']
    """
    rest = len(lines) - most
    return [*lines[:most], *([f"{where} {counted(rest, one, many)}."] if rest > 0 else [])]
