"""What a simulated cohort's folder says of itself: its options, and what the names of its sleepers begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sleepfm_fast.cli.json_text import read_object

__all__ = ["CARD", "PREFIX", "name_prefix", "prefix_of", "read_card"]

CARD = "simulation.json"
PREFIX = "sim-"  # of names of seed 0, and of any seed in a folder that an earlier version began


def name_prefix(out: Path, seed: int) -> str:
    """What the names of the sleepers in a cohort's folder begin with, whether it is there already or not."""
    found = read_card(out)
    return prefix_of(seed) if found is None else str(found.get("prefix", PREFIX))


def prefix_of(seed: int) -> str:
    """What the names of a new cohort of this seed begin with."""
    # Splits go by names: those of seed 0 stayed what they were when other seeds got names of their own.
    return f"{PREFIX}{seed}-" if seed else PREFIX


def read_card(out: Path) -> dict[str, Any] | None:
    """Options of the cohort in a folder; None where there is none, or its record is damaged."""
    return read_object(out / CARD) or None
