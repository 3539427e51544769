"""Our figures beside the paper's: read from result folders, laid out as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.figures import mean_with_chance
from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.plurals import counted
from sleepfm_fast.reproduction.experiments import Source
from sleepfm_fast.reproduction.facts import Facts
from sleepfm_fast.reproduction.paper_tables import WITH_CHANCE, Cell, PaperTable
from sleepfm_fast.reproduction.plan import Layout
from sleepfm_fast.reproduction.presets import Preset
from sleepfm_fast.results import Result, read_result

__all__ = ["Found", "collect", "draw", "results_in", "warning"]

SIMULATED = (
    "The recordings are simulated. Our figures say what the pipeline does with the dependences that the simulator has "
    "(docs/simulator.md); they cannot be compared with figures of patients, and say nothing about them. The paper's "
    "columns, of patients, are for orientation only."
)
PATIENTS = (
    "The paper's figures are of 1,401 test subjects of the Stanford Sleep Clinic, with 19 channels, after pretraining "
    "on 11,261 others. Ours are of other people, another montage and other sizes: a difference is nobody's error."
)
PAPER_ENCODER = "seed"
OTHER_ENCODER = (
    "The encoders are of the preset {encoder}, not SleepFM's ({paper}): the paper's columns are for orientation only."
)


@dataclass(frozen=True)
class Found:
    """A figure of ours.

    Attributes
    ----------
    value, low, high : float or None
        With its 95 % interval over subjects, or over draws the least and the greatest.
    n_classes : int or None
        Classes that a macro figure is the mean of; of several results the fewest.
    n_test : int or None
        Clips that it was tested on; None where the result does not say, or several results differ.
    note : str
        Why there is no figure, or what it is of.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n_classes: int | None = None
    n_test: int | None = None
    note: str = ""


def warning(*, simulated: bool, encoder: str = PAPER_ENCODER) -> str:
    """Say what the comparison means."""
    if simulated:
        return SIMULATED
    if encoder == PAPER_ENCODER:
        return PATIENTS
    return f"{PATIENTS} {OTHER_ENCODER.format(encoder=encoder, paper=PAPER_ENCODER)}"


def size_line(name: str, preset: Preset, facts: Facts, precision: str = "float32") -> str:
    """Say in one line what was trained, for how long and on how many."""
    people, clips, epochs = facts.subjects, facts.clips, preset.training["epochs"]
    arithmetic = "" if precision == "float32" else f" in {precision}"
    return (
        f"Preset {name}: encoder {preset.encoder}, {counted(epochs, 'epoch')}{arithmetic}, {people['train']} training "
        f"and {counted(people['test'], 'test subject')} ({clips['train']} and {counted(clips['test'], 'clip')}), "
        f"{'simulated' if facts.simulated else 'recorded'}."
    )


def look_up(record: Mapping[str, Any], path: tuple[str, ...]) -> list[Any]:
    """Follow a cell's path through a record; several values where a curve has replicates."""
    value: Any = record
    for i, key in enumerate(path):
        if isinstance(value, list) and "->" in key:
            query, candidates = key.split(" -> ")
            value = next(d for d in value if (d["query"], d["candidates"]) == (query, candidates))
        elif isinstance(value, list):
            return [p[WITH_CHANCE][path[i + 1]] for p in value if p["subjects"] == int(key)]
        elif key == WITH_CHANCE:
            return [with_chance(record, path[i + 1])]
        else:
            value = value[key]
    return [value]


def averaged_classes(record: Mapping[str, Any], path: tuple[str, ...]) -> int | None:
    """How many classes a figure is the mean of, None where it is none of classes or the record does not say."""
    if path[0] == "strata":
        record, path = record["strata"][path[1]][path[2]], path[3:]
    if path[0] == "macro":
        averaged: int | None = record["macro"].get("n_classes")
        return averaged
    present: list[bool] = []
    if path[0] == WITH_CHANCE:
        present = [0 < entry["prevalence"] < 1 for entry in record["classes"].values()]
    elif path[0] == "curve" and "test" in record:
        counts, task = record["test"]["class_counts"], TASKS[record["task"]]
        present = [0 < counts[task.names[k]] < record["test"]["n_clips"] for k in task.scored]
    return sum(present) if present else None


def tested_clips(record: Mapping[str, Any], path: tuple[str, ...]) -> int | None:
    """How many clips a result was tested on, None where it does not say.

    Of strata neither: the table of all test subjects says it.
    """
    test: Mapping[str, int] = record.get("test", {})
    return None if path[0] in ("directions", "strata") else test.get("n_clips")


def too_few(source: Source, record: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """Say that there are fewer labelled subjects than a cell asks for; empty where there are enough."""
    if path[0] == "curve":
        asked, there = int(path[1]), record.get("n_subjects_to_draw_from")
    else:
        asked, there = source.run.subjects, record.get("train", {}).get("n_subjects")
    if source.evaluation.kind not in ("few_shot", "supervised") or there is None or asked <= there:
        return ""
    return f"fewer than {asked} labelled training subjects: there are {there}"


def with_chance(record: Mapping[str, Any], figure: str) -> float | None:
    """Average over the classes that the test clips have; one without a figure, never trained, is at chance."""
    entries = record["classes"].values()
    return mean_with_chance(figure, ((float(entry["prevalence"]), number(entry[figure])) for entry in entries))


def number(value: Any) -> float | None:
    """A figure of a record, with or without an interval around it."""
    if isinstance(value, Mapping):
        value = value["value"]
    return None if value is None else float(value)


def read_cell(cell: Cell, layout: Layout) -> Found:
    """Read our figure of a cell, or why there is none."""
    values: list[Any] = []
    classes: set[int] = set()
    tested: set[int | None] = set()
    for source in cell.sources:
        try:
            record = read_result(layout.result(source)).record
            if note := too_few(source, record, cell.path):
                return Found(None, note=note)
            values += look_up(record, cell.path)
            if (n := averaged_classes(record, cell.path)) is not None:
                classes.add(n)
            tested.add(tested_clips(record, cell.path))
        except SleepfmError:
            is_there = (layout.result(source) / "result.json").exists()
            return Found(None, note="damaged: remove the result's folder and run again" if is_there else "not computed")
        except (KeyError, StopIteration, TypeError):
            is_stratum = cell.path[0] == "strata" and "strata" in record
            return Found(None, note="no test subjects are known to be of it" if is_stratum else "not in the result")
    n_classes = min(classes, default=None)
    n_test = tested.pop() if len(tested) == 1 else None
    numbers = [x for v in values if (x := number(v)) is not None]
    if not values:
        return Found(None, note="not in the result")
    if not numbers:
        return Found(None, n_test=n_test, note="undefined: the test or training clips lack the class")
    if len(values) > 1 or cell.path[0] == "curve":
        return Found(float(np.mean(numbers)), min(numbers), max(numbers), n_classes, n_test)
    only = values[0]
    limits = (only.get("low"), only.get("high")) if isinstance(only, Mapping) else (None, None)
    return Found(numbers[0], *limits, n_classes=n_classes, n_test=n_test)


def collect(table: PaperTable, layout: Layout) -> list[dict[str, Any]]:
    """All cells of a table as plain values.

    Place, our figure, the paper's, the task and how many clips ours was tested on, and the folder it is read from.
    """
    rows = []
    has_paper = any(cell.paper is not None for cell in table.cells)
    for cell in table.cells:
        ours = read_cell(cell, layout)
        paper, note = cell.paper, ours.note
        evaluation = cell.sources[0].evaluation
        # The paper's averages are over all classes of the task.
        n_all = len(TASKS[evaluation.task].scored)
        if ours.value is not None and ours.n_classes not in (None, n_all):
            # A mean over other classes is another quantity.
            whose = f"the paper's of {n_all}" if has_paper else f"the task has {n_all}"
            paper, note = None, f"ours is the mean of {counted(ours.n_classes, 'class', 'classes')}, {whose}"
        rows.append(
            {
                "row": cell.row,
                "method": cell.method,
                "figure": cell.figure,
                "value": ours.value,
                "low": ours.low,
                "high": ours.high,
                "paper": paper,
                "task": None if evaluation.kind == "retrieve" else evaluation.task,
                "n_test": ours.n_test,
                "note": note,
                "from": [folder_of(source, layout) for source in cell.sources],
            }
        )
    return rows


def results_in(cells: Iterable[Mapping[str, Any]], layout: Layout) -> list[Result]:
    """Return the results that the cells of :func:`collect` are read from, but for damaged ones, which a cell names."""
    found = []
    for name in dict.fromkeys(name for cell in cells for name in cell["from"]):
        with suppress(SleepfmError):
            found.append(read_result(layout.out / name))
    return found


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


def remarks(cells: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Notes and the cells they are about; a method, or a row, all of whose cells have the note is named alone."""
    found = []
    for note in dict.fromkeys(c["note"] for c in cells if c["note"]):

        def noted(key: str, note: str = note) -> list[str]:
            values = dict.fromkeys(c[key] for c in cells)
            return [v for v in values if all(c["note"] == note for c in cells if c[key] == v)]

        methods, rows = noted("method"), noted("row")
        if len(methods) == len({c["method"] for c in cells}):
            rows = []
        places = [*methods, *rows]
        places += [
            f"{c['method']} {c['row']} {c['figure']}"
            for method in dict.fromkeys(c["method"] for c in cells)
            for c in cells
            if (c["method"], c["note"]) == (method, note) and method not in methods and c["row"] not in rows
        ]
        found.append((note, ", ".join(places)))
    return found


def unlike_tests(cells: list[Mapping[str, Any]]) -> list[str]:
    """Say where figures of one row and task are of different test clips: a probe needs every modality, a network one.

    Cells kept by earlier versions do not say what they were tested on.
    """
    found: dict[str, list[str]] = {}
    rows = dict.fromkeys((c["row"], c["figure"], c.get("task")) for c in cells)
    for row, figure, task in rows:
        here = [c for c in cells if (c["row"], c["figure"], c.get("task")) == (row, figure, task)]
        of_method = {c["method"]: c["n_test"] for c in here if c.get("n_test") is not None}
        if len(set(of_method.values())) > 1:
            sizes = ", ".join(f"{method} {n}" for method, n in of_method.items())
            found.setdefault(sizes, []).append(f"{row} {figure}")
    notes = []
    for sizes, places in found.items():
        where = "" if len(places) == len(rows) else f" ({', '.join(places)})"
        notes.append(
            f"The methods were tested on different clips, those that have what each reads: {sizes} clips{where}."
        )
    return notes


def paper_cell(table: PaperTable, cell: Mapping[str, Any] | None, *, orientation: bool) -> str:
    """The paper's figure beside ours, smaller where it is for orientation only."""
    text = "" if cell is None or cell["paper"] is None else table.paper_text(cell["figure"], cell["paper"])
    return f"<sub>{text}</sub>" if text and orientation else text


def draw(
    table: PaperTable, cells: Iterable[Mapping[str, Any]], *, simulated: bool, encoder: str = PAPER_ENCODER
) -> list[str]:
    """Lay a table out, one Markdown table for each figure that it measures.

    Parameters
    ----------
    table : PaperTable
    cells : iterable of dict
        As :func:`collect` gives them.
    simulated : bool
        Whether our sleepers are simulated.
    encoder : str
        Preset of the encoders. Beside simulated sleepers, or encoders that are not the paper's, its columns are for
        orientation.
    """
    cells = list(cells)
    orientation = simulated or encoder != PAPER_ENCODER
    head = "paper"
    if orientation:
        head = f"paper ({'patients' if simulated else 'another encoder'}, for orientation)"
    lines = [f"## {table.name}: {table.title}", ""]
    for figure in dict.fromkeys(c["figure"] for c in cells):
        of_figure = [c for c in cells if c["figure"] == figure]
        at = {(c["row"], c["method"]): c for c in reversed(of_figure)}
        rows, methods = (list(dict.fromkeys(c[key] for c in of_figure)) for key in ("row", "method"))
        with_paper = {c["method"] for c in of_figure if c["paper"] is not None}
        heads = [table.rows]
        for method in methods:
            heads += [method, head] if method in with_paper else [method]
        lines += [f"**{figure}**", "", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
        for row in rows:
            texts = [row]
            for method in methods:
                cell = at.get((row, method))
                texts.append("" if cell is None else ours_text(cell))
                if method in with_paper:
                    texts.append(paper_cell(table, cell, orientation=orientation))
            lines.append(f"| {' | '.join(texts)} |")
        lines.append("")
    notes = [table.note] if table.note else []
    notes += [f"{note[0].upper()}{note[1:]}: {places}." for note, places in remarks(cells)]
    notes += unlike_tests(cells)
    return [*lines, *(line for note in notes for line in (note, ""))]
