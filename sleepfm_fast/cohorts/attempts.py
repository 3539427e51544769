"""The nights of a run, one after another: what became of each, and what is done when a worker dies with one in hand."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sleepfm_fast.cli.command import say
from sleepfm_fast.cli.json_text import read_object
from sleepfm_fast.cohorts.cohort import Plan
from sleepfm_fast.cohorts.folders import path_text
from sleepfm_fast.cohorts.manifest import FAILED, LEFT_OUT, Entry, Journal, now, read_manifest
from sleepfm_fast.cohorts.night import STARTED, NightConfig, NightRow, attempt_night, row_of
from sleepfm_fast.cohorts.participant_tables import ParticipantTables
from sleepfm_fast.cohorts.shards import Shard
from sleepfm_fast.execution.parallel import Engine, Progress, WorkersLost, in_parallel
from sleepfm_fast.storage.atomic import write_json
from sleepfm_fast.storage.claims import file_system_time
from sleepfm_fast.store.clip_writer import read_record

__all__ = ["ended_its_worker", "killed_sentence", "note_unchanged", "outlive", "process", "write_failure"]

MAX_UNEXPLAINED_DEATHS = 3
"""Workers that die without a night in hand, in a row: something else is wrong, such as a full /dev/shm."""


def process(
    plan: Plan, tables: ParticipantTables, night: NightConfig, engine: Engine, journal: Journal, shard: Shard | None
) -> list[NightRow]:
    """Ingest the nights of the plan; what fails is noted in ``failures/`` and comes back with its sentence.

    When a worker process dies, the nights that were in hand are tried once more, one at a time and at the end: one that
    ends its worker again has failed. Every death takes at least one night out of the others' company, so that there
    are at most twice as many as nights.
    """
    rows: dict[Path, NightRow] = {}
    progress = Progress("nights", len(plan.todo))
    began_ns = file_system_time(night.store / "running" / "began")

    def note(row: NightRow) -> None:
        rows[row.path] = row
        note_outcome(night.store, row, journal, shard)
        progress.step(failed=row.failure is not None)

    def attempt(paths: Sequence[Path], *, own_process: bool) -> bool:
        """Work on nights; whether the workers lived. Paths are passed, never arrays: each worker reads its files."""
        alone = own_process or engine.spares_this_process
        # Of corrections with an entry for every night, all would go to the workers with every night.
        arguments = [
            (path, plan.names[path], tables.of(path), replace(night, corrections=night.corrections.of(path)))
            for path in paths
        ]
        try:
            for row in in_parallel(attempt_night, arguments, engine, own_process=alone):
                note(row)
        except WorkersLost:
            # Finished nights whose result was on its way are in the store.
            for path in paths:
                found = finished_since(night, plan.names[path], began_ns) if path not in rows else None
                if found is not None:
                    note(found)
            return False
        return True

    marks = {path: night.store / STARTED / plan.names[path] for path in plan.todo}
    # A night that an earlier run, which was killed, had in hand may be what killed it.
    suspects = [path for path in plan.todo if marks[path].exists() or ended_its_worker(night.store, plan.names[path])]
    try:
        outlive(plan.names, marks, suspects, attempt, rows, lambda path: note(killed(path, plan.names[path])))
    finally:
        progress.close()
    return sorted(rows.values(), key=lambda row: row.path)


def outlive(
    names: Mapping[Path, str],
    marks: Mapping[Path, Path],
    suspects: Sequence[Path],
    attempt: Callable[..., bool],
    done: Container[Path],
    give_up: Callable[[Path], None],
) -> None:
    """Attempt nights together, and by itself at the end each that a dead worker had in hand.

    Parameters
    ----------
    names : dict of Path to str
    marks : dict of Path to Path
        Of each night that is to be done, the file that is there while a worker has it in hand.
    suspects : sequence of Path
        Those of them that are attempted by themselves only.
    attempt : callable
        Takes a sequence of nights and ``own_process``, as of :func:`in_parallel`; whether the workers lived.
    done : container of Path
        The nights whose outcome is known.
    give_up : callable
        Takes a night that ended its worker alone.
    """
    suspects = list(suspects)
    company = [path for path in marks if path not in set(suspects)]
    unexplained, died = 0, False
    try:
        # After a death the last of them, which would be worked on in this process, is not trusted with it.
        while company and not attempt(company, own_process=died):
            died = True
            in_hand = [path for path in company if path not in done and marks[path].exists()]
            unexplained = 0 if in_hand else unexplained + 1
            held = ", ".join(names[path] for path in in_hand[:10]) or "no night"
            say(
                f"a worker process died while it worked on {held}. The other workers continue, and these nights are "
                "tried again at the end, one at a time"
            )
            suspects += in_hand
            company = [path for path in company if path not in done and path not in set(in_hand)]
            if unexplained == MAX_UNEXPLAINED_DEATHS:
                suspects, company = suspects + company, []
        for path in suspects:
            if not attempt([path], own_process=True) and path not in done:
                give_up(path)
            marks[path].unlink(missing_ok=True)
    except KeyboardInterrupt:
        for mark in marks.values():  # no night is to blame
            mark.unlink(missing_ok=True)
        raise


def finished_since(night: NightConfig, name: str, began_ns: int) -> NightRow | None:
    """Outcome of a night that was written since ``began_ns``; None where it was not."""
    file = night.store / "recordings" / f"{name}.json"
    record = read_record(file)
    if record is None or record["configuration_digest"] != night.configuration_digest:
        return None
    return row_of(record) if file.stat().st_mtime_ns >= began_ns else None


KILLED = "it ended its worker process"


def killed(path: Path, name: str) -> NightRow:
    return NightRow(path, name, 0, {}, {}, (), killed_sentence(path))


def killed_sentence(path: Path) -> str:
    """Say that a night ended its worker twice, and what may be behind it."""
    return (
        f"{path} was not finished: {KILLED}, the second time with no other night beside it. The system ends a process "
        "when memory runs out or when a file shrinks while it is read; or a library crashed on the file. Check the "
        "file; the same command tries it again, alone."
    )


def ended_its_worker(store: Path, name: str) -> bool:
    """Whether the night failed that way before."""
    return bool(read_object(store / "failures" / f"{name}.json").get("ended_its_worker"))


def write_failure(store: Path, name: str, path: Path, sentence: str) -> None:
    """Keep why a night failed, and whether it ended its worker: then it is alone the next time."""
    content = {"id": name, "path": str(path), "sentence": sentence, "ended_its_worker": KILLED in sentence}
    write_json(store / "failures" / f"{name}.json", content)


def note_outcome(store: Path, row: NightRow, journal: Journal, shard: Shard | None) -> None:
    """Write what became of a night: into ``failures/`` and into the run's journal."""
    file = store / "failures" / f"{row.name}.json"
    if row.failure is not None:
        write_failure(store, row.name, row.path, row.failure)
    else:
        file.unlink(missing_ok=True)
    journal.add(
        Entry(
            row.name,
            path_text(row.path),
            "ingested" if row.failure is None else FAILED,
            row.failure or "",
            "" if row.seconds is None else f"{row.seconds:.3f}",
            row.n_clips,
            row.n_bytes,
            str(shard or ""),
            row.host,
            now(),
        )
    )


def note_unchanged(store: Path, plan: Plan, journal: Journal, shard: Shard | None) -> None:
    """Rows of what this run does not work on, where the manifest says something else."""
    said = {entry.path: entry for entry in read_manifest(store)}

    def add(path: Path, status: str, reason: str, record: dict[str, Any] | None) -> None:
        before = said.get(str(path))
        if before is None or (before.status, before.reason) != (status, reason):
            name, n_clips, n_bytes = (
                ("", 0, 0) if record is None else (record["id"], record["n_clips"], record["n_bytes"])
            )
            journal.add(Entry(name, str(path), status, reason, "", n_clips, n_bytes, str(shard or ""), "", now()))

    for path in plan.kept:
        add(path, "ingested", "", plan.known[path])
    for path, reason in plan.changed.items():
        add(path, "changed", reason, plan.known[path])
    for path in plan.excluded:
        add(path, "annotations_only", "it holds annotations only", None)
    for path in plan.left_out:
        if path not in plan.changed:
            add(path, LEFT_OUT, "--overrides leaves it out", None)
