"""Recordings and their scoring into a clip store: ``python -m sleepfm_fast.preprocess FILES-OR-FOLDER... STORE``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from sleepfm_fast.channels import with_stand_ins
from sleepfm_fast.cli.command import run
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.option_effects import Effect, only_with, only_without, refuse_without_effect
from sleepfm_fast.cli.option_ranges import refuse_negative_workers
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.cohorts.corrections import read_corrections
from sleepfm_fast.cohorts.ingest import Cohort, Request, ingest
from sleepfm_fast.cohorts.participant_tables import read_tables
from sleepfm_fast.cohorts.recording_files import find_recordings
from sleepfm_fast.cohorts.shards import parse_shard
from sleepfm_fast.cohorts.store_inputs import inputs_of
from sleepfm_fast.errors import SleepfmError, UsageError
from sleepfm_fast.execution.parallel import Backend, open_engine
from sleepfm_fast.reporting.following import after_preprocess
from sleepfm_fast.runs.montage_source import montage_like
from sleepfm_fast.scoring.texts import parse_meanings

__all__ = ["Config", "cli", "main"]

Choice = Literal["auto", "paper", "cinc2018", "aasm"]


@dataclass(frozen=True)
class Config(TakesPaths):
    """Turn recordings and their scoring into a clip store; with --inspect, only report what the recordings hold.

    Repeating the command adds what is missing and redoes nothing. If it is killed at any moment, the same command
    continues from there.
    """

    paths: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PATH... [STORE]", help_behavior_hint="(required)"),
    ]
    """FILES-OR-FOLDER... STORE: EDF, BDF or WFDB (.hea) files, or folders of them; the last path is the store (not
    with --inspect)."""
    labels: Path | None = None
    """Scoring: one file (for a single recording) or a folder. By default it is looked for beside and inside each
    recording."""
    participants: Path | None = None
    """CSV with the columns recording, subject, age, sex; by default participants.csv in the given folders."""
    montage: Choice = "auto"
    """Channels to store. auto: those the store already has; for a new store, those that at least half of the recordings
    have. The others are fixed lists."""
    like: Annotated[Path | None, tyro.conf.arg(metavar="STORE-OR-RUN")] = None
    """Use the channels of another store, or those a run was trained on, instead of --montage: for a second cohort that
    the same network will read."""
    overrides: Path | None = None
    """JSON file that corrects channels: aliases, units, polarity, what to leave out (docs/cohorts.md)."""
    workers: int = 0
    """Nights processed at a time; 0 for one per core that this process may use."""
    backend: Backend = "loky"
    """Where the work runs: processes (loky) or threads (threading) on this machine, or a dask or ray cluster."""
    dask_scheduler: str | None = None
    """Address of a running dask scheduler, such as tcp://node1:8786; by default dask starts workers on this machine."""
    shard: str | None = None
    """Process only one share of the recordings. i/n: every n-th recording, starting with the i-th; slurm: this task's
    place in its job array."""
    events_scored: bool = False
    """Respiratory events were scored in every night, so a scored night without any had none. By default such a night
    counts as unknown, which leaves sleepers without events out of the labels."""
    meanings: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT=MEANING ...")] = ()
    """What the scoring's own words or numbers mean, if they are unknown or follow another convention: 4=R 'light
    sleep=N2'. A meaning is one of W, N1, N2, N3, R, none (not scored), apnea, hypopnea, ignore."""
    scorer: str = ""
    """Whose stages to take from tables that hold those of several scorers: a name in the column of scorers, or the name
    of the scorer's column of stages. Tables of one scorer are read as ever."""
    overwrite: bool = False
    """Process recordings again if their file, scoring, corrections or configuration has changed."""
    inspect: bool = False
    """Only examine the recordings: which channel fills which slot, what is doubtful and what to do about it. Writes no
    store."""
    json: Path | None = None
    """With --inspect: write the full report to this file."""

    EFFECTS: ClassVar[tuple[Effect, ...]] = (
        only_without("montage", "like"),
        only_with("dask_scheduler", "backend", "dask"),
        only_without("workers", "dask_scheduler"),  # a cluster that runs has the workers it has
        only_with("json", "inspect"),
        only_without("overwrite", "inspect"),
        only_without("shard", "inspect"),  # the whole cohort is looked at
    )

    def places(self) -> list[Place]:
        """What its positionals take."""
        if len(self.paths) < 2 and not self.inspect:  # one is missing, and main says so
            return []
        inputs, store = (self.paths, ()) if self.inspect else (self.paths[:-1], self.paths[-1:])
        recordings = (Kind.RECORDINGS, Kind.RECORDING, Kind.COHORT)
        return [
            *(reads("FILES-OR-FOLDER", path, *recordings) for path in inputs),
            *(writes("STORE", path, Kind.STORE, Kind.RECORDING) for path in store),
        ]


def main(config: Config) -> dict[str, Any]:
    """Run the command; the result is its JSON line."""
    refuse_wrong_usage(config)
    if config.labels is not None and not config.labels.exists():
        raise SleepfmError(f"--labels {config.labels}: there is no such file or folder.")
    shard = None if config.shard is None else parse_shard(config.shard)
    corrections = read_corrections(config.overrides)
    inputs = config.paths if config.inspect else config.paths[:-1]
    files, named = find_recordings(inputs)
    tables = read_tables(config.participants, inputs)
    tables.refuse_untold_visits(files)
    request = Request(
        config.montage,
        config.labels,
        config.events_scored,
        config.overwrite,
        shard,
        corrections,
        parse_meanings(config.meanings),
        inputs_of(
            inputs,
            labels=config.labels,
            participants=config.participants,
            overrides=config.overrides,
            like=config.like,
        ),
        None if config.like is None else with_stand_ins(montage_like(config.like)),
        config.scorer.strip(),
    )
    with open_engine(config.backend, config.workers, config.dask_scheduler, folder=files[0].parent) as engine:
        if config.inspect:
            from sleepfm_fast.doctor.inspection import inspect

            return inspect(Cohort(files, named, tables), request, engine, config.json)
        from sleepfm_fast.cohorts.summary import summarise

        store = config.paths[-1]
        try:
            outcome = ingest(store.resolve(), Cohort(files, named, tables), request, engine)
        except OSError as error:
            raise SleepfmError(
                f"the store {store} could not be written ({error.filename or 'disk'}: {error.strerror or error}). What "
                "was finished is kept; when that is fixed, the same command continues from there."
            ) from None
        return summarise(store.resolve(), outcome, tables, shard, config.like)


def refuse_wrong_usage(config: Config) -> None:
    see = "See `python -m sleepfm_fast.preprocess --help`."
    if not config.inspect and len(config.paths) < 2:
        raise UsageError(
            "recordings and a store are needed: preprocess FILES-OR-FOLDER... STORE, or --inspect FILES-OR-FOLDER. "
            f"{see}"
        )
    if not config.paths:
        raise UsageError(f"--inspect needs files or a folder. {see}")
    if not config.inspect and config.paths[-1].is_file():
        raise UsageError(
            f"the last path names the store, a folder to write, but {config.paths[-1]} is a file. Put the store's name "
            f"behind the recordings, or --inspect before them to look at them only. {see}"
        )
    try:
        refuse_negative_workers(config.workers)
        refuse_without_effect(config)
    except SleepfmError as error:
        raise UsageError(f"{error} {see}") from None


def cli(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run(
        Config,
        main,
        argv,
        interrupted="what was finished is kept; the same command continues from there",
        following=after_preprocess,
    )


if __name__ == "__main__":
    sys.exit(cli())
