"""What the stores cannot answer: cells that need a modality, a label or a second modality that is not there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.montage.slots import MODALITIES
from sleepfm_fast.plurals import counted
from sleepfm_fast.reproduction.experiments import Source
from sleepfm_fast.reproduction.facts import Facts
from sleepfm_fast.reproduction.paper_tables import Cell, PaperTable

__all__ = ["answerable"]


def named_modalities(source: Source, path: tuple[str, ...]) -> tuple[str, ...]:
    """Modalities that a cell asks for by name, in the usual order."""
    run, evaluation = source.run, source.evaluation
    directions = path[1].split(" -> ") if path[0] == "directions" else ()
    named = {*run.modalities, run.modality, evaluation.modality, *directions}
    return tuple(m for m in MODALITIES if m in named)


def unlabelled(task: str, whose: str) -> str:
    """Say that there is nothing to fit or to test."""
    return (
        f"{whose} has no two classes of {TASKS[task].labels} among its training clips, or none among its test clips "
        f"({TASKS[task].remedy})"
    )


def obstacle(cell: Cell, facts: Facts, external: Facts | None, *, all_three: bool) -> str:
    """Say why a cell cannot be had; empty where it can.

    Parameters
    ----------
    cell : Cell
    facts, external : Facts
        The stores'.
    all_three : bool
        Whether pretraining on everything stands for pretraining on three modalities.
    """
    for source in cell.sources:
        run, evaluation = source.run, source.evaluation
        missing = [m for m in named_modalities(source, cell.path) if m not in facts.channels]
        if missing:
            return f"the store has no {missing[0]} channel"
        if run.kind == "contrastive" and not run.modalities:
            has = " and ".join(facts.channels)
            if len(facts.channels) < 2:
                return f"contrasting modalities takes two, and the store has {has} alone"
            if all_three and len(facts.channels) < len(MODALITIES):
                return f"the store has {has}, not all three modalities"
        abroad = evaluation.kind in ("external", "external_own")
        if evaluation.kind not in ("retrieve", "external_own") and evaluation.task not in facts.tasks:
            return unlabelled(evaluation.task, "the store")
        if abroad and external is not None:
            if evaluation.task not in external.tasks:
                return unlabelled(evaluation.task, "the external store")
            missing = [m for m in facts.channels if m not in external.channels]
            if missing and run.kind == "contrastive":
                return f"the external store has no {missing[0]} channel, which the probe reads"
    return ""


def answerable(
    tables: Iterable[PaperTable], facts: Facts, external: Facts | None
) -> tuple[list[PaperTable], tuple[str, ...]]:
    """Keep the cells that the stores can answer.

    Parameters
    ----------
    tables : iterable of PaperTable
    facts, external : Facts
        The stores'; None where there is no second one.

    Returns
    -------
    list of PaperTable
        Without those cells, and without tables that have none left.
    tuple of str
        One notice for every reason, with the tables and figures that it concerns.
    """
    kept: list[PaperTable] = []
    places: dict[str, list[str]] = {}
    for table in tables:
        reasons = [obstacle(c, facts, external, all_three=table.name == "Figure 3") for c in table.cells]
        for reason in dict.fromkeys(r for r in reasons if r):
            n = reasons.count(reason)
            place = table.name if n == len(reasons) else f"{n} of {counted(len(reasons), 'cell')} of {table.name}"
            places.setdefault(reason, []).append(place)
        cells = tuple(cell for cell, reason in zip(table.cells, reasons, strict=True) if not reason)
        if cells:
            kept.append(dataclasses.replace(table, cells=cells))
    return kept, tuple(f"notice: {reason}. Left out: {', '.join(where)}." for reason, where in places.items())
