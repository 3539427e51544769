"""All classifiers of a task in one table and one plot, and their differences where ``compare`` has measured them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sleepfm_fast.evaluation.figures import FIGURES
from sleepfm_fast.evaluation.interval_notice import interval_caution, rarest_caution
from sleepfm_fast.reporting.markup import element, escape, percent
from sleepfm_fast.reporting.page import Figure, table
from sleepfm_fast.reporting.sources import Run, over_nights
from sleepfm_fast.reporting.wording import count, interval, value_of, with_interval
from sleepfm_fast.results import Result

__all__ = ["difference_figures", "overview", "retrieval_differences"]


def spread(figure: Any, chance: float | None = None) -> str:
    """Draw a value with its interval, and chance, on a line from 0 to 1."""
    value, limits = value_of(figure), interval(figure)
    if value is None:
        return ""
    parts = [element("line", x1="0", x2="100%", y1="8", y2="8", class_="track")]
    if chance is not None and 0 <= chance <= 1:
        parts.append(element("line", x1=percent(chance), x2=percent(chance), y1="0", y2="16", class_="chance"))
    words = f"{value:.3f} on a line from 0 to 1"
    if limits is not None:
        low, high = (min(max(v, 0.0), 1.0) for v in limits)
        parts.append(element("line", x1=percent(low), x2=percent(high), y1="8", y2="8", class_="span"))
        words += f", interval {limits[0]:.3f} to {limits[1]:.3f}"
    if chance is not None:
        words += f", chance {chance:.3f}"
    parts.append(element("circle", cx=percent(min(max(value, 0.0), 1.0)), cy="8", r="4.5"))
    return element("svg", element("title", escape(words)), *parts, class_="range", role="img")


def fewest_tested(results: Sequence[Result]) -> int:
    """The smallest number of subjects that any of some results is of; 0 where none says."""
    places = [(r.record.get("test") if r.command != "compare" else r.record) or {} for r in results]
    return min((int(n) for place in places if (n := value_of(place.get("n_subjects")))), default=0)


def caution(results: Sequence[Result]) -> str:
    """Say where the intervals of some results rest on few subjects, or on few with one of the classes."""
    fewest = fewest_tested(results)
    classes = [r.record.get("class_subjects" if r.command == "compare" else "classes") or {} for r in results]
    return interval_caution(fewest) + rarest_caution(classes, fewest)


def few_classes(scored: float | None, known: int) -> str:
    """Say that means are over fewer classes than the task has; empty where they are not."""
    return f" (AUROC, AUPRC over {count(scored)} of {known} classes)" if scored is not None and scored < known else ""


def overview(named: Sequence[tuple[str, Result]], *, nights: bool = False) -> Figure:
    """One row a classifier, over clips or over nights."""
    unit = "nights" if nights else "clips"
    head = ["classifier", f"test {unit}", "AUROC", "AUROC from 0 to 1", "AUPRC", "F1", "accuracy", "Cohen's kappa"]
    rows, data = [], []
    for name, result in named:
        record = over_nights(result) if nights else result.record
        macro = record.get("macro") or {}
        figures = {f: macro.get(f) for f in FIGURES} | {f: record.get(f) for f in ("accuracy", "cohen_kappa")}
        n = record.get("n_nights", 0) if nights else (record.get("test") or {}).get("n_clips", 0)
        cells = {f: escape(with_interval(figure)) for f, figure in figures.items()}
        drawn = spread(figures["auroc"], 0.5)
        scored, known = value_of(macro.get("n_classes")), len(record.get("classes") or ())
        cells["name"] = escape(name + few_classes(scored, known))
        rows.append([cells["name"], count(n), cells["auroc"], drawn, *(cells[f] for f in figures if f != "auroc")])
        data.append({"classifier": name, f"test_{unit}": n, **figures})
    external = (
        " Those named external were tested on another store and do not compare with the others."
        if any("external: " in name for name, _ in named)
        else ""
    )
    title = "All classifiers of this task" + (", over nights" if nights else "")
    whole = "A night counts once, by the mean probability of its clips. " if nights else ""
    return Figure(
        title, table(head, rows, title, escaped=True),
        f"{whole}Means of classes, with 95 % intervals over test subjects. Intervals that overlap do not show that "
        "classifiers are alike: the same subjects are hard for all of them. `compare` measures the difference itself."
        f"{external}{caution([result for _, result in named])}",
        [result.record_file for _, result in named], data, wide=True,
    )  # fmt: skip


def difference_figures(runs: Sequence[Run], task: str) -> list[Figure]:
    """Every paired difference of the task that ``compare`` has written."""
    found = list({r.path.resolve(): r for run in runs for r in run.results_of("compare", task=task)}.values())
    if not found:
        return []
    head = ["first - second", "subjects", "AUROC", "AUPRC", "F1", "accuracy", "Cohen's kappa"]
    rows = []
    for result in found:
        names = f"{result.record.get('first')} - {result.record.get('second')}"
        nights = over_nights(result)
        for over, record in (("", result.record), *([(", over nights", nights)] if nights else [])):
            macro = record.get("macro") or {}
            entries = [*(macro.get(f) for f in FIGURES), record.get("accuracy"), record.get("cohen_kappa")]
            scored, known = value_of(record.get("n_classes")), len(record.get("classes") or ())
            cells = [f"{names}{over}{few_classes(scored, known)}", count(result.record.get("n_subjects", 0))]
            rows.append([*cells, *(difference(entry) for entry in entries)])
    any_nights = any(over_nights(result) for result in found)
    whole = " Over nights, a night counts once, by the mean probability of its clips." if any_nights else ""
    figures = ("n_classes", "macro", "classes", "accuracy", "cohen_kappa")
    keys = ("first", "second", "n_subjects", "n_clips", *figures, *(("nights",) if any_nights else ()))
    return [
        Figure(
            "Differences", table(head, rows, "Paired differences"),
            "Both classifiers on the same clips of the same subjects, with 95 % intervals over them. An interval "
            "that excludes 0 is a difference that other test subjects of this kind would show too; other trainings are "
            f"not accounted for.{whole}{caution(found)}",
            [r.record_file for r in found], [{k: r.record.get(k) for k in keys} for r in found], wide=True,
        )
    ]  # fmt: skip


def retrieval_differences(runs: Sequence[Run]) -> list[Figure]:
    """Every paired difference of two retrievals that ``compare`` has written: of the means over directions."""
    results = {r.path.resolve(): r for run in runs for r in run.results_of("compare") if "task" not in r.record}
    found = list(results.values())
    if not found:
        return []
    figures = list(dict.fromkeys(f for r in found for f in r.record.get("mean") or ()))
    rows = []
    for result in found:
        record = result.record
        mean = record.get("mean") or {}
        cells = [difference(mean.get(f), 1 if f.endswith("_rank") else 3) for f in figures]
        names = f"{record.get('first')} - {record.get('second')}"
        rows.append([names, str(record.get("scope", "-")), count(record.get("n_subjects", 0)), *cells])
    head = ["first - second", "scope", "subjects", *(f.replace("_", " ") for f in figures)]
    keys = ("first", "second", "scope", "n_subjects", "n_clips", "mean", "directions")
    return [
        Figure(
            "Differences", table(head, rows, "Paired differences of retrievals"),
            "Both retrievals with the same queries and candidates, mean over directions, with 95 % intervals over the "
            f"queries' subjects. Of ranks, smaller is better.{interval_caution(fewest_tested(found))}",
            [r.record_file for r in found], [{k: r.record.get(k) for k in keys} for r in found], wide=True,
        )
    ]  # fmt: skip


def difference(entry: Any, digits: int = 3) -> str:
    """A signed difference and its interval."""
    value = value_of(entry.get("difference")) if isinstance(entry, dict) else None
    if value is None:
        return "-"
    limits = interval(entry)
    around = "" if limits is None else f" [{limits[0]:+.{digits}f}, {limits[1]:+.{digits}f}]"
    return f"{value:+.{digits}f}{around}"
