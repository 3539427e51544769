"""A night's sleep in figures, from the stages of its epochs: sleep time, efficiency, latencies, minutes of stages."""

from __future__ import annotations

from collections.abc import Sequence

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
    in_bed = at[-1] + minutes
    count = {name: stages.count(name) for name in ("W", "N1", "N2", "N3", "R")}
    asleep = sum(count[name] for name in ("N1", "N2", "N3", "R"))
    onset = next((i for i, stage in enumerate(stages) if stage not in ("", "W")), None)
    rem = next((i for i, stage in enumerate(stages) if stage == "R"), None)
    return {
        "epochs": len(stages),
        "epochs_without_prediction": stages.count(""),
        "time_in_bed_min": in_bed,
        "total_sleep_time_min": asleep * minutes,
        "sleep_efficiency_percent": 100 * asleep * minutes / in_bed,
        "sleep_latency_min": None if onset is None else at[onset],
        "rem_latency_min": None if onset is None or rem is None else at[rem] - at[onset],
        "wake_after_sleep_onset_min": None if onset is None else stages[onset:].count("W") * minutes,
        **{f"{name.lower()}_min": n * minutes for name, n in count.items()},
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
        As of :func:`night_figures`. An epoch counts if its middle lies between the lights.
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
    inside = [i for i, onset_s in enumerate(onsets_s) if off_s <= onset_s + EPOCH_S / 2 < on_s]
    found = night_figures([stages[i] for i in inside], [onsets_s[i] for i in inside])
    if found["total_sleep_time_min"] is None:
        return nothing
    in_bed, asleep, latency = (on_s - off_s) / 60, found["total_sleep_time_min"], found["sleep_latency_min"]
    if latency is not None:
        latency = max(latency + (onsets_s[inside[0]] - off_s) / 60, 0.0)  # an epoch may begin just before lights off
    changed = {
        "time_in_bed_min": in_bed,
        "sleep_efficiency_percent": 100 * asleep / in_bed,
        "sleep_latency_min": latency,
    }
    return {name: changed.get(name, found[name]) for name in BED_COLUMNS}
