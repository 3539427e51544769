"""What a training starts from, and whom those weights have seen: a subject that they have seen is never tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["UNKNOWN_SUBJECTS", "Seen", "seen_by", "split_before"]

UNKNOWN_SUBJECTS = "The subjects it was trained on are not known: a test subject may be one of them."


@dataclass(frozen=True)
class Seen:
    """Subjects whose split is settled, because weights were trained, validated or left untested on them.

    Attributes
    ----------
    subjects : dict of str to int
        Their splits, as index into :data:`sleepfm_fast.runs.splits.SPLITS`.
    complete : bool
        Whether they are all that the weights have seen.
    """

    subjects: dict[str, int] = field(default_factory=dict)
    complete: bool = True


def seen_by(config: Mapping[str, Any] | None) -> Seen:
    """Whom the weights of a run have seen: in its training, and in the one that it was started from.

    Parameters
    ----------
    config : mapping or None
        As in the run's ``config.json``; None where only the weights are known.
    """
    # The authors' files name nobody.
    if config is None or not config.get("subjects"):
        return Seen({}, complete=False)
    # A run's own subjects include those of the run before. Where that is not recorded, they are not.
    return Seen(config["subjects"], split_before(config.get("initialised_from")).complete)


def split_before(origin: Mapping[str, Any] | None) -> Seen:
    """Whom the weights that a run was started from had seen, by its ``initialised_from``; nobody without any."""
    if origin is None:
        return Seen()
    return Seen(origin.get("subjects", {}), origin.get("subjects_known", False))
