"""Recordings and their scoring into a clip store: ``python -m sleepfm_fast.preprocess FILES-OR-FOLDER... STORE``."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from sleepfm_fast.atomic import remove_leftovers, write_json
from sleepfm_fast.channels import MONTAGES, Montage, resolve_auto
from sleepfm_fast.clip_layout import VERSION, read_store_file
from sleepfm_fast.clip_writer import commit, write_store_file
from sleepfm_fast.cohort import Plan, find_recordings, make_plan, read_header
from sleepfm_fast.command import run, say
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.night import NightConfig, NightRow, process_night
from sleepfm_fast.participants import ParticipantTables, read_tables

__all__ = ["Config", "cli", "main"]

Result = TypeVar("Result")
Choice = Literal["auto", "paper", "cinc2018", "aasm"]


@dataclass(frozen=True)
class Config:
    """Recordings and their scoring -> clip store; or, with --inspect, what the recordings hold, writing nothing.

    Run again, it adds what is missing and redoes nothing; killed at any moment, it goes on from there.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """FILES-OR-FOLDER... STORE: EDF or BDF files, or folders of them, and last the store (with --inspect: no store)."""
    labels: Path | None = None
    """Scoring: a file (for one recording) or a folder; by default it is looked for beside and inside each recording."""
    participants: Path | None = None
    """CSV with recording, subject, age, sex; by default participants.csv in the folders given."""
    montage: Choice = "auto"
    """auto: what the store has, and for a new store what at least half of the recordings have."""
    workers: int = 0
    """Nights at a time; 0 is one for every core this process may use."""
    backend: Literal["loky", "threading"] = "loky"
    """joblib's backend: processes or threads."""
    events_scored: bool = False
    """Respiratory events were scored, so that a night without one has none (instead of: unknown)."""
    overwrite: bool = False
    """Make recordings again whose file, scoring or configuration has changed."""
    inspect: bool = False
    """Print which channel of which file fills which slot, and what is missing; write nothing."""


def main(config: Config) -> dict[str, Any]:
    """Run the command; the result is its JSON line."""
    wrong = wrong_usage(config)
    if wrong is not None:
        say(f"error: {wrong} See `python -m sleepfm_fast.preprocess --help`.")
        return {"error": wrong, "exit_status": 2}
    if config.labels is not None and not config.labels.exists():
        raise SleepfmError(f"--labels {config.labels}: there is no such file or folder.")
    if config.inspect:
        from sleepfm_fast.inspection import inspect

        files, named = find_recordings(config.paths)
        return inspect(
            files,
            named,
            config.montage,
            config.labels,
            read_tables(config.participants, config.paths),
            events_scored=config.events_scored,
            in_parallel=lambda work, arguments, what: in_parallel(work, arguments, what, config),
        )
    *inputs, store = config.paths
    files, named = find_recordings(inputs)
    tables = read_tables(config.participants, inputs)
    with locked(store):
        try:
            return ingest(config, store.resolve(), files, named, tables)
        except OSError as error:
            raise SleepfmError(
                f"the store {store} could not be written ({error.filename or 'disk'}: {error.strerror or error}). What "
                "was finished is kept; when that is mended, the same command goes on from there."
            ) from None


def wrong_usage(config: Config) -> str | None:
    if not config.inspect and len(config.paths) < 2:
        return "recordings and a store are needed: preprocess FILES-OR-FOLDER... STORE, or --inspect FILES-OR-FOLDER."
    if not config.paths:
        return "--inspect needs files or a folder."
    if not config.inspect and config.paths[-1].is_file():
        return f"the last path is the store, a folder, but {config.paths[-1]} is a file."
    if config.workers < 0:
        return f"--workers {config.workers} is negative; 0 means one for every core."
    return None


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Make the store's folder, and hold it against a second preprocess; a killed one lets go by itself."""
    if store.is_dir() and not (store / "store.json").exists() and any(not ours(p) for p in store.iterdir()):
        raise SleepfmError(
            f"{store} is a folder with other things in it, not a clip store. The last path is where the store is "
            "written; name a new or empty folder."
        )
    try:
        for folder in (store, store / "recordings", store / "failures"):
            folder.mkdir(parents=True, exist_ok=True)
        lock = (store / ".lock").open("w")
    except OSError as error:
        raise SleepfmError(f"the store {store} cannot be written: {error.strerror or error}.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SleepfmError(
                f"another preprocess is writing to {store}. Wait for it, or choose another store."
            ) from None
        for folder in (store, store / "recordings", store / "failures"):
            remove_leftovers(folder)
        yield


def ours(path: Path) -> bool:
    return path.name in (".lock", "recordings", "failures") or path.suffix == ".tmp"


def ingest(
    config: Config, store: Path, files: list[Path], named: set[Path], tables: ParticipantTables
) -> dict[str, Any]:
    """Ingest what is missing, then put the index in force; returns the command's result."""
    existing = read_store_file(store) if (store / "store.json").exists() else None
    montage = settle_montage(config, store, existing)
    digest = None if montage is None else configuration_digest(montage, config)
    plan, headers = make_plan(
        store, files, named, config.labels, digest,
        lambda paths: in_parallel(read_header, [(path,) for path in paths], "headers", config, backend="threading"),
    )  # fmt: skip
    given = [*plan.todo, *plan.kept, *plan.changed]
    if config.labels is not None and config.labels.is_file() and len(given) > 1:
        raise SleepfmError(
            f"--labels {config.labels} is one file, but {len(given)} recordings were given; it cannot be the scoring "
            "of all. Give a folder of scorings, or one recording."
        )
    forgotten = sorted(set(plan.outdated) - set(files))
    if forgotten:
        raise SleepfmError(
            f"{len(forgotten)} recordings of {store} were made with another configuration and are not among the files "
            f"given (the first is {forgotten[0]}), so they cannot be made again. Give them too, or choose another "
            "store."
        )
    if montage is None:
        montage = resolve_auto([h.signals for h in headers if h.signals])
        digest = configuration_digest(montage, config)
    configuration = {"montage": config.montage, "events_scored": config.events_scored, "digest": digest}
    if existing is not None and existing["configuration"]["digest"] == digest:
        configuration = existing["configuration"]
    if config.overwrite:
        plan.todo = sorted([*plan.todo, *plan.changed])
        plan.changed = {}
    replacing = any(path in plan.known or path in plan.outdated for path in plan.todo)
    if existing is None or (existing["index"] is not None and replacing):
        # From here on the samples under the index in force may be replaced: it must not be read until the commit.
        write_store_file(store, montage, configuration, None, None)
    update_participants(store, plan, tables)
    night = NightConfig(store, montage, config.labels, config.events_scored, str(digest))
    rows = process(plan, tables, night, config)
    made = {row.path for row in rows if row.failure is None}
    # A night that was to be made again and failed is still there, unless it failed while its samples were replaced.
    failed = {row.path for row in rows if row.failure is not None}
    kept = {p for p in plan.known if p not in failed or (store / "recordings" / f"{plan.names[p]}.json").exists()}
    names = sorted(plan.names[path] for path in made | kept)
    totals = None
    if names:
        say(f"writing the index of {len(names)} nights")
        totals = commit(store, montage, configuration, [store / "recordings" / f"{name}.json" for name in names])
    from sleepfm_fast.summary import summarise

    return summarise(store, montage, plan, rows, totals, tables, given)


def settle_montage(config: Config, store: Path, existing: dict[str, Any] | None) -> Montage | None:
    """Montage of the run: the store's own where it has one; None where ``auto`` is still to be resolved."""
    if existing is None:
        return None if config.montage == "auto" else MONTAGES[config.montage]
    stored = Montage.from_dict(existing["montage"])
    request = existing["configuration"]["montage"]
    differences = []
    if config.montage not in ("auto", request):
        differences.append(f"the montage '{request}', not '{config.montage}'")
    if config.events_scored != existing["configuration"]["events_scored"]:
        differences.append(f"{'no ' if config.events_scored else ''}--events-scored")
    if differences and not config.overwrite:
        raise SleepfmError(
            f"{store} was made with {' and '.join(differences)}. Use the same options, choose another store, or add "
            "--overwrite to make all its recordings again."
        )
    if config.montage == request or (config.montage == "auto" and not config.overwrite):
        return stored
    return None if config.montage == "auto" else MONTAGES[config.montage]


def configuration_digest(montage: Montage, config: Config) -> str:
    """Digest of everything but a night's own files that decides what is stored of it."""
    content = {"version": VERSION, "montage": montage.to_dict(), "events_scored": config.events_scored}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def update_participants(store: Path, plan: Plan, tables: ParticipantTables) -> None:
    """Bring subject, age and sex of the nights that stay up to date with the table, where it names them."""
    kept, todo = set(plan.kept), set(plan.todo)
    for path, record in plan.known.items():
        if path in todo:
            continue
        facts = {"subject": record["subject"], "age": record["age"], "sex": record["sex"]}
        if tables.names(path):
            person = tables.of(path)
            facts = {"subject": person.subject, "age": person.age, "sex": person.sex}
        source = {**record["source"], "path": str(path)}
        if path in kept:  # its content was found to be the same
            source["mtime_ns"] = path.stat().st_mtime_ns
        if {**record, **facts, "source": source} != record:
            record.update(facts, source=source)
            write_json(store / "recordings" / f"{record['id']}.json", record)


def process(plan: Plan, tables: ParticipantTables, night: NightConfig, config: Config) -> list[NightRow]:
    """Ingest the nights of the plan; what fails is noted in ``failures/`` and comes back with its sentence."""
    rows: list[NightRow] = []

    # Paths are passed, never arrays: each worker reads its own files.
    arguments = [(path, plan.names[path], tables.of(path), night) for path in plan.todo]
    try:
        for row in in_parallel(process_night, arguments, "nights", config):
            note_outcome(night.store, row)
            rows.append(row)
    except BrokenExecutor as error:
        finished = {row.path for row in rows}
        for path in plan.todo:
            if path not in finished:
                row = NightRow(
                    path, plan.names[path], 0, {}, {}, (),
                    f"{path} was not finished: a worker process died ({type(error).__name__}), perhaps for want of "
                    "memory. Run the same command again, with fewer --workers.",
                )  # fmt: skip
                note_outcome(night.store, row)
                rows.append(row)
    return sorted(rows, key=lambda row: row.path)


def note_outcome(store: Path, row: NightRow) -> None:
    file = store / "failures" / f"{row.name}.json"
    if row.failure is not None:
        write_json(file, {"id": row.name, "path": str(row.path), "sentence": row.failure})
    else:
        file.unlink(missing_ok=True)


def in_parallel(
    work: Callable[..., Result],
    arguments: Sequence[tuple[Any, ...]],
    what: str,
    config: Config,
    *,
    backend: str | None = None,
) -> Iterable[Result]:
    """Yield ``work(*arguments)`` as the results come, in no particular order, with a progress bar."""
    from joblib import Parallel, delayed
    from tqdm import tqdm

    n_workers = max(1, min(config.workers or len(os.sched_getaffinity(0)), len(arguments)))
    parallel = Parallel(n_jobs=n_workers, backend=backend or config.backend, return_as="generator_unordered")
    results = parallel(delayed(work)(*a) for a in arguments)
    yield from tqdm(
        results, desc=what, total=len(arguments), unit=what[:-1], file=sys.stderr, disable=not arguments, smoothing=0.1
    )


def cli(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run(Config, main, argv, interrupted="what was finished is kept, the same command goes on from there")


if __name__ == "__main__":
    sys.exit(cli())
