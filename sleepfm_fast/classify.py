"""Command: supervised run + clip store -> every clip's class as a table, and the figures where there are labels."""

from __future__ import annotations

import csv
import dataclasses
import io
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import tyro

from sleepfm_fast.cli import command
from sleepfm_fast.cli.bars import progress_bar
from sleepfm_fast.cli.command import say
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.option_effects import Effect, only_with, refuse_without_effect
from sleepfm_fast.cli.option_ranges import refuse_negative
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import agreeing, counted, first_of
from sleepfm_fast.reporting.following import after_result

if TYPE_CHECKING:
    from sleepfm_fast.baselines.supervised_network import Classifier
    from sleepfm_fast.clips import ClipStore

__all__ = ["Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config(TakesPaths):
    """Classify the clips of other recordings with the network that supervise trained.

    The store may have another montage: channels are matched by name and missing ones are masked. Scored recordings of
    test subjects give an external validation, in the layout of probe's results; --table gives every clip's class,
    scored or not, such as a hypnogram of nights that nobody has scored. If the same command has already finished
    everything asked for, it says so and exits with status 0. An existing --table alone is refused, because a table does
    not record what it was made from.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder written by supervise."""
    store: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
    """Clip store written by preprocess."""
    result: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RESULT]")] = None
    """Result folder to write; needs labelled clips."""

    table: Path | None = None
    """CSV to write, one row per clip: recording, onset_s, duration_s, class and the probability of each class."""
    predictions: Path | None = None
    """Folder to write, as predict does: that table with subjects, each night's figures and its agreement with the
    scorer, and, for sleep stages and breathing, annotations of every night (EDF+, CSV)."""
    subjects: Literal["test", "all"] = "test"
    """test: test subjects by the run's rule (never those it was trained with); all: everybody, which is right for
    nights of people whom the run has not seen. Subjects that it has seen, by name or recording, are counted in a
    notice and in the record."""
    bootstraps: int = 1000
    """Resamples of subjects for the intervals; 0 for none."""
    seed: int = 0
    """Seed of the resamples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto uses CUDA if it is available."""
    threads: int = 0
    """CPU threads; 0 for all cores."""
    overwrite: bool = False
    """Replace an existing RESULT, table or predictions."""

    EFFECTS: ClassVar[tuple[Effect, ...]] = (only_with("bootstraps", "result", spelling="RESULT"),)

    def places(self) -> list[Place]:
        """What its positionals take."""
        return [
            reads("RUN", self.run, Kind.SUPERVISED, Kind.RUN),
            reads("STORE", self.store, Kind.STORE),
            writes("RESULT", self.result, Kind.RESULT),
        ]


def check(config: Config) -> None:
    """Refuse what cannot work, by name."""
    refuse_without_effect(config)
    if config.result is None and config.table is None and config.predictions is None:
        raise SleepfmError(
            "nothing would be written: name a RESULT folder, a --table FILE.csv, or --predictions FOLDER."
        )
    refuse_negative(config, ("bootstraps", "seed", "threads"))
    if config.table is not None and config.table.is_dir():
        raise SleepfmError(
            f"--table {config.table} is a folder; give a file to write, such as {config.table / 'stages.csv'}."
        )


ROWS = 4096
"""Rows of ``--table`` that are in memory at a time."""


def table_text(
    store: ClipStore, clips: npt.NDArray[np.int64], names: Sequence[str], probability: npt.NDArray[np.float64]
) -> str:
    """CSV of the clips in their order: the most probable class, and every class's probability."""
    from sleepfm_fast.scoring.stages import EPOCH_S

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["recording", "onset_s", "duration_s", "class", *(f"p_{name}" for name in names)])
    recording, onset = np.asarray(store.recording)[clips], np.asarray(store.onset_s)[clips]
    for r, start, p in zip(recording.tolist(), onset.tolist(), probability, strict=True):
        row = [store.recordings[r].id, f"{start:.10g}", EPOCH_S, names[int(p.argmax())]]
        writer.writerow([*row, *(f"{value:.4f}" for value in p)])
    return text.getvalue()


def chosen(
    config: Config, store: ClipStore, saved: dict[str, Any], known: Mapping[str, int]
) -> tuple[npt.NDArray[np.bool_], str]:
    """Which clips of the store are asked for, bool [n_clips], and the sentence to repeat where sides overlap.

    ``known`` is the side of subjects that the run has seen, by :meth:`sleepfm_fast.runs.origin.Seen.in_store`.
    """
    from sleepfm_fast.runs.splits import Split, assign_subjects

    subject = np.asarray(store.recording_subject)[np.asarray(store.recording)]
    if config.subjects == "all":
        mine = np.ones(len(store), np.bool_)
    elif len(store.subjects) == 1:
        # One person cannot be split: strangers are tested, and who served a run of one person for all three purposes.
        mine = np.full(len(store), saved["overlap"] or known.get(store.subjects[0], 2) == 2)
    else:
        codes, notices = assign_subjects(store.subjects, Split(**saved["split"]), known)
        for notice in notices:
            say(f"notice: {notice}")
        mine = (codes == 2)[subject]
    if not mine.any():
        raise SleepfmError(
            f"no subject of {config.store} is a test subject of {config.run} ({Split(**saved['split']).rule()}; those "
            "it was trained with keep their side). --subjects all takes everybody."
        )
    return mine, overlap_of([store.subjects[s] for s in np.unique(subject[mine])], known, config.run)


def overlap_of(names: Sequence[str], known: Mapping[str, int], run: Path) -> str:
    """Say how many of the classified subjects the run was trained or validated with; empty where none is."""
    from sleepfm_fast.runs.splits import SPLITS

    seen = [name for name in names if known.get(name, 2) != 2]
    if not seen:
        return ""
    counts = [(SPLITS[code], sum(known[name] == code for name in seen)) for code in (0, 1)]
    sides = " and ".join(f"{n} {side}" for side, n in counts if n)
    return (
        f"{len(seen)} of the {counted(len(names), 'subject')} classified "
        f"{agreeing(len(seen), 'is a subject', 'are subjects')} that {run} has seen ({sides}: "
        f"{first_of(seen, 3)}), so their clips describe memorisation, not generalisation."
    )


def made_of(config: Config) -> dict[str, Any]:
    """What the classes and figures depend on."""
    from sleepfm_fast.clips import ClipStore
    from sleepfm_fast.results import FOLDER
    from sleepfm_fast.rundir import RunDirectory
    from sleepfm_fast.storage.standing import digest_of_file, key_of
    from sleepfm_fast.training.world import choose_device

    run = RunDirectory(config.run)
    task = str(run.config().get("config", {}).get("task"))
    inputs = {
        "run": digest_of_file(run.config_path),
        "weights": digest_of_file(run.best_path),
        "prior": digest_of_file(run.path / FOLDER / task / "result.json"),
        "store": ClipStore(config.store).digest,
        "device": choose_device(config.device).type,
    }
    return key_of("classify", config, inputs, leave_out=("threads",))


def refuse_table(config: Config) -> None:
    """Refuse a table that stands already, of which nothing says what it was made of."""
    if config.table is not None and config.table.exists() and not config.overwrite:
        raise SleepfmError(
            f"--table {config.table} exists and is not overwritten: a table does not record what it was made from. "
            "Give another name, or add --overwrite; --predictions FOLDER holds the same table and records it."
        )


def main(config: Config) -> dict[str, Any]:
    """Classify; returns the results that end the command."""
    from sleepfm_fast.evaluation.predictions import claimed_predictions
    from sleepfm_fast.results import claimed_result
    from sleepfm_fast.training.world import threads_restored

    started = time.monotonic()
    check(config)
    if config.result is None and config.predictions is None:
        refuse_table(config)
    key = made_of(config)
    with (
        claimed_predictions(config.predictions, overwrite=config.overwrite, made_of=key) as predictions,
        claimed_result(config.result, overwrite=config.overwrite, made_of=key) as result,
    ):
        left = dataclasses.replace(
            config,
            predictions=config.predictions if predictions is None else None,
            result=config.result if result is None else None,
        )
        if left.predictions is not None or left.result is not None:
            refuse_table(config)
        elif config.table is not None and config.table.exists() and not config.overwrite:
            left = dataclasses.replace(left, table=None)  # it was written last
        found = {} if predictions is None else earlier(predictions)
        found |= {} if result is None else result.printed
        if left.predictions is not None or left.result is not None or left.table is not None:
            with threads_restored():
                found |= classified(left, key)
    return {
        **found,
        "predictions": None if config.predictions is None else str(config.predictions),
        "table": None if config.table is None else str(config.table),
        "elapsed_s": round(time.monotonic() - started, 1),
    }


def earlier(predictions: Mapping[str, Any]) -> dict[str, Any]:
    """What the command returned of a folder of predictions, but for the figures."""
    names = ("command", "run", "store", "task", "clips_without_channels", "overlap", "overlap_note")
    clips = predictions["clips"] - predictions["clips_without_prediction"]
    return {"clips": clips, **{name: predictions[name] for name in names}}


def classified(config: Config, made_of: Mapping[str, Any]) -> dict[str, Any]:
    """Classify, write what is asked for, the table last."""
    import torch

    from sleepfm_fast.baselines.supervised_network import load_classifier
    from sleepfm_fast.clips import ClipStore
    from sleepfm_fast.evaluation.classification import log_odds, probability_of
    from sleepfm_fast.evaluation.tasks import TASKS
    from sleepfm_fast.model.backends import encoder_backend, filter_backend, threads
    from sleepfm_fast.rundir import RunDirectory
    from sleepfm_fast.runs.origin import seen_by
    from sleepfm_fast.storage.atomic import replace_file
    from sleepfm_fast.store.label_rules import say_label_rules
    from sleepfm_fast.training.world import choose_device

    if config.threads:
        torch.set_num_threads(config.threads)
    store = ClipStore(config.store)
    classifier = load_classifier(RunDirectory(config.run), store, choose_device(config.device))
    clip_input = classifier.clip_input
    if clip_input.renamed_slots:
        say(f"notice: the montages name some channels differently; taken: {', '.join(clip_input.renamed_slots)}")
    for notice in clip_input.lacking(classifier.config.get("store_digest"), "network"):
        say(f"notice: {notice}")
    say_label_rules(store.path)
    known, notices = seen_by(classifier.config).in_store(store)
    for notice in notices:
        say(f"notice: {notice}")
    mine, overlap_note = chosen(config, store, classifier.config, known)
    if overlap_note:
        say(f"notice: {overlap_note}")
    recording = np.asarray(store.recording, np.int64)
    for notice in clip_input.read_amplitudes(RunDirectory(config.run).amplitudes_path):
        say(f"notice: {notice}")
    for notice in clip_input.measure(
        np.unique(recording[mine]), lambda r: progress_bar(r, desc="measure amplitudes", unit="night")
    ):
        say(f"notice: {notice}")
    living = (clip_input.feed.present & (clip_input.scales.scale != 0)).any(axis=1)
    clips = np.flatnonzero(mine & living[recording])
    if not len(clips):
        raise SleepfmError(f"none of these recordings of {config.store} has a channel that the network reads.")
    device = clip_input.device
    say(
        f"{counted(len(clips), 'clip')} on {device} ({filter_backend(device)}; "
        f"{encoder_backend(classifier.network, device, classifier.precision)}; {threads()})"
    )
    odds = log_odds(classifier.logits(clips))
    result: dict[str, Any] = {
        "command": "classify",
        "run": str(config.run),
        "store": str(config.store),
        "task": classifier.task,
        "clips": len(clips),
        "clips_without_channels": int(mine.sum()) - len(clips),
        "overlap": bool(overlap_note),
        "overlap_note": overlap_note,
    }
    if config.predictions is not None:
        write_all(config, classifier, known, np.flatnonzero(mine), clips, odds, result, made_of)
    if config.result is not None:
        result = tested(result, config, classifier, np.flatnonzero(mine), clips, odds, made_of)
    if config.table is not None:
        names = [TASKS[classifier.task].names[k] for k in classifier.classes]
        config.table.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(config.table) as file:
            for begin in range(0, len(clips), ROWS):
                part = slice(begin, begin + ROWS)
                text = table_text(store, clips[part], names, probability_of(odds[part]))
                file.write((text if not begin else text.partition("\n")[2]).encode())
        say(f"wrote {config.table}")
    return result


def write_all(
    config: Config,
    classifier: Classifier,
    known: Mapping[str, int],
    asked: npt.NDArray[np.int64],
    clips: npt.NDArray[np.int64],
    odds: npt.NDArray[np.float64],
    record: dict[str, Any],
    made_of: Mapping[str, Any],
) -> None:
    """Write the folder of predictions: of all clips ``asked`` for, those without a channel have no class."""
    from sleepfm_fast.baselines.supervised_clips import StoreFacts
    from sleepfm_fast.evaluation.classification import probability_of
    from sleepfm_fast.evaluation.missing_channels import missing_channels
    from sleepfm_fast.evaluation.predictions import Predicted, starts_of, write_predictions
    from sleepfm_fast.evaluation.tasks import TASKS, labels_of
    from sleepfm_fast.runs.splits import SPLITS

    assert config.predictions is not None
    store, task = classifier.clip_input.store, TASKS[classifier.task]
    facts = StoreFacts(store)
    probability = np.full((len(asked), len(classifier.classes)), np.nan)
    probability[np.searchsorted(asked, clips)] = probability_of(odds)
    names = [recording.id for recording in store.recordings]
    sides = [SPLITS[known[name]] if name in known else "" for name in store.subjects]
    there = [names[i] for i in np.unique(np.asarray(store.recording)[asked]).tolist()]
    missing = missing_channels(config.store, config.run, there, classifier.clip_input.modalities)
    for notice in missing.notices():
        say(f"notice: {notice}")
    found = Predicted(
        tuple(task.names[k] for k in classifier.classes),
        probability,
        np.asarray(store.recording)[asked],
        np.asarray(facts.subject)[asked],
        np.asarray(store.onset_s, np.float64)[asked],
        labels_of(facts, classifier.task, asked),
        task.names,
        names,
        store.subjects,
        [sides[subject] for subject in np.asarray(facts.subject)[asked].tolist()],
        missing.slots,
    )
    starts = starts_of(config.store, names)
    write_predictions(config.predictions, record, found, starts, task=classifier.task, made_of=made_of)


def prior_of(run: Path, classifier: Classifier) -> npt.NDArray[np.float64] | None:
    """Frequencies of the classes among the training clips [k], of a network that was trained as if they were equal."""
    from sleepfm_fast.evaluation.calibration import recorded_prior
    from sleepfm_fast.results import FOLDER, read_result

    if classifier.config["config"].get("class_weights") != "balanced":
        return None
    try:
        prior = recorded_prior(read_result(run / FOLDER / classifier.task).record)
    except SleepfmError:
        prior = None
    if prior is None:
        say(
            f"notice: {run} was trained with balanced classes, and no result in it says how frequent they were: its "
            "calibration is as fitted. `supervise --resume` writes that result."
        )
    return prior


def tested(
    record: dict[str, Any],
    config: Config,
    classifier: Classifier,
    asked: npt.NDArray[np.int64],
    clips: npt.NDArray[np.int64],
    odds: npt.NDArray[np.float64],
    made_of: Mapping[str, Any],
) -> dict[str, Any]:
    """Score those of the classified ``clips`` that have a label and write the result folder."""
    from sleepfm_fast.baselines.supervised_clips import StoreFacts, held_out_of
    from sleepfm_fast.evaluation.classification import conclude
    from sleepfm_fast.evaluation.labelled_clips import LabelledClips
    from sleepfm_fast.evaluation.tasks import TASKS, labels_of

    store, task = classifier.clip_input.store, TASKS[classifier.task]
    facts = StoreFacts(store)
    labels = labels_of(facts, classifier.task, clips)
    known = labels >= 0
    if not known.any():
        raise SleepfmError(
            f"none of the {counted(len(clips), 'clip')} has a label for --task {classifier.task} ({task.labels}), so "
            "there is nothing to test. Leave RESULT out; --table writes the classes."
        )
    n_unlabelled = int((labels_of(facts, classifier.task, asked) < 0).sum())
    n_lacking = len(asked) - n_unlabelled - int(known.sum())
    clips = clips[known]
    test = LabelledClips(clips, labels[known], facts.subject[clips], n_unlabelled, n_lacking)
    return conclude(
        {
            **record,
            "modalities": classifier.clip_input.modalities,
            "tested": config.subjects,
            "trained_on": classifier.config["config"]["store"],
            "test": test.counts(task.names),
        },
        held_out_of(store, test),
        odds[known],
        classifier.classes,
        bootstraps=config.bootstraps,
        seed=config.seed,
        prior=prior_of(config.run, classifier),
        path=config.result,
        overwrite=config.overwrite,
        made_of=made_of,
    )


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return command.run(Config, main, argv, following=after_result)


if __name__ == "__main__":
    sys.exit(cli())
