"""Our figures beside the paper's: read from result folders, laid out as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.experiments import Source
from sleepfm_fast.paper_tables import WITH_CHANCE, Cell, PaperTable
from sleepfm_fast.reproduce_plan import Layout
from sleepfm_fast.results import read_result

__all__ = ["Found", "collect", "draw", "warning"]

SIMULATED = (
    "The recordings are simulated. Our figures say what the pipeline does with the dependences that the simulator has "
    "(docs/simulator.md); they cannot be compared with figures of patients, and say nothing about them. The paper's "
    "columns, of patients, are for orientation only."
)
PATIENTS = (
    "The paper's figures are of 1,401 test subjects of the Stanford Sleep Clinic, with 19 channels, after pretraining "
    "on 11,261 others. Ours are of other people, another montage and other sizes: a difference is nobody's error."
)


@dataclass(frozen=True)
class Found:
    """A figure of ours.

    Attributes
    ----------
    value, low, high : float or None
        With its 95 % interval over subjects, or over draws the least and the greatest.
    n_classes : int or None
        Classes that a macro figure is the mean of.
    note : str
        Why there is no figure.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n_classes: int | None = None
    note: str = ""


def warning(*, simulated: bool) -> str:
    """Say what the comparison means."""
    return SIMULATED if simulated else PATIENTS


def look_up(record: Mapping[str, Any], path: tuple[str, ...]) -> tuple[list[Any], int | None]:
    """Follow a cell's path through a record; several values where a curve has replicates."""
    value: Any = record
    for i, key in enumerate(path):
        if isinstance(value, list) and "->" in key:
            query, candidates = key.split(" -> ")
            value = next(d for d in value if (d["query"], d["candidates"]) == (query, candidates))
        elif isinstance(value, list):
            return [p[WITH_CHANCE][path[i + 1]] for p in value if p["subjects"] == int(key)], None
        elif key == WITH_CHANCE:
            return [with_chance(record, path[i + 1])], None
        else:
            value = value[key]
    return [value], record["macro"].get("n_classes") if path[0] == "macro" and "macro" in record else None


def with_chance(record: Mapping[str, Any], figure: str) -> float | None:
    """Average over the classes that the test clips have; one without a figure, never trained, is at chance."""
    values = []
    for entry in record["classes"].values():
        if 0 < entry["prevalence"] < 1:
            chance = 0.5 if figure == "auroc" else float(entry["prevalence"])
            value = number(entry[figure])
            values.append(chance if value is None else value)
    return float(np.mean(values)) if values else None


def number(value: Any) -> float | None:
    """A figure of a record, with or without an interval around it."""
    if isinstance(value, Mapping):
        value = value["value"]
    return None if value is None else float(value)


def read_cell(cell: Cell, layout: Layout) -> Found:
    """Read our figure of a cell, or why there is none."""
    values: list[Any] = []
    n_classes: int | None = None
    for source in cell.sources:
        try:
            found, n_classes = look_up(read_result(layout.result(source)).record, cell.path)
        except SleepfmError:
            return Found(None, note="not computed")
        except (KeyError, StopIteration, TypeError):
            return Found(None, note="not in the result")
        values += found
    numbers = [x for v in values if (x := number(v)) is not None]
    if not numbers:
        return Found(None, note="undefined: the test or training clips lack the class")
    if len(values) > 1 or cell.path[0] == "curve":
        return Found(float(np.mean(numbers)), min(numbers), max(numbers))
    only = values[0]
    limits = (only.get("low"), only.get("high")) if isinstance(only, Mapping) else (None, None)
    return Found(numbers[0], *limits, n_classes=n_classes)


def collect(table: PaperTable, layout: Layout) -> list[dict[str, Any]]:
    """All cells of a table as plain values: place, our figure, the paper's, and the folder ours is read from."""
    rows = []
    for cell in table.cells:
        ours = read_cell(cell, layout)
        paper, note = cell.paper, ours.note
        n_paper = sum(c.row != "macro" and c.method == cell.method and c.figure == cell.figure for c in table.cells)
        if cell.row == "macro" and n_paper and ours.n_classes not in (None, n_paper):
            # A mean over other classes is another quantity.
            paper, note = None, f"ours is the mean of {ours.n_classes} classes, the paper's of {n_paper}"
        rows.append(
            {
                "row": cell.row,
                "method": cell.method,
                "figure": cell.figure,
                "value": ours.value,
                "low": ours.low,
                "high": ours.high,
                "paper": paper,
                "note": note,
                "from": [folder_of(source, layout) for source in cell.sources],
            }
        )
    return rows


def folder_of(source: Source, layout: Layout) -> str:
    """Where a figure is read, relative to OUT."""
    return layout.result(source).relative_to(layout.out).as_posix()


def ours_text(cell: Mapping[str, Any]) -> str:
    """Our figure with its interval: three digits for shares, one for ranks and multiples of chance."""
    if cell["value"] is None:
        return "-"
    digits = 1 if "rank" in cell["figure"] or "times chance" in cell["method"] else 3
    text = f"{cell['value']:.{digits}f}"
    if cell["low"] is not None and cell["high"] is not None:
        text += f" [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"
    return text


def paper_text(value: float | None, *, simulated: bool) -> str:
    """The paper's figure in its own digits, small where it is for orientation only."""
    if value is None:
        return ""
    return f"<sub>{value:g}</sub>" if simulated else f"{value:g}"


def remarks(cells: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Notes and the cells they are about; a method all of whose cells have the note is named alone."""
    found = []
    for note in dict.fromkeys(c["note"] for c in cells if c["note"]):
        places: list[str] = []
        for method in dict.fromkeys(c["method"] for c in cells):
            of_method = [c for c in cells if c["method"] == method]
            noted = [c for c in of_method if c["note"] == note]
            if len(noted) == len(of_method):
                places.append(method)
            else:
                places += [f"{method} {c['row']} {c['figure']}" for c in noted]
        found.append((note, ", ".join(places)))
    return found


def draw(table: PaperTable, cells: Iterable[Mapping[str, Any]], *, simulated: bool) -> list[str]:
    """Lay a table out, one Markdown table for each figure that it measures."""
    cells = list(cells)
    head = "paper (patients, for orientation)" if simulated else "paper"
    lines = [f"## {table.name}: {table.title}", ""]
    for figure in dict.fromkeys(c["figure"] for c in cells):
        of_figure = [c for c in cells if c["figure"] == figure]
        methods = list(dict.fromkeys(c["method"] for c in of_figure))
        with_paper = {m for m in methods if any(c["paper"] is not None for c in of_figure if c["method"] == m)}
        heads = [table.rows]
        for method in methods:
            heads += [method, head] if method in with_paper else [method]
        lines += [f"**{figure}**", "", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
        for row in dict.fromkeys(c["row"] for c in of_figure):
            texts = [row]
            for method in methods:
                cell = next((c for c in of_figure if c["row"] == row and c["method"] == method), None)
                texts.append("" if cell is None else ours_text(cell))
                if method in with_paper:
                    texts.append("" if cell is None else paper_text(cell["paper"], simulated=simulated))
            lines.append(f"| {' | '.join(texts)} |")
        lines.append("")
    notes = [table.note] if table.note else []
    notes += [f"{note[0].upper()}{note[1:]}: {places}." for note, places in remarks(cells)]
    return [*lines, *(line for note in notes for line in (note, ""))]
