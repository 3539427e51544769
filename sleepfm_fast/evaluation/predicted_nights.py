"""What predictions say of each night as a whole, and how far they agree with the scorer there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sleepfm_fast.evaluation.metrics import confusion_by_subject, confusion_curves
from sleepfm_fast.scoring.sleep_figures import NIGHT_COLUMNS, SLEEP_COLUMNS, night_figures, scored_span
from sleepfm_fast.scoring.stages import EPOCH_S

if TYPE_CHECKING:
    from sleepfm_fast.evaluation.predictions import Predicted

__all__ = ["night_columns", "night_row"]

AGREEMENT = ("epochs_compared", "agreement_percent", "kappa")
BREATHING = ("event_epochs", "event_epochs_per_h", "scored_event_epochs_per_h", "event_epochs_per_h_within_scored")
BESIDE_SCORER = tuple(column for name in SLEEP_COLUMNS for column in (f"scored_{name}", f"{name}_within_scored"))


def night_columns(task: str, names: Sequence[str]) -> tuple[str, ...]:
    """Columns of ``nights.csv`` for a task with these classes."""
    counts = ("epochs", "epochs_without_prediction")
    if task == "stage":
        what: tuple[str, ...] = (*NIGHT_COLUMNS, *AGREEMENT, "scored_epochs", "scored_min", *BESIDE_SCORER)
    elif task == "sdb":
        what = (*counts, *BREATHING, *AGREEMENT)
    else:
        what = (*counts, "predicted", *(f"p_{name}" for name in names), "known")
    return ("subject", "recording", "split", *what, "missing_channels")


def night_row(found: Predicted, task: str, rows: Sequence[int], words: Sequence[str]) -> dict[str, Any]:
    """Row of a night.

    Parameters
    ----------
    found : Predicted
    task : str
    rows : sequence of int
        Its clips, in the order of time.
    words : sequence of str
        The class predicted for each of them, empty where there is none.

    Returns
    -------
    dict
        :func:`night_columns`; None where there is nothing to say. ``event_epochs_per_h``: per hour of epochs with a
        prediction; ``scored_event_epochs_per_h``: the scorer's, per hour of epochs with a label;
        ``event_epochs_per_h_within_scored``: the prediction's, per hour of epochs with both. Agreement and Cohen's
        kappa are of the epochs that have both; kappa is None where both are one class throughout. Of stages, as
        :func:`beside_scorer`. Of age and sex, whose class is the person's, ``p_CLASS`` is the mean over the night's
        epochs, ``predicted`` the largest.
    """
    index = list(rows)
    scored = [found.all_names[code] if code >= 0 else "" for code in found.scored[index].tolist()]
    row: dict[str, Any] = {
        "subject": found.subjects[int(found.subject[index[0]])],
        "recording": found.recordings[int(found.recording[index[0]])],
        "split": found.split[index[0]] if found.split is not None else "",
        "epochs": len(index),
        "epochs_without_prediction": sum(not word for word in words),
    }
    row["missing_channels"] = "; ".join(found.missing.get(row["recording"], ())) or None
    if task == "stage":
        onsets_s = found.onset_s[index].tolist()
        own = night_figures(words, onsets_s)
        return {**row, **own, **agreement(words, scored), **beside_scorer(words, scored, onsets_s)}
    if task == "sdb":
        per_h = 3600 / EPOCH_S
        known, labelled = sum(map(bool, words)), sum(map(bool, scored))
        both = [word for word, truth in zip(words, scored, strict=True) if word and truth]
        return {
            **row,
            "event_epochs": words.count("event") if known else None,
            "event_epochs_per_h": per_h * words.count("event") / known if known else None,
            "scored_event_epochs_per_h": per_h * scored.count("event") / labelled if labelled else None,
            "event_epochs_per_h_within_scored": per_h * both.count("event") / len(both) if both else None,
            **agreement(words, scored),
        }
    row |= {"predicted": None, **{f"p_{name}": None for name in found.names}, "known": scored[0] or None}
    there = [i for i, word in zip(index, words, strict=True) if word]
    if there:
        mean = found.probability[there].mean(axis=0)
        row |= {f"p_{name}": p for name, p in zip(found.names, mean.tolist(), strict=True)}
        row["predicted"] = found.names[int(mean.argmax())]
    return row


def beside_scorer(
    words: Sequence[str], scored: Sequence[str], onsets_s: Sequence[float]
) -> dict[str, float | int | None]:
    """Sleep figures of the scorer, and of the prediction in the same epochs, so that they differ by the stages only.

    The whole recording is no match for a scoring: before lights off and after lights on nobody scored, and what is
    predicted there is counted as sleep or wake. Both are of the span of
    :func:`sleepfm_fast.scoring.sleep_figures.scored_span`; in it, an epoch that the scorer left out is left out of the
    prediction too.
    """
    span = scored_span(scored)
    theirs, onsets_s = scored[span], onsets_s[span]
    ours = [word if truth else "" for word, truth in zip(words[span], theirs, strict=True)]
    by_scorer, by_us = (night_figures(stages, onsets_s) for stages in (theirs, ours))
    row = {"scored_epochs": sum(map(bool, theirs)), "scored_min": by_scorer["time_in_bed_min"]}
    for name in SLEEP_COLUMNS:
        row |= {f"scored_{name}": by_scorer[name], f"{name}_within_scored": by_us[name]}
    return row


def agreement(words: Sequence[str], scored: Sequence[str]) -> dict[str, float | int | None]:
    """Share of epochs with one class by both, and Cohen's kappa, of the epochs that have both."""
    pairs = [(truth, word) for truth, word in zip(scored, words, strict=True) if truth and word]
    if not pairs:
        return dict.fromkeys(AGREEMENT) | {"epochs_compared": 0}
    names = sorted({name for pair in pairs for name in pair})
    truth, answer = (np.array([names.index(pair[side]) for pair in pairs]) for side in (0, 1))
    confusion = confusion_by_subject(truth, answer, np.zeros_like(truth), len(names), 1)
    figures = confusion_curves(confusion, np.ones((1, 1), np.int32))
    accuracy, kappa = (float(figures[name][0]) for name in ("accuracy", "cohen_kappa"))
    return {
        "epochs_compared": len(pairs),
        "agreement_percent": 100 * accuracy,
        "kappa": kappa if np.isfinite(kappa) else None,
    }
