"""Tables that hold what several scorers scored: the rows, or the column of stages, of one of them."""

from __future__ import annotations

import csv
import io
import re

from sleepfm_fast.plurals import first_of
from sleepfm_fast.scoring.csv_columns import PREAMBLE_LINES
from sleepfm_fast.scoring.stages import fold, stage_of
from sleepfm_fast.scoring.timed_texts import ScoringError

__all__ = ["UnknownScorerError", "of_scorer"]

SCORER = (
    *("scorer", "scorers", "scorerid", "scorername", "scoredby", "rater", "raterid", "ratername", "annotator"),
    *("annotatorid", "expert", "expertid", "technician", "technologist", "auswerter", "scoreur", "evaluateur"),
)
SHOWN = 10
STAGED = re.compile("stage|stad|sleep|hypno|schlaf|scor|rater|annot|expert")
"""Within the name of a column of stages; numbers of epochs and durations may look like stages too."""


class UnknownScorerError(ScoringError):
    """A table that names its scorers, and not the one that was asked for."""


def of_scorer(text: str, source: str, scorer: str) -> str:
    """Leave what one scorer scored in a table.

    Parameters
    ----------
    text : str
        Delimited text. A column of scorers, or one of stages for each scorer, is told by the header.
    source : str
        Its name, for messages.
    scorer : str
        A name in the column of scorers, or the name of the scorer's column; case does not matter.

    Returns
    -------
    str
        The table with the rows of the scorer, in their lines, or with the scorer's column called ``stage``. A text that
        has neither column is that of one scorer, and returned as it is.

    Raises
    ------
    UnknownScorerError
        When there is a column of scorers, or several of stages that differ, and none has this name.
    """
    wanted = scorer.strip().casefold()
    for delimiter in "\t;,":
        try:
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        except csv.Error:
            continue
        for at, header in enumerate(rows[:PREAMBLE_LINES]):
            if len(header) < 2:
                continue
            column = next((i for i, cell in enumerate(header) if cell.strip().casefold() == wanted), None)
            if column is not None and are_stages(rows[at + 1 :], column):
                renamed = ["stage" if i == column else unlike_stage(cell) for i, cell in enumerate(header)]
                return written([*rows[:at], renamed, *rows[at + 1 :]], delimiter)
            column = next((i for i, cell in enumerate(header) if fold(cell) in SCORER), None)
            if column is None:
                if len(names := differing_columns(header, rows[at + 1 :])) > 1:
                    raise UnknownScorerError(
                        f"{source}: no column of stages is named '{scorer}' (--scorer); those that differ are "
                        f"{first_of(names, SHOWN)}. Give one of them."
                    )
                continue
            named = [row[column].strip() if column < len(row) else "" for row in rows[at + 1 :]]
            if wanted not in map(str.casefold, named):
                choices = first_of(sorted({name for name in named if name}), SHOWN) or "nobody"
                raise UnknownScorerError(
                    f"{source}: the column '{header[column].strip()}' names no scorer '{scorer}' (--scorer); it names "
                    f"{choices}. Give one of them."
                )
            kept = [row if name.casefold() == wanted else [] for row, name in zip(rows[at + 1 :], named, strict=True)]
            return written([*rows[: at + 1], *kept], delimiter)
    return text


def differing_columns(header: list[str], rows: list[list[str]]) -> list[str]:
    """Names of the columns of stages, of those that say the same the first one: others are codes of the same stages."""
    found: dict[tuple[str | None, ...], str] = {}
    for i, name in enumerate(header):
        if STAGED.search(fold(name)) and are_stages(rows, i):
            found.setdefault(tuple(stage_of(row[i]) if i < len(row) else None for row in rows), name.strip())
    return list(found.values())


def are_stages(rows: list[list[str]], column: int) -> bool:
    """Whether most cells of a column that hold anything name a stage: its first one is a header then."""
    cells = [row[column].strip() for row in rows if column < len(row) and row[column].strip()]
    return 2 * sum(stage_of(cell) is not None for cell in cells) > len(cells)


def unlike_stage(cell: str) -> str:
    """The name of another column, where it is not one of stages that would be taken instead."""
    return "other" if fold(cell) == "stage" else cell


def written(rows: list[list[str]], delimiter: str) -> str:
    """A table as text; a row without cells is an empty line, so that lines keep their numbers."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue()
