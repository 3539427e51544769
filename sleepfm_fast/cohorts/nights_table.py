"""``STORE/nights.csv``: a row a night, with its subject, the scorer's sleep figures and apnoea-hypopnoea index.

It describes a cohort: a paper's first table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from sleepfm_fast.scoring.respiratory_counts import KINDS
from sleepfm_fast.scoring.sleep_figures import (
    BED_COLUMNS,
    SLEEP_COLUMNS,
    figures_between_lights,
    night_figures,
    scored_span,
)
from sleepfm_fast.scoring.stages import STAGES
from sleepfm_fast.storage.atomic import replace_file
from sleepfm_fast.storage.csv_table import csv_table

__all__ = ["night_row", "write_nights"]

FILE = "nights.csv"
COLUMNS = (
    *("recording", "subject", "age", "sex", "start", "recorded_min", "clips", "scored_clips", "scored_min"),
    *("lights_off_min", "lights_on_min"),
    *SLEEP_COLUMNS,
    *(f"{kind}s" for kind in KINDS),
    *("events_outside_sleep", "events_under_10_s", "apnea_hypopnea_index"),
    *(f"{name}_between_lights" for name in BED_COLUMNS),
)


def night_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Row of a night, from its record in the store; None where the scoring does not say.

    The night that the figures are of begins with the first clip that has a stage and ends with the last:
    ``scored_min`` are its minutes, and efficiency and latency refer to it; those ``between_lights`` do not.
    """
    clips = record["clips"]
    words = ["" if code < 0 else STAGES[code] for code in clips["stage"]]
    within = scored_span(words)
    figures = night_figures(words[within], clips["onset_s"][within])
    seconds = sum((Fraction(*segment["duration_s"]) for segment in record["segments"]), start=Fraction(0))
    lights_s = record.get("lights_s", {})
    lit = figures_between_lights(words, clips["onset_s"], lights_s.get("off"), lights_s.get("on"))
    counts = record.get("respiratory_events")
    sleep_min = figures["total_sleep_time_min"]
    row = {
        **{name: record[name] for name in ("subject", "age", "sex", "start")},
        "recording": record["id"],
        "recorded_min": float(seconds) / 60,
        "clips": len(words),
        "scored_clips": sum(map(bool, words)),
        "scored_min": figures["time_in_bed_min"],
        **{f"lights_{name}_min": lights_s[name] / 60 if name in lights_s else None for name in ("off", "on")},
        **{name: figures[name] for name in SLEEP_COLUMNS},
        **{f"{kind}s": None if counts is None else counts[kind] for kind in KINDS},
        "events_outside_sleep": None if counts is None else counts["outside_sleep"],
        "events_under_10_s": None if counts is None else counts.get("under_10_s"),
        "apnea_hypopnea_index": None,
        **{f"{name}_between_lights": value for name, value in lit.items()},
    }
    if counts is not None and sleep_min:
        row["apnea_hypopnea_index"] = sum(counts[kind] for kind in KINDS) / (sleep_min / 60)
    return row


def write_nights(store: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the table anew."""
    with replace_file(store / FILE) as file:
        file.write(csv_table(COLUMNS, rows).encode())
