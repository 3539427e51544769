"""Command: a probe's result + embeddings of any nights -> every clip's class: tables, hypnograms, a night's figures."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import tyro

from sleepfm_fast.cli.command import run, say
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import agreeing, counted, first_of
from sleepfm_fast.reporting.following import after_predictions
from sleepfm_fast.storage.definitions import FIRST

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.logistic import LogisticModel
    from sleepfm_fast.results import Result

__all__ = ["Config", "cli", "main"]


@dataclass(frozen=True)
class Config(TakesPaths):
    """Apply the classifier that probe fitted to the nights of any embeddings folder, scored or not.

    The embeddings must come from the model whose embeddings the probe was fitted on (hand-made features must be the
    same ones). PREDICTIONS holds a table of each clip's class and probabilities, and a table of each night's figures
    and its agreement with the scorer; for sleep stages and breathing also annotations (EDF+, CSV) that viewers show. If
    the same command has already finished PREDICTIONS, it says so and exits with status 0.
    """

    result: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RESULT")]
    """Result folder written by `python -m sleepfm_fast.probe`, such as RUN/results/stage."""
    embeddings: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="EMBEDDINGS")]
    """Embeddings (or features) of the nights to classify, made by embed (or features)."""
    predictions: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PREDICTIONS")]
    """Folder to write."""
    correct_prior: bool = False
    """Weight the classes by their frequency among the probe's training clips. Without it all classes count as equally
    frequent, as in the fit: rare ones (N1) are found, but too many other clips are called N1. The probe's own figures
    are without it."""
    store: Path | None = None
    """Clip store of the nights, which says when they started; by default the one the embeddings were made from."""
    overwrite: bool = False
    """Replace existing PREDICTIONS."""

    def places(self) -> list[Place]:
        """What its positionals take."""
        return [
            reads("RESULT", self.result, Kind.RESULT),
            reads("EMBEDDINGS", self.embeddings, Kind.EMBEDDINGS, Kind.FEATURES),
            writes("PREDICTIONS", self.predictions, Kind.PREDICTIONS),
        ]


def same_source(result: Result, embeddings: Embeddings) -> None:
    """Raise unless the folder's columns are those that the probe was fitted on."""
    record, about = result.record, embeddings.description
    columns = {modality: list(names) for modality, names in embeddings.features.items()}
    if record.get("features") != (columns or None):
        remedy = ""
        if record.get("features") and columns:
            fitted, held = (
                {f"{m} {n}" for m, names in side.items() for n in names} for side in (record["features"], columns)
            )
            lacks = ", ".join(sorted(fitted - held)[:3]) + (", ..." if len(fitted - held) > 3 else "")
            remedy = (
                f"{f' It lacks {lacks}.' if lacks else ''} Measure a store with the same channels: `python -m "
                f"sleepfm_fast.preprocess FILES-OR-FOLDER STORE --like {shlex.quote(str(record.get('store')))}`, then "
                "features."
            )
        raise SleepfmError(
            f"{result.path} was fitted on {'features' if record.get('features') else 'embeddings'}, and "
            f"{embeddings.path} holds {'other features' if embeddings.features else 'embeddings'}.{remedy}"
        )
    fitted_by = record.get("feature_definitions", FIRST)
    if columns and fitted_by != embeddings.definitions:
        raise SleepfmError(
            f"{result.path} was fitted on features by definitions {fitted_by}, and those of {embeddings.path} were "
            f"measured by definitions {embeddings.definitions}: numbers of one name are not the same quantity. Measure "
            "both stores with one version of `python -m sleepfm_fast.features` (--overwrite), and fit the probe again."
        )
    lacking = [name for name in record["modalities"] if name not in embeddings.modalities]
    if lacking:
        raise SleepfmError(f"{embeddings.path} has no {', '.join(lacking)}, which {result.path} was fitted on.")
    if record.get("weights") != embeddings.weights:
        raise SleepfmError(
            f"{embeddings.path} was embedded by other weights ({about.run}) than those {result.path} was fitted on "
            f"({record.get('encoder')}). Embed the nights with that run: python -m sleepfm_fast.embed RUN STORE."
        )


def prior_of(result: Result) -> npt.NDArray[np.float64]:
    """How frequent each class was among the training clips."""
    from sleepfm_fast.evaluation.calibration import recorded_prior

    prior = recorded_prior(result.record)
    if prior is None:
        raise SleepfmError(
            f"{result.path} does not say how frequent its classes were; run probe again, or leave --correct-prior out."
        )
    return prior


def main(config: Config) -> dict[str, Any]:
    """Classify every clip that has the modalities; returns what ends the command."""
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.changed_store import say_changed_store
    from sleepfm_fast.evaluation.logistic import model_of
    from sleepfm_fast.evaluation.predictions import claimed_predictions, starts_of
    from sleepfm_fast.results import read_result
    from sleepfm_fast.storage.standing import digest_of_file, digest_of_files, digest_of_value, key_of

    started = time.perf_counter()
    # Whether the two go together comes first: of a folder that stands in the way, --overwrite would be no help.
    result, embeddings = read_result(config.result), Embeddings(config.embeddings)
    model = model_of(result)
    same_source(result, embeddings)
    n_given, n_taken = embeddings.width(result.record["modalities"]), model.n_features
    if n_given != n_taken:
        raise SleepfmError(
            f"the classifier in {result.path} takes {n_taken} numbers a clip, {embeddings.path} has {n_given} of "
            f"{', '.join(result.record['modalities'])}. Fit the probe again on embeddings of that width."
        )
    starts = starts_of(config.store or embeddings.store_path, embeddings.description.recordings)
    inputs = {
        "result": digest_of_files(config.result),
        "embeddings": digest_of_file(config.embeddings / "embeddings.json"),
        "store": digest_of_value({name: start.isoformat() for name, start in starts.items()}),
    }
    key = key_of("predict", config, inputs)
    with claimed_predictions(config.predictions, overwrite=config.overwrite, made_of=key) as finished:
        say_changed_store(embeddings)
        found = _predicted(config, key, result, model, embeddings, starts) if finished is None else finished
        return {**found, "predictions": str(config.predictions), "seconds": round(time.perf_counter() - started, 3)}


def _predicted(
    config: Config,
    made_of: Mapping[str, Any],
    result: Result,
    model: LogisticModel,
    embeddings: Embeddings,
    starts: Mapping[str, datetime],
) -> dict[str, Any]:
    """Classify and write."""
    from sleepfm_fast.evaluation.calibration import correct_for_prior
    from sleepfm_fast.evaluation.classification import probability_of
    from sleepfm_fast.evaluation.logistic import Features
    from sleepfm_fast.evaluation.missing_channels import missing_channels
    from sleepfm_fast.evaluation.penalty import scores
    from sleepfm_fast.evaluation.predictions import Predicted, write_predictions
    from sleepfm_fast.evaluation.subject_splits import encoder_splits, fitted_splits
    from sleepfm_fast.evaluation.tasks import TASKS, labels_of

    task = TASKS[result.record["task"]]
    modalities = tuple(result.record["modalities"])
    whole = np.asarray(embeddings.mask)[:, [embeddings.modalities.index(m) for m in modalities]].all(axis=1)
    clips = np.flatnonzero(whole)
    if not clips.size:
        mask = np.asarray(embeddings.mask)
        there = [m for i, m in enumerate(embeddings.modalities) if mask[:, i].any()]
        remedy = f" Fit one on what there is: python -m sleepfm_fast.probe ... --modality {there[0]}." if there else ""
        raise SleepfmError(
            f"no clip of {config.embeddings} has all of {', '.join(modalities)}, which {config.result} was fitted on; "
            f"it has {' and '.join(there) or 'none of them'}.{remedy}"
        )
    if lacking := len(embeddings) - clips.size:
        say(
            f"notice: {counted(lacking, 'clip lacks', 'clips lack')} one of {', '.join(modalities)} and "
            f"{agreeing(lacking, 'gets', 'get')} no class"
            + ("; a probe of one modality (probe --modality) needs only that" if len(modalities) > 1 else "")
        )
    about = embeddings.description
    own = Path(about.store).resolve() == Path(str(result.record.get("store"))).resolve()
    side = fitted_splits(result, embeddings, own=own)
    # Of nobody whom the encoder has seen are the embeddings those of a stranger.
    by_encoder = {
        name: split for name, split in encoder_splits(about.presets).items() if side.get(name) in ("", "test")
    }
    side |= by_encoder
    if own:
        say("notice: the probe was fitted on subjects of this store; its predictions for them do not test it.")
    elif seen := [n for n, served in side.items() if served in ("train", "validation") and n not in by_encoder]:
        say(
            f"notice: {len(seen)} of the {counted(len(about.subjects), 'subject')} "
            f"{agreeing(len(seen), 'has the name', 'have the names')} of training or validation subjects "
            f"({first_of(seen, 3)}). If they are the same people, the probe's predictions for them do not test it."
        )
    if by_encoder:
        n = len(by_encoder)
        say(
            f"notice: the encoder of these embeddings was trained or validated on {counted(n, 'subject')} of them "
            f"({first_of(list(by_encoder), 3)}), so the predictions for {agreeing(n, 'it', 'them')} do not test it."
        )
    run = None if embeddings.features else Path(about.run)
    missing = missing_channels(config.store or embeddings.store_path, run, about.recordings, modalities)
    for notice in missing.notices():
        say(f"notice: {notice}")
    odds = scores(Features(embeddings, clips, modalities), model)
    p = probability_of(odds)
    p = correct_for_prior(p, prior_of(result) if config.correct_prior else np.ones(p.shape[1]))
    probability = np.full((len(embeddings), p.shape[1]), np.nan)
    probability[clips] = p
    everything = np.arange(len(embeddings))
    found = Predicted(
        tuple(task.names[k] for k in model.classes),
        probability,
        np.asarray(embeddings.recording),
        np.asarray(embeddings.subject),
        np.asarray(embeddings.onset_s, np.float64),
        labels_of(embeddings, result.record["task"], everything),
        task.names,
        about.recordings,
        about.subjects,
        [side[about.subjects[subject]] for subject in np.asarray(embeddings.subject).tolist()],
        missing.slots,
    )
    record = {
        "command": "predict",
        "result": str(config.result),
        "embeddings": str(config.embeddings),
        "store": about.store,
        "task": result.record["task"],
        "modalities": modalities,
        "correct_prior": config.correct_prior,
    }
    return write_predictions(config.predictions, record, found, starts, task=result.record["task"], made_of=made_of)


def cli(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` or the process's own arguments."""
    return run(Config, main, argv, following=after_predictions)


if __name__ == "__main__":
    sys.exit(cli())
