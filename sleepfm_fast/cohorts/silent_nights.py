"""Scored nights without a respiratory event: nobody found one, or nobody looked.

EDF+ annotations and scoring tables cannot tell, so such a night is taken as not scored for events and its clips have no
label. If events were scored, this drops the healthy sleepers and makes events look commoner than they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from sleepfm_fast.plurals import agreeing, counted

__all__ = ["REMEDY", "is_scored", "is_silent", "sentence"]

REMEDY = (
    "if they were scored for events and had none, give --events-scored (and --overwrite if the store exists already): "
    "without it, sleepers who breathe well are missing, and events look more common than they are"
)


def is_scored(stages: Mapping[str, int]) -> bool:
    """Whether any clip of a night has a stage, by its counts (:func:`sleepfm_fast.store.clip_layout.stage_counts`)."""
    return any(n for stage, n in stages.items() if stage != "none")


def is_silent(stages: Mapping[str, int], sdb: Mapping[str, int]) -> bool:
    """Whether a scored night says nothing on respiratory events, by its counts (``stage_counts``, ``sdb_counts``)."""
    return is_scored(stages) and not sdb["event"] and not sdb["none"]


def sentence(n_silent: int, n_scored: int) -> str:
    """Say how many of the scored nights are silent."""
    return (
        f"{n_silent} of {counted(n_scored, 'scored night')} "
        f"{agreeing(n_silent, 'has no respiratory event; it is', 'have no respiratory event; they are')} taken as not "
        "scored for events, so their clips have no label of sleep-disordered breathing"
    )
