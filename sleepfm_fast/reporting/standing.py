"""A report that stands already: the one that would be written, byte for byte, or another, which is refused.

What a report is drawn from lies in many folders, some of which it only looks for (moved stores, networks beside a run),
so digests of them would not tell surely that nothing has changed. A report is drawn in seconds, and the same files give
the same bytes: it is drawn again and compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sleepfm_fast.cli.json_text import read_object
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.storage.standing import difference

__all__ = ["earlier_report", "is_as_drawn"]

REMEDY = "Give another --out, or add --overwrite."


def earlier_report(page: Path, numbers: Path, made_of: Mapping[str, Any]) -> dict[str, Any] | None:
    """The numbers of a report that the same command wrote; None where nothing stands.

    Parameters
    ----------
    page, numbers : Path
        The HTML and the JSON that are to be written.
    made_of : mapping
        The options (:func:`sleepfm_fast.storage.standing.key_of`).

    Raises
    ------
    SleepfmError
        Where anything else stands there; it names the options that differ.
    """
    standing = [file for file in (page, numbers) if file.exists()]
    if not standing:
        return None
    record = read_object(numbers)
    there = record.get("made_of")
    if not isinstance(there, dict):
        raise SleepfmError(f"{standing[0]} exists and is not overwritten. {REMEDY}")
    if differ := difference(there, made_of):
        raise SleepfmError(
            f"{standing[0]} exists and is not overwritten: the existing one differs in {differ}. {REMEDY}"
        )
    return dict(record)


def is_as_drawn(
    page: Path,
    earlier: Mapping[str, Any],
    record: Mapping[str, Any],
    files: Mapping[Path, bytes],
    left: Sequence[Path],
) -> bool:
    """Whether every file stands as it would be written; False where none differs and some are missing, as after a kill.

    Parameters
    ----------
    page : Path
        For the refusal.
    earlier, record : mapping
        The numbers that stand there, and those of now.
    files : mapping of Path to bytes
        Page, numbers and figures as drawn now.
    left : sequence of Path
        Figures that stand there and would not be written.

    Raises
    ------
    SleepfmError
        Where a file is another; it names the sections that differ.
    """
    missing = [file for file in files if not file.exists()]
    others = [file for file, data in files.items() if file not in missing and file.read_bytes() != data]
    if others or left:
        differ = ", ".join(_sections_that_differ(earlier, record)) or str((*others, *left)[0])
        raise SleepfmError(f"{page} exists and is not overwritten: the existing one differs in {differ}. {REMEDY}")
    return not missing


def _sections_that_differ(earlier: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """Their titles in quotation marks, in the order of the page, those of sections that are no longer there last."""
    then, now = _by_title(earlier), _by_title(record)
    return [f"'{title}'" for title in dict.fromkeys((*now, *then)) if then.get(title) != now.get(title)]


def _by_title(record: Mapping[str, Any]) -> dict[str, Any]:
    sections = record.get("sections")
    found = [s for s in sections if isinstance(s, dict)] if isinstance(sections, list) else []
    return {str(s.get("section")): s for s in found}
