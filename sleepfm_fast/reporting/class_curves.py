"""Curves of every class: ROC, precision-recall, and calibration over clips and over nights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import counted
from sleepfm_fast.reporting.curves import calibration, precision_recall, roc, thin
from sleepfm_fast.reporting.markup import number
from sleepfm_fast.reporting.page import Figure, Missing
from sleepfm_fast.reporting.plot import Plot, legend, series_class
from sleepfm_fast.reporting.scale import Scale
from sleepfm_fast.reporting.wording import number_of, value_of, with_interval
from sleepfm_fast.results import Result

__all__ = ["calibration_figure", "curve_figures", "night_calibration"]

UNIT = Scale(0.0, 1.0, ticks=tuple((t, number(t)) for t in (0.0, 0.25, 0.5, 0.75, 1.0)))


class Kind(NamedTuple):
    """A kind of curve, and the figure that is the area below it."""

    title: str
    x_label: str
    y_label: str
    figure: str
    curve: Callable[..., tuple[Any, Any]]
    guess_is_diagonal: bool


KINDS = (
    Kind("ROC", "false positive rate", "true positive rate", "auroc", roc, True),
    Kind("Precision-recall", "recall", "precision", "auprc", precision_recall, False),
)


def scored_classes(result: Result) -> list[tuple[int, str]]:
    """Code and name of the classes that the record gives figures for."""
    names = [
        str(n) for n in result.record.get("class_names", result.record["confusion"]["rows_true_columns_predicted"])
    ]
    return [(names.index(n), n) for n in result.record.get("classes", {}) if n in names]


def curve_figures(name: str, result: Result) -> list[Figure | Missing]:
    """ROC and precision-recall of every class."""
    if not {"label", "score"} <= set(result.record.get("arrays", {})):
        return [
            Missing(
                f"{result.path} has no scores of its clips, so there are no curves. Write the result again:",
                f"python -m sleepfm_fast.{result.command} --help",
            )
        ]
    try:
        label = np.asarray(result.array("label"))
        score = np.asarray(result.array("score"), np.float64)
    except SleepfmError as error:
        return [Missing(str(error))]
    return [curve_figure(name, result, label, score, kind) for kind in KINDS]


def curve_figure(name: str, result: Result, label: Any, score: Any, kind: Kind) -> Figure | Missing:
    """One kind of curve, of every class that has positive and negative test clips."""
    trained = [int(k) for k in result.record.get("trained_classes", range(score.shape[1]))]
    curves: dict[str, Any] = {}
    absent = []
    entries = []
    plot = Plot(
        UNIT, UNIT, f"{kind.title} curves of {name}", "", x_label=kind.x_label, y_label=kind.y_label, square=True
    )  # fmt: skip
    if kind.guess_is_diagonal:
        plot.line([0, 1], [0, 1], "chance")
    for series, (code, class_name) in enumerate(scored_classes(result)):
        positive = label == code
        if code not in trained or positive.all() or not positive.any():
            absent.append(class_name)
            continue
        x, y = thin(*kind.curve(positive, score[:, trained.index(code)]))
        plot.line(x, y, series_class(series))
        value = value_of(result.record["classes"][class_name].get(kind.figure))
        area = "" if value is None else f" {value:.3f}"
        entries.append((series_class(series), f"{class_name}{area}"))
        curves[class_name] = {kind.x_label: x.round(4).tolist(), kind.y_label: y.round(4).tolist(), "area": value}
    if not curves:
        return Missing(f"{kind.title} of {name}: no class has both positive and negative test clips.")
    plot.description = f"{kind.title} curves of {counted(len(curves), 'class', 'classes')}. " + " ".join(
        f"Area of {c}: {v['area']:.3f}." for c, v in curves.items() if v["area"] is not None
    )
    note = f" No curve for {', '.join(absent)}: absent from the training or the test clips." if absent else ""
    what = (
        "Each class against the rest; the dashed diagonal is guessing."
        if kind.guess_is_diagonal
        else "Each class against the rest; guessing is a horizontal line at the class's prevalence."
    )
    return Figure(
        f"{kind.title} curves", plot, f"{what} The key gives the area below the curve.{note}",
        [*map(result.array_file, ("label", "score")), result.record_file], curves, key=legend(entries),
    )  # fmt: skip


def calibration_of(result: Result) -> tuple[dict[str, Any], str, list[Path]]:
    """Bins of every class, what was done to the probabilities, and the files: the record's own, else from the arrays.

    Returns
    -------
    bins : dict
        Class name -> ``predicted``, ``observed``, ``clips`` of the occupied bins, ``error`` (with interval or not).
    words : str
        What the reader must know of the probabilities.
    sources : list of Path
        Where the bins come from.
    """
    recorded = result.record.get("calibration")
    bins: dict[str, Any] = {}
    if isinstance(recorded, dict) and recorded:
        which = "prior_corrected" if "prior_corrected" in recorded else "as_fitted"
        for name, entry in recorded[which]["classes"].items():
            used = [b for b in entry["bins"] if b["n"]]
            bins[name] = {
                "predicted": [b["mean_probability"] for b in used],
                "observed": [b["observed"] for b in used],
                "clips": [b["n"] for b in used],
                "error": entry["expected_calibration_error"],
            }
        words = ""
        if which == "prior_corrected":
            raw = with_interval(recorded["as_fitted"]["predicted_class"]["expected_calibration_error"])
            mended = with_interval(recorded[which]["predicted_class"]["expected_calibration_error"])
            words = (
                " The classifier was fitted as if all classes were equally frequent; the curves are after correction "
                f"to the training clips' frequencies. Error of the predicted class: {mended}, without correction {raw}."
            )
        return bins, words, [result.record_file]
    if "probability" not in result.record["arrays"]:
        return {}, "", []
    label, probability = np.asarray(result.array("label")), np.asarray(result.array("probability"), np.float64)
    trained = [int(k) for k in result.record.get("trained_classes", range(probability.shape[1]))]
    for code, name in scored_classes(result):
        if code in trained:
            mean, seen, size = calibration(label == code, probability[:, trained.index(code)])
            error = float((size * np.abs(mean - seen)).sum() / size.sum())
            bins[name] = {
                "predicted": mean.tolist(), "observed": seen.tolist(), "clips": size.tolist(), "error": error
            }  # fmt: skip
    return bins, "", [result.array_file("label"), result.array_file("probability")]


def reliability_plot(
    title: str, description: str, lines: Iterable[tuple[Sequence[float], Sequence[float], Sequence[str]]]
) -> Plot:
    """Draw observed shares over predicted probabilities, a line a class, with a text for every point."""
    plot = Plot(
        UNIT, UNIT, title, description, x_label="predicted probability", y_label="observed share", square=True
    )  # fmt: skip
    plot.line([0, 1], [0, 1], "chance")
    for series, (predicted, observed, texts) in enumerate(lines):
        plot.line(predicted, observed, series_class(series))
        plot.points(predicted, observed, series, texts)
    return plot


def calibration_figure(name: str, result: Result) -> Figure | None:
    """Predicted probability against observed share, in ten bins a class."""
    bins, words, sources = calibration_of(result)
    if not bins:
        return None
    errors = {n: value_of(b["error"]) for n, b in bins.items()}
    described = " ".join(f"{n} is off by {e:.3f} on average." for n, e in errors.items() if e is not None)
    lines = [
        (b["predicted"], b["observed"], [f"{class_name}: {counted(n, 'clip')}" for n in b["clips"]])
        for class_name, b in bins.items()
    ]
    entries = [
        (series_class(i), n if (e := errors[n]) is None else f"{n} {e:.3f}") for i, n in enumerate(bins)
    ]  # fmt: skip
    return Figure(
        "Calibration",
        reliability_plot(f"Calibration of {name}", described, lines),
        "Clips in ten bins of predicted probability; on the diagonal the probabilities can be taken at their word. The "
        f"key gives the mean distance from it (expected calibration error).{words}",
        sources,
        bins,
        key=legend(entries, "both"),
    )


def night_calibration(name: str, result: Result) -> list[Figure]:
    """Predicted probability of nights against observed share; of tasks whose class is a person's."""
    recorded = result.record.get("calibration")
    nights = recorded.get("nights") if isinstance(recorded, dict) else None
    if not nights:
        return []
    which = "prior_corrected" if "prior_corrected" in nights else "as_fitted"
    classes = nights[which]["classes"]
    described = " ".join(f"Brier score of {n}: {value_of(c['brier']):.3f}." for n, c in classes.items())
    lines = []
    for class_name, entry in classes.items():
        used = [b for b in entry["bins"] if b["n"]]
        at, seen = ([b[key] for b in used] for key in ("mean_probability", "observed"))
        lines.append((at, seen, [f"{class_name}: {number_of(b['n'], 'night')}" for b in used]))
    scores = {kind: with_interval(nights[kind]["predicted_class"]["brier"]) for kind in ("as_fitted", which)}
    words = f"{scores[which]}, without correction {scores['as_fitted']}" if len(scores) > 1 else scores[which]
    return [
        Figure(
            "Calibration, over nights",
            reliability_plot(f"Calibration of {name}, over nights", described, lines),
            f"{number_of(nights['n_nights'], 'night')} of {number_of(nights['n_subjects'], 'subject')} in ten bins of "
            "predicted probability, the mean over a night's clips. The key gives the Brier score (mean squared "
            "difference of probability and outcome, 0 is best), and no mean distance from the diagonal: with few "
            f"nights a bin, most of that is noise. Of the predicted class: {words}.",
            [result.record_file],
            nights,
            key=legend(
                [(series_class(i), f"{n} {value_of(c['brier']):.3f}") for i, (n, c) in enumerate(classes.items())],
                "both",
            ),
        )
    ]
