"""The origin of a training's weights and the subjects that they have seen, which must never become test subjects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sleepfm_fast.clips import ClipStore
from sleepfm_fast.plurals import agreeing, counted, first_of
from sleepfm_fast.runs.seen_recordings import SeenRecordings

__all__ = ["UNKNOWN_SUBJECTS", "Seen", "seen_by", "split_before"]

UNKNOWN_SUBJECTS = "The subjects it was trained on are not known: a test subject may be one of them."


@dataclass(frozen=True)
class Seen:
    """Subjects whose split is fixed, because weights were trained or validated on them or kept for testing on them.

    Attributes
    ----------
    subjects : dict of str to int
        Their splits, as indices into :data:`sleepfm_fast.runs.splits.SPLITS`.
    complete : bool
        Whether these are all subjects that the weights have seen.
    recordings : SeenRecordings
        What was recorded of them; of runs of earlier versions, nothing.
    """

    subjects: dict[str, int] = field(default_factory=dict)
    complete: bool = True
    recordings: SeenRecordings = field(default_factory=SeenRecordings)

    def in_store(self, store: ClipStore) -> tuple[dict[str, int], tuple[str, ...]]:
        """Return the splits that subjects of a store have to keep, and sentences that the user must see.

        A participants table may have been corrected since the training, so that a recording which the weights have seen
        is of another subject by now: that subject keeps the recording's split. A name counts where recordings do not
        tell: for what is not in this store, such as an earlier visit. Of two splits, training goes before validation,
        and that before testing.

        Returns
        -------
        known : dict of str to int
        notices : tuple of str
        """
        found = self.recordings.found_in(store.recordings)
        # Names all of whose recordings were found say nothing more: who bears one now may be somebody else.
        told = self.recordings.subjects - self.recordings.without(found.values()).subjects
        known = {name: code for name, code in self.subjects.items() if name not in told}
        renamed: dict[str, None] = {}
        for i, seen in found.items():
            subject = store.recordings[i].subject
            known[subject] = min(seen.split, known.get(subject, seen.split))
            if subject != seen.subject:
                renamed[subject] = None
        if not renamed:
            return known, ()
        n = len(renamed)
        return known, (
            f"{counted(n, 'subject')} of {store.path} ({first_of(list(renamed), 3)}) "
            f"{agreeing(n, 'has', 'have')} recordings that the run knows as another subject's: "
            f"{agreeing(n, 'it keeps', 'they keep')} the split of those recordings, so that nothing the weights have "
            "seen is tested.",
        )


def seen_by(config: Mapping[str, Any] | None) -> Seen:
    """Return the subjects that a run's weights have seen, in its training and in the one that it was started from.

    Parameters
    ----------
    config : mapping or None
        The content of the run's ``config.json``; None where only the weights are known.
    """
    # The authors' files name no subjects.
    if config is None or not config.get("subjects"):
        return Seen({}, complete=False)
    # A run's subjects include those of the run that it was started from, unless these were not recorded.
    complete = split_before(config.get("initialised_from")).complete
    return Seen(config["subjects"], complete, SeenRecordings.read(config.get("recordings")))


def split_before(origin: Mapping[str, Any] | None) -> Seen:
    """Return the subjects that a run's initial weights had seen, by its ``initialised_from``; none without that."""
    if origin is None:
        return Seen()
    recordings = SeenRecordings.read(origin.get("recordings"))
    return Seen(origin.get("subjects", {}), origin.get("subjects_known", False), recordings)
