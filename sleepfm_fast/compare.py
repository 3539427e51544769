"""``python -m sleepfm_fast.compare FIRST SECOND``: how far one classifier is better than another on the same clips.

Both results are resampled together: a resample draws the same subjects for both, and the figure is the difference. What
makes a subject easy or hard for both cancels, so the interval of the difference is narrower than the two intervals
suggest, and it is the one that answers the question.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tyro

from sleepfm_fast.command import plain, run, say
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.tasks import TASKS

if TYPE_CHECKING:
    from sleepfm_fast.evaluation import Resampled
    from sleepfm_fast.results import Result

__all__ = ["Config", "cli", "main"]

COMPARED = ("probe", "supervise")


@dataclass(frozen=True)
class Config:
    """The difference of two classifiers' figures, FIRST minus SECOND, with 95 % intervals over the shared subjects.

    FIRST and SECOND are result folders of `probe` or `supervise` for one task. Clips are matched by recording and
    onset; those that only one result has are left out and counted. An interval that excludes 0 is a difference that
    other test subjects of this kind would show too; other training seeds are not accounted for.
    """

    first: tyro.conf.Positional[Path]
    """Result folder, such as RUN/results/stage."""
    second: tyro.conf.Positional[Path]
    """Result folder to compare it with."""
    result: tyro.conf.Positional[Path | None] = None
    """Result folder to write; nothing is written when omitted."""
    bootstraps: int = 1000
    """Resamples of the shared test subjects; 0 for none."""
    seed: int = 0
    """Seed of the resamples."""
    overwrite: bool = False
    """Replace a result that stands at RESULT."""


def _read(path: Path) -> Result:
    from sleepfm_fast.results import read_result

    result = read_result(path)
    if result.command not in COMPARED:
        raise SleepfmError(f"{path} is a result of {result.command}; give results of {' or '.join(COMPARED)}.")
    return result


def _figures(one: Resampled, other: Resampled, task_name: str, bootstraps: int) -> dict[str, Any]:
    """Pair up the figures that both have: name -> two arrays [1 + B]."""
    from sleepfm_fast.evaluation import macro_of

    task = TASKS[task_name]
    both = [k for k in task.scored if k in one.auroc and k in other.auroc]
    pairs: dict[str, Any] = {"n_classes": len(both), "macro": {}, "classes": {}}
    for name in ("auroc", "auprc"):
        of_class = getattr(one, name), getattr(other, name)
        pairs["macro"][name] = tuple(macro_of(values, bootstraps, both) for values in of_class)
        for k in both:
            pairs["classes"].setdefault(task.names[k], {})[name] = (of_class[0][k], of_class[1][k])
    for k in task.scored:
        pairs["classes"].setdefault(task.names[k], {})["f1"] = (one.f1[:, k], other.f1[:, k])
    k = task.scored[0]
    pairs["macro"]["f1"] = (one.macro_f1, other.macro_f1) if len(task.scored) > 1 else (one.f1[:, k], other.f1[:, k])
    for name in ("accuracy", "cohen_kappa"):
        pairs[name] = (getattr(one, name), getattr(other, name))
    return pairs


def _difference(pair: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], n_subjects: int) -> dict[str, Any]:
    from sleepfm_fast.metrics import percentile_interval

    difference = pair[0] - pair[1]
    found = percentile_interval(float(difference[0]), difference[1:], n_subjects)
    return {
        "first": float(pair[0][0]),
        "second": float(pair[1][0]),
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "n_resamples": found.n_resamples,
    }


def _say_table(record: dict[str, Any]) -> None:
    say(f"{'figure':<20}{'first':>8}{'second':>8}  difference [95 %]")
    rows = [(f"macro {name}", entry) for name, entry in record["macro"].items()]
    rows += [(f"{c} {name}", entry) for c, figures in record["classes"].items() for name, entry in figures.items()]
    rows += [(name.replace("_", " "), record[name]) for name in ("accuracy", "cohen_kappa")]
    for name, d in rows:
        if d["difference"] is None:
            say(f"{name:<20}{'-':>8}{'-':>8}")
            continue
        limits = "" if d["low"] is None else f" [{d['low']:+.3f}, {d['high']:+.3f}]"
        say(f"{name:<20}{d['first']:>8.3f}{d['second']:>8.3f}  {d['difference']:+.3f}{limits}")


def main(config: Config) -> dict[str, Any]:
    """Match, resample and report; the result is what the command prints as JSON."""
    from sleepfm_fast.evaluation import resample
    from sleepfm_fast.metrics import bootstrap_subjects
    from sleepfm_fast.results import refuse_result, write_result
    from sleepfm_fast.shared_clips import shared_clips

    if config.bootstraps < 0:
        raise SleepfmError(f"--bootstraps is {config.bootstraps}; give 0 (no intervals) or more.")
    refuse_result(config.result, overwrite=config.overwrite)
    results = _read(config.first), _read(config.second)
    tasks = [str(result.record["task"]) for result in results]
    if tasks[0] != tasks[1]:
        raise SleepfmError(
            f"{config.first} is of --task {tasks[0]}, {config.second} of --task {tasks[1]}; give one task."
        )
    shared = shared_clips(*results)
    for path, only in zip((config.first, config.second), shared.n_only, strict=True):
        if only:
            say(f"notice: {only} test clips are only in {path} and are left out.")
    draws = bootstrap_subjects(shared.n_subjects, config.bootstraps, config.seed)
    one, other = (
        resample(
            np.asarray(result.array("score"))[rows],
            np.asarray(result.record["trained_classes"], np.int8),
            shared.label,
            shared.group,
            draws,
            TASKS[tasks[0]],
        )
        for result, rows in zip(results, shared.rows, strict=True)
    )
    pairs = _figures(one, other, tasks[0], config.bootstraps)
    n = shared.n_subjects
    record: dict[str, Any] = plain(
        {
            "command": "compare",
            "task": tasks[0],
            "first": config.first,
            "second": config.second,
            "n_clips": len(shared.label),
            "n_subjects": n,
            "n_clips_only_in": shared.n_only,
            "n_bootstraps": config.bootstraps,
            "seed": config.seed,
            "n_classes": pairs["n_classes"],
            "macro": {name: _difference(pair, n) for name, pair in pairs["macro"].items()},
            "classes": {
                c: {name: _difference(pair, n) for name, pair in figures.items()}
                for c, figures in pairs["classes"].items()
            },
            "accuracy": _difference(pairs["accuracy"], n),
            "cohen_kappa": _difference(pairs["cohen_kappa"], n),
        }
    )
    _say_table(record)
    if n == 1 and config.bootstraps:
        say("notice: one test subject; there is nothing to bootstrap over, so no intervals.")
    if config.result is not None:
        write_result(config.result, record, {}, overwrite=config.overwrite)
        say(f"wrote {config.result}")
    return record


def cli(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` or the process's own arguments."""
    return run(Config, main, argv)


if __name__ == "__main__":
    sys.exit(cli())
