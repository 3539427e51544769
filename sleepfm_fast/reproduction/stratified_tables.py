"""Tables 19 to 28: sleep stages and sleep-disordered breathing within age groups and within either sex.

They are read from what every probe and network keeps of its strata, so they cost nothing beside Tables 6 and 7. Of the
paper's ten tables the macro AUROC of its staging (leave-one-out) is set beside ours.
"""

from __future__ import annotations

from collections.abc import Iterator

from sleepfm_fast.reproduction.experiments import Task
from sleepfm_fast.reproduction.paper_tables import AGES, METHODS, TITLES, Cell, PaperTable, run_of

__all__ = ["STRATIFIED", "stratified_tables"]

STRATIFIED = range(19, 29)
#         row: keys in a result's strata, the paper's AUROC of its staging with leave-one-out
STRATA: dict[str, tuple[tuple[str, str], float]] = {
    **{
        f"age {group}": (("age", group), auroc) for group, auroc in zip(AGES, (0.890, 0.911, 0.897, 0.895), strict=True)
    },
    "male": (("sex", "M"), 0.899),
    "female": (("sex", "F"), 0.910),
}


def stratum_cells(task: Task) -> Iterator[Cell]:
    """Macro figures of every method in every stratum."""
    for figure in ("AUROC", "AUPRC"):
        for row, (keys, stages_auroc) in STRATA.items():
            for method in (*METHODS, "supervised CNN", "hand-made features"):
                is_papers = (task, figure, method) == ("stage", "AUROC", "leave-one-out")
                path = ("strata", *keys, "macro", figure.lower())
                yield Cell(row, method, figure, (run_of(method, task),), path, stages_auroc if is_papers else None)


def stratified_tables() -> list[PaperTable]:
    """Describe both, whichever of the ten numbers is asked for."""
    asked: tuple[Task, ...] = ("stage", "sdb")
    return [
        PaperTable(
            f"Tables {STRATIFIED[0]}-{STRATIFIED[-1]}, {TITLES[task]}",
            "by age group and sex",
            "test subjects",
            tuple(stratum_cells(task)),
            "The probe or network is that of all training subjects; only who is tested differs. Intervals are over the "
            "stratum's subjects, and too narrow where these are few (each result says how many).",
        )
        for task in asked
    ]
