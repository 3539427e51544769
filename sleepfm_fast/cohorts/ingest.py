"""A cohort into a clip store: by one process, or by the jobs of an array that write the same store at the same time.

Every night has files of its own, which appear when they are whole; what all runs share (the plan, ``store.json``, the
index, the manifest) is written under the store's lock. Of the jobs of an array, the last one at work writes the index.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sleepfm_fast.channels import (
    MONTAGES,
    Montage,
    passed_over,
    passed_over_text,
    resolve_auto,
    unknown_labels,
    unknown_text,
    unused_by_slot,
    with_stand_ins,
)
from sleepfm_fast.cli.bars import SLOW_S, progress_bar
from sleepfm_fast.cli.command import say
from sleepfm_fast.cli.json_text import from_json
from sleepfm_fast.cohorts import eeg_slots
from sleepfm_fast.cohorts.attempts import note_unchanged, process
from sleepfm_fast.cohorts.cohort import Header, Plan, make_plan, read_header
from sleepfm_fast.cohorts.corrections import Corrections
from sleepfm_fast.cohorts.eeg_slots import NightEeg
from sleepfm_fast.cohorts.folders import path_text
from sleepfm_fast.cohorts.manifest import LEFT_OUT, Entry, Journal, merge_manifest, read_manifest
from sleepfm_fast.cohorts.night import STARTED, NightConfig, NightRow
from sleepfm_fast.cohorts.nights_table import night_row, write_nights
from sleepfm_fast.cohorts.participant_tables import ParticipantTables
from sleepfm_fast.cohorts.shards import Shard
from sleepfm_fast.cohorts.silent_nights import is_scored, is_silent
from sleepfm_fast.cohorts.store_claims import claimed_run, other_claims, prepare_folder, store_lock, sweep
from sleepfm_fast.cohorts.store_inputs import INPUTS, inputs_of, with_inputs
from sleepfm_fast.cohorts.twins import Twin, twins_notice
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.execution.parallel import Engine, Progress, in_parallel
from sleepfm_fast.plurals import agreeing, counted, first_of
from sleepfm_fast.scoring.files import namesakes_of
from sleepfm_fast.storage.atomic import write_json
from sleepfm_fast.storage.claims import Claim, beats
from sleepfm_fast.store.clip_layout import read_store_file, sdb_counts, stage_counts
from sleepfm_fast.store.clip_writer import commit, read_record, write_store_file
from sleepfm_fast.store.label_rules import configuration_digest, label_rules_note

__all__ = ["Cohort", "Outcome", "Request", "ingest"]

ANEW = "(with --overwrite, or into another store)"


@dataclass(frozen=True)
class Request:
    """What is asked for; the fields are those of the command, ``inputs`` its paths by :func:`inputs_of`.

    ``like`` is a montage that counts in place of ``montage``, which is then "auto".
    """

    montage: str
    labels: Path | None
    events_scored: bool
    overwrite: bool
    shard: Shard | None = None
    corrections: Corrections = field(default_factory=Corrections)
    meanings: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=lambda: inputs_of(()))
    like: Montage | None = None
    scorer: str = ""

    def digest_of(self, montage: Montage) -> str:
        """Digest of a store's configuration."""
        return configuration_digest(montage, self.events_scored, self.meanings, self.scorer)

    @property
    def run(self) -> str:
        """Name of the run among those that may be at work together."""
        return "all" if self.shard is None else f"shard-{self.shard.number}-of-{self.shard.count}"


@dataclass(frozen=True)
class Cohort:
    """The files: ``named`` one by one, or found in folders; the participants tables."""

    files: list[Path]
    named: set[Path]
    tables: ParticipantTables


@dataclass(frozen=True)
class Outcome:
    """What a run did: ``totals`` is None where the index was left to other runs, or there is nothing to index.

    ``n_scored`` and ``n_silent`` count the indexed nights that have stages, and those of them without any word on
    respiratory events; ``twins`` is a sentence on nights that are indexed more than once, or empty; ``filled`` counts
    the indexed nights that have each of the montage's channels; ``apart`` is a sentence on groups of them whose EEG has
    no slot in common, or empty; ``absent`` are recordings of other jobs of the array
    that the index lacks; ``unused`` are, with --like, labels of the new recordings that each slot may mean.
    """

    montage: Montage
    plan: Plan
    rows: list[NightRow]
    totals: dict[str, Any] | None
    given: list[Path]
    others: list[str]
    unused_corrections: list[str]
    unused: Mapping[str, Sequence[str]]
    n_scored: int = 0
    n_silent: int = 0
    twins: str = ""
    filled: tuple[int, ...] = ()
    apart: str = ""
    absent: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Settled:
    """What holds for all nights once the plan is made."""

    plan: Plan
    montage: Montage
    configuration: dict[str, Any]
    given: list[Path]
    unused_corrections: list[str]
    unused: Mapping[str, Sequence[str]]
    auto: bool


def ingest(store: Path, cohort: Cohort, request: Request, engine: Engine) -> Outcome:
    """Ingest what is missing of the run's share, then put the index in force unless other jobs are still at work.

    Parameters
    ----------
    store : Path
        Absolute; made if it does not exist.
    cohort : Cohort
    request : Request
    engine : Engine

    Returns
    -------
    Outcome

    Raises
    ------
    SleepfmError
        When the store is something else, was made otherwise, or is being written by a run that this one cannot join.
    """
    prepare_folder(store)
    with claimed_run(store, request.run, request.shard) as claim:
        with store_lock(store):
            settled = settle(store, cohort, request, engine)
        night = NightConfig(
            store, settled.montage, request.labels, request.events_scored,
            str(settled.configuration["digest"]), request.corrections,
            namesakes_of(cohort.files if request.labels is not None else ()),
            request.meanings, request.like is not None, request.scorer,
        )  # fmt: skip
        journal = Journal(store, request.run)
        try:
            note_unchanged(store, settled.plan, journal, request.shard)
            rows = process(settled.plan, cohort.tables, night, engine, journal, request.shard)
        finally:
            journal.close()
        with store_lock(store) as lock:
            others = [path.stem for path in other_claims(store, claim.path) if beats(path)]
            indexed = Indexed() if others else finish(store, settled, lock)
            # Released under the lock: of two jobs that end together, one sees that it is the last.
            claim.release()
    return Outcome(
        settled.montage, settled.plan, rows, indexed.totals, settled.given, others, settled.unused_corrections,
        settled.unused, indexed.n_scored, indexed.n_silent, indexed.twins, indexed.filled, indexed.apart,
        indexed.absent,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- what is to be done


def settle(store: Path, cohort: Cohort, request: Request, engine: Engine) -> Settled:
    """Choose the montage, make the plan, and write ``store.json`` where it must say something new."""
    existing = read_store_file(store) if (store / "store.json").exists() else None
    refuse_forgotten_overrides(store, cohort.files, request.corrections)
    montage = settle_montage(request, store, existing)
    digest = None if montage is None else request.digest_of(montage)
    plan, headers = make_plan(
        store, cohort.files, cohort.named, request.labels, digest,
        lambda paths: read_headers(paths, engine), shard=request.shard, corrections=request.corrections,
    )  # fmt: skip
    given = [*plan.todo, *plan.kept, *plan.changed]
    refuse_one_scoring(request.labels, len(given))
    refuse_forgotten(store, sorted(set(plan.outdated) - set(cohort.files)))
    if montage is None:
        if plan.left_out and not headers:
            raise SleepfmError(
                f"--overrides leaves out all of {counted(len(plan.left_out), 'recording')}, so there is none to choose "
                "the channels by."
            )
        montage = auto_montage(request, headers)
        digest = request.digest_of(montage)
    configuration = {"montage": request.montage, "events_scored": request.events_scored, "digest": digest}
    if request.meanings:
        configuration["meanings"] = dict(request.meanings)
    if request.scorer:
        configuration["scorer"] = request.scorer
    if existing is not None and existing["configuration"]["digest"] == digest:
        configuration = existing["configuration"]
    # Of another configuration: it could neither stay in the index nor, once its file is gone, be made again.
    removed = [plan.outdated.pop(path) for path in plan.left_out if path in plan.outdated]
    if request.overwrite:
        removed += [plan.known.pop(path)["id"] for path in plan.left_out if path in plan.known]
        plan.todo = sorted([*plan.todo, *(path for path in plan.changed if path in plan.known)])
        plan.changed = {}
    # Nights that stay as they are came from what is listed; a table may name their subjects and ages anew.
    if plan.todo or removed or "participants" in request.inputs or INPUTS not in configuration:
        configuration = with_inputs(configuration, request.inputs, overwrite=request.overwrite)
    replacing = bool(removed) or any(path in plan.known or path in plan.outdated for path in plan.todo)
    if existing is None or (existing["index"] is not None and replacing):
        # From here on the samples under the index in force may be replaced: it must not be read until the commit.
        write_store_file(store, montage, configuration, None, None)
    for name in removed:
        for suffix in (".json", ".bin"):
            (store / "recordings" / f"{name}{suffix}").unlink(missing_ok=True)
    update_participants(store, plan, cohort, request.shard)
    say_doubtful_labels(request, [header for header in headers if header.path in plan.mine], montage)
    unused = []
    if len(headers) == len(given):
        unused = request.corrections.unused(((h.path, h.signals) for h in headers), plan.left_out)
    spare: dict[str, list[str]] = {}
    if request.like is not None:
        spare = unused_by_slot([request.corrections.apply(h.path, h.signals).signals for h in headers], montage)
    return Settled(plan, montage, configuration, given, unused, spare, is_auto(request, montage))


def refuse_one_scoring(labels: Path | None, n_recordings: int) -> None:
    """Refuse one file of labels for several recordings."""
    if labels is not None and labels.is_file() and n_recordings > 1:
        raise SleepfmError(
            f"--labels {labels} is one file, but {n_recordings} recordings were given; it cannot be the scoring "
            "of all. Give a folder of scorings, or one recording."
        )


def refuse_forgotten_overrides(store: Path, files: Sequence[Path], corrections: Corrections) -> None:
    """Refuse to take in, for want of ``--overrides``, recordings that it left out before."""
    if corrections.path is not None:
        return
    paths = {path_text(path): path for path in files}
    before = [paths[row.path] for row in read_manifest(store) if row.status == LEFT_OUT and row.path in paths]
    if before:
        n = len(before)
        raise SleepfmError(
            f"{counted(n, 'recording')} ({first_of([path.name for path in before], 3)}) {agreeing(n, 'was', 'were')} "
            f"left out of {store} by --overrides, which is not given now. Give the same --overrides again; or, to take "
            f"{agreeing(n, 'it', 'them')} in, --overrides with a file that does not exclude "
            f"{agreeing(n, 'it', 'them')} ({{}} excludes nothing)."
        )


def refuse_forgotten(store: Path, forgotten: Sequence[Path]) -> None:
    """Refuse to change a configuration that nights were made with whose files are not given."""
    if forgotten:
        how = "by the rules of another version" if label_rules_note(store) else "with another configuration"
        raise SleepfmError(
            f"{counted(len(forgotten), 'recording')} of {store} {agreeing(len(forgotten), 'was', 'were')} made {how} "
            "and cannot be processed again without the recorded file, which is not given (the "
            f"first: {forgotten[0]}). Give all of them, or choose another store."
        )


def auto_montage(request: Request, headers: Sequence[Header]) -> Montage:
    """Make the montage of ``--montage auto``, and say which kinds of channel it has no slot for."""
    readable = [s for h in headers if (s := request.corrections.apply(h.path, h.signals).signals)]
    failures = [h.failure for h in headers if h.failure]
    if failures and not readable:
        raise SleepfmError(
            f"none of the {counted(len(headers), 'recording')} can be read, so no montage can be chosen. The "
            f"first: {failures[0]}"
        )
    montage = resolve_auto(readable)
    if kinds := passed_over(readable, montage):
        say(f"notice: {passed_over_text(kinds, len(readable))}")
    return montage


def say_doubtful_labels(request: Request, headers: Sequence[Header], montage: Montage) -> None:
    """Say which labels of new recordings are not understood, and where the montage does not suit the electrodes."""
    corrected = {header.path: request.corrections.apply(header.path, header.signals).signals for header in headers}
    if labels := unknown_labels([signal.label for signal in signals] for signals in corrected.values()):
        text, action = unknown_text(labels, len(headers))
        say(f"notice: {text}; {action}")
    nights = [NightEeg.of(path, signals, montage) for path, signals in corrected.items()]
    auto = is_auto(request, montage)
    if auto and (found := eeg_slots.against_one(nights)):
        say(f"notice: {eeg_slots.against_one_text(found)}; {eeg_slots.DERIVES} {ANEW}")
    if (found := eeg_slots.lost(nights)) and any(slot.kind == "eeg" for slot in montage.slots):
        say(f"notice: {eeg_slots.lost_text(found)}; {eeg_slots.remedy(auto=auto)} {ANEW}")


def is_auto(request: Request, montage: Montage) -> bool:
    """Whether the slots are what the cohort has, and not a list."""
    return montage.name == "auto" and request.like is None


def read_headers(paths: Sequence[Path], engine: Engine) -> list[Header]:
    """Read headers in threads of this process: they are small."""
    progress = Progress("headers", len(paths))
    found = []
    for header in in_parallel(read_header, [(path,) for path in paths], Engine("threading", engine.workers)):
        found.append(header)
        progress.step(failed=header.failure is not None)
    progress.close()
    return found


def settle_montage(request: Request, store: Path, existing: dict[str, Any] | None) -> Montage | None:
    """Montage of the run: the store's own where it has one; None where ``auto`` is still to be resolved."""
    wanted = request.like or (None if request.montage == "auto" else MONTAGES[request.montage])
    if existing is None:
        return wanted
    stored = Montage.from_dict(existing["montage"])
    made_with = existing["configuration"]["montage"]
    differences = []
    if request.montage not in ("auto", made_with):
        differences.append(f"the montage '{made_with}', not '{request.montage}'")
    # An earlier version stored the channels of --like without their stand-ins.
    if request.like is not None and request.like not in (stored, with_stand_ins(stored)):
        differences.append("other channels than those of --like")
    if request.events_scored != existing["configuration"]["events_scored"]:
        differences.append(f"{'no ' if request.events_scored else ''}--events-scored")
    if dict(request.meanings) != existing["configuration"].get("meanings", {}):
        differences.append("other --meanings")
    if request.scorer != (scorer := existing["configuration"].get("scorer", "")):
        differences.append(f"--scorer {scorer}" if scorer else "no --scorer")
    if differences and not request.overwrite:
        raise SleepfmError(
            f"{store} was made with {' and '.join(differences)}. Use the same options, choose another store, or add "
            "--overwrite to process all its recordings again."
        )
    if request.montage == made_with and request.like is None:
        return stored
    if request.montage == "auto" and not request.overwrite:
        return stored
    return wanted


def update_participants(store: Path, plan: Plan, cohort: Cohort, shard: Shard | None) -> None:
    """Bring subject, age and sex of the nights that stay up to date with the table, where it names them."""
    kept, todo, files = set(plan.kept), set(plan.todo), set(cohort.files)
    n_changed = 0
    for path, known in list(plan.known.items()):
        # Records of nights that other jobs have in hand are theirs to write; those of no job are the first one's.
        own = path in plan.mine or (path not in files and (shard is None or shard.number == 1))
        if path in todo or not own:
            continue
        facts: dict[str, Any] = {n: known[n] for n in ("subject", "age", "sex", "visit") if n in known}
        if cohort.tables.names(path):
            facts = cohort.tables.of(path).facts()
        source = {**known["source"], "path": str(path)}
        if path in kept:  # its content was found to be the same
            source["mtime_ns"] = path.stat().st_mtime_ns
        changes = {**facts, "source": source}
        if {**without_visit(known), **changes} != known:
            file = store / "recordings" / f"{known['id']}.json"
            write_json(file, {**without_visit(from_json(file.read_text(encoding="utf-8"))), **changes})
            plan.known[path] = {**without_visit(known), **changes}
            n_changed += any(known.get(name) != facts.get(name) for name in ("subject", "age", "sex"))
    if n_changed:
        say(
            f"notice: the participants table gives {counted(n_changed, 'night')} of the store another subject, age or "
            "sex than before, which the store now has; embeddings and features keep the old ones until they are made "
            "again"
        )


def without_visit(record: dict[str, Any]) -> dict[str, Any]:
    """A record that another table may say the visit of, or none."""
    return {name: value for name, value in record.items() if name != "visit"}


# --------------------------------------------------------------------------------------------------------- the index


@dataclass(frozen=True)
class Indexed:
    """What the index holds; the fields are those of :class:`Outcome`."""

    totals: dict[str, Any] | None = None
    n_scored: int = 0
    n_silent: int = 0
    twins: str = ""
    filled: tuple[int, ...] = ()
    apart: str = ""
    absent: tuple[Path, ...] = ()


def finish(store: Path, settled: Settled, lock: Claim) -> Indexed:
    """Index every whole night of the configuration in force, describe the nights, merge the manifest, and tidy up."""
    files: list[Path] = []
    nights: list[Twin] = []
    described: list[dict[str, Any]] = []
    eeg: list[NightEeg] = []
    n_scored = n_silent = 0
    filled = [0] * len(settled.montage.slots)
    entries: dict[str, Entry] = {}
    stored = sorted((store / "recordings").glob("*.json"), key=lambda path: path.stem)
    for file in progress_bar(stored, desc="nights described", unit="night", delay=SLOW_S):
        record = read_record(file)
        if record is not None and record["configuration_digest"] == settled.configuration["digest"]:
            files.append(file)
            path = record["source"]["path"]
            n_clips = len(record["clips"]["onset_s"])
            stages, sdb = stage_counts(record["clips"]["stage"]), sdb_counts(record["clips"]["sdb"])
            n_scored += is_scored(stages)
            n_silent += is_silent(stages, sdb)
            filled = [n + bool(channel["present"]) for n, channel in zip(filled, record["channels"], strict=True)]
            nights.append(Twin.of(record))
            eeg.append(NightEeg.of_record(record, settled.montage))
            described.append(night_row(record))
            entries[path] = Entry(record["id"], path, "ingested", "", "", n_clips, record["n_bytes"])
    totals = None
    if files:
        say(f"writing the index of {counted(len(files), 'night')}")
        if not lock.holds():
            raise SleepfmError(
                f"the lock of {store} was taken over while this process was suspended or cut off. The nights are kept; "
                "the same command continues from there."
            )
        totals = commit(store, settled.montage, settled.configuration, files)
        write_nights(store, described)
    merge_manifest(store, entries)
    sweep(store)
    shutil.rmtree(store / STARTED, ignore_errors=True)
    (store / "running" / "headers.json").unlink(missing_ok=True)
    others = settled.plan.names.keys() - settled.plan.mine - set(settled.plan.left_out)
    absent = [path for path in others if str(path) not in entries]
    apart = ""
    if groups := eeg_slots.apart(eeg, [slot.name for slot in settled.montage.slots]):
        apart = f"{eeg_slots.apart_text(groups)}; {eeg_slots.remedy(auto=settled.auto)} {ANEW}"
    return Indexed(totals, n_scored, n_silent, twins_notice(nights), tuple(filled), apart, tuple(sorted(absent)))
