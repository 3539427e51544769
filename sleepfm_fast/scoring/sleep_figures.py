"""A night's sleep in figures, from the stages of its epochs: sleep time, efficiency, latencies, minutes of stages."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import NamedTuple

from sleepfm_fast.scoring.stages import EPOCH_S

__all__ = ["BED_COLUMNS", "NIGHT_COLUMNS", "SLEEP_COLUMNS", "figures_between_lights", "night_figures", "scored_span"]

NIGHT_COLUMNS = (
    *("epochs", "epochs_without_prediction", "time_in_bed_min", "total_sleep_time_min", "sleep_efficiency_percent"),
    *("sleep_latency_min", "rem_latency_min", "wake_after_sleep_onset_min"),
    *("w_min", "n1_min", "n2_min", "n3_min", "r_min", "n1_percent", "n2_percent", "n3_percent", "r_percent"),
)
SLEEP_COLUMNS = NIGHT_COLUMNS[3:]
"""Those that say how somebody slept, not what was recorded."""
BED_COLUMNS = NIGHT_COLUMNS[2:]
"""Those that lights off and lights on decide: time in bed, and how somebody slept in it."""


def scored_span(stages: Sequence[str]) -> slice:
    """From the first epoch with a stage to the last: what stands for the time between lights off and lights on.

    Scorers stage what lies between; the clock of lights is in few scorings. Empty where no epoch has a stage.
    """
    staged = [i for i, stage in enumerate(stages) if stage]
    return slice(staged[0], staged[-1] + 1) if staged else slice(0)


def night_figures(stages: Sequence[str], onsets_s: Sequence[float] | None = None) -> dict[str, float | int | None]:
    """Sleep figures of a night's 30-s epochs, in the order of time; the whole recording counts as time in bed.

    Parameters
    ----------
    stages : sequence of str
        W, N1, N2, N3 or R; empty where there is no prediction: such an epoch is time in bed and neither sleep nor
        wake.
    onsets_s : sequence of float, optional
        When each epoch begins. Between two there may be a gap, where the recording was interrupted: it is time in bed
        without a stage. By default the epochs follow one another.

    Returns
    -------
    dict
        :data:`NIGHT_COLUMNS`. Time in bed: from the beginning of the first epoch to the end of the last. Sleep
        latency: from the former to the first epoch of any sleep. REM latency: from there to the first epoch of R. Wake
        after sleep onset: every W from there to the end. Percentages: of total sleep time. None where there is no
        sleep, or no R, and throughout where nothing is predicted.
    """
    minutes = EPOCH_S / 60
    if not any(stages):
        nothing = dict.fromkeys(NIGHT_COLUMNS)
        return {**nothing, "epochs": len(stages), "epochs_without_prediction": len(stages)}
    at = [i * minutes for i in range(len(stages))] if onsets_s is None else [(o - onsets_s[0]) / 60 for o in onsets_s]
    return {
        "epochs": len(stages),
        "epochs_without_prediction": stages.count(""),
        **figures_in_bed(
            [Stretch(stage, start, minutes) for stage, start in zip(stages, at, strict=True)], at[-1] + minutes
        ),
    }


class Stretch(NamedTuple):
    """A stage, the minutes from the beginning of the time in bed to its own, and how many it lasts."""

    stage: str
    start_min: float
    minutes: float


def figures_in_bed(stretches: Sequence[Stretch], in_bed_min: float) -> dict[str, float | int | None]:
    """Return :data:`BED_COLUMNS` of the stretches, in the order of time, in ``in_bed_min`` minutes."""
    count = {name: fsum(s.minutes for s in stretches if s.stage == name) for name in ("W", "N1", "N2", "N3", "R")}
    asleep = fsum(count[name] for name in ("N1", "N2", "N3", "R"))
    onset = next((i for i, s in enumerate(stretches) if s.stage not in ("", "W")), None)
    rem = next((s for s in stretches if s.stage == "R"), None)
    begun = None if onset is None else stretches[onset].start_min
    return {
        "time_in_bed_min": in_bed_min,
        "total_sleep_time_min": asleep,
        "sleep_efficiency_percent": min(100 * asleep / in_bed_min, 100.0),  # parts of epochs add up with rounding
        "sleep_latency_min": begun,
        "rem_latency_min": None if begun is None or rem is None else rem.start_min - begun,
        "wake_after_sleep_onset_min": (
            None if onset is None else fsum(s.minutes for s in stretches[onset:] if s.stage == "W")
        ),
        **{f"{name.lower()}_min": n for name, n in count.items()},
        **{
            f"{name.lower()}_percent": 100 * count[name] / asleep if asleep else None
            for name in ("N1", "N2", "N3", "R")
        },
    }


def figures_between_lights(
    stages: Sequence[str], onsets_s: Sequence[float], off_s: float | None, on_s: float | None
) -> dict[str, float | int | None]:
    """:data:`BED_COLUMNS` of a night from lights off to lights on, as the AASM's manual defines them.

    Parameters
    ----------
    stages, onsets_s
        As of :func:`night_figures`. Of an epoch that is partly between the lights, that part counts.
    off_s, on_s : float or None
        On the clock of ``onsets_s``. All figures are None unless both are known, in this order.

    Returns
    -------
    dict
        Time in bed is from lights off to lights on, whatever was scored of it, and sleep latency counts from lights
        off.
    """
    nothing: dict[str, float | int | None] = dict.fromkeys(BED_COLUMNS)
    if off_s is None or on_s is None or on_s <= off_s:
        return nothing
    stretches = [
        Stretch(stage, (begin - off_s) / 60, (end - begin) / 60)
        for stage, onset_s in zip(stages, onsets_s, strict=True)
        if (begin := max(onset_s, off_s)) < (end := min(onset_s + EPOCH_S, on_s))
    ]
    return figures_in_bed(stretches, (on_s - off_s) / 60) if any(s.stage for s in stretches) else nothing
