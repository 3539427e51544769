"""Whether what embeddings were made from is still the same: the store's clips, labels and subjects, and the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepfm_fast.cli.command import say
from sleepfm_fast.cli.path_kinds import places_of
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import counted
from sleepfm_fast.storage.definitions import definitions_of
from sleepfm_fast.storage.standing import digest_of_file
from sleepfm_fast.store.label_rules import label_rules_note

__all__ = ["keys", "say_changed_store", "say_notes", "store_note", "weights_note"]

Whole = npt.NDArray[np.int64]


def say_changed_store(embeddings: Embeddings) -> str:
    """Print and return :func:`store_note`, the store's label rules, :func:`weights_note`, :func:`definitions_note`."""
    found = (
        store_note(embeddings),
        label_rules_note(embeddings.store_path),
        weights_note(embeddings),
        definitions_note(embeddings),
    )
    notes = [note for note in found if note]
    for note in notes:
        say(f"notice: {note}")
    return " ".join(note[0].upper() + note[1:] if i else note for i, note in enumerate(notes))


def say_notes(embeddings: Embeddings) -> dict[str, Any]:
    """Print the notices that a reader of the clips' figures needs, and return them for the record."""
    overlap = embeddings.overlap_note
    if overlap:
        say(f"notice: {overlap}")
    return {"overlap": bool(overlap), "overlap_note": overlap, "store_note": say_changed_store(embeddings)}


def store_note(embeddings: Embeddings) -> str:
    """Return what has changed in the store since a folder was embedded; empty if nothing, or if the store is not there.

    A folder keeps its own copy of the clips' labels and facts. When nights are added to the store, scored anew or given
    to other subjects later, figures of the folder still rest on the earlier labels.
    """
    from sleepfm_fast.clips import ClipStore
    from sleepfm_fast.store.clip_facts import people_of

    about = embeddings.description
    path = embeddings.store_path
    if not (path / "store.json").is_file():
        return ""
    try:
        store = ClipStore(path)
    except SleepfmError:
        return ""  # a command that needs the store will say what is wrong with it
    people = people_of(store)
    recording = positions(about.recordings, people["recordings"])[np.asarray(embeddings.recording)]
    rows = rows_of(
        keys(recording, np.asarray(embeddings.onset_s)), keys(np.asarray(store.recording), np.asarray(store.onset_s))
    )
    rows[recording < 0] = -1
    kept = np.flatnonzero(rows >= 0)
    then_subjects = positions(about.subjects, people["subjects"])[np.asarray(embeddings.subject)[kept]]
    now_subjects = np.asarray(store.recording_subject)[np.asarray(store.recording)[rows[kept]]]
    changes = [
        counted(n, "clip ", "clips ") + what
        for n, what in (
            (len(store) - len(kept), "more"),
            (len(rows) - len(kept), "fewer"),
            (differing(embeddings.stage[kept], store.stage[rows[kept]]), "with another stage"),
            (differing(embeddings.sdb[kept], store.sdb[rows[kept]]), "with another label of breathing events"),
            (differing(then_subjects, now_subjects), "of another subject"),
        )
        if n
    ]
    by_recording = dict(zip(people["recordings"], people["recording_ages"], strict=True))
    by_subject = {what: dict(zip(people["subjects"], people[what], strict=True)) for what in ("ages", "sexes")}
    for noun, what, names, then, now in (
        # A subject is older at a later visit; folders of earlier versions have one age a subject.
        ("recording", "at another age", about.recordings, about.recording_ages, by_recording),
        ("subject", "of another age", about.subjects, () if about.recording_ages else about.ages, by_subject["ages"]),
        ("subject", "of another sex", about.subjects, about.sexes, by_subject["sexes"]),
    ):
        n = sum(now[name] != value for name, value in zip(names, then, strict=False) if name in now)
        if n:
            changes.append(f"{counted(n, noun)} {what}")
    if not changes:
        return ""
    return (
        f"the store {about.store} is not what {embeddings.path} was made from: it has {', '.join(changes)}. The "
        "figures here use the clips and labels as they were; make the folder again with --overwrite to use the "
        "present ones."
    )


def weights_note(embeddings: Embeddings) -> str:
    """Return that the run has other weights by now; empty if it has not, or if its checkpoint is not there.

    A folder that is embedded while its run is still trained, or before the run is trained for longer, holds what an
    earlier best checkpoint gave.
    """
    weights = embeddings.description.presets.get("weights")
    if embeddings.weights is None or not isinstance(weights, dict) or not isinstance(weights.get("file"), str):
        return ""
    file = next((path for path in places_of(weights["file"], embeddings.path) if path.is_file()), None)
    if file is None or digest_of_file(file) in ("", embeddings.weights):
        return ""
    return (
        f"the checkpoint {weights['file']} is no longer the one that {embeddings.path} was made with: the training "
        "went on after that, or was repeated. The figures here are those of the earlier weights; make the folder again "
        "with --overwrite to use the present ones."
    )


def definitions_note(embeddings: Embeddings) -> str:
    """Return that features were measured by other definitions than this version's; empty if not, or of embeddings."""
    now = definitions_of("features")
    if embeddings.definitions in (None, now):
        return ""
    return (
        f"the features of {embeddings.path} were measured by definitions {embeddings.definitions}, and this version of "
        f"sleepfm_fast measures by definitions {now} (CHANGELOG.md says what differs). The figures here are those of "
        "the features as they are; make the folder again with --overwrite to use the present definitions."
    )


def positions(names: Sequence[str], among: Sequence[str]) -> Whole:
    """Return the position of each name in ``among``, -1 where it is not there."""
    at = {name: i for i, name in enumerate(among)}
    return np.array([at.get(name, -1) for name in names], np.int64)


def keys(recording: npt.NDArray[Any], onset_s: npt.NDArray[np.float64]) -> Whole:
    """Return a number for each clip: its recording and, in 32 bits (50 days) below it, the millisecond of its onset."""
    whole: Whole = (recording.astype(np.int64) << 32) + np.rint(1000 * onset_s).astype(np.int64)
    return whole


def rows_of(wanted: Whole, keys: Whole) -> Whole:
    """Return the row in ``keys`` of each wanted key, -1 where there is none."""
    if np.array_equal(wanted, keys):
        return np.arange(len(keys))
    if not len(keys):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(keys, kind="stable")
    at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    found: Whole = np.where(keys[at] == wanted, at, -1)
    return found


def differing(then: npt.NDArray[Any], now: npt.NDArray[Any]) -> int:
    """Count the rows in which two columns differ."""
    return int(np.count_nonzero(then != now))
