"""``python -m sleepfm_fast.compare FIRST SECOND``: how far one result is better than another on the same clips.

Both results are resampled together: a resample draws the same subjects for both, and the figure is the difference. What
makes a subject easy or hard for both cancels, so the interval of the difference is narrower than the two intervals
suggest, and it is the one that answers the question.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from sleepfm_fast.cli.command import plain, run, say
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.option_effects import Effect, only_with, refuse_without_effect
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.plurals import agreeing, counted
from sleepfm_fast.reporting.following import after_result

if TYPE_CHECKING:
    from sleepfm_fast.results import Result

__all__ = ["Config", "cli", "main"]


@dataclass(frozen=True)
class Config(TakesPaths):
    """Compute the difference of two results' figures, FIRST minus SECOND, with 95 % intervals over shared subjects.

    FIRST and SECOND are result folders of `probe`, `supervise` or `classify` for one task, or of `retrieve` for one
    scope. Clips are matched by recording and onset; those that only one result has are left out and counted. An
    interval that excludes 0 is a difference that other test subjects of this kind would show too; other training seeds
    are not accounted for. If the same command has already finished RESULT, it says so and exits with status 0.
    """

    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FIRST")]
    """Result folder, such as RUN/results/stage."""
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SECOND")]
    """Result folder to compare it with."""
    result: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RESULT]")] = None
    """Result folder to write. If omitted, nothing is written."""
    bootstraps: int = 1000
    """Resamples of the shared test subjects; 0 for none."""
    seed: int = 0
    """Seed of the resamples."""
    overwrite: bool = False
    """Replace an existing RESULT."""

    EFFECTS: ClassVar[tuple[Effect, ...]] = (only_with("overwrite", "result", spelling="RESULT"),)

    def places(self) -> list[Place]:
        """What its positionals take."""
        return [
            reads("FIRST", self.first, Kind.RESULT),
            reads("SECOND", self.second, Kind.RESULT),
            writes("RESULT", self.result, Kind.RESULT),
        ]


def _say_table(record: dict[str, Any]) -> None:
    rows: list[tuple[str, dict[str, Any]]] = []
    if "macro" in record:
        parts = {"": record} | ({"over nights, ": record["nights"]} if "nights" in record else {})
        for over, part in parts.items():
            rows += [(f"{over}macro {name}", entry) for name, entry in part["macro"].items()]
            of_classes = part["classes"].items()
            rows += [(f"{over}{c} {name}", entry) for c, figures in of_classes for name, entry in figures.items()]
            rows += [(f"{over}{name.replace('_', ' ')}", part[name]) for name in ("accuracy", "cohen_kappa")]
    else:
        for d in record["directions"]:
            start = f"{d['query']} -> {d['candidates']}"
            rows += [(f"{start} {f.replace('_', ' ')}", d[f]) for f in record["mean"]]
        rows += [(f"mean {f.replace('_', ' ')}", entry) for f, entry in record["mean"].items()]
    width = max(len(name) for name, _ in rows) + 2
    say(f"{'figure':<{width}}{'first':>10}{'second':>10}  difference [95 %]")
    for name, d in rows:
        if d["difference"] is None:
            say(f"{name:<{width}}{'-':>10}{'-':>10}")
            continue
        limits = "" if d["low"] is None else f" [{d['low']:+.3f}, {d['high']:+.3f}]"
        say(f"{name:<{width}}{d['first']:>10.3f}{d['second']:>10.3f}  {d['difference']:+.3f}{limits}")
    if "macro" in record and record["n_classes"] < len(record["classes"]):
        say(
            f"notice: macro AUROC and AUPRC are over the {record['n_classes']} of {len(record['classes'])} classes "
            "that both results can score."
        )


def _read_both(config: Config) -> tuple[Result, Result]:
    """Open two results of one kind."""
    from sleepfm_fast.results import CLASSIFIERS, read_result

    first, second = results = read_result(config.first), read_result(config.second)
    for result in results:
        if result.command not in (*CLASSIFIERS, "retrieve"):
            raise SleepfmError(
                f"{result.path} is a result of {result.command}; give two results of probe, supervise or classify, or "
                "two of retrieve."
            )
    if (first.command == "retrieve") != (second.command == "retrieve"):
        raise SleepfmError(
            f"{first.path} is a result of {first.command}, {second.path} of {second.command}; they share no figure."
        )
    settings = ("task",) if first.command in CLASSIFIERS else ("scope", "split")
    for result in results:
        result.require(*settings, "subjects", "recordings", *(("trained_classes",) if "task" in settings else ()))
    for setting in settings:
        values = first.record[setting], second.record[setting]
        if values[0] != values[1]:
            made = "probe, supervise or classify" if setting == "task" else "retrieve"
            raise SleepfmError(
                f"{first.path} is of --{setting} {values[0]}, {second.path} of --{setting} {values[1]}; give two "
                f"results that {made} made with the same --{setting}."
            )
    return results


def _overlap_of(results: tuple[Result, Result]) -> str:
    """Say which of the results were tested on subjects that their training has seen; empty where neither was."""
    return " ".join(
        f"{result.path}: {result.record.get('overlap_note') or 'training and test subjects overlap.'}"
        for result in results
        if result.record.get("overlap")
    )


def main(config: Config) -> dict[str, Any]:
    """Match, resample and report; the result is what the command prints as JSON."""
    from sleepfm_fast.results import claimed_result
    from sleepfm_fast.storage.standing import digest_of_files, key_of

    refuse_without_effect(config)
    if config.bootstraps < 0:
        raise SleepfmError(f"--bootstraps is {config.bootstraps}; give 0 (no intervals) or more.")
    key = key_of("compare", config, {"first": digest_of_files(config.first), "second": digest_of_files(config.second)})
    with claimed_result(config.result, overwrite=config.overwrite, made_of=key) as finished:
        return _compared(config, key) if finished is None else finished.printed


def _compared(config: Config, made_of: Mapping[str, Any]) -> dict[str, Any]:
    """Match, resample and write the result."""
    from sleepfm_fast.evaluation.interval_notice import class_notice, interval_notice
    from sleepfm_fast.evaluation.metrics import bootstrap_subjects
    from sleepfm_fast.evaluation.paired_figures import of_classifiers, of_retrievals
    from sleepfm_fast.evaluation.shared_clips import shared_clips
    from sleepfm_fast.results import write_result

    results = _read_both(config)
    overlap_note = _overlap_of(results)
    if overlap_note:
        say(f"notice: {overlap_note}")
    shared = shared_clips(*results)
    for path, only in zip((config.first, config.second), shared.n_only, strict=True):
        if only:
            are, left = counted(only, "test clip is", "test clips are"), agreeing(only, "is", "are")
            say(f"notice: {are} only in {path} and {left} left out.")
    draws = bootstrap_subjects(shared.n_subjects, config.bootstraps, config.seed)
    compared = of_retrievals if results[0].command == "retrieve" else of_classifiers
    record: dict[str, Any] = plain(
        {
            "command": "compare",
            "first": config.first,
            "second": config.second,
            "compared": [result.command for result in results],
            "overlap": bool(overlap_note),
            "overlap_note": overlap_note,
            "n_clips": len(shared.group),
            "n_subjects": shared.n_subjects,
            "n_clips_only_in": shared.n_only,
            "n_bootstraps": config.bootstraps,
            "seed": config.seed,
            **compared(results, shared, draws),
        }
    )
    _say_table(record)
    if config.bootstraps and (notice := interval_notice(shared.n_subjects)):
        say(f"notice: {notice}")
    if config.bootstraps and (notice := class_notice(record.get("class_subjects", {}), shared.n_subjects)):
        say(f"notice: {notice}")
    if config.result is not None:
        write_result(config.result, record, {}, overwrite=config.overwrite, made_of=made_of)
        say(f"wrote {config.result}")
    return record


def cli(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` or the process's own arguments."""
    return run(Config, main, argv, following=after_result)


if __name__ == "__main__":
    sys.exit(cli())
