"""Figures within groups of test subjects (age, sex), where the result has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sleepfm_fast.evaluation.interval_notice import interval_caution
from sleepfm_fast.reporting.page import Figure, table
from sleepfm_fast.reporting.wording import count, value_of, with_interval
from sleepfm_fast.results import Result

__all__ = ["strata_figure"]

HEAD = ("subjects", "subjects tested", "AUROC", "AUPRC", "F1", "accuracy")


def strata_figure(name: str, result: Result) -> list[Figure]:
    """One table of all strata: {"age": {"18-35": {"n_subjects", "n_clips", "macro": {...}}}, "sex": ...}.

    Of age and sex there is another over nights, where the result has these figures.
    """
    strata: Any = result.record.get("strata")
    if not isinstance(strata, dict):
        return []
    found = [
        (f"{by} {group}", entry)
        for by, groups in strata.items()
        if isinstance(groups, dict)
        for group, entry in groups.items()
        if isinstance(entry, dict)
    ]
    nights = [(group, entry["nights"]) for group, entry in found if isinstance(entry.get("nights"), dict)]
    figures = [strata_table(name, result, found, strata)] if found else []
    return figures + ([strata_table(name, result, nights, dict(nights), nights=True)] if nights else [])


def strata_table(
    name: str, result: Result, groups: Sequence[tuple[str, dict[str, Any]]], data: Any, *, nights: bool = False
) -> Figure:
    """One row a group of subjects, over clips or over nights."""
    unit = "nights" if nights else "clips"
    rows, tested = [], []
    for group, entry in groups:
        macro = entry.get("macro") or entry
        scored, known = value_of((entry.get("macro") or {}).get("n_classes")), len(entry.get("classes") or ())
        note = f" (over {count(scored)} of {known} classes)" if scored is not None and scored < known else ""
        sizes = [count(n) if (n := value_of(entry.get(k))) is not None else "-" for k in ("n_subjects", f"n_{unit}")]
        tested.append(int(value_of(entry.get("n_subjects")) or 0))
        figures = [with_interval(macro.get(f)) for f in ("auroc", "auprc", "f1")]
        rows.append([f"{group}{note}", *sizes, *figures, with_interval(entry.get("accuracy"))])
    fewest = min((n for n in tested if n > 1), default=0)
    over = ", over nights" if nights else ""
    whole = "A night counts once, by the mean probability of its clips. " if nights else ""
    return Figure(
        f"By group of subjects{over}",
        table([*HEAD[:2], unit, *HEAD[2:]], rows, f"Strata of {name}{over}"),
        f"{whole}The same classifier, tested on one group of subjects at a time (means of classes). A group of one "
        f"subject has no interval.{interval_caution(fewest)}",
        [result.record_file],
        data,
        wide=True,
    )
