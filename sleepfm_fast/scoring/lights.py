"""Markers of lights off and lights on among the annotations of a night."""

from __future__ import annotations

import re

from sleepfm_fast.scoring.timed_texts import Scoring

__all__ = ["lights_of"]

LIGHTS = re.compile(r"lights?[\s_-]*(off|out|on)\b", re.IGNORECASE)


def lights_of(scoring: Scoring | None) -> dict[str, float]:
    """Seconds from the recording's start to the first marker of lights ``off`` and the last of lights ``on``.

    Those between are of somebody who came in, or of a walk to the toilet. A marker that is not there has no entry.
    """
    onsets: dict[str, list[float]] = {"off": [], "on": []}
    for event in () if scoring is None else scoring.events:
        match = LIGHTS.search(event.text)
        if match is not None:
            onsets["on" if match[1].lower() == "on" else "off"].append(event.onset_s)
    return {name: (min if name == "off" else max)(found) for name, found in onsets.items() if found}
