"""Nights of a store that hold the same samples under several names: copies that nobody meant to add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sleepfm_fast.plurals import counted

__all__ = ["Twin", "twins_notice"]

SHOWN = 3


@dataclass(frozen=True)
class Twin:
    """A night: the digest of its samples, its file and its subject."""

    digest: str
    path: str
    subject: str

    @staticmethod
    def of(record: Mapping[str, Any]) -> Twin:
        """Take it from a night's record."""
        return Twin(str(record["sha256"]), str(record["source"]["path"]), str(record["subject"]))


def twins_notice(nights: list[Twin]) -> str:
    """Say which nights hold the same samples and what that does; empty where none do."""
    groups: dict[str, list[Twin]] = {}
    for night in nights:
        groups.setdefault(night.digest, []).append(night)
    several = [group for group in groups.values() if len(group) > 1]
    if not several:
        return ""
    # two people may share one night's samples only where a file was copied
    strangers = [group for group in several if len({night.subject for night in group}) > 1]
    first = (strangers or several)[0]
    shown = " and ".join(night.path for night in first[:SHOWN])
    leak = (
        f"of {len(strangers)} of them the subjects differ, so that one person may be in both training and test; "
        if strangers
        else ""
    )
    return (
        f"notice: {counted(len(several), 'night is', 'nights are')} in the store more than once, with the same samples "
        f"(such as {shown}): {leak}leave all but one out with --overrides FILE --overwrite, where FILE holds "
        '{"copy.edf": "exclude"}'
    )
