"""The clips of some splits that a classifier can use: those with a label and with every modality that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.command import say
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.tasks import TASKS, labels_of
from sleepfm_fast.plurals import agreeing, counted

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings

__all__ = ["LabelledClips", "labelled_clips", "modalities_of"]


@dataclass(frozen=True)
class LabelledClips:
    """The clips that can be used, and the numbers of those that cannot.

    Attributes
    ----------
    clips : int64 [n]
        Rows of the embeddings folder, ascending.
    labels : int8 [n]
        Class of each by :func:`sleepfm_fast.evaluation.tasks.labels_of`; none is -1.
    subject : int32 [n]
        Subject of each.
    n_unlabelled, n_lacking_modality : int
        Number of clips of the splits without a label, and of labelled ones that lack a modality.
    """

    clips: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int8]
    subject: npt.NDArray[np.int32]
    n_unlabelled: int
    n_lacking_modality: int

    def __len__(self) -> int:
        """Return the number of clips that can be used."""
        return len(self.clips)

    def of(self, which: npt.NDArray[Any]) -> LabelledClips:
        """Return some of the clips, chosen by a mask or by ascending indices, with the same counts of the others."""
        return LabelledClips(
            self.clips[which], self.labels[which], self.subject[which], self.n_unlabelled, self.n_lacking_modality
        )

    def counts(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the counts for a record: clips, subjects, dropped clips, and the clips of each class by name."""
        return {
            "n_clips": len(self.clips),
            "n_subjects": len(np.unique(self.subject)),
            "n_dropped_unlabelled": self.n_unlabelled,
            "n_dropped_lacking_modality": self.n_lacking_modality,
            "class_counts": dict(zip(names, np.bincount(self.labels, minlength=len(names)).tolist(), strict=True)),
        }


def modalities_of(embeddings: Embeddings, modality: str) -> tuple[str, ...]:
    """Resolve ``--modality``: every modality of the folder, in its order, or one that it has."""
    if modality == "all":
        return embeddings.modalities
    if modality not in embeddings.modalities:
        raise SleepfmError(
            f"{embeddings.path} has no {modality} embeddings; it has {', '.join(embeddings.modalities)}."
        )
    return (modality,)


def labelled_clips(
    embeddings: Embeddings, splits: tuple[str, ...], task: str, modalities: tuple[str, ...]
) -> LabelledClips:
    """Choose the clips of some splits that have a label and every modality.

    Parameters
    ----------
    embeddings : Embeddings
    splits : tuple of {"train", "validation", "test"}
    task : str
        A key of :data:`sleepfm_fast.evaluation.tasks.TASKS`.
    modalities : tuple of str
        The modalities that the classifier reads.

    Raises
    ------
    SleepfmError
        When no clip is left; the message says which condition excluded the last ones.
    """
    clips = embeddings.clips_of(*splits)
    side = " or ".join(splits)
    if not clips.size:
        sizes = ", ".join(f"{s} {embeddings.clips_of(s).size}" for s in ("train", "validation", "test"))
        raise SleepfmError(
            f"{embeddings.path} has no {side} subjects (clips: {sizes}; split rule: "
            f"{embeddings.description.split_rule}). The probe fits on training subjects and is tested on test "
            "subjects: embed a store with more subjects; or test here what another cohort's subjects have taught, with "
            "transfer, or label these nights with it, with predict."
        )
    labels = labels_of(embeddings, task, clips)
    labelled = labels >= 0
    if not labelled.any():
        raise SleepfmError(
            f"none of the {clips.size} {side} clips of {embeddings.path} has a label for --task {task} "
            f"({TASKS[task].labels}). {TASKS[task].remedy}, or choose another task."
        )
    columns = [embeddings.modalities.index(m) for m in modalities]
    whole = np.asarray(embeddings.mask)[clips][:, columns].all(1)
    use = labelled & whole
    if not use.any():
        which = f"all of {', '.join(modalities)}" if len(modalities) > 1 else modalities[0]
        remedy = "Probe a single modality" if len(modalities) > 1 else "Probe another modality"
        of_all = f"none of the {counted(int(labelled.sum()), f'labelled {side} clip')}"
        raise SleepfmError(f"{of_all} has {which}. {remedy} with --modality.")
    lacking = int((labelled & ~whole).sum())
    if lacking:
        what = f"one of {', '.join(modalities)}" if len(modalities) > 1 else modalities[0]
        remedy = "; --modality NAME uses every clip that has that one" if len(modalities) > 1 else ""
        of_all = f"{lacking} of {counted(int(labelled.sum()), f'labelled {side} clip')}"
        do = agreeing(lacking, f"lacks {what} and is", f"lack {what} and are")
        say(f"notice: {of_all} {do} left out{remedy}.")
    kept = clips[use]
    return LabelledClips(kept, labels[use], np.asarray(embeddings.subject[kept]), int((~labelled).sum()), lacking)
