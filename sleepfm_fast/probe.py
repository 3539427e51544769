"""``python -m sleepfm_fast.probe EMBEDDINGS --task stage``: what a linear classifier reads out of the embeddings.

Logistic regression (L2, lbfgs, balanced class weights; scikit-learn) on the unit embeddings of a clip, concatenated in
the order respiratory, brain, ecg; fitted on the training subjects, tested on the test subjects. Every class is scored
against the rest; intervals are bootstrapped over test subjects (:mod:`sleepfm_fast.metrics`).
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import tyro

from sleepfm_fast.command import plain, run, say
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation import evaluate, say_table
from sleepfm_fast.tasks import TASKS, labels_of

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings

__all__ = ["Config", "cli", "main"]

TEST_BLOCK = 16384  # clips whose features are in memory at a time when scoring


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


def _check(config: Config) -> None:
    for name, lowest in (("bootstraps", 0), ("max_iter", 1), ("max_train_clips", 2)):
        value = getattr(config, name)
        if value is not None and value < lowest:
            raise SleepfmError(f"--{name.replace('_', '-')} is {value}; give {lowest} or more.")
    if not (np.isfinite(config.c) and config.c > 0):
        raise SleepfmError(f"--c is {config.c}; the inverse penalty strength is a positive number.")


def _modalities(embeddings: Embeddings, config: Config) -> tuple[str, ...]:
    if config.modality == "all":
        return embeddings.modalities
    if config.modality not in embeddings.modalities:
        raise SleepfmError(
            f"{config.embeddings} has no {config.modality} embeddings; it has {', '.join(embeddings.modalities)}."
        )
    return (config.modality,)


@dataclass(frozen=True)
class _Part:
    """The clips of one side of the split that can be used, and how many could not."""

    clips: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int8]
    subject: npt.NDArray[np.int32]
    n_unlabelled: int
    n_lacking_modality: int

    def counts(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {
            "n_clips": len(self.clips),
            "n_subjects": len(np.unique(self.subject)),
            "n_dropped_unlabelled": self.n_unlabelled,
            "n_dropped_lacking_modality": self.n_lacking_modality,
            "class_counts": dict(zip(names, np.bincount(self.labels, minlength=len(names)).tolist(), strict=True)),
        }


def _part(embeddings: Embeddings, splits: tuple[str, ...], config: Config, modalities: tuple[str, ...]) -> _Part:
    clips = embeddings.clips_of(*splits)
    side = " or ".join(splits)
    if not clips.size:
        sizes = ", ".join(f"{s} {embeddings.clips_of(s).size}" for s in ("train", "validation", "test"))
        raise SleepfmError(
            f"{config.embeddings} has no {side} subjects (clips: {sizes}; split rule: "
            f"{embeddings.description.split_rule}). The probe fits on training subjects and is tested on test "
            "subjects; embed a store with more subjects."
        )
    labels = labels_of(embeddings, config.task, clips)
    labelled = labels >= 0
    if not labelled.any():
        task = TASKS[config.task]
        raise SleepfmError(
            f"none of the {clips.size} {side} clips of {config.embeddings} has a label for --task {config.task} "
            f"({task.labels}). {task.remedy}, or choose another task."
        )
    columns = [embeddings.modalities.index(m) for m in modalities]
    whole = np.asarray(embeddings.mask)[clips][:, columns].all(1)
    use = labelled & whole
    if not use.any():
        raise SleepfmError(
            f"none of the {int(labelled.sum())} labelled {side} clips has all of {', '.join(modalities)}. "
            "Probe a single modality with --modality."
        )
    lacking = int((labelled & ~whole).sum())
    if lacking:
        say(
            f"notice: {lacking} of {int(labelled.sum())} labelled {side} clips lack one of {', '.join(modalities)} "
            "and are left out; --modality NAME uses every clip that has that one."
        )
    kept = clips[use]
    return _Part(kept, labels[use], np.asarray(embeddings.subject[kept]), int((~labelled).sum()), lacking)


def _features(embeddings: Embeddings, clips: npt.NDArray[np.int64], modalities: tuple[str, ...]) -> Any:
    return embeddings.read(clips, modalities).reshape(len(clips), -1)


def _fit(
    embeddings: Embeddings, part: _Part, modalities: tuple[str, ...], config: Config
) -> tuple[Any, dict[str, Any]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    n_features = len(modalities) * embeddings.dim
    say(
        f"fitting on {len(part.clips)} clips x {n_features} features "
        f"({len(part.clips) * n_features * 4 / 2**30:.2f} GiB in memory)"
    )
    started = time.perf_counter()
    try:
        features = np.empty((len(part.clips), n_features), np.float32)
    except MemoryError as error:
        raise SleepfmError(
            f"the training features need {len(part.clips) * n_features * 4 / 2**30:.1f} GiB of memory, which this "
            "machine does not give. Bound them with --max-train-clips."
        ) from error
    for start in range(0, len(part.clips), TEST_BLOCK):
        features[start : start + TEST_BLOCK] = _features(embeddings, part.clips[start : start + TEST_BLOCK], modalities)
    model = LogisticRegression(C=config.c, class_weight="balanced", max_iter=config.max_iter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(features, part.labels)
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    for w in caught:
        say(f"notice: scikit-learn: {str(w.message).splitlines()[0]}")
    n_iter = int(np.max(model.n_iter_))
    return model, {"n_iter": n_iter, "converged": converged, "fit_seconds": round(time.perf_counter() - started, 3)}


def _log_odds(model: Any, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return log p_k / (1 - p_k) [n, K of training].

    It orders clips as the probability p_k does, without the ties that p_k gets where it rounds to 0 or 1.
    """
    coefficients = np.asarray(model.coef_, np.float64)
    z: npt.NDArray[np.float64] = features.astype(np.float64) @ coefficients.T + np.asarray(model.intercept_, np.float64)
    if z.shape[1] == 1:
        return np.hstack([-z, z])
    out = np.empty_like(z)
    for k in range(z.shape[1]):
        rest = np.delete(z, k, axis=1)
        highest = rest.max(1)
        out[:, k] = z[:, k] - highest - np.log(np.exp(rest - highest[:, None]).sum(1))
    return out


def _scores(embeddings: Embeddings, part: _Part, modalities: tuple[str, ...], model: Any) -> npt.NDArray[np.float64]:
    from tqdm import tqdm

    blocks = [
        _log_odds(model, _features(embeddings, part.clips[start : start + TEST_BLOCK], modalities))
        for start in tqdm(range(0, len(part.clips), TEST_BLOCK), desc="scores", unit="block", file=sys.stderr)
    ]
    return np.concatenate(blocks)


def main(config: Config) -> dict[str, Any]:
    """Fit, test and report; the result is what the command prints as JSON, intervals as dicts."""
    from sleepfm_fast.embeddings import Embeddings

    _check(config)
    started = time.perf_counter()
    embeddings = Embeddings(config.embeddings)
    names = TASKS[config.task].names
    modalities = _modalities(embeddings, config)
    if embeddings.overlap_note:
        say(f"notice: {embeddings.overlap_note}")
    train = _part(embeddings, ("train",) if config.fit_on == "train" else ("train", "validation"), config, modalities)
    test = _part(embeddings, ("test",), config, modalities)
    if config.max_train_clips is not None and len(train.clips) > config.max_train_clips:
        drawn = np.random.default_rng(config.seed).choice(len(train.clips), config.max_train_clips, replace=False)
        drawn.sort()
        train = _Part(
            train.clips[drawn], train.labels[drawn], train.subject[drawn], train.n_unlabelled, train.n_lacking_modality
        )
    trained = np.unique(train.labels)
    if len(trained) < 2:
        raise SleepfmError(
            f"every labelled training clip is '{names[trained[0]]}': a classifier needs two classes. "
            + ("Use --fit-on train+validation, or embed" if config.fit_on == "train" else "Embed")
            + " a store with more subjects."
        )
    model, fit = _fit(embeddings, train, modalities, config)
    scores = _scores(embeddings, test, modalities, model)
    result = evaluate(scores, trained, test.labels, test.subject, TASKS[config.task], config.bootstraps, config.seed)
    say_table(result)
    if test.counts(names)["n_subjects"] == 1 and config.bootstraps:
        say("notice: one test subject; there is nothing to bootstrap over, so no intervals.")
    if not fit["converged"]:
        say(f"notice: lbfgs stopped at --max-iter {config.max_iter} before it converged; give more iterations.")
    return {
        "command": "probe",
        "embeddings": config.embeddings,
        "task": config.task,
        "modalities": modalities,
        "fit_on": config.fit_on,
        "overlap": bool(embeddings.overlap_note),
        "overlap_note": embeddings.overlap_note,
        "train": train.counts(names),
        "test": test.counts(names),
        "fit": {**fit, "c": config.c, "max_iter": config.max_iter},
        "n_bootstraps": config.bootstraps,
        **plain(result),
        "seconds": round(time.perf_counter() - started, 3),
    }


def cli(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` or the process's own arguments."""
    return run(Config, main, argv)


if __name__ == "__main__":
    sys.exit(cli())
