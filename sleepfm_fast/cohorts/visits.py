"""Which visit of its subject a recording is of, as its name or its folders tell it.

Cohorts that saw people several times have a row of their tables for every visit, and names such as ``shhs2-200077.edf``
(Sleep Heart Health Study), ``mros-visit1-aa0001.edf``, ``wsc-visit3-10119-nsrr.edf``, ``chat-followup-300001.edf`` or
``sub-01_ses-2.edf`` (BIDS).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

__all__ = ["EXAMPLES", "told_visit", "visit_of"]

EXAMPLES = "shhs2-200077.edf, mros-visit1-aa0001.edf, or a folder visit2"
NUMBERED = re.compile(r"(?<![a-z])(?:(?:visit|session|ses)[-_. ]?|shhs)0*([1-9][0-9]?)(?![0-9])")
"""A word for a visit with its number, below 100. Other words with a number, as ``aa0001`` and ``n2``, tell none."""
WORD = re.compile(r"[^\W_]+")
MONTH = re.compile(r"(?<![a-z])months?[-_. ]?0*([1-9][0-9]?)(?![0-9])")
CHAT = re.compile(r"^chat-(baseline|followup)-")
CHAT_NUMBERS = {"baseline": "3", "followup": "10"}
"""The Childhood Adenotonsillectomy Trial names its recordings by word and numbers the rows of its tables (``vnum``)."""


def visit_of(cell: str) -> str:
    """A table's visit as names tell it: ``02``, ``2.0`` and ``Visit 2`` are ``2``; ``Follow-up`` is ``followup``."""
    text = cell.strip().casefold()
    number = re.fullmatch(r"(?:visit|session|ses)?[-_. ]*([0-9]+)(?:\.0*)?", text)
    return number[1].lstrip("0") or "0" if number is not None else "".join(WORD.findall(text)) or text


def told_visit(path: Path, visits: Collection[str]) -> str | None:
    """The visit that the name of a recording tells, or else the nearest folder that tells one.

    Parameters
    ----------
    path : Path
    visits : collection of str
        The table's, by :func:`visit_of`; its words (``baseline``) are looked for too, whatever stands between their
        parts. Where they are CHAT's numbers, its recordings' words tell them; where they are numbers with a 0, so do
        ``baseline`` and ``month09`` (Apnea, Bariatric Surgery, and CPAP study).

    Returns
    -------
    str or None
        As :func:`visit_of` writes it, whether the table has it or not; None where nothing tells a visit, or a name
        tells two.
    """
    chat = CHAT.match(path.stem.casefold())
    if chat is not None and visits and set(visits) <= set(CHAT_NUMBERS.values()):
        return CHAT_NUMBERS[chat[1]]
    words = {visit for visit in visits if not visit.isdigit()}
    months = bool(visits) and not words and "0" in visits
    for name in (path.stem, *(folder.name for folder in path.parents)):
        folded = name.casefold()
        found = set(NUMBERED.findall(folded)) | (words & joined(WORD.findall(folded)))
        if months:  # visits that count months from 0: baseline, month09, month18
            found |= set(MONTH.findall(folded)) | ({"0"} if "baseline" in WORD.findall(folded) else set())
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def joined(words: Sequence[str]) -> set[str]:
    """Every run of neighbouring words, without what stands between them."""
    return {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
