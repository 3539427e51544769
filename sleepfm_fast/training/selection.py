"""Which clips of a store a training uses: by the subject's split, and only those that can be contrasted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sleepfm_fast.clips import ClipStore
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.montage.slots import Montage
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.runs.origin import Seen
from sleepfm_fast.runs.seen_recordings import SeenRecordings
from sleepfm_fast.runs.splits import Split, assign_subjects, draw_subjects
from sleepfm_fast.training.neighbours import Stretches, stretch_numbers

__all__ = ["Selection", "chosen_montage", "select_clips"]


@dataclass(frozen=True)
class Selection:
    """Clips of a training run.

    Attributes
    ----------
    train, validation : int64 arrays
        Clip numbers, ascending.
    subjects : dict of str to int
        Split code of every subject of the store, and of those whose split an earlier training has settled.
    trained : tuple of str
        Subjects whose clips are in ``train``.
    overlap : bool
        Whether there were too few subjects to split, so that all parts share them.
    notices : tuple of str
        Sentences that the user should see.
    recordings : SeenRecordings
        Recordings of all subjects, as for ``subjects``.
    """

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    subjects: dict[str, int]
    trained: tuple[str, ...]
    overlap: bool
    notices: tuple[str, ...]
    recordings: SeenRecordings

    @property
    def clips(self) -> npt.NDArray[np.int64]:
        """Clips of training and validation together."""
        return np.concatenate([self.train, self.validation])


def chosen_montage(store: ClipStore, names: Sequence[str]) -> Montage:
    """Return the store's montage, restricted to the modalities ``names`` if there are any.

    Raises
    ------
    SleepfmError
        If the montage has no channels of a named modality; or, without names, if it has only one modality.
    """
    montage = store.montage
    available = [m.name for m in montage.modalities if m.slots]
    for name in names:
        if name not in available:
            raise SleepfmError(
                f"--modalities names {name}, of which the montage of {store.path} has no channels; it has "
                f"{', '.join(available)}."
            )
    if not names and len(available) < 2:
        raise SleepfmError(
            f"the montage of {store.path} has channels of only one modality ({', '.join(available)}); contrasting "
            "modalities needs two or more. Preprocess with a montage that covers more of them (see: python -m "
            "sleepfm_fast.preprocess --inspect FOLDER), or train on this one alone, with neighbouring clips as "
            f"positives: --modalities {' '.join(available)}"
        )
    return Montage(montage.name, tuple(m for m in montage.modalities if m.name in (names or available)))


def contrastable_clips(store: ClipStore, montage: Montage) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return the clips that have something to be contrasted with, and notices about the others."""
    notices = []
    names = [m.name for m in montage.modalities]
    of_store = [m.name for m in store.montage.modalities]
    present = store.modality_present()[:, [of_store.index(name) for name in names]].sum(axis=1)
    single = len(names) == 1
    contrasting = present >= (1 if single else 2)
    clips = np.flatnonzero(contrasting[store.recording])
    if lost := int((~contrasting).sum()):
        has = (
            f"no channel of {names[0]}"
            if single
            else f"channels of only one modality (of {', '.join(names)}) or of none"
        )
        notices.append(
            f"{lost} of {counted(len(contrasting), 'recording')} {agreeing(lost, 'has', 'have')} {has}; their clips "
            "cannot be contrasted and are left out of training and validation."
        )
    if single:
        neighboured = Stretches(clips, stretch_numbers(store)[clips]).clips
        if alone := len(clips) - len(neighboured):
            notices.append(
                f"{alone} of {counted(len(clips), 'clip')} {agreeing(alone, 'has', 'have')} no neighbour in the "
                f"same uninterrupted segment and {agreeing(alone, 'is', 'are')} left out of training and validation."
            )
        clips = neighboured
    return clips, notices


def select_clips(
    store: ClipStore,
    split: Split,
    montage: Montage,
    *,
    n_subjects: int = 0,
    replicate: int = 0,
    seen: Seen | None = None,
) -> Selection:
    """Choose the clips for training and validation.

    Parameters
    ----------
    store : ClipStore
    split : Split
        Divides all subjects of the store, whatever is trained on.
    montage : Montage
        The modalities to contrast. With two or more, a clip must have two of them; with one, a clip must have it, and
        so must a neighbour in the same uninterrupted stretch.
    n_subjects : int
        How many of the training subjects that have such clips to train on; 0 for all.
    replicate : int
        Number of the draw of these subjects (:func:`sleepfm_fast.runs.splits.draw_subjects`).
    seen : Seen, optional
        Subjects whose split the training which this one starts from has settled; they keep it.

    Raises
    ------
    SleepfmError
        If fewer than two clips (pairs of neighbours) are left for training, or there are fewer subjects than asked for.
    """
    seen = seen or Seen()
    known, renamed = seen.in_store(store)
    codes, notices = assign_subjects(store.subjects, split, known)
    notices = (*renamed, *notices)
    kept = np.array([name in known for name in store.subjects], np.bool_)
    if moved := int((kept & (codes != assign_subjects(store.subjects, split)[0])).sum()):
        notices = (
            *notices,
            f"{moved} of {counted(len(kept), 'subject')} {agreeing(moved, 'keeps', 'keep')} the split of the training "
            "that --init-from names, although the rule here would give another: nobody whom those weights have seen "
            "is tested.",
        )
    single = len(montage.modalities) == 1
    everything, left_out = contrastable_clips(store, montage)
    notices = (*notices, *left_out)
    subject = np.asarray(store.recording_subject[store.recording[everything]])
    of_clip = codes[subject]
    training = (of_clip == 0) | (of_clip < 0)
    trained = tuple(store.subjects[s] for s in np.unique(subject[training]))
    if n_subjects:
        if n_subjects > len(trained):
            raise SleepfmError(
                f"--train-subjects is {n_subjects}; the store {store.path} has "
                f"{counted(len(trained), 'training subject')} with clips to contrast. Lower it, or leave it out to "
                "train on all of them."
            )
        trained = draw_subjects(trained, n_subjects, replicate)
        of_draw = set(trained)
        drawn = np.array([name in of_draw for name in store.subjects], np.bool_)
        training &= drawn[subject]
    train = everything[training]
    validation = everything[(of_clip == 1) | (of_clip < 0)]
    n_items = Stretches(train, stretch_numbers(store)[train]).n_pairs if single else len(train)
    if n_items < 2:
        what = "pairs of neighbouring clips" if single else "clips with two modalities or more"
        elsewhere = [store.subjects[s] for s in np.unique(subject[of_clip > 0])]
        held = (
            f" The other {int(np.count_nonzero(of_clip > 0))} are of {counted(len(elsewhere), 'subject')} held out for "
            f"validation or testing (such as {elsewhere[0]})."
            if elsewhere
            else ""
        )
        settled = " Subjects of the training that --init-from names keep its split." if kept.any() else ""
        raise SleepfmError(
            f"the store {store.path} leaves {n_items} {what} for training; contrasting needs two.{held} Add recordings "
            "(see: python -m sleepfm_fast.preprocess --inspect FOLDER), or lower --test-share and --validation-share."
            f"{settled}"
        )
    if len(validation) == 0:
        validation = train
        if len(store.subjects) > 2:
            notices = (*notices, "no clip is left for validation: the training clips also serve for it.")
    subjects = dict(zip(store.subjects, np.maximum(codes, 0).tolist(), strict=True))
    recordings = seen.recordings.followed_by(store.recordings, subjects)
    overlap = bool((codes < 0).any())
    return Selection(train, validation, {**seen.subjects, **subjects}, trained, overlap, notices, recordings)
