"""Which clips of a store a training sees: by the subject's split, and only where two modalities can be contrasted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sleepfm_fast.clips import ClipStore
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.splits import Split, assign_subjects

__all__ = ["Selection", "select_clips"]


@dataclass(frozen=True)
class Selection:
    """Clips of a training run.

    Attributes
    ----------
    train, validation : int64 arrays
        Clip numbers.
    subjects : dict of str to int
        Split code of every subject of the store.
    overlap : bool
        Whether subjects too few to split stand in all parts.
    notices : tuple of str
        What the user should know.
    """

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    subjects: dict[str, int]
    overlap: bool
    notices: tuple[str, ...]

    @property
    def clips(self) -> npt.NDArray[np.int64]:
        """Of training and validation together."""
        return np.concatenate([self.train, self.validation])


def select_clips(store: ClipStore, split: Split) -> Selection:
    """Choose the clips for training and validation.

    Raises
    ------
    SleepfmError
        Where fewer than two clips are left for training.
    """
    codes, notices = assign_subjects(store.subjects, split)
    of_clip = codes[store.recording_subject[store.recording]]
    # A clip with one modality has nothing to be contrasted with.
    contrasting = store.modality_present().sum(axis=1) >= 2
    everything = np.flatnonzero(contrasting[store.recording])
    of_clip = of_clip[everything]
    if not contrasting.all():
        notices = (
            *notices,
            f"{int((~contrasting).sum())} of {len(contrasting)} recordings have channels of only one modality; "
            "their clips cannot be contrasted and are left out of training and validation.",
        )
    train = everything[(of_clip == 0) | (of_clip < 0)]
    validation = everything[(of_clip == 1) | (of_clip < 0)]
    if len(train) < 2:
        raise SleepfmError(
            f"the store {store.path} leaves {len(train)} clips with two modalities or more for "
            "training; contrasting needs two clips. Add recordings (see: python -m sleepfm_fast.preprocess "
            "--inspect FOLDER), or lower --test-share and --validation-share."
        )
    if len(validation) == 0:
        validation = train
        if len(store.subjects) > 2:
            notices = (*notices, "no clip is left for validation: the training clips also serve for it.")
    subjects = dict(zip(store.subjects, np.maximum(codes, 0).tolist(), strict=True))
    return Selection(train, validation, subjects, bool((codes < 0).any()), notices)
