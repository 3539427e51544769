"""The clips that an end-to-end classifier learns from and is tested on: labelled, with a channel, split by subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sleepfm_fast.channels import Montage
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.classification import HeldOut
from sleepfm_fast.evaluation.labelled_clips import LabelledClips
from sleepfm_fast.evaluation.tasks import TASKS, labels_of
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.runs.seen_recordings import SeenRecordings
from sleepfm_fast.runs.splits import Split, assign_subjects, draw_subjects
from sleepfm_fast.store.clip_facts import people_of

__all__ = ["StoreFacts", "SupervisedClips", "held_out_of", "in_words", "montage_of", "select_labelled"]


@dataclass(frozen=True)
class People:
    """Age (years) and sex of every subject of a store, and its age at every recording; None where unknown."""

    ages: tuple[float | None, ...]
    sexes: tuple[str | None, ...]
    recording_ages: tuple[float | None, ...]


class StoreFacts:
    """The columns of a store that :func:`sleepfm_fast.evaluation.tasks.labels_of` reads labels from."""

    def __init__(self, store: ClipStore) -> None:
        self.stage = np.asarray(store.stage)
        self.sdb = np.asarray(store.sdb)
        self.recording = np.asarray(store.recording)
        self.subject = np.asarray(store.recording_subject, np.int32)[self.recording]
        people = people_of(store)
        self.description = People(people["ages"], people["sexes"], people["recording_ages"])


@dataclass(frozen=True)
class SupervisedClips:
    """Clips of a supervised training.

    Attributes
    ----------
    train, validation, test : LabelledClips
    drawn : tuple of str
        The training subjects; of a draw, in its order.
    subjects : dict of str to int
        Split code of every subject of the store.
    overlap : bool
        Whether subjects too few to split stand in all parts.
    notices : tuple of str
        What the user should know.
    recordings : SeenRecordings
        Recordings of every subject.
    """

    train: LabelledClips
    validation: LabelledClips
    test: LabelledClips
    drawn: tuple[str, ...]
    subjects: dict[str, int]
    overlap: bool
    notices: tuple[str, ...]
    recordings: SeenRecordings


def montage_of(store: ClipStore, modality: str) -> Montage:
    """The store's montage, or that part of it which holds one modality's channels."""
    montage = store.montage
    if modality == "all":
        return montage
    kept = tuple(m for m in montage.modalities if m.name == modality and m.slots)
    if not kept:
        has = ", ".join(m.name for m in montage.modalities if m.slots)
        raise SleepfmError(
            f"--modality {modality}: the montage of {store.path} has no channel of it; it has {has}. Choose one of "
            "these, or preprocess with a montage that covers it (see: python -m sleepfm_fast.preprocess --inspect "
            "FOLDER)."
        )
    return Montage(montage.name, kept)


def select_labelled(
    store: ClipStore,
    split: Split,
    task: str,
    have: npt.NDArray[np.bool_],
    *,
    n_subjects: int = 0,
    replicate: int = 0,
) -> SupervisedClips:
    """Choose the clips of all three sides.

    Parameters
    ----------
    store : ClipStore
    split : Split
        The rule; the same as that of ``train`` gives the same subjects.
    task : str
        A key of :data:`sleepfm_fast.evaluation.tasks.TASKS`.
    have : bool [n_recordings]
        Recordings with at least one channel that the network reads.
    n_subjects, replicate : int
        Train on so many of the training subjects that have usable clips, drawn by
        :func:`sleepfm_fast.runs.splits.draw_subjects`; 0 for all.

    Raises
    ------
    SleepfmError
        When a side is left without clips, or the training clips are of one class.
    """
    codes, notices = assign_subjects(store.subjects, split)
    recording = np.asarray(store.recording, np.int64)
    facts = StoreFacts(store)
    code = codes[facts.subject]
    labels = labels_of(facts, task, np.arange(len(store)))

    def side(number: int, whose: npt.NDArray[np.int64] | None = None) -> LabelledClips:
        mine = (code == number) | (code < 0)
        if whose is not None:
            mine &= np.isin(facts.subject, whose)
        labelled = mine & (labels >= 0)
        clips = np.flatnonzero(labelled & have[recording])
        n_unlabelled, n_lacking = int((mine & (labels < 0)).sum()), int(labelled.sum()) - len(clips)
        return LabelledClips(clips, labels[clips], facts.subject[clips], n_unlabelled, n_lacking)

    train = side(0)
    refuse_empty(store, "training", train, task)
    drawn = tuple(store.subjects[s] for s in np.unique(train.subject))
    if n_subjects:
        if n_subjects > len(drawn):
            notices = (
                *notices,
                f"--train-subjects {n_subjects}: only "
                f"{counted(len(drawn), 'training subject has', 'training subjects have')} labelled clips; all of them "
                "are taken.",
            )
        drawn = draw_subjects(drawn, n_subjects, replicate)
        number = {name: i for i, name in enumerate(store.subjects)}
        train = side(0, np.array([number[name] for name in drawn], np.int64))
    names = TASKS[task].names
    classes = np.unique(train.labels)
    if len(classes) < 2:
        more = "Raise --train-subjects, or draw others with --replicate." if n_subjects else "Add subjects."
        raise SleepfmError(
            f"every labelled training clip is '{names[classes[0]]}': a classifier needs two classes. {more}"
        )
    test = side(2)
    refuse_empty(store, "test", test, task)
    validation = side(1)
    # The loss of a class that the network does not know is infinite.
    unknown = ~np.isin(validation.labels, classes)
    if unknown.any():
        called = ", ".join(names[k] for k in np.unique(validation.labels[unknown]))
        notices = (
            *notices,
            f"{counted(int(unknown.sum()), 'validation clip')} of {called}, which no training clip is, "
            f"{agreeing(int(unknown.sum()), 'is', 'are')} left out of the validation loss.",
        )
    validation = validation.of(~unknown)
    if len(validation) == 0:
        validation = train
        if len(store.subjects) > 2:
            notices = (*notices, "no labelled clip is left for validation: the training clips also serve for it.")
    subjects = dict(zip(store.subjects, np.maximum(codes, 0).tolist(), strict=True))
    recordings = SeenRecordings.of(store.recordings, subjects)
    return SupervisedClips(train, validation, test, drawn, subjects, bool((codes < 0).any()), notices, recordings)


def refuse_empty(store: ClipStore, side: str, clips: LabelledClips, task: str) -> None:
    """Say why a side has no clips."""
    if len(clips):
        return
    if clips.n_lacking_modality:
        raise SleepfmError(
            f"none of the {clips.n_lacking_modality} labelled {side} clips of {store.path} has a channel that the "
            "network would read. Choose another --modality."
        )
    if clips.n_unlabelled:
        raise SleepfmError(
            f"none of the {clips.n_unlabelled} {side} clips of {store.path} has a label for --task {task} "
            f"({TASKS[task].labels}). {TASKS[task].remedy}, or choose another task."
        )
    raise SleepfmError(
        f"the split leaves {store.path} without {side} subjects (it has {len(store.subjects)}). Add recordings, or "
        "change --test-share and --validation-share."
    )


def in_words(clips: LabelledClips, names: Sequence[str]) -> str:
    """Say how many clips, subjects and clips of each class a side has, and what was left out."""
    counts = clips.counts(names)
    classes = ", ".join(f"{k} {v}" for k, v in counts["class_counts"].items())
    left = ", ".join(
        f"{counts[f'n_dropped_{key}']} left out for want of {what}"
        for key, what in (("unlabelled", "a label"), ("lacking_modality", "a channel"))
        if counts[f"n_dropped_{key}"]
    )
    subjects = counted(counts["n_subjects"], "subject")
    return f"{counted(counts['n_clips'], 'clip')} of {subjects} ({classes})" + (f"; {left}" if left else "")


def held_out_of(store: ClipStore, test: LabelledClips) -> HeldOut:
    """Describe test clips of a store as results want them."""
    return HeldOut(
        clip=test.clips,
        label=test.labels,
        subject=test.subject,
        recording=np.asarray(store.recording, np.int32)[test.clips],
        onset_s=np.asarray(store.onset_s)[test.clips],
        **people_of(store),
    )
