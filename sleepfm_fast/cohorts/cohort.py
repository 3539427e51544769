"""Which nights a run of preprocess makes: files named, and compared with what the store already has."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sleepfm_fast.cli.bars import SLOW_S, progress_bar
from sleepfm_fast.cli.json_text import read_object
from sleepfm_fast.cohorts.corrections import Corrections
from sleepfm_fast.cohorts.folders import name_fault
from sleepfm_fast.cohorts.shards import Shard
from sleepfm_fast.edf import Signal
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.formats.edf_fields import BLOCK_BYTES, EdfError, Issues
from sleepfm_fast.formats.edf_header import parse_header
from sleepfm_fast.recordings import WFDB_SUFFIX, open_recording, wfdb_hint
from sleepfm_fast.scoring.files import Namesakes, find_scorings, namesakes_of
from sleepfm_fast.scoring.timed_texts import ScoringError
from sleepfm_fast.storage.atomic import write_json
from sleepfm_fast.storage.columns import file_digest
from sleepfm_fast.store.clip_writer import read_record

__all__ = ["Header", "Plan", "make_plan", "read_header", "with_digest"]

HEADERS_READ = Path("running") / "headers.json"
"""What the jobs of an array know of the files' headers, so that each header is read once and not once a job."""


@dataclass(frozen=True)
class Header:
    """Signals of a file without its annotations: ``failure`` says why there are none, ``empty`` that it holds none."""

    path: Path
    signals: tuple[Signal, ...]
    empty: bool
    failure: str | None


def read_header(path: Path) -> Header:
    """Read a file's signals only; unlike ``read_recording`` this does not touch the records."""
    if fault := name_fault(path):
        return Header(path, (), False, fault)
    try:
        if path.suffix.lower() == WFDB_SUFFIX:
            signals = open_recording(path).signals
            return Header(path, signals, not signals, None)
        with path.open("rb") as file:
            content = file.read(BLOCK_BYTES)
            count = content[BLOCK_BYTES - 4 :].strip(b"\0 ")
            if count.isdigit():
                content += file.read(int(count) * BLOCK_BYTES)
            header = parse_header(path, content, os.fstat(file.fileno()).st_size, Issues(str(path), strict=False))
    except OSError as error:
        return Header(path, (), False, f"{path}: the file cannot be read ({error.strerror or error}).")
    except EdfError as error:
        return Header(path, (), False, f"{error}{wfdb_hint(path)}")
    except SleepfmError as error:
        return Header(path, (), False, str(error))
    except Exception as error:
        return Header(path, (), False, f"{path}: the header cannot be read ({type(error).__name__}: {error}).")
    return Header(path, header.signals, not header.signals and bool(header.annotation_spans), None)


def safe_stem(path: Path) -> str:
    """File name without suffix, with only what every file system takes."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "_", path.stem).strip(".")[:120] or "recording"


def with_digest(name: str, path: Path) -> str:
    """A name that others have too, with a digest of the path behind."""
    return f"{name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:10]}"


def assign_names(paths: Iterable[Path], known: dict[Path, str]) -> dict[Path, str]:
    """Give every recording an id: its stem, with a digest of its path behind where the stem alone is not unique.

    Parameters
    ----------
    paths : iterable of Path
    known : dict of Path to str
        Ids that the store has given already; they stay.
    """
    names = dict(known)
    together = sorted(set(paths) | set(known))
    shared: dict[str, int] = {}
    for path in together:
        # Names that differ only in case are one file on some file systems.
        shared[safe_stem(path).casefold()] = shared.get(safe_stem(path).casefold(), 0) + 1
    for path in together:
        if path not in names:
            stem = safe_stem(path)
            unique = shared[stem.casefold()] == 1 and stem == path.stem
            names[path] = stem if unique else with_digest(stem, path)
    return {path: names[path] for path in together}


@dataclass
class Plan:
    """What a run has to do.

    Attributes
    ----------
    names : dict of Path to str
        Ids of all recordings, of the store and of the files given, those of other jobs of the array too.
    mine : set of Path
        The share of this run among the files given: all of them unless it is a job of an array.
    todo : list of Path
        To be ingested.
    kept : list of Path
        Given to this run, in the store and unchanged.
    changed : dict of Path to str
        Given to this run, in the store, but no longer what was ingested: why.
    lost : dict of str to str
        Ids in the store that are damaged and whose source was not given: what is wrong.
    known : dict of Path to dict
        Source and record, without its samples and clips, of what the store holds intact.
    outdated : dict of Path to str
        Source and id of what the store holds from before its configuration was changed.
    excluded : list of Path
        Found in a folder, but holding annotations only.
    left_out : list of Path
        Not to be ingested, as the user's corrections say.
    """

    names: dict[Path, str] = field(default_factory=dict)
    mine: set[Path] = field(default_factory=set)
    todo: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    changed: dict[Path, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    known: dict[Path, dict[str, Any]] = field(default_factory=dict)
    outdated: dict[Path, str] = field(default_factory=dict)
    excluded: list[Path] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)


def make_plan(
    store: Path,
    files: Sequence[Path],
    named: set[Path],
    labels: Path | None,
    configuration_digest: str | None,
    read_headers: Callable[[Sequence[Path]], Iterable[Header]],
    *,
    shard: Shard | None = None,
    corrections: Corrections | None = None,
) -> tuple[Plan, list[Header]]:
    """Compare the files of a run with the store.

    Parameters
    ----------
    store : Path
    files, named : list of Path, set of Path
        As :func:`find_recordings` gives them.
    labels : Path or None
        Where the scoring is looked for.
    configuration_digest : str or None
        Records made with another one are made again; None where no configuration is in force yet.
    read_headers : callable
        Reads the headers of new files, in any order.
    shard : Shard, optional
        The run takes this share of the files.
    corrections : Corrections, optional
        What the user corrects.

    Returns
    -------
    Plan
    list of Header
        Of the new files whose headers were read, whoever ingests them.
    """
    plan = Plan()
    corrections = corrections or Corrections()
    namesakes = namesakes_of(files if labels is not None else ())
    plan.left_out = [path for path in files if corrections.excludes(path)]
    files = [path for path in files if not corrections.excludes(path)]
    plan.mine = set(files if shard is None else shard.of(files))
    damaged = take_stock(store, configuration_digest, plan)
    adopt_moved(plan, files)
    new = [path for path in files if path not in plan.known]
    headers, empty = headers_of(store, new, read_headers, share=shard is not None and configuration_digest is not None)
    excluded = {path for path in new if path in empty and path not in named}
    recordings = [path for path in new if path not in excluded]
    plan.excluded = [path for path in new if path in excluded and path in plan.mine]
    plan.todo = [path for path in recordings if path in plan.mine]
    known = {path: str(record["id"]) for path, record in plan.known.items()}
    plan.names = assign_names(recordings, plan.outdated | known)
    for path in progress_bar(files, desc="compared with their files", unit="night", delay=SLOW_S):
        if path in plan.known and path in plan.mine:
            reason = changed_since(plan.known[path], path, labels, corrections, namesakes)
            if reason is None:
                plan.kept.append(path)
            else:
                plan.changed[path] = reason
    for path in plan.left_out:
        if path in plan.known:
            plan.changed[path] = f"--overrides leaves {path} out, but it was ingested"
    remade = {plan.names[path] for path in recordings}
    plan.lost = {name: what for name, what in damaged.items() if name not in remade}
    return plan, [header for header in headers if header.path not in excluded]


def take_stock(store: Path, configuration_digest: str | None, plan: Plan) -> dict[str, str]:
    """Note in the plan which nights the store has; returns the ids of those that are damaged, and what is wrong."""
    damaged: dict[str, str] = {}
    stored = sorted((store / "recordings").glob("*.json"))
    for file in progress_bar(stored, desc="nights of the store", unit="night", delay=SLOW_S):
        record = read_record(file)
        if record is None:
            damaged[file.stem] = f"{file} or the .bin beside it is damaged or missing"
        elif record["configuration_digest"] == configuration_digest:
            # Of 12,500 nights the clips alone would take gigabytes as Python objects.
            facts = {name: value for name, value in record.items() if name not in ("clips", "segments", "channels")}
            plan.known[Path(record["source"]["path"])] = {**facts, "n_clips": len(record["clips"]["onset_s"])}
        else:
            plan.outdated[Path(record["source"]["path"])] = record["id"]
    return damaged


def headers_of(
    store: Path, paths: Sequence[Path], read_headers: Callable[[Sequence[Path]], Iterable[Header]], *, share: bool
) -> tuple[list[Header], set[Path]]:
    """Headers of files, and those that hold annotations only; with ``share``, headers that a job has read are left."""
    file = store / HEADERS_READ
    known: dict[str, list[int]] = read_object(file) if share else {}
    facts = {path: facts_of(path) for path in paths}
    headers = list(read_headers([path for path in paths if known.get(str(path), [])[:2] != facts[path]]))
    known |= {str(header.path): [*facts[header.path], int(header.empty)] for header in headers}
    if headers and file.parent.is_dir():
        write_json(file, known)
    return sorted(headers, key=lambda header: header.path), {path for path in paths if known[str(path)][2]}


def facts_of(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]


def adopt_moved(plan: Plan, files: Sequence[Path]) -> None:
    """Take a recording whose source is gone, and which stands under the same name elsewhere, for that recording.

    So is one that the store knows by what a link leads to.
    """
    given = set(files)
    for path in files:
        target = Path(os.path.realpath(path))
        if path not in plan.known and target in plan.known and target not in given:
            plan.known[path] = plan.known.pop(target)
    gone = {path: record for path, record in plan.known.items() if not os.path.exists(path)}  # noqa: PTH110
    if not gone:
        return
    by_name: dict[str, list[Path]] = {}
    for path in gone:
        by_name.setdefault(path.name, []).append(path)
    for path in files:
        for old in by_name.get(path.name, ()) if path not in plan.known else ():
            source = gone[old]["source"]
            try:
                same = path.stat().st_size == source["size"] and file_digest(path) == source["sha256"]
            except OSError:  # its own turn says why
                continue
            if same:
                plan.known[path] = plan.known.pop(old)
                by_name[path.name].remove(old)
                break


def changed_since(
    record: dict[str, Any], path: Path, labels: Path | None, corrections: Corrections, namesakes: Namesakes | None
) -> str | None:
    """Why a recording, its scoring or its corrections are no longer what the record was made from; None where it is."""
    try:
        return changed_recording(record, path, corrections) or changed_scoring(record, path, labels, namesakes)
    except OSError as error:
        return f"{error.filename or path}, which it was ingested from, cannot be read ({error.strerror or error})"


def changed_recording(record: dict[str, Any], path: Path, corrections: Corrections) -> str | None:
    """As :func:`changed_since`, of the recording's own files and its corrections."""
    if is_other(record["source"], path):
        return f"{path} has changed since it was ingested"
    for facts in record["source"].get("others", ()):
        other = path.with_name(facts["path"])
        if not other.exists() or is_other(facts, other):
            return f"{other} has changed since it was ingested"
    if corrections.digest(path) != record.get("corrections_digest", ""):
        return f"the --overrides of {path} are not those it was ingested with"
    return None


def changed_scoring(record: dict[str, Any], path: Path, labels: Path | None, namesakes: Namesakes | None) -> str | None:
    """As :func:`changed_since`, of the files of its scoring."""
    scoring = record["scoring"]
    old = Path(scoring["path"]) if scoring["path"] is not None else None
    try:
        files = [file.resolve() for file in find_scorings(path, labels, namesakes)]
    except ScoringError as error:
        return str(error).rstrip(".")
    unreadable = {facts["path"]: facts for facts in scoring.get("unreadable", ())}
    for file in files:
        if str(file) in unreadable and is_other(unreadable[str(file)], file):
            return f"its scoring {file}, which could not be read, is another file now"
    files = [file for file in files if str(file) not in unreadable]
    found = files[0] if files else None
    if labels is None and found is None and old is not None and old.exists():
        found = old  # it was given by --labels then; leaving the option out does not withdraw it
    if old is None and found is not None:
        # An earlier version kept the name of what could not be read.
        return None if str(found) == scoring["passed_over"] else f"{found} is a new scoring of it"
    if labels is None and found is None and old is not None and old.parent == path.parent.resolve():
        return f"its scoring {old} no longer exists"  # beside it; what --labels gave may be on a disk that is not there
    if old is not None and found is None:
        return None if labels is None else f"{labels} holds no scoring of it any more (it had {old})"
    if old is not None and found is not None and is_other(scoring, found):
        return f"its scoring {found} is not what was ingested"
    added = [file for file in files if str(file) not in scoring.get("named", [str(file)])]
    if added and found == old:
        return f"{added[0]} is a new scoring of it"
    for facts in scoring.get("also", ()):
        if not Path(facts["path"]).exists() or is_other(facts, Path(facts["path"])):
            return f"its scoring {facts['path']} is not what was ingested"
    return None


def is_other(facts: dict[str, Any], path: Path) -> bool:
    """Whether a file differs in size or, where its modification time differs, in content."""
    status = path.stat()
    if status.st_size != facts["size"]:
        return True
    return bool(status.st_mtime_ns != facts["mtime_ns"] and file_digest(path) != facts["sha256"])
