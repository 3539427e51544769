"""The origin of a training's weights and the subjects that they have seen, which must never become test subjects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    """

    subjects: dict[str, int] = field(default_factory=dict)
    complete: bool = True


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
    return Seen(config["subjects"], split_before(config.get("initialised_from")).complete)


def split_before(origin: Mapping[str, Any] | None) -> Seen:
    """Return the subjects that a run's initial weights had seen, by its ``initialised_from``; none without that."""
    if origin is None:
        return Seen()
    return Seen(origin.get("subjects", {}), origin.get("subjects_known", False))
