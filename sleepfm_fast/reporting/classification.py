"""Sections: one a task, with what each classifier got right: figures, confusion, ROC, precision-recall, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sleepfm_fast.evaluation.interval_notice import class_caution, interval_caution
from sleepfm_fast.evaluation.tasks import TASKS, labels_of
from sleepfm_fast.plurals import agreeing
from sleepfm_fast.reporting import suggestions
from sleepfm_fast.reporting.class_curves import calibration_figure, curve_figures, night_calibration
from sleepfm_fast.reporting.comparison import difference_figures, overview
from sleepfm_fast.reporting.markup import element, escape
from sleepfm_fast.reporting.page import Figure, Group, Missing, Section, table
from sleepfm_fast.reporting.sleep_figures import sleep_figures
from sleepfm_fast.reporting.sources import MISSHAPEN, Run, over_nights
from sleepfm_fast.reporting.strata import strata_figure
from sleepfm_fast.reporting.wording import count, number_of, share, value_of, with_interval
from sleepfm_fast.results import CLASSIFIERS, Result

__all__ = ["TASK_TITLES", "task_section"]

TASK_TITLES = {
    "stage": "Sleep staging",
    "sdb": "Sleep-disordered breathing",
    "age": "Age group",
    "sex": "Sex",
}
OF_PERSON = tuple(name for name, task in TASKS.items() if task.of_person)
SHOWN = 4  # results of a task that stand open; further ones are folded


def describe_result(run: Run, result: Result, runs: Sequence[Run]) -> str:
    """Name a result within the report: its run where there are several, what it saw, its folder where that is alike."""
    name = kind_of(run, result)
    alike = [r for r in run.results_of(*CLASSIFIERS, task=result.record.get("task")) if kind_of(run, r) == name]
    if len(alike) > 1:
        name += f" ({result.path.relative_to(run.path)})"
    return f"{run.name}: {name}" if len(runs) > 1 else name[0].upper() + name[1:]


def kind_of(run: Run, result: Result) -> str:
    """Say what kind of classifier it was, what it saw, and of which other store its test clips are."""
    modalities = result.record.get("modalities")
    modalities = modalities if isinstance(modalities, list) else []
    saw = "all modalities" if len(modalities) > 1 else str(modalities[0]) if modalities else result.path.name
    how = "probe" if result.command == "probe" else "end-to-end network"
    store = run.external_store(result)
    # Of two stores that transfer has joined, the second.
    store = store.partition(" (training), ")[2].removesuffix(" (test)") or store
    return f"{how}, {saw}" + (f", external: tested on {store}" if store else "")


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
            [result.record_file], record, wide=True,
        )  # fmt: skip
    keys = ("task", "classes", "macro", "accuracy", "cohen_kappa", "train", "test", "overlap_note")
    return Figure(
        "Figures of each class", table(head, rows, f"Figures of {name}"), about, [result.record_file],
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
        [result.record_file],
        {"classes": names, "counts": counts.astype(int).tolist(), "row_share": shares.tolist()},
    )


def clips_of(side: dict[str, Any]) -> str:
    """How many clips of how many subjects."""
    return f"{number_of(side['n_clips'], 'clip')} of {number_of(side['n_subjects'], 'subject')}"


def sizes(result: Result) -> str:
    """What a classifier saw, how many clips and subjects it was fitted and tested on, and whether it knew some."""
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
    about = "; ".join(part for part in parts if part)
    note = str(record.get("overlap_note") or "")
    return f"{about}. {note[0].upper()}{note[1:]}" if note else about


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
                *(sleep_figures(group.title, result) if task == "stage" else ()),
            ]
        except MISSHAPEN as error:
            items = [Missing(f"{result.record_file} is not as {result.command} writes it ({error!r}). Run it again.")]
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
