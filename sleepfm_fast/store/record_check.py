"""Checks that ``recordings/<id>.json`` has every entry, each of its type, so that it can be used without others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from sleepfm_fast.cli.json_text import are, is_count, is_text
from sleepfm_fast.scoring.respiratory_counts import KINDS
from sleepfm_fast.scoring.stages import STAGES

__all__ = ["is_number", "is_whole_record"]

STORED = ("<i2", "<i4")


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def is_stage(value: Any) -> bool:
    return type(value) is int and -1 <= value < len(STAGES)


def is_sdb(value: Any) -> bool:
    return type(value) is int and -1 <= value <= 1


def are_events(counts: Any) -> bool:
    """Whether an object has a count of respiratory events for every kind; short ones are not counted in old records."""
    return all(is_count(counts[kind]) for kind in (*KINDS, "outside_sleep")) and is_count(counts.get("under_10_s", 0))


def is_ratio(value: Any) -> bool:
    """Whether a pair is a numerator and a positive denominator, both of which fit int64."""
    numerator, denominator = value
    return type(numerator) is int and abs(numerator) < 1 << 62 and is_count(denominator) and denominator > 0


def optional(value: Any, is_kind: Callable[[Any], bool]) -> bool:
    return value is None or is_kind(value)


def is_file(facts: dict[str, Any]) -> bool:
    """Whether facts name the file that a night was made from, with its size and time then."""
    return is_text(facts["path"]) and is_count(facts["size"]) and type(facts["mtime_ns"]) is int


def is_scoring(facts: dict[str, Any]) -> bool:
    """Whether facts name the files of labels that were used, if any."""
    used = facts["path"] is None or is_file(facts)
    return (
        used
        and optional(facts.get("passed_over"), is_text)
        and are(facts.get("named", []), is_text)
        and all(are(facts.get(name, []), is_file) for name in ("also", "unreadable"))
    )


def is_channel(channel: dict[str, Any]) -> bool:
    if channel["present"] is not True:
        return channel["present"] is False
    return (
        is_ratio(channel["fs_hz"])
        and channel["fs_hz"][0] > 0
        and is_number(channel["gain"])
        and is_number(channel["offset"])
        and is_text(channel["unit"])
        and channel["dtype"] in STORED
    )


def are_clips(clips: dict[str, Any], n_segments: int) -> bool:
    columns: Sequence[Any] = [clips[name] for name in ("onset_s", "segment", "stage", "sdb")]
    return (
        are(clips["onset_s"], lambda onset_s: is_number(onset_s) and onset_s >= 0)
        and are(clips["segment"], lambda s: is_count(s) and s < n_segments)
        and are(clips["stage"], is_stage)
        and are(clips["sdb"], is_sdb)
        and len({len(column) for column in columns}) == 1
    )


def is_segment(segment: dict[str, Any], n_slots: int) -> bool:
    runs = segment["runs"]
    times = is_ratio(segment["onset_s"]) and is_ratio(segment["duration_s"])
    return times and len(runs) == n_slots and all(are(r, is_count) and len(r) == 2 for r in runs)


def is_whole_record(record: Any) -> bool:
    """Whether a recording's description has every entry that is used, each of its type.

    Parameters
    ----------
    record : JSON value
        The content of the file. Entries that only a user reads, such as the channels' notes, may be missing.
    """
    try:
        segments, channels = record["segments"], record["channels"]
        return (
            all(is_text(record[name]) for name in ("id", "subject", "configuration_digest", "sha256"))
            and is_count(record["n_bytes"])
            and optional(record["age"], is_number)
            and optional(record["sex"], is_text)
            and optional(record["start"], is_text)
            and are(record["issues"], is_text)
            and is_file(record["source"])
            and is_text(record["source"]["sha256"])
            and are(record["source"].get("others", []), lambda facts: is_file(facts) and is_text(facts["sha256"]))
            and is_scoring(record["scoring"])
            and optional(record.get("respiratory_events"), are_events)
            and all(is_number(record.get("lights_s", {}).get(name, 0.0)) for name in ("off", "on"))
            and are(channels, is_channel)
            and are(segments, lambda segment: is_segment(segment, len(channels)))
            and are_clips(record["clips"], len(segments))
        )
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        return False
