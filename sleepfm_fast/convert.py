"""Other SleepFM code's prepared data into a clip store: ``python -m sleepfm_fast.convert SOURCE STORE --from seed``."""

from __future__ import annotations

import hashlib
import shutil
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from sleepfm_fast.channels import MONTAGES, Montage, resolve_auto
from sleepfm_fast.cli.command import run, say
from sleepfm_fast.cli.given_paths import TakesPaths
from sleepfm_fast.cli.misplaced import Place, reads, writes
from sleepfm_fast.cli.option_effects import Effect, only_with, refuse_without_effect
from sleepfm_fast.cli.option_ranges import refuse_negative_workers
from sleepfm_fast.cli.path_kinds import Kind
from sleepfm_fast.cohorts import import_clinical, import_seed
from sleepfm_fast.cohorts.attempts import ended_its_worker, killed_sentence, outlive, write_failure
from sleepfm_fast.cohorts.cohort import with_digest
from sleepfm_fast.cohorts.foreign import ForeignNight, signals_of, write_foreign
from sleepfm_fast.cohorts.night import STARTED
from sleepfm_fast.cohorts.nights_table import night_row, write_nights
from sleepfm_fast.cohorts.participant_tables import ParticipantTables, read_tables
from sleepfm_fast.cohorts.store_claims import claimed_run, prepare_folder
from sleepfm_fast.cohorts.store_inputs import inputs_of, with_inputs
from sleepfm_fast.cohorts.summary import say_failed, say_issues, say_unknown
from sleepfm_fast.errors import SleepfmError, refused_by_system
from sleepfm_fast.execution.parallel import Engine, Progress, WorkersLost, in_parallel
from sleepfm_fast.plurals import counted
from sleepfm_fast.reporting.following import after_store
from sleepfm_fast.scoring import labels
from sleepfm_fast.storage.standing import digest_of_value
from sleepfm_fast.store.clip_layout import VERSION, read_store_file
from sleepfm_fast.store.clip_writer import commit, read_record, write_store_file

__all__ = ["Config", "cli", "main"]


@dataclass(frozen=True)
class Config(TakesPaths):
    """Turn what other SleepFM code has prepared into a clip store; samples are quantised, within half a step.

    The original recordings (EDF, BDF) give a better store: preprocess keeps their integers, rates and units. Repeating
    the command adds what is missing and redoes nothing.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """seed: the folder that holds X and Y; clinical: an HDF5 file or a folder of them."""
    store: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
    """Clip store to write: a new or empty folder, or one that the same command has begun."""
    origin: Annotated[Literal["seed", "clinical"], tyro.conf.arg(name="from")]
    """seed: float64 .npy files, one per clip; clinical: float16 HDF5 files, one per night (needs h5py)."""
    labels: Path | None = None
    """Folder of stages, <name>.csv. seed: columns clip, stage (by default the folder Y); clinical: columns Start, Stop,
    StageName."""
    participants: Path | None = None
    """CSV with the columns recording, subject, age, sex."""
    montage: Literal["auto", "paper", "cinc2018", "aasm"] = "auto"
    """Channels to store. auto: those the store already has; for a new store, those that at least half of the nights
    have. The others are fixed lists."""
    fs_hz: float = 128.0
    """clinical: sampling rate of the channels, which the files do not state."""
    joined: bool = False
    """seed: clips with consecutive numbers are contiguous, so filters may look from one into the next."""
    workers: int = 0
    """Nights processed at a time; 0 for one per core that this process may use."""

    EFFECTS: ClassVar[tuple[Effect, ...]] = (
        only_with("fs_hz", "origin", "clinical", spelling="--from"),
        only_with("joined", "origin", "seed", spelling="--from"),
    )

    def places(self) -> list[Place]:
        """What its positionals take."""
        # A folder may hold the recordings as well; where it holds nothing else, the importer says so.
        recordings = (Kind.RECORDINGS, Kind.COHORT)
        return [
            reads("SOURCE", self.source, Kind.SCRIPT_CLIPS, Kind.NIGHTS_H5, *recordings),
            writes("STORE", self.store, Kind.STORE),
        ]


@dataclass(frozen=True)
class Outcome:
    """What became of a night: ``failure`` is the sentence why it could not be converted, or None."""

    path: Path
    name: str
    issues: tuple[str, ...]
    failure: str | None


def main(config: Config) -> dict[str, Any]:
    """Run the command; the result is its JSON line."""
    refuse_without_effect(config)
    if not config.source.exists():
        raise SleepfmError(f"{config.source}: there is no such file or folder.")
    if config.origin == "seed" and not config.source.is_dir():
        raise SleepfmError(f"{config.source} is a file; give the folder that holds X and Y.")
    if config.labels is not None and not config.labels.exists():
        raise SleepfmError(f"--labels {config.labels}: there is no such file or folder.")
    refuse_negative_workers(config.workers)
    if not 0 < config.fs_hz < 1e6:
        raise SleepfmError(f"--fs-hz {config.fs_hz} is not a sampling rate; the clinical code writes 128 or 256.")
    if config.origin == "clinical":
        import_clinical.h5()
    finder = import_seed.find_nights if config.origin == "seed" else import_clinical.find_nights
    paths = list(dict.fromkeys(path.resolve() for path in finder(config.source)))  # a link may lead to a night twice
    tables = read_tables(config.participants, [config.source])
    tables.refuse_untold_visits(paths)
    store = config.store.resolve()
    prepare_folder(store)
    with claimed_run(store, "convert"):
        return ingest(config, store, paths, tables)


def look(path: Path, config: Config) -> ForeignNight:
    """Look at a night without reading its samples."""
    if config.origin == "seed":
        return import_seed.read_night(path, config.labels, joined=config.joined)
    return import_clinical.read_night(path, config.labels, Fraction(repr(config.fs_hz)))


def convert_night(
    path: Path, name: str, config: Config, montage: Montage, digest: str, person: dict[str, Any]
) -> Outcome:
    """Convert one night; whatever goes wrong comes back as a sentence."""
    mark = config.store.resolve() / STARTED / name
    with suppress(OSError):  # without a mark a death of the process costs more, nothing else
        mark.touch()
    outcome = converted(path, name, config, montage, digest, person)
    mark.unlink(missing_ok=True)
    return outcome


def converted(path: Path, name: str, config: Config, montage: Montage, digest: str, person: dict[str, Any]) -> Outcome:
    try:
        facts = {
            **person,
            "configuration_digest": digest,
            "source": source_facts(path, content=True),
            "scoring": scoring_facts(path, config),
            "format_of_source": f"SleepFM {config.origin}",
            "start": None,
            "label_rules": label_rules(config),
        }
        night = look(path, config)
        facts["respiratory_events"] = night.events
        issues = write_foreign(config.store.resolve() / "recordings", name, night, montage, facts)
    except SleepfmError as error:
        return Outcome(path, name, (), str(error))
    except OSError as error:
        if error.filename is None or Path(str(error.filename)).is_relative_to(path):
            return Outcome(path, name, (), f"{error.filename or path} cannot be read ({error.strerror or error}).")
        # Of its labels or the store, such as a full disk.
        return Outcome(path, name, (), f"{path} could not be converted ({refused_by_system(error)}).")
    except Exception as error:
        return Outcome(path, name, (), f"{path} could not be converted: {type(error).__name__}: {error}.")
    return Outcome(path, name, tuple(issues), None)


def label_rules(config: Config) -> int | None:
    """The rules by which scoring becomes labels; None where the source has a label for each clip already."""
    return labels.LABEL_RULES if config.origin == "clinical" else None


def source_facts(path: Path, *, content: bool) -> dict[str, Any]:
    """Path, size, newest modification time and, with ``content``, SHA-256 of a file or of a folder's clips in order."""
    files = [path] if path.is_file() else list(import_seed.clip_files(path).values())
    digest = hashlib.sha256()
    for file in files if content else ():
        if not stat.S_ISREG(file.stat().st_mode):  # such as a pipe, which the look at the night leaves out
            continue
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    states = [file.stat() for file in files]
    return {
        "path": str(path),
        "size": sum(s.st_size for s in states),
        "mtime_ns": max((s.st_mtime_ns for s in states), default=0),
        "sha256": digest.hexdigest() if content else "",
    }


def scoring_facts(path: Path, config: Config) -> dict[str, Any]:
    """Path, size and modification time of a night's labels."""
    importer = import_seed if config.origin == "seed" else import_clinical
    file = importer.label_file(path, config.labels)
    if file is None or not file.is_file():
        return {"kind": "none", "path": None, "passed_over": None}
    state = file.stat()
    return {"kind": "file", "path": str(file.resolve()), "size": state.st_size, "mtime_ns": state.st_mtime_ns}


def ingest(config: Config, store: Path, paths: list[Path], tables: ParticipantTables) -> dict[str, Any]:
    """Convert what is missing, then put the index in force."""
    existing = read_store_file(store) if (store / "store.json").exists() else None
    if existing is not None:
        montage = Montage.from_dict(existing["montage"])
    elif config.montage != "auto":
        montage = MONTAGES[config.montage]
    else:
        montage = resolve_auto(cohort_signals(paths, config))
    content = [VERSION, config.origin, str(config.fs_hz), config.joined, montage.to_dict()]
    digest = digest_of_value(content)
    if existing is not None and existing["configuration"]["digest"] != digest:
        raise SleepfmError(
            f"{store} was made from other recordings or with other options; one store holds numbers of one kind. "
            "Choose a new folder, or repeat the options that it was made with."
        )
    configuration = {"montage": config.montage, "from": config.origin, "events_scored": False, "digest": digest}
    if existing is not None:
        configuration = existing["configuration"]
    rate = None if config.origin == "seed" else config.fs_hz
    given = inputs_of(
        [config.source], labels=config.labels, participants=config.participants, fs_hz=rate, joined=config.joined
    )
    configuration = with_inputs(configuration, given)
    names = named(paths)
    kept = {path for path in paths if unchanged(store, names[path], path, config, digest)}
    todo = [path for path in paths if path not in kept]
    if existing is None or (existing["index"] is not None and todo):
        # From here on samples under the index in force may be replaced: it must not be read until the commit.
        write_store_file(store, montage, configuration, None, None)
    rows = convert_all(config, montage, digest, {path: names[path] for path in todo}, tables)
    records = sorted(f for f in (store / "recordings").glob("*.json") if belongs(f, digest))
    totals = None
    if records:
        totals = commit(store, montage, configuration, records)
        write_nights(store, [night_row(record) for file in records if (record := read_record(file)) is not None])
    shutil.rmtree(store / STARTED, ignore_errors=True)
    return summarise(store, montage, rows, len(kept), totals, tables.unknown_recordings(paths))


def cohort_signals(paths: Sequence[Path], config: Config) -> list[Any]:
    """Channels of every night that can be looked at; where none can, why the first cannot."""
    if config.origin == "seed":
        return [signals_of(import_seed.CHANNELS, Fraction(import_seed.FS_HZ))]
    found = []
    failure: SleepfmError | None = None
    for path in paths:
        try:
            found.append(signals_of(import_clinical.read_night(path, None, Fraction(128)).labels, Fraction(128)))
        except SleepfmError as error:
            failure = failure or error  # its own turn will say so
    if not found and failure is not None:
        raise failure
    return found


def named(paths: Sequence[Path]) -> dict[Path, str]:
    """Ids of the nights: their names, with a digest of the path behind where a name occurs twice."""
    counts: dict[str, int] = {}
    for path in paths:
        counts[path.stem] = counts.get(path.stem, 0) + 1
    return {path: path.stem if counts[path.stem] == 1 else with_digest(path.stem, path) for path in paths}


def unchanged(store: Path, name: str, path: Path, config: Config, digest: str) -> bool:
    """Whether the store has this night, and its labels, as they are now and by the rules of now."""
    record = read_record(store / "recordings" / f"{name}.json")
    if record is None or record["configuration_digest"] != digest:
        return False
    if record.get("label_rules") != label_rules(config):
        return False
    try:
        facts = source_facts(path, content=False)
    except OSError:  # its own turn says why
        return False
    same = all(record["source"][key] == facts[key] for key in ("path", "size", "mtime_ns"))
    return same and bool(record["scoring"] == scoring_facts(path, config))


def belongs(file: Path, digest: str) -> bool:
    """Whether a description is whole and of this configuration."""
    record = read_record(file)
    return record is not None and bool(record["configuration_digest"] == digest)


def convert_all(
    config: Config, montage: Montage, digest: str, names: Mapping[Path, str], tables: ParticipantTables
) -> list[Outcome]:
    """Convert nights in worker processes; one that ends its worker twice has failed, and the others go on."""
    store = config.store.resolve()
    engine = Engine("loky", config.workers)
    rows: dict[Path, Outcome] = {}
    progress = Progress("nights", len(names))

    def note(row: Outcome) -> None:
        rows[row.path] = row
        if row.failure is None:
            (store / "failures" / f"{row.name}.json").unlink(missing_ok=True)
        else:
            write_failure(store, row.name, row.path, row.failure)
        progress.step(failed=row.failure is not None)

    def attempt(paths: Sequence[Path], *, own_process: bool) -> bool:
        alone = own_process or engine.spares_this_process
        arguments = [(path, names[path], config, montage, digest, tables.of(path).facts()) for path in paths]
        try:
            for row in in_parallel(convert_night, arguments, engine, own_process=alone):
                note(row)
        except WorkersLost:
            return False
        return True

    marks = {path: store / STARTED / name for path, name in names.items()}
    suspects = [path for path in names if marks[path].exists() or ended_its_worker(store, names[path])]
    try:
        outlive(
            names, marks, suspects, attempt, rows,
            lambda path: note(Outcome(path, names[path], (), killed_sentence(path))),
        )  # fmt: skip
    finally:
        progress.close()
    return sorted(rows.values(), key=lambda row: row.path)


def summarise(
    store: Path,
    montage: Montage,
    rows: Sequence[Outcome],
    n_kept: int,
    totals: dict[str, Any] | None,
    unknown: Sequence[str],
) -> dict[str, Any]:
    """Say what was done, and return the same as a dict with the exit status."""
    failed = [{"path": str(row.path), "reason": row.failure} for row in rows if row.failure is not None]
    problems = {row.name: list(row.issues) for row in rows if row.issues}
    say_issues(store, problems)
    say_failed(store, failed)
    say_unknown(unknown)
    if totals is None:
        say("error: nothing could be converted; the store holds no night yet")
    else:
        say(
            f"{store}: {counted(totals['recordings'], 'night')}, {counted(totals['clips'], 'clip')}; montage "
            f"{montage.name}"
        )
    return {
        "store": str(store),
        "nights": 0 if totals is None else totals["recordings"],
        "clips": 0 if totals is None else totals["clips"],
        "stages": {} if totals is None else totals["stages"],
        "montage": montage.name,
        "added": sum(row.failure is None for row in rows),
        "kept": n_kept,
        "failed": failed,
        "problems": problems,
        "participants_unknown": list(unknown),
        "exit_status": int(bool(failed) or totals is None),
    }


def cli(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run(
        Config,
        main,
        argv,
        interrupted="what was finished is kept; the same command continues from there",
        following=after_store,
    )


if __name__ == "__main__":
    sys.exit(cli())
