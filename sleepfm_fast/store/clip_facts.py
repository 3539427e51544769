"""The facts of a store that embeddings and results keep: every clip's labels and subject, the subjects' age and sex."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.clips import ClipStore

__all__ = ["columns_of", "people_of"]


def columns_of(store: ClipStore, codes: npt.NDArray[np.int8]) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of :data:`sleepfm_fast.embeddings.COLUMNS`, with one row per clip.

    Parameters
    ----------
    store : ClipStore
    codes : int8 [n_subjects]
        Split of each subject, as :func:`sleepfm_fast.runs.splits.assign_subjects` returns it.
    """
    subject = store.recording_subject[store.recording]
    return {
        "recording": store.recording,
        "clip": store.clip,
        "onset_s": store.onset_s,
        "stage": store.stage,
        "sdb": store.sdb,
        "subject": subject,
        # One subject serves all splits; the folder then says that they overlap.
        "split": np.maximum(codes, 0)[subject],
    }


def people_of(store: ClipStore) -> dict[str, tuple[Any, ...]]:
    """Return the names, ages (years) and sexes for the descriptions of embeddings and of held-out clips."""
    people = [store.participants[s] for s in store.subjects]
    return {
        "subjects": tuple(store.subjects),
        "recordings": tuple(r.id for r in store.recordings),
        "ages": tuple(p["age"] for p in people),
        "sexes": tuple(p["sex"] for p in people),
        "recording_ages": tuple(r.age for r in store.recordings),
    }
