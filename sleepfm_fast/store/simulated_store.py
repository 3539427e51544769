"""Whether a store's recordings were simulated: what a figure of theirs must be said with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sleepfm_fast.clips import ClipStore

__all__ = ["is_simulated"]


def is_simulated(store: ClipStore) -> bool:
    """Tell by the card that ``simulate`` leaves beside its recordings, or by the names that it gives.

    The names count where the recordings have been moved or deleted since they were ingested.
    """
    folders = {Path(r.source).parent for r in store.recordings}
    if any((folder / "simulation.json").is_file() for folder in folders):
        return True
    return bool(store.recordings) and all(r.id.startswith("sim-") for r in store.recordings)
