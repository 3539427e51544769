"""Section: what few labelled subjects suffice for: the probe's few-shot curves beside networks trained from scratch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import counted
from sleepfm_fast.reporting import suggestions
from sleepfm_fast.reporting.classification import TASK_TITLES
from sleepfm_fast.reporting.page import Figure, Group, Missing, Section, table
from sleepfm_fast.reporting.plot import Plot, legend, series_class
from sleepfm_fast.reporting.scale import Scale, covering
from sleepfm_fast.reporting.sources import MISSHAPEN, Run, over_nights, replicates_beside
from sleepfm_fast.reporting.wording import value_of
from sleepfm_fast.reproduction.tables import with_chance
from sleepfm_fast.results import Result

__all__ = ["few_shot_section"]

FIGURES = {"auroc": "macro AUROC", "auprc": "macro AUPRC", "f1": "macro F1"}
WHOLE = "A night counts once, by the mean probability of its clips. "


@dataclass
class Curve:
    """One method's figures by number of subjects: several replicates at each."""

    name: str
    values: dict[int, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    files: list[Path] = field(default_factory=list)

    def of(self, figure: str) -> tuple[list[int], list[list[float]]]:
        """Numbers of subjects, ascending, and the replicates' values at each."""
        sizes, values = [], []
        for n in sorted(self.values):
            found = [v for macro in self.values[n] if (v := value_of(macro.get(figure))) is not None]
            if found:
                sizes.append(n)
                values.append(found)
        return sizes, values


def curves_of(runs: Sequence[Run], task: str, *, nights: bool = False) -> list[Curve]:
    """Collect the curves of a task: ``few_shot`` results, and networks trained with ``--train-subjects``.

    In both, a class that the draw lacks counts at chance: left out, a draw of fewer classes would look better. Over
    ``nights`` only age and sex have figures; results of earlier versions have none.
    """
    curves: list[Curve] = []
    scratch: dict[str, Curve] = {}
    for run in runs:
        curves += [probe_curve(run, result, nights=nights) for result in run.results_of("few_shot", task=task)]
        subjects = run.options.get("train_subjects")
        for result in run.results_of("supervise", task=task):
            size = subjects or result.record.get("train_subjects") or result.record.get("train", {}).get("n_subjects")
            if not isinstance(size, int):
                continue
            saw = only_modality(result)
            curve = scratch.setdefault(saw, Curve(f"end-to-end network{saw}"))
            record = over_nights(result) if nights else result.record
            if nights and not record:
                continue
            at_chance = {figure: with_chance(record, figure) for figure in ("auroc", "auprc")}
            curve.values[size].append({**(record.get("macro") or {}), **at_chance})
            curve.files.append(result.record_file)
    found = [curve for curve in (*curves, *scratch.values()) if curve.values]
    if strange := [n for curve in found for n in curve.values if not 0 < n < 2**31]:
        raise SleepfmError(f"a curve has {strange[0]} subjects")
    # A single network is no curve.
    is_curve = any(curve.values for curve in curves) or sum(len(c.values) for c in scratch.values()) > 1
    return found if is_curve else []


def only_modality(result: Result) -> str:
    """The modality that a classifier saw, as a name's end; empty where there were several."""
    modalities = list(result.record.get("modalities") or [])
    return f", {modalities[0]}" if len(modalities) == 1 else ""


def probe_curve(run: Run, result: Result, *, nights: bool) -> Curve:
    """The curve of a ``few_shot`` result, over clips or over nights."""
    curve = Curve(f"{run.name}: probe{only_modality(result)}", files=[result.record_file])
    for point in result.record.get("curve") or ():
        entry = point.get("nights") if nights else point
        if entry is not None:
            macro = entry.get("macro_absent_at_chance") or entry.get("macro") or {}
            curve.values[int(point["subjects"])].append(macro)
    return curve


def curve_figure(curves: Sequence[Curve], task: str, figure: str, *, nights: bool = False) -> Figure | None:
    """One figure of all methods over the number of subjects."""
    over = ", over nights" if nights else ""
    drawn = [(curve, *curve.of(figure)) for curve in curves]
    drawn = [(curve, sizes, values) for curve, sizes, values in drawn if sizes]
    if not drawn:
        return None
    all_sizes = sorted({n for _, sizes, _ in drawn for n in sizes})
    x = covering(np.array(all_sizes, float), log=True)
    if len(all_sizes) <= 7:
        x = Scale(x.low, x.high, log=True, ticks=tuple((float(n), str(n)) for n in all_sizes))
    plot = Plot(
        x,
        covering(np.array([v for *_, values in drawn for found in values for v in found])),
        f"{FIGURES[figure]} by number of labelled subjects{over}",
        " ".join(
            f"{c.name}: {np.mean(v[0]):.3f} from {s[0]} and {np.mean(v[-1]):.3f} from {counted(s[-1], 'subject')}."
            for c, s, v in drawn
        ),
        x_label="labelled training subjects",
        y_label=FIGURES[figure],
    )
    data = {}
    for i, (curve, sizes, values) in enumerate(drawn):
        mean = [float(np.mean(found)) for found in values]
        plot.whiskers(sizes, [min(f) for f in values], [max(f) for f in values], i)
        plot.line(sizes, mean, series_class(i))
        texts = [f"{curve.name}, {counted(n, 'subject')}: {m:.3f}" for n, m in zip(sizes, mean, strict=True)]
        plot.points(sizes, mean, i, texts)
        data[curve.name] = {"subjects": sizes, "replicates": values, "mean": mean}
    return Figure(
        f"{TASK_TITLES.get(task, task)}: {FIGURES[figure]}{over}",
        plot,
        f"{WHOLE if nights else ''}Mean over replicates, that is over draws of subjects; vertical lines go from the "
        "worst to the best. A class that a draw lacks counts at chance for probes and networks alike (AUROC 0.5, AUPRC "
        "its prevalence; F1 0), so the network's figures can lie below those of its own section, which are means of "
        "the classes it knows.",
        [file for curve, *_ in drawn for file in curve.files],
        data,
        key=legend([(series_class(i), curve.name) for i, (curve, *_) in enumerate(drawn)], "both"),
    )


def curve_table(curves: Sequence[Curve], task: str, *, nights: bool = False) -> Figure:
    """The same as numbers."""
    over = ", over nights" if nights else ""
    rows = [
        [f"{curve.name}, {n}", str(len(curve.values[n])), *(means(curve.values[n], f) for f in FIGURES)]
        for curve in curves
        for n in sorted(curve.values)
    ]
    return Figure(
        f"{TASK_TITLES.get(task, task)}: few-shot figures{over}",
        table(["method, subjects", "replicates", *FIGURES.values()], rows, f"Few-shot figures{over}"),
        f"{WHOLE if nights else ''}Means over replicates; a class that a draw lacks counts at chance.",
        [file for curve in curves for file in curve.files],
        [{"method": c.name, "subjects": n, "macro": c.values[n]} for c in curves for n in sorted(c.values)],
        wide=True,
        folded=True,
    )


def means(replicates: Sequence[dict[str, Any]], figure: str) -> str:
    """Mean of what the replicates have."""
    found = [v for macro in replicates if (v := value_of(macro.get(figure))) is not None]
    return f"{np.mean(found):.3f}" if found else "-"


def few_shot_section(runs: Sequence[Run]) -> Section:
    """Draw the curves of every task that has some."""
    section = Section("few-shot", "Few labelled subjects")
    runs = [*runs, *replicates_beside(runs)]
    tasks = dict.fromkeys(str(r.record.get("task")) for run in runs for r in run.results_of("few_shot", "supervise"))
    for task in tasks:
        try:
            for nights in (False, True):
                if curves := curves_of(runs, task, nights=nights):
                    figures = [curve_figure(curves, task, f, nights=nights) for f in ("auroc", "f1")]
                    items: list[Figure | Missing] = [
                        *(f for f in figures if f is not None),
                        curve_table(curves, task, nights=nights),
                    ]
                    section.groups.append(Group(items=items))
        except MISSHAPEN as error:
            section.groups.append(Group(items=[Missing(f"A few-shot result for {task} is not as written: {error!r}.")]))
    if not section.groups:
        run = runs[0]
        section.groups.append(
            Group(
                items=[
                    Missing(
                        "No few-shot result. This command fits the probe on 1, 2, 4, ... subjects:",
                        suggestions.few_shot(run, "stage"),
                    )
                ]
            )
        )
    return section
