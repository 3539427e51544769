"""``python -m sleepfm_fast.few_shot EMBEDDINGS RESULT --task stage``: the probe fitted on 1, 2, 4, ... subjects.

Subjects are drawn among those of the training split that have a clip with a label. Draws of a replicate are nested: the
subjects of a smaller number are among those of a larger one (:func:`sleepfm_fast.runs.splits.draw_subjects`). Every
point is tested on all test subjects.
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

from sleepfm_fast.cli.bars import progress_bar
from sleepfm_fast.cli.command import run, say
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.option_effects import Effect, only_with, refuse_without_effect
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.figures import FIGURES
from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.reporting.following import after_result

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.labelled_clips import LabelledClips

__all__ = ["Config", "cli", "main"]

WHICH_POINTS = ("subjects", "all_subjects", "replicates")


@dataclass(frozen=True)
class Config(TakesPaths):
    """Measure how well a linear classifier does with few labelled subjects, for growing numbers of them.

    For every number of training subjects and every replicate: AUROC, AUPRC and F1 per class and macro-averaged on the
    test subjects; then the mean and 95 % interval over the replicates. For age and sex also over nights, from the mean
    probability of each night's clips. If the command was stopped, repeat it to continue; the finished points are in
    RESULT.partial.jsonl, and you may then add numbers and replicates. If the same command has already finished RESULT,
    it says so and exits with status 0.
    """

    embeddings: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="EMBEDDINGS")]
    """Embeddings folder written by `python -m sleepfm_fast.embed`."""
    result: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RESULT")]
    """Result folder to write, such as RUN/results/few_shot_stage."""
    task: Literal["stage", "sdb", "age", "sex"]
    """Sleep stage (W, N1, N2, N3, R), respiratory event (event, none), age group (0-18, 18-35, 35-50, 50+) or sex."""
    subjects: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N [N ...]")] = (1, 2, 4, 8, 16, 32, 64, 128)
    """Numbers of training subjects to draw. A number larger than the subjects available means all of them."""
    all_subjects: bool = True
    """Add the point with all training subjects."""
    replicates: int = 3
    """Draws of subjects for every number; all subjects are always a single draw."""
    modality: Literal["all", "respiratory", "brain", "ecg"] = "all"
    """Embeddings the probe sees: those of every modality in the folder, concatenated, or those of one."""
    fit_on: Literal["train", "train+validation"] = "train"
    """Subjects to draw from. The validation subjects are used for nothing else here."""
    max_iter: int = 10000
    """Maximum number of L-BFGS iterations."""
    c: float = 1.0
    """Inverse strength of the L2 penalty."""
    solver: Literal["auto", "sklearn", "blocks"] = "auto"
    """As in `probe`: hold the features in memory (sklearn) or read them from disk in every pass (blocks); auto decides
    by size."""
    standardise: bool = False
    """Scale every feature to mean 0 and variance 1 on the clips drawn; hand-made features are always scaled."""
    overwrite: bool = False
    """Replace an existing RESULT and the points kept beside it."""

    # All subjects, the only point without numbers, are one draw.
    EFFECTS: ClassVar[tuple[Effect, ...]] = (only_with("replicates", "subjects"),)

    def places(self) -> list[Place]:
        """What its positionals take."""
        return [
            reads("EMBEDDINGS", self.embeddings, Kind.EMBEDDINGS, Kind.FEATURES),
            writes("RESULT", self.result, Kind.RESULT),
        ]


def _check(config: Config) -> None:
    refuse_without_effect(config)
    for name, value in (("replicates", config.replicates), ("max-iter", config.max_iter)):
        if value < 1:
            raise SleepfmError(f"--{name} is {value}; give 1 or more.")
    if min(config.subjects, default=1) < 1:
        raise SleepfmError(f"--subjects is {' '.join(map(str, config.subjects))}; give whole numbers from 1 on.")
    if not config.subjects and not config.all_subjects:
        raise SleepfmError("--subjects is empty and --no-all-subjects is given; there is no point to measure.")
    if not (np.isfinite(config.c) and config.c > 0):
        raise SleepfmError(f"--c is {config.c}; the inverse penalty strength is a positive number.")


def _numbers(config: Config, available: int) -> list[int]:
    """Resolve the numbers of subjects, ascending, those that are too large as all."""
    numbers = {min(n, available) for n in config.subjects}
    beyond = sorted(n for n in set(config.subjects) if n > available)
    if beyond:
        say(
            f"notice: there {agreeing(available, 'is', 'are')} {counted(available, 'subject')} to draw from; "
            f"{', '.join(map(str, beyond))} "
            f"{'stand' if len(beyond) > 1 else 'stands'} for all of them."
        )
    return sorted(numbers | ({available} if config.all_subjects else set()))


def _measure(
    embeddings: Embeddings, drawn: LabelledClips, test: LabelledClips, modalities: tuple[str, ...], config: Config
) -> dict[str, Any]:
    """Fit on the clips of some subjects and evaluate on the test clips, of age and sex also on the test nights."""
    from sleepfm_fast.evaluation.classification import probability_of
    from sleepfm_fast.evaluation.figures import evaluate
    from sleepfm_fast.evaluation.logistic import Features, fit
    from sleepfm_fast.evaluation.penalty import scores
    from sleepfm_fast.evaluation.whole_nights import by_night

    task = TASKS[config.task]
    classes = np.unique(drawn.labels)
    note = ""
    about: dict[str, Any] = {}
    odds: npt.NDArray[np.float64]
    if len(classes) > 1:
        model, about = fit(
            Features(embeddings, drawn.clips, modalities),
            drawn.labels,
            c=config.c,
            max_iter=config.max_iter,
            solver=config.solver,
            standardise=config.standardise,
            quiet=True,
        )
        odds = scores(Features(embeddings, test.clips, modalities), model, progress=False)
    else:
        note = f"every clip drawn is '{task.names[classes[0]]}': there is nothing to fit, so every clip is called that"
        odds = np.zeros((len(test), 1))
    # The same precision as the scores that the probe writes and evaluates.
    score, trained = odds.astype(np.float32), classes.astype(np.int8)
    figures = evaluate(score, trained, test.labels, test.subject, task, 0, 0, progress=False)
    nights = {}
    if task.of_person:
        whose = (test.labels, test.subject, np.asarray(embeddings.recording)[test.clips])
        nights["nights"] = _values(by_night(probability_of(score), trained, *whose, task, 0, 0))
    return {
        "n_clips": len(drawn),
        "class_counts": drawn.counts(task.names)["class_counts"],
        **_values(figures),
        **nights,
        **({"converged": about["converged"], "n_iter": about["n_iter"]} if about else {}),
        **({"note": note} if note else {}),
    }


def _values(figures: dict[str, Any]) -> dict[str, Any]:
    """Take the figures of :func:`sleepfm_fast.evaluation.figures.evaluate` without intervals, and with chance."""
    of_class: dict[str, Any] = {}
    for name, entry in figures["classes"].items():
        of_class[name] = {figure: entry[figure].value for figure in FIGURES}
        if "note" in entry:
            of_class[name]["note"] = entry["note"]
    return {
        "macro": {figure: figures["macro"][figure].value for figure in FIGURES}
        | {"n_classes": figures["macro"]["n_classes"]},
        "macro_absent_at_chance": _with_chance(figures),
        "classes": of_class,
        "accuracy": figures["accuracy"].value,
        "cohen_kappa": figures["cohen_kappa"].value,
    }


def _with_chance(figures: dict[str, Any]) -> dict[str, float | None]:
    """Average over all classes that the test clips have, those never trained at chance: AUROC 0.5, AUPRC prevalence."""
    from sleepfm_fast.evaluation.figures import mean_with_chance

    entries = figures["classes"].values()
    # F1 needs no chance: a class that is never predicted has F1 = 0 and is averaged as such.
    return {
        name: mean_with_chance(name, ((entry["prevalence"], entry[name].value) for entry in entries))
        for name in ("auroc", "auprc")
    } | {"f1": figures["macro"]["f1"].value}


def main(config: Config) -> dict[str, Any]:
    """Fit, test and summarise; the result is what the command prints as JSON and writes."""
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.changed_store import say_changed_store
    from sleepfm_fast.evaluation.few_shot_points import partial_path
    from sleepfm_fast.results import claimed_result
    from sleepfm_fast.storage.standing import digest_of_file, key_of

    _check(config)
    key = key_of("few_shot", config, {"embeddings": digest_of_file(config.embeddings / "embeddings.json")})
    with claimed_result(config.result, overwrite=config.overwrite, made_of=key) as finished:
        if finished is not None:
            partial_path(config.result).unlink(missing_ok=True)  # where a kill came before it was removed
            say_changed_store(Embeddings(config.embeddings))
            return finished.printed
        return _drawn(config, key)


def _drawn(config: Config, made_of: Mapping[str, Any]) -> dict[str, Any]:
    """Go on with the curve to its end and write the result."""
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.changed_store import say_notes
    from sleepfm_fast.evaluation.few_shot_points import Points, partial_path
    from sleepfm_fast.evaluation.few_shot_summary import say_curve, summarise
    from sleepfm_fast.evaluation.labelled_clips import labelled_clips, modalities_of
    from sleepfm_fast.results import write_result
    from sleepfm_fast.runs.splits import draw_subjects

    started = time.perf_counter()
    embeddings = Embeddings(config.embeddings)
    modalities = modalities_of(embeddings, config.modality)
    notes = say_notes(embeddings)
    fit_on = ("train",) if config.fit_on == "train" else ("train", "validation")
    train = labelled_clips(embeddings, fit_on, config.task, modalities)
    test = labelled_clips(embeddings, ("test",), config.task, modalities)
    names = embeddings.description.subjects
    available = {names[s]: s for s in np.unique(train.subject).tolist()}
    numbers = _numbers(config, len(available))
    partial = partial_path(config.result)
    if config.overwrite:
        partial.unlink(missing_ok=True)
    # All that the result depends on, but for what says which points there are: those may be added.
    points = Points(partial, {name: value for name, value in made_of.items() if name not in WHICH_POINTS})
    plan = [(n, r) for n in numbers for r in range(1 if n == len(available) else config.replicates)]
    task = TASKS[config.task]

    def finished(n: int, replicate: int) -> dict[str, Any] | None:
        # A point of before figures over nights were measured is measured again.
        point = points.get(n, replicate)
        return None if point is None or (task.of_person and "nights" not in point) else point

    kept = sum(finished(n, r) is not None for n, r in plan)
    if kept:
        say(f"continuing: {kept} of {counted(len(plan), 'point')} {agreeing(kept, 'is', 'are')} finished.")
    curve = []
    for n, replicate in progress_bar(plan, desc="few-shot", unit="point"):
        point = finished(n, replicate)
        if point is None:
            drawn = draw_subjects(tuple(available), n, replicate)
            here = train.of(np.isin(train.subject, [available[name] for name in drawn]))
            found = _measure(embeddings, here, test, modalities, config)
            point = points.add({"subjects": n, "replicate": replicate, "drawn": sorted(drawn), **found})
        curve.append(point)
    summary = summarise(curve)
    say_curve(summary)
    counts = test.counts(task.names)
    if task.of_person:
        counts["n_nights"] = len(np.unique(np.asarray(embeddings.recording)[test.clips]))
    record = {
        "command": "few_shot",
        "embeddings": config.embeddings,
        "task": config.task,
        "class_names": task.names,
        "modalities": modalities,
        "fit_on": config.fit_on,
        "c": config.c,
        "standardise": config.standardise,
        **notes,
        "n_subjects_to_draw_from": len(available),
        "replicates": config.replicates,
        "test": counts,
        "curve": curve,
        "summary": summary,
        "seconds": round(time.perf_counter() - started, 3),
    }
    write_result(config.result, record, {}, overwrite=config.overwrite, made_of=made_of)
    partial.unlink(missing_ok=True)
    say(f"wrote {config.result}")
    return record


def cli(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` or the process's own arguments."""
    kept = "finished points are kept beside RESULT; the same command continues"
    return run(Config, main, argv, interrupted=kept, following=after_result)


if __name__ == "__main__":
    sys.exit(cli())
