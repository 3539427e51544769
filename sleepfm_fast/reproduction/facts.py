"""What the cohorts of a reproduction hold, on disk or yet to be simulated: clips, subjects, channels and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sleepfm_fast.evaluation.tasks import TASKS, labels_of
from sleepfm_fast.runs.splits import SPLITS, Split, assign_subjects

if TYPE_CHECKING:
    from sleepfm_fast.clips import ClipStore

__all__ = ["Facts", "simulated_facts", "store_facts"]

EPOCHS_PER_HOUR = 120


@dataclass(frozen=True)
class Facts:
    """Size and contents of a cohort.

    Attributes
    ----------
    clips, subjects : dict of str to int
        By split.
    hours : float
    channels : dict of str to int
        Channels of each modality that any recording has.
    simulated : bool
        Whether the sleepers are ours and not patients.
    tasks : tuple of str
        What can be learned and tested: at least two classes in the training clips, and labelled test clips.
    """

    clips: Mapping[str, int]
    subjects: Mapping[str, int]
    hours: float
    channels: Mapping[str, int]
    simulated: bool
    tasks: tuple[str, ...] = tuple(TASKS)

    @property
    def n_clips(self) -> int:
        """All clips."""
        return sum(self.clips.values())


SIMULATED_CHANNELS = {"respiratory": 7, "brain": 6, "ecg": 1}


def count(codes: Any, clips_of_subject: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Clips and subjects of every split."""
    clips = {name: int(clips_of_subject[codes == i].sum()) for i, name in enumerate(SPLITS)}
    subjects = {name: int((codes == i).sum()) for i, name in enumerate(SPLITS)}
    if (codes < 0).any():  # one subject serves all three
        clips = dict.fromkeys(SPLITS, int(clips_of_subject.sum()))
        subjects = dict.fromkeys(SPLITS, 1)
    return clips, subjects


def simulated_facts(n_subjects: int, hours: float, split: Split, prefix: str) -> Facts:
    """Size of a cohort yet to be simulated; its subjects' names, which decide the split, begin with ``prefix``."""
    codes, _ = assign_subjects([f"{prefix}{i:04d}" for i in range(n_subjects)], split)
    each = round(hours * EPOCHS_PER_HOUR)
    clips, subjects = count(codes, np.full(n_subjects, each))
    return Facts(clips, subjects, n_subjects * hours, SIMULATED_CHANNELS, simulated=True)


def learnable_tasks(store: ClipStore, codes: Any) -> tuple[str, ...]:
    """Tasks with two classes in the training clips and labelled test clips."""
    from sleepfm_fast.baselines.supervised_clips import StoreFacts

    columns = StoreFacts(store)
    code = codes[columns.subject]
    found = []
    for task in TASKS:
        labels = labels_of(columns, task, np.arange(len(store)))
        train, test = (labels[((code == side) | (code < 0)) & (labels >= 0)] for side in (0, SPLITS.index("test")))
        if len(np.unique(train)) > 1 and len(test):
            found.append(task)
    return tuple(found)


def store_facts(path: Path, split: Split) -> Facts:
    """Size of a clip store, and whether its recordings were simulated."""
    from sleepfm_fast.clips import ClipStore
    from sleepfm_fast.store.simulated_store import is_simulated

    store = ClipStore(path)
    codes, _ = assign_subjects(store.subjects, split)
    of_subject = np.bincount(store.recording_subject[store.recording], minlength=len(store.subjects))
    clips, subjects = count(codes, of_subject)
    present: Any = store.channels.present.any(axis=0)
    channels = {m.name: n for m in store.montage.modalities if (n := int(present[store.slots_of(m.name)].sum())) > 0}
    hours = len(store) / EPOCHS_PER_HOUR
    return Facts(clips, subjects, hours, channels, is_simulated(store), learnable_tasks(store, codes))
