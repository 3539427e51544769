"""What subjects served a classifier for, by their names: training, validation, testing, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import counted
from sleepfm_fast.runs.splits import SPLITS

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.results import Result

__all__ = ["PREFIXES", "encoder_splits", "fitted_splits", "splits_of"]

PREFIXES = ("training", "external")
"""What precedes a subject's name in a folder of two stores."""


def splits_of(embeddings: Embeddings) -> tuple[str, ...]:
    """Return the split of each subject of a folder; empty for one without clips."""
    codes = dict(zip(np.asarray(embeddings.subject).tolist(), np.asarray(embeddings.split).tolist(), strict=True))
    return tuple(SPLITS[codes[i]] if i in codes else "" for i in range(len(embeddings.description.subjects)))


def encoder_splits(presets: Mapping[str, Any]) -> dict[str, str]:
    """Return the subjects of a folder that its encoder has seen, "train" or "validation", by its presets."""
    found = presets.get("subjects_seen")
    return found if isinstance(found, dict) else {}


def bare(name: str) -> str:
    """Return a subject's name in its own store."""
    side, slash, rest = name.partition("/")
    return rest if slash and side in PREFIXES else name


def fitted_splits(result: Result, embeddings: Embeddings, *, own: bool) -> dict[str, str]:
    """Return what each subject of the embeddings served the classifier for; empty for nothing.

    Names tell: another store may hold the same people, as at another visit. Where two subjects of a classifier that was
    fitted on two stores have one name, the more cautious holds: training before validation before testing.

    Parameters
    ----------
    result : Result
        Of probe.
    embeddings : Embeddings
        Of the clips to classify.
    own : bool
        Whether they are of the store that the classifier was fitted on. Of results that do not name their subjects,
        only these are known.
    """
    here = dict(zip(embeddings.description.subjects, splits_of(embeddings), strict=True))
    named: Sequence[str] | None = result.record.get("subjects")
    if named is None:
        return here if own else dict.fromkeys(here, "")
    tested: set[str] = set()
    if not result.record.get("overlap"):  # one person may have served for everything
        tested = {named[i] for i in np.unique(result.array("subject")).tolist()}
    splits: Sequence[str] | None = result.record.get("subject_splits")
    if splits is None:  # of an earlier version: of those it did not test, it is not known that they were not fitted
        cautious = {name: "train" if split == "test" else split for name, split in here.items()}
        splits = ["test" if name in tested else cautious.get(name, "train") for name in named]
    if len(splits) != len(named):
        raise SleepfmError(
            f"{result.record_file} is damaged: it names {counted(len(named), 'subject')} and the splits of "
            f"{len(splits)}. Run its command again."
        )
    served: dict[str, str] = {}
    for name, split in zip(named, splits, strict=True):
        known = served.setdefault(bare(name), split)
        served[bare(name)] = min((known, split), key=("train", "validation", "test", "").index)
    return {name: served.get(bare(name), "") for name in here}
