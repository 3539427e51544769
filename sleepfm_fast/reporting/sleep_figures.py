"""Sleep figures of the test nights, predicted against scored: bias and limits of agreement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sleepfm_fast.evaluation.interval_notice import interval_caution
from sleepfm_fast.evaluation.predicted_nights import beside_scorer
from sleepfm_fast.evaluation.sleep_agreement import sleep_agreement
from sleepfm_fast.reporting.hypnogram import nights_of
from sleepfm_fast.reporting.page import Figure, table
from sleepfm_fast.reporting.wording import count, number_of, with_interval
from sleepfm_fast.results import Result
from sleepfm_fast.scoring.stages import STAGES

__all__ = ["sleep_figures"]

HEAD = ("figure", "nights", "mean, scored", "mean, predicted", "bias", "limits of agreement")
ARRAYS = ("label", "probability", "onset_s", "recording", "subject")
WORDS = {
    "total_sleep_time_min": "total sleep time (min)",
    "sleep_efficiency_percent": "sleep efficiency (%)",
    "sleep_latency_min": "sleep latency (min)",
    "rem_latency_min": "REM latency (min)",
    "wake_after_sleep_onset_min": "wake after sleep onset (min)",
    **{f"{stage.lower()}_min": f"{stage} (min)" for stage in STAGES},
}


def sleep_figures(name: str, result: Result) -> list[Figure]:
    """One table of the figures of all test nights.

    None where fewer than two have any, the result does not name them, or it was tested on people whom it had seen.
    """
    if (
        result.record.get("overlap")
        or "recordings" not in result.record
        or not all(result.array_file(array).is_file() for array in ARRAYS)
    ):
        return []
    rows = sleep_agreement(rows_of(result))
    if not rows:
        return []
    n_subjects = max(row["subjects"] for row in rows)
    nights = number_of(max(row["nights"] for row in rows), "night")
    cells = [
        [
            WORDS[row["figure"]],
            count(row["nights"]),
            f"{row['scored_mean']:.1f}",
            f"{row['predicted_mean']:.1f}",
            with_interval({"value": row["bias"], "low": row["bias_lo"], "high": row["bias_hi"]}, 1),
            f"{row['lower_limit']:.1f} to {row['upper_limit']:.1f}",
        ]
        for row in rows
        if row["figure"] in WORDS
    ]
    return [
        Figure(
            "Sleep figures of nights, predicted and scored",
            table(HEAD, cells, f"Sleep figures of {name}"),
            f"{nights} of {number_of(n_subjects, 'subject')}, each from its first scored clip to its last. Bias is the "
            "mean of predicted minus scored, with a 95 % interval over subjects; the limits of agreement lie 1.96 "
            "standard deviations of the differences on either side of it (Bland and Altman 1986). Stages are those of "
            f"the fit, not corrected for their frequency.{interval_caution(n_subjects)}",
            [result.array_file(array) for array in ARRAYS],
            rows,
            wide=True,
        )
    ]


def rows_of(result: Result) -> Iterator[dict[str, Any]]:
    """Yield a row a night, as predictions have it; all nights of a result are tests."""
    recording, subject = (np.asarray(result.array(array)) for array in ("recording", "subject"))
    names = result.record["recordings"]
    of_night = {str(names[r]): int(s) for r, s in zip(recording.tolist(), subject.tolist(), strict=True)}
    for name, night in nights_of(result).items():
        scored, predicted = ([STAGES[k] for k in codes.tolist()] for codes in (night.label, night.predicted))
        row = beside_scorer(predicted, scored, (night.start * 3600).tolist())
        yield {**row, "subject": of_night[name], "split": "test", "epochs_compared": row["scored_epochs"]}
