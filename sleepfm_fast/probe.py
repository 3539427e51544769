"""``python -m sleepfm_fast.probe EMBEDDINGS [RESULT] --task stage``: what a linear classifier reads out of embeddings.

Logistic regression (L2, lbfgs, balanced class weights) on the unit embeddings of a clip, concatenated in the order
respiratory, brain, ecg; fitted on the training subjects, tested on the test subjects. Every class is scored against the
rest; intervals are bootstrapped over test subjects (:mod:`sleepfm_fast.metrics`).
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import tyro

from sleepfm_fast.command import run, say
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.tasks import TASKS

if TYPE_CHECKING:
    from sleepfm_fast.logistic import Features, LogisticModel

__all__ = ["Config", "cli", "main"]


@dataclass(frozen=True)
class Config:
    """Sleep stages, sleep-disordered breathing, age group or sex from frozen embeddings by logistic regression.

    Class weights are balanced. Age and sex are asked of every clip, as in the paper; a subject's clips share the label.

    AUROC, AUPRC and F1 per class and macro, the confusion matrix and 95 % intervals bootstrapped over test subjects.
    Clips without a label are left out. So are, and are counted, clips that lack a modality the probe needs; to use
    them, probe one modality (--modality), which asks for no other. The training features are held in memory as
    float32: clips x modalities x dim x 4 bytes (--max-train-clips bounds it); test features are read in blocks.
    """

    embeddings: tyro.conf.Positional[Path]
    """Embeddings folder, made by `python -m sleepfm_fast.embed`."""
    task: Literal["stage", "sdb", "age", "sex"]
    """Sleep stage (W, N1, N2, N3, R), respiratory event (event, none), age group (0-18, 18-35, 35-50, 50+) or sex."""
    result: tyro.conf.Positional[Path | None] = None
    """Result folder to write, such as RUN/results/stage: every figure, and of every test clip its label, scores and
    probabilities; nothing is written when omitted."""
    modality: Literal["all", "respiratory", "brain", "ecg"] = "all"
    """Embeddings the probe sees: every modality of the folder, concatenated, or one."""
    fit_on: Literal["train", "train+validation"] = "train"
    """Subjects the probe is fitted on."""
    max_train_clips: int | None = None
    """Fit on at most this many clips, drawn uniformly (seeded); all when omitted."""
    bootstraps: int = 1000
    """Resamples of test subjects for the intervals; 0 for none."""
    seed: int = 0
    """Seed of the resamples and of --max-train-clips."""
    max_iter: int = 10000
    """Iterations of lbfgs at most."""
    c: float = 1.0
    """Inverse strength of the L2 penalty."""
    solver: Literal["auto", "sklearn", "blocks"] = "auto"
    """scikit-learn holds the training features in memory; blocks reads them from disk every pass and has the same
    optimum; auto takes blocks above 4 GiB of features."""
    standardise: bool = False
    """Scale every feature to mean 0 and variance 1 on the training clips. Unit embeddings do without; hand-made
    features in different units need it."""
    overwrite: bool = False
    """Replace a result that stands at RESULT."""


def _check(config: Config) -> None:
    for name, lowest in (("bootstraps", 0), ("max_iter", 1), ("max_train_clips", 2)):
        value = getattr(config, name)
        if value is not None and value < lowest:
            raise SleepfmError(f"--{name.replace('_', '-')} is {value}; give {lowest} or more.")
    if not (np.isfinite(config.c) and config.c > 0):
        raise SleepfmError(f"--c is {config.c}; the inverse penalty strength is a positive number.")


def scores(features: Features, model: LogisticModel) -> npt.NDArray[np.float64]:
    """Return the log-odds [n, k] of every class for every clip, read block by block."""
    from tqdm import tqdm

    from sleepfm_fast import logistic
    from sleepfm_fast.classification import log_odds

    starts = tqdm(range(0, len(features), logistic.BLOCK), desc="scores", unit="block", file=sys.stderr)
    return np.concatenate([log_odds(model.logits(features[start : start + logistic.BLOCK])) for start in starts])


def main(config: Config) -> dict[str, Any]:
    """Fit, test and report; the result is what the command prints as JSON, intervals as dicts."""
    from sleepfm_fast.classification import HeldOut, conclude
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.labelled_clips import labelled_clips, modalities_of
    from sleepfm_fast.logistic import Features, fit
    from sleepfm_fast.results import refuse_result

    _check(config)
    refuse_result(config.result, overwrite=config.overwrite)
    started = time.perf_counter()
    embeddings = Embeddings(config.embeddings)
    names = TASKS[config.task].names
    modalities = modalities_of(embeddings, config.modality)
    if embeddings.overlap_note:
        say(f"notice: {embeddings.overlap_note}")
    fit_on = ("train",) if config.fit_on == "train" else ("train", "validation")
    train = labelled_clips(embeddings, fit_on, config.task, modalities)
    test = labelled_clips(embeddings, ("test",), config.task, modalities)
    if config.max_train_clips is not None and len(train) > config.max_train_clips:
        drawn = np.random.default_rng(config.seed).choice(len(train), config.max_train_clips, replace=False)
        train = train.of(np.sort(drawn))
    trained = np.unique(train.labels)
    if len(trained) < 2:
        raise SleepfmError(
            f"every labelled training clip is '{names[trained[0]]}': a classifier needs two classes. "
            + ("Use --fit-on train+validation, or embed" if config.fit_on == "train" else "Embed")
            + " a store with more subjects."
        )
    features = Features(embeddings, train.clips, modalities)
    model, about = fit(
        features,
        train.labels,
        c=config.c,
        max_iter=config.max_iter,
        solver=config.solver,
        standardise=config.standardise,
    )
    odds = scores(Features(embeddings, test.clips, modalities), model)
    record = {
        "command": "probe",
        "embeddings": config.embeddings,
        "task": config.task,
        "modalities": modalities,
        "fit_on": config.fit_on,
        "overlap": bool(embeddings.overlap_note),
        "overlap_note": embeddings.overlap_note,
        "train": train.counts(names),
        "test": test.counts(names),
        "fit": about,
        "seconds": round(time.perf_counter() - started, 3),
    }
    return conclude(
        record,
        HeldOut.of(embeddings, test.clips, test.labels),
        odds,
        model.classes,
        bootstraps=config.bootstraps,
        seed=config.seed,
        path=config.result,
        overwrite=config.overwrite,
    )


def cli(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` or the process's own arguments."""
    return run(Config, main, argv)


if __name__ == "__main__":
    sys.exit(cli())
