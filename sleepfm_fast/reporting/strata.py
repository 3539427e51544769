"""Figures within groups of test subjects (age, sex), where the result has them."""

from __future__ import annotations

from typing import Any

from sleepfm_fast.evaluation.interval_notice import interval_caution
from sleepfm_fast.reporting.page import Figure, table
from sleepfm_fast.reporting.wording import count, value_of, with_interval
from sleepfm_fast.results import Result

__all__ = ["strata_figure"]

HEAD = ("subjects", "subjects tested", "clips", "AUROC", "AUPRC", "F1", "accuracy")


def strata_figure(name: str, result: Result) -> list[Figure]:
    """One table of all strata: {"age": {"18-35": {"n_subjects", "n_clips", "macro": {...}}}, "sex": ...}."""
    strata: Any = result.record.get("strata")
    if not isinstance(strata, dict):
        return []
    rows, tested = [], []
    for by, groups in strata.items():
        if not isinstance(groups, dict):
            continue
        for group, entry in groups.items():
            if not isinstance(entry, dict):
                continue
            macro = entry.get("macro") or entry
            scored, known = value_of((entry.get("macro") or {}).get("n_classes")), len(entry.get("classes") or ())
            note = f" (over {count(scored)} of {known} classes)" if scored is not None and scored < known else ""
            sizes = [count(n) if (n := value_of(entry.get(k))) is not None else "-" for k in ("n_subjects", "n_clips")]
            tested.append(int(value_of(entry.get("n_subjects")) or 0))
            figures = [with_interval(macro.get(f)) for f in ("auroc", "auprc", "f1")]
            rows.append([f"{by} {group}{note}", *sizes, *figures, with_interval(entry.get("accuracy"))])
    if not rows:
        return []
    fewest = min((n for n in tested if n > 1), default=0)
    return [
        Figure(
            "By group of subjects",
            table(
                ["subjects", "subjects tested", "clips", "AUROC", "AUPRC", "F1", "accuracy"], rows, f"Strata of {name}"
            ),
            "The same classifier, tested on one group of subjects at a time (means of classes). A group of one subject "
            f"has no interval.{interval_caution(fewest)}",
            [result.path / "result.json"],
            strata,
            wide=True,
        )
    ]
