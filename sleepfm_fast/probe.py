"""``python -m sleepfm_fast.probe EMBEDDINGS [RESULT] --task stage``: what a linear classifier reads out of embeddings.

Logistic regression (L2, lbfgs, balanced class weights) on the unit embeddings of a clip, concatenated in the order
respiratory, brain, ecg; fitted on the training subjects, tested on the test subjects. Every class is scored against the
rest; intervals are bootstrapped over test subjects (:mod:`sleepfm_fast.evaluation.metrics`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import tyro

from sleepfm_fast.cli.command import run, say
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.option_effects import Effect, only_with, only_without, refuse_without_effect
from sleepfm_fast.cli.option_ranges import option
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.plurals import counted
from sleepfm_fast.reporting.following import after_probe

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.labelled_clips import LabelledClips
    from sleepfm_fast.evaluation.logistic import LogisticModel

__all__ = ["Config", "cli", "main"]


@dataclass(frozen=True)
class Config(TakesPaths):
    """Predict sleep stage, sleep-disordered breathing, age group or sex from frozen embeddings by logistic regression.

    Class weights are balanced. Age and sex are predicted for every clip, as in the paper. All clips of a night share
    that label, so figures over nights (from the mean probability of their clips) are given beside those over clips.

    The figures are AUROC, AUPRC and F1 per class and macro-averaged, and the confusion matrix, with 95 % intervals
    bootstrapped over test subjects. Clips without a label are left out. Clips that lack a modality the probe needs are
    left out and counted; to use them, probe a single modality (--modality), which needs no other. Training features of
    more than 4 GiB are read from disk in every pass of the fit, smaller ones are held in memory; test features are read
    in blocks. If the same command has already finished RESULT, it says so and exits with status 0.
    """

    embeddings: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="EMBEDDINGS")]
    """Embeddings folder written by `python -m sleepfm_fast.embed`."""
    task: Literal["stage", "sdb", "age", "sex"]
    """Sleep stage (W, N1, N2, N3, R), respiratory event (event, none), age group (0-18, 18-35, 35-50, 50+) or sex."""
    result: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RESULT]")] = None
    """Result folder to write, such as RUN/results/stage: all figures, and the label, scores and probabilities of every
    test clip. If omitted, nothing is written."""
    modality: Literal["all", "respiratory", "brain", "ecg"] = "all"
    """Embeddings the probe sees: those of every modality in the folder, concatenated, or those of one."""
    fit_on: Literal["train", "train+validation"] = "train"
    """Subjects the probe is fitted on."""
    max_train_clips: int | None = None
    """Fit on at most this many clips, drawn uniformly (seeded); by default on all."""
    bootstraps: int = 1000
    """Resamples of test subjects for the intervals; 0 for none."""
    seed: int = 0
    """Seed of the resamples and of --max-train-clips."""
    max_iter: int = 10000
    """Maximum number of L-BFGS iterations."""
    c: float = 1.0
    """Inverse strength of the L2 penalty."""
    choose_c: bool = False
    """Use the C of --c-grid with the highest macro AUROC on the validation subjects, instead of --c. Every C is fitted
    on the training subjects. With --fit-on train the best of these fits is the probe; with train+validation the probe
    is fitted once more, on both."""
    c_grid: Annotated[tuple[float, ...], tyro.conf.arg(metavar="C [C ...]")] = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3)
    """Values that --choose-c tries."""
    solver: Literal["auto", "sklearn", "blocks"] = "auto"
    """sklearn (scikit-learn) holds the training features in memory; blocks reads them from disk in every pass and has
    the same optimum; auto takes blocks above 4 GiB of features."""
    standardise: bool = False
    """Scale every feature to mean 0 and variance 1 on the training clips. Embeddings, which are unit vectors, do not
    need it; hand-made features, which have different units, are always scaled (and their missing values filled with the
    training clips' median)."""
    overwrite: bool = False
    """Replace an existing RESULT."""

    EFFECTS: ClassVar[tuple[Effect, ...]] = (
        only_without("c", "choose_c"),
        only_with("c_grid", "choose_c"),
        only_with("overwrite", "result", spelling="RESULT"),
    )

    def places(self) -> list[Place]:
        """What its positionals take."""
        return [
            reads("EMBEDDINGS", self.embeddings, Kind.EMBEDDINGS, Kind.FEATURES),
            writes("RESULT", self.result, Kind.RESULT),
        ]


def _check(config: Config) -> None:
    refuse_without_effect(config)
    for name, lowest in (("bootstraps", 0), ("max_iter", 1), ("max_train_clips", 2)):
        value = getattr(config, name)
        if value is not None and value < lowest:
            raise SleepfmError(f"{option(name)} is {value}; give {lowest} or more.")
    if not (np.isfinite(config.c) and config.c > 0):
        raise SleepfmError(f"--c is {config.c}; the inverse penalty strength is a positive number.")
    if not config.c_grid or not all(np.isfinite(c) and c > 0 for c in config.c_grid):
        raise SleepfmError(f"--c-grid is {' '.join(map(str, config.c_grid)) or 'empty'}; give positive numbers.")


def prior_of(labels: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
    """Return how frequent each class that occurs is, in ascending order of the classes."""
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    frequency: npt.NDArray[np.float64] = counts / counts.sum()
    return frequency


def _fitted(
    embeddings: Embeddings, train: LabelledClips, modalities: tuple[str, ...], config: Config
) -> tuple[LogisticModel, dict[str, Any]]:
    """Fit on the clips given, with the C given or with the one that the validation subjects choose."""
    from sleepfm_fast.evaluation.labelled_clips import labelled_clips
    from sleepfm_fast.evaluation.logistic import Features, fit
    from sleepfm_fast.evaluation.penalty import CRITERION, choose_c

    def fit_on(clips: LabelledClips, c: float) -> tuple[LogisticModel, dict[str, Any]]:
        return fit(
            Features(embeddings, clips.clips, modalities),
            clips.labels,
            c=c,
            max_iter=config.max_iter,
            solver=config.solver,
            standardise=config.standardise,
        )

    if not config.choose_c:
        return fit_on(train, config.c)
    validation = labelled_clips(embeddings, ("validation",), config.task, modalities)
    # Validation subjects must not choose the C of a model that has seen them.
    training_only = train
    if config.fit_on != "train":
        training_only = train.of(np.isin(train.clips, validation.clips, invert=True))
        if len(np.unique(training_only.labels)) < 2:
            raise SleepfmError(
                "--choose-c needs training subjects with two classes; only the validation subjects add one."
            )
    features = Features(embeddings, validation.clips, modalities)
    choice = choose_c(config.c_grid, config.task, validation, features, lambda c: fit_on(training_only, c))
    model, about = (choice.model, choice.about) if config.fit_on == "train" else fit_on(train, choice.c)
    chosen = {
        "criterion": CRITERION,
        "n_validation_clips": len(validation),
        "n_validation_subjects": len(np.unique(validation.subject)),
        "tried": choice.tried,
        "refitted": config.fit_on != "train",
    }
    return model, {**about, "choice": chosen}


def main(config: Config) -> dict[str, Any]:
    """Fit, test and report; the result is what the command prints as JSON, intervals as dicts."""
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.changed_store import say_changed_store
    from sleepfm_fast.results import claimed_result
    from sleepfm_fast.storage.standing import digest_of_file, key_of

    _check(config)
    key = key_of("probe", config, {"embeddings": digest_of_file(config.embeddings / "embeddings.json")})
    with claimed_result(config.result, overwrite=config.overwrite, made_of=key) as finished:
        if finished is None:
            return _probed(config, key)
        say_changed_store(Embeddings(config.embeddings))
        return finished.printed


def _probed(config: Config, made_of: Mapping[str, Any]) -> dict[str, Any]:
    """Fit, test and write the result."""
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.changed_store import say_notes
    from sleepfm_fast.evaluation.classification import HeldOut, conclude
    from sleepfm_fast.evaluation.labelled_clips import labelled_clips, modalities_of
    from sleepfm_fast.evaluation.logistic import Features, arrays_of
    from sleepfm_fast.evaluation.penalty import scores

    started = time.perf_counter()
    embeddings = Embeddings(config.embeddings)
    names = TASKS[config.task].names
    modalities = modalities_of(embeddings, config.modality)
    notes = say_notes(embeddings)
    fit_on = ("train",) if config.fit_on == "train" else ("train", "validation")
    train = labelled_clips(embeddings, fit_on, config.task, modalities)
    test = labelled_clips(embeddings, ("test",), config.task, modalities)
    labelled = len(train)
    if config.max_train_clips is not None and labelled > config.max_train_clips:
        say(
            f"notice: {config.max_train_clips} of {counted(labelled, 'labelled training clip')} are drawn "
            "(--max-train-clips); the others are not used in the fit."
        )
        drawn = np.random.default_rng(config.seed).choice(len(train), config.max_train_clips, replace=False)
        train = train.of(np.sort(drawn))
    trained = np.unique(train.labels)
    if len(trained) < 2:
        raise SleepfmError(
            f"every labelled training clip is '{names[trained[0]]}': a classifier needs two classes. "
            + ("Use --fit-on train+validation, or embed" if config.fit_on == "train" else "Embed")
            + " a store with more subjects."
        )
    model, about = _fitted(embeddings, train, modalities, config)
    if "strongest" in about:
        about["strongest"] = {names[k]: best for k, best in about["strongest"].items()}
        for name, best in about["strongest"].items():
            say(f"{name}: " + ", ".join(f"{feature} {weight:+.2f}" for feature, weight in best[:4]))
    odds = scores(Features(embeddings, test.clips, modalities), model)
    record = {
        "command": "probe",
        "embeddings": config.embeddings,
        "encoder": embeddings.description.run,
        "weights": embeddings.weights,
        "store": embeddings.description.store,
        "features": embeddings.features or None,
        "feature_definitions": embeddings.definitions,
        "task": config.task,
        "modalities": modalities,
        "fit_on": config.fit_on,
        **notes,
        "train": {**train.counts(names), "n_dropped_not_drawn": labelled - len(train)},
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
        prior=prior_of(train.labels),
        path=config.result,
        overwrite=config.overwrite,
        made_of=made_of,
        classifier=arrays_of(model),
    )


def cli(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` or the process's own arguments."""
    return run(Config, main, argv, following=after_probe)


if __name__ == "__main__":
    sys.exit(cli())
