"""Section: how the loss fell, from ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.plurals import counted
from sleepfm_fast.reporting import suggestions
from sleepfm_fast.reporting.page import Figure, Group, Missing, Section
from sleepfm_fast.reporting.plot import Plot, legend, series_class
from sleepfm_fast.reporting.scale import covering
from sleepfm_fast.reporting.sources import Run
from sleepfm_fast.reporting.wording import value_of

__all__ = ["training_section"]

MAX_POINTS = 800  # of a line; of more steps or epochs, each of as many stretches shows its mean

NAMES = {
    "training_loss": "training loss",
    "validation_loss": "validation loss",
    "validation_top1": "validation top-1",
    "lr": "learning rate",
}
NOTES = {
    "validation_loss": "Losses compare where they are of one kind (contrast, classification) and over blocks of one "
    "size.",
    "validation_top1": "Share of validation clips whose own clip is the nearest, in blocks of clips.",
    "temperature": "What cosine similarities are multiplied with before the softmax; it is learned.",
    "lr": "Learning rate of the step.",
}

Rows = list[dict[str, Any]]
Floats = npt.NDArray[np.float64]


def column(rows: Rows, key: str) -> Floats:
    """One key of all rows, NaN where it is missing or no number."""
    values = (value_of(row.get(key)) for row in rows)
    return np.array([math.nan if v is None else v for v in values], np.float64)


def thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Means of ``MAX_POINTS`` stretches where there are more points.

    Of a stretch's finite values: a step that was skipped has no loss, and in a long run every stretch may hold one.
    """
    if len(x) <= MAX_POINTS:
        return x, y
    bounds = np.linspace(0, len(x), MAX_POINTS + 1).astype(int)
    starts, sizes = bounds[:-1], np.diff(bounds)
    finite = np.isfinite(y)
    n = np.add.reduceat(finite.astype(np.int64), starts)
    sums = np.add.reduceat(np.where(finite, y, 0.0), starts)
    return np.add.reduceat(x, starts) / sizes, np.where(n > 0, sums / np.maximum(n, 1), math.nan)


def of_kind(run: Run, kind: str) -> Rows:
    """The rows of one kind that carry a step that a training can reach."""
    rows = [row for row in run.metrics if row.get("kind") == kind]
    return [row for row in rows if (step := value_of(row.get("step"))) is not None and abs(step) < 2**53]


def loss_figure(run: Run) -> Figure | None:
    """Step, training and validation loss of one run."""
    steps, epochs = of_kind(run, "step"), of_kind(run, "epoch")
    x, loss = thinned(column(steps, "step"), column(steps, "loss"))
    ends = column(epochs, "step")
    whole = {key: column(epochs, key) for key in ("training_loss", "validation_loss")}
    at = thinned(ends, ends)[0]
    curves = {key: thinned(ends, values)[1] for key, values in whole.items()}
    everything = np.concatenate([loss, *curves.values()])
    if not np.isfinite(everything).any():
        return None
    last = float(np.nanmax(np.concatenate([x, ends])))
    plot = Plot(
        covering([0.0, last], margin=0.0),
        covering(everything),
        f"Loss of {run.name}",
        f"Line plot over {counted(last, 'step', spec='.0f')} of the loss on training batches, and its mean over each "
        f"epoch for training and validation subjects. {trend(whole['validation_loss'], 'validation loss')}",
        x_label="step",
        y_label="loss",
    )
    entries = []
    if np.isfinite(loss).any():
        plot.line(x, loss, "s7 thin")
        if np.isfinite(loss).sum() == 1:  # one value is no line
            plot.points(x, loss, 7, [f"batch {v:.4g}" for v in loss])
        entries.append(("s7 thin", "batches"))
    for series, (key, values) in enumerate(curves.items()):
        if np.isfinite(values).any():
            plot.line(at, values, f"s{series}")
            plot.points(at, values, series, [f"{NAMES[key]} {v:.4g}" for v in values])
            entries.append((f"s{series}", NAMES[key]))
    best = ""
    if np.isfinite(whole["validation_loss"]).any():
        k = int(np.nanargmin(whole["validation_loss"]))
        best = f" The best validation loss is {whole['validation_loss'][k]:.4g}, after step {ends[k]:.0f}."
    skipped = sum(row.get("kind") == "skipped" for row in run.metrics)
    were = counted(skipped, "step was", "steps were")
    left_out = f" {were} skipped because loss or gradient was not finite." if skipped else ""
    return Figure(
        f"Loss of {run.name}",
        plot,
        f"Loss of single batches, and means over epochs.{best}{left_out} Training and validation losses compare only "
        "where they are taken over equally many clips at a time.",
        [run.metrics_path],
        {"step": x, "loss": loss, "epoch_step": at, **curves, "skipped_steps": skipped},
        key=legend(entries, "both") if len(entries) > 1 else "",
    )


def trend(values: Floats, what: str) -> str:
    """First and last value in words."""
    finite = values[np.isfinite(values)]
    return f"The {what} goes from {finite[0]:.4g} to {finite[-1]:.4g}." if finite.size else ""


def compared(runs: Sequence[Run], kind: str, key: str) -> Figure | None:
    """One quantity of all runs that have it."""
    found = []
    for i, run in enumerate(runs):
        rows = of_kind(run, kind)
        x, y = thinned(column(rows, "step"), column(rows, key))
        if np.isfinite(y).any():
            found.append((i, run, x, y))
    if not found:
        return None
    everything = np.concatenate([y for *_, y in found])
    name = NAMES.get(key, key.replace("_", " "))
    plot = Plot(
        covering([0.0, max(float(np.nanmax(x)) for *_, x, _ in found)], margin=0.0),
        covering(everything),
        name.capitalize(),
        f"Line plot of the {name} over the steps of training. "
        + " ".join(f"{run.name}: {trend(y, name)}" for _, run, _, y in found),
        x_label="step",
        y_label=name,
        height_px=150,
    )
    for i, _, x, y in found:
        plot.line(x, y, series_class(i))
        if kind == "epoch" or np.isfinite(y).sum() == 1:  # one value is no line
            plot.points(x, y, i, [f"{v:.4g}" for v in y])
    kinds = "both" if kind == "epoch" else "line"
    return Figure(
        name[0].upper() + name[1:],
        plot,
        NOTES.get(key, ""),
        [run.metrics_path for _, run, _, _ in found],
        {run.name: {"step": x, key: y} for _, run, x, y in found},
        key=legend([(series_class(i), run.name) for i, run, _, _ in found], kinds) if len(runs) > 1 else "",
    )


def training_section(runs: Sequence[Run]) -> Section:
    """Draw the curves of all runs."""
    section = Section("training", "Training")
    group = Group()
    for run in runs:
        figure = loss_figure(run)
        if figure is not None:
            group.items.append(figure)
        elif run.config:
            group.items.append(
                Missing(
                    f"{run.name} has no losses yet ({run.metrics_path} is missing or empty). Training writes them:",
                    suggestions.train(run),
                )
            )
    if len(runs) > 1:
        group.items.append(compared(runs, "epoch", "validation_loss"))  # type: ignore[arg-type]
    known = ("training_loss", "validation_loss")
    keys = dict.fromkeys(
        key
        for run in runs
        for row in of_kind(run, "epoch")
        for key, value in row.items()
        if key.startswith("validation_") and key not in known and value_of(value) is not None
    )
    group.items += [compared(runs, "epoch", key) for key in keys]  # type: ignore[misc]
    group.items += [compared(runs, "step", key) for key in ("temperature", "lr")]  # type: ignore[misc]
    group.items = [item for item in group.items if item is not None]
    if not group.items:
        group.items.append(Missing("None of the folders was trained: there is no metrics.jsonl."))
    section.groups.append(group)
    return section
