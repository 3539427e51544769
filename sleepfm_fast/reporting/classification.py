"""Sections: one a task, with what each classifier got right: figures, confusion, ROC, precision-recall, calibration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.interval_notice import class_caution, interval_caution
from sleepfm_fast.evaluation.tasks import TASKS, labels_of
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.reporting import suggestions
from sleepfm_fast.reporting.comparison import difference_figures, overview
from sleepfm_fast.reporting.curves import calibration, precision_recall, roc, thin
from sleepfm_fast.reporting.markup import element, escape, number
from sleepfm_fast.reporting.page import Figure, Group, Missing, Section, table
from sleepfm_fast.reporting.plot import Plot, legend, series_class
from sleepfm_fast.reporting.scale import Scale
from sleepfm_fast.reporting.sources import MISSHAPEN, Run, over_nights
from sleepfm_fast.reporting.strata import strata_figure
from sleepfm_fast.reporting.wording import count, number_of, share, value_of, with_interval
from sleepfm_fast.results import Result

__all__ = ["TASK_TITLES", "describe_result", "task_section"]

TASK_TITLES = {
    "stage": "Sleep staging",
    "sdb": "Sleep-disordered breathing",
    "age": "Age group",
    "sex": "Sex",
}
UNIT = Scale(0.0, 1.0, ticks=tuple((t, number(t)) for t in (0.0, 0.25, 0.5, 0.75, 1.0)))
OF_PERSON = tuple(name for name, task in TASKS.items() if task.of_person)
CLASSIFIERS = ("probe", "supervise", "classify")  # commands whose results are a classifier's test
SHOWN = 4  # results of a task that stand open; further ones are folded


def describe_result(run: Run, result: Result, runs: Sequence[Run]) -> str:
    """Name a result within the report: its run where there are several, and what it saw."""
    record = result.record
    modalities = record.get("modalities")
    modalities = modalities if isinstance(modalities, list) else []
    saw = "all modalities" if len(modalities) > 1 else str(modalities[0]) if modalities else result.path.name
    how = "probe" if result.command == "probe" else "end-to-end network"
    name = f"{how}, {saw}"
    if store := run.external_store(result):
        name += f", external: tested on {store}"
    same = [
        r
        for r in run.results_of(*CLASSIFIERS, task=record.get("task"))
        if (r.command, r.record.get("modalities")) == (result.command, record.get("modalities"))
    ]
    if len(same) > 1:
        name += f" ({result.path.relative_to(run.path)})"
    return f"{run.name}: {name}" if len(runs) > 1 else name[0].upper() + name[1:]


def record_file(result: Result) -> Path:
    """The JSON of a result."""
    return result.path / "result.json"


def array_file(result: Result, name: str) -> Path:
    """The file of one of its arrays."""
    return result.path / f"{name}.npy"


def figures_table(name: str, result: Result, *, nights: bool = False) -> Figure:
    """AUROC, AUPRC and F1 per class with intervals, over clips or over nights."""
    record = result.record
    test = record.get("test", {})
    if nights:
        record = over_nights(result)
        test = record
    rows, notes = [], []
    for class_name, entry in record.get("classes", {}).items():
        if entry.get("note"):
            notes.append(f"{class_name}: {entry['note']}.")
        cells = [
            class_name,
            count(entry.get("n_test", 0)),
            count(entry.get("n_subjects")),
            f"{entry.get('prevalence', 0):.3f}",
            *(with_interval(entry.get(f)) for f in ("auroc", "auprc", "f1")),
        ]
        rows.append(cells)
    macro = record.get("macro", {})
    if len(rows) > 1:
        notes += averaged_over(record["classes"])
        rows.append(["mean of classes", "", "", "", *(with_interval(macro.get(f)) for f in ("auroc", "auprc", "f1"))])
    n_subjects = test.get("n_subjects", 0)
    brackets = (
        "One test subject, so no intervals."
        if n_subjects == 1
        else f"Brackets are 95 % intervals, bootstrapped over {count(n_subjects)} test subjects."
    )
    if result.record.get("n_bootstraps") == 0:
        brackets = "No intervals: it was made with --bootstraps 0."
    elif n_subjects > 1:
        brackets += interval_caution(n_subjects) + class_caution(record.get("classes", {}), n_subjects)
    about = (
        f"Accuracy {with_interval(record.get('accuracy'))}, Cohen's kappa {with_interval(record.get('cohen_kappa'))}. "
        f"{brackets} Chance is 0.5 for AUROC, the prevalence for AUPRC. " + " ".join(notes)
    )
    head = ["class", "nights" if nights else "clips", "subjects", "prevalence", "AUROC", "AUPRC", "F1"]
    if nights:
        counted_nights = f"{number_of(record.get('n_nights', 0), 'night')} of {number_of(n_subjects, 'subject')}"
        about = f"A night counts once, by the mean probability of its clips ({counted_nights}). {about}"
        return Figure(
            "Figures of each class, over nights", table(head, rows, f"Figures of {name}, over nights"), about,
            [record_file(result)], record, wide=True,
        )  # fmt: skip
    keys = ("task", "classes", "macro", "accuracy", "cohen_kappa", "train", "test", "overlap_note")
    return Figure(
        "Figures of each class", table(head, rows, f"Figures of {name}"), about, [record_file(result)],
        {k: record[k] for k in keys if k in record}, wide=True,
    )  # fmt: skip


def night_figures(name: str, result: Result) -> list[Figure]:
    """Figures over nights, of tasks whose class is a person's; results of earlier versions have none."""
    return [figures_table(name, result, nights=True)] if over_nights(result) else []


def averaged_over(classes: dict[str, Any]) -> list[str]:
    """Say which means are over fewer classes than the task has."""
    have = {f: sum(value_of(entry.get(f)) is not None for entry in classes.values()) for f in ("auroc", "auprc", "f1")}
    names = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1"}
    by_number: dict[int, list[str]] = {}
    for figure, n in have.items():
        by_number.setdefault(n, []).append(names[figure])
    return [
        f"{', '.join(figures)}: mean over {n} of {len(classes)} classes."
        for n, figures in by_number.items()
        if 0 < n < len(classes)
    ]


def confusion_figure(name: str, result: Result) -> Figure | None:
    """Counts and row shares; the shade of a cell is its share of the row."""
    confusion = result.record.get("confusion")
    if not confusion:
        return None
    names = [str(n) for n in confusion["rows_true_columns_predicted"]]
    counts = np.asarray(confusion["counts"], np.float64)
    head = element(
        "tr",
        element("th", "true", scope="col", rowspan="2"),
        element("th", "predicted", scope="colgroup", colspan=len(names)),
    ) + element("tr", *(element("th", escape(n), scope="col") for n in names))
    lines = []
    for i, row in enumerate(counts):
        total = row.sum()
        cells = [element("th", escape(names[i]), element("small", count(total)), scope="row")]
        for j, n in enumerate(row):
            part = n / total if total else 0.0
            text = share(n, total) if total else "-"
            inner = (escape(text), element("small", count(n)))
            own = "own" if i == j else None
            cells.append(element("td", *inner, style=f"--v:{part:.3f}", class_=own))
        lines.append(element("tr", *cells))
    body = element(
        "table",
        element("caption", escape(f"Confusion matrix of {name}"), class_="spoken"),
        element("thead", head),
        element("tbody", *lines),
        class_="confusion",
    )
    region = element(
        "div", body, class_="scroll", tabindex="0", role="region", aria_label=f"Confusion matrix of {name}"
    )
    whose = "subjects'" if result.record.get("task") in OF_PERSON else "scorers'"
    shares = (counts / np.maximum(counts.sum(1, keepdims=True), 1)).round(6)
    return Figure(
        "Confusion matrix",
        region,
        f"Rows are the {whose} classes, columns the predicted ones: share of the row, and clips below. Framed cells "
        "are right.",
        [record_file(result)],
        {"classes": names, "counts": counts.astype(int).tolist(), "row_share": shares.tolist()},
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
    trained = [int(k) for k in result.record.get("trained_classes", range(score.shape[1]))]
    kinds: list[tuple[str, str, str, str]] = [
        ("ROC", "false positive rate", "true positive rate", "auroc"),
        ("Precision-recall", "recall", "precision", "auprc"),
    ]
    figures: list[Figure | Missing] = []
    sources = [array_file(result, "label"), array_file(result, "score")]
    for kind, x_label, y_label, figure_key in kinds:
        curves: dict[str, Any] = {}
        absent = []
        entries = []
        plot = Plot(
            UNIT, UNIT, f"{kind} curves of {name}", "", x_label=x_label, y_label=y_label, square=True
        )  # fmt: skip
        if kind == "ROC":
            plot.line([0, 1], [0, 1], "chance")
        for series, (code, class_name) in enumerate(scored_classes(result)):
            positive = label == code
            if code not in trained or positive.all() or not positive.any():
                absent.append(class_name)
                continue
            s = score[:, trained.index(code)]
            x, y = thin(*(roc(positive, s) if kind == "ROC" else precision_recall(positive, s)))
            plot.line(x, y, series_class(series))
            value = value_of(result.record["classes"][class_name].get(figure_key))
            area = "" if value is None else f" {value:.3f}"
            entries.append((series_class(series), f"{class_name}{area}"))
            curves[class_name] = {x_label: x.round(4).tolist(), y_label: y.round(4).tolist(), "area": value}
        if not curves:
            figures.append(Missing(f"{kind} of {name}: no class has both positive and negative test clips."))
            continue
        plot.description = f"{kind} curves of {counted(len(curves), 'class', 'classes')}. " + " ".join(
            f"Area of {c}: {v['area']:.3f}." for c, v in curves.items() if v["area"] is not None
        )
        note = f" No curve for {', '.join(absent)}: absent from the training or the test clips." if absent else ""
        what = (
            "Each class against the rest; the dashed diagonal is guessing."
            if kind == "ROC"
            else "Each class against the rest; guessing is a horizontal line at the class's prevalence."
        )
        figures.append(
            Figure(
                f"{kind} curves", plot, f"{what} The key gives the area below the curve.{note}",
                [*sources, record_file(result)], curves, key=legend(entries),
            )
        )  # fmt: skip
    return figures


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
        return bins, words, [record_file(result)]
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
    return bins, "", [array_file(result, "label"), array_file(result, "probability")]


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
            [record_file(result)],
            nights,
            key=legend(
                [(series_class(i), f"{n} {value_of(c['brier']):.3f}") for i, (n, c) in enumerate(classes.items())],
                "both",
            ),
        )
    ]


def clips_of(side: dict[str, Any]) -> str:
    """How many clips of how many subjects."""
    return f"{number_of(side['n_clips'], 'clip')} of {number_of(side['n_subjects'], 'subject')}"


def sizes(result: Result) -> str:
    """What a classifier saw, and how many clips and subjects it was fitted and tested on."""
    record = result.record
    parts = [", ".join(str(m) for m in record.get("modalities") or ())]
    train, test = record.get("train"), record.get("test")
    if train and test:
        if record.get("overlap"):
            of_them = agreeing(test["n_subjects"], "who is no other", "not all of them others")
            whom = f"{number_of(test['n_subjects'], 'subject')}, {of_them}"
        else:
            whom = number_of(test["n_subjects"], "other subject")
        parts.append(f"fitted on {clips_of(train)}, tested on {number_of(test['n_clips'], 'clip')} of {whom}")
    elif test:  # `classify` fits nothing
        parts.append(f"tested on {clips_of(test)}")
    return "; ".join(part for part in parts if part)


def task_section(runs: Sequence[Run], task: str) -> Section:
    """Draw all results of a task, run by run."""
    section = Section(f"task-{task}", TASK_TITLES[task])
    found = [(run, result) for run in runs for result in run.results_of(*CLASSIFIERS, task=task)]
    own = [(run, result) for run, result in found if not run.external_store(result)]
    found = [*own, *(entry for entry in found if entry not in own)]
    together: list[Figure | Missing] = []
    try:
        if len(found) > 1:
            named = [(describe_result(run, result, runs), result) for run, result in found]
            together.append(overview(named))
            if len(by_night := [(name, result) for name, result in named if over_nights(result)]) > 1:
                together.append(overview(by_night, nights=True))
        differences = difference_figures(runs, task)
        together += differences
    except MISSHAPEN as error:
        differences = []
        together.append(Missing(f"The classifiers of this task cannot be tabulated ({error!r}). Write them again."))
    if together and not differences and len(own) > 1:
        (run, first), (_, second) = own[:2]
        command = suggestions.compare(run, task, first, second)
        together.append(Missing("No difference of two of them has been measured. This command measures one:", command))
    if together:
        section.groups.append(Group(items=together))
    for i, (run, result) in enumerate(found):
        group = Group(describe_result(run, result, runs))
        try:
            group.note = sizes(result)
            items: list[Figure | Missing | None] = [
                figures_table(group.title, result),
                *night_figures(group.title, result),
                confusion_figure(group.title, result),
                *curve_figures(group.title, result),
                calibration_figure(group.title, result),
                *night_calibration(group.title, result),
                *strata_figure(group.title, result),
            ]
        except MISSHAPEN as error:
            items = [Missing(f"{record_file(result)} is not as {result.command} writes it ({error!r}). Run it again.")]
        group.items = [item for item in items if item is not None]
        group.folded = i >= SHOWN
        section.groups.append(group)
    lacking = [run for run in runs if not run.supervised and run not in [r for r, _ in own]]
    for run in lacking if (found or task in ("stage", "sdb")) else ():
        section.groups.append(Group(items=[lacking_result(run, task)]))
    return section


def lacking_result(run: Run, task: str) -> Missing:
    """Name the command that makes the result of a task, or what its clips lack for it."""
    embeddings = run.embeddings
    if embeddings is not None and (labels_of(embeddings, task, np.arange(len(embeddings))) < 0).all():
        words = f"No clip of {run.name} has a label for {TASK_TITLES[task].lower()} ({TASKS[task].labels})."
        return Missing(f"{words} {TASKS[task].remedy}.")
    return Missing(
        f"{run.name} has no result for {TASK_TITLES[task].lower()} on its own store. This command makes one:",
        suggestions.probe(run, task),
    )
