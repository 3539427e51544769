"""What a report is drawn from: run folders with metrics, results, embeddings and stores, whatever of it exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepfm_fast.cli.json_text import from_json, read_object
from sleepfm_fast.cli.path_kinds import places_of
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.embedding_record import wrong_entry
from sleepfm_fast.results import FOLDER, Result, read_result, result_folders
from sleepfm_fast.rundir import RunDirectory
from sleepfm_fast.storage.standing import digest_of_file

if TYPE_CHECKING:
    from sleepfm_fast.clips import ClipStore
    from sleepfm_fast.embeddings import Embeddings

__all__ = ["EMBEDDINGS", "MISSHAPEN", "Run", "describe", "open_runs", "over_nights", "replicates_beside"]

# What reading a record raises whose keys or kinds are not those that its command writes: edited, or of another version.
MISSHAPEN = (SleepfmError, AttributeError, IndexError, KeyError, TypeError, ValueError)

EMBEDDINGS = "embeddings"


@dataclass
class Run:
    """One run folder, read as far as it goes.

    Attributes
    ----------
    path : Path
        The folder.
    name : str
        What the report calls it: the shortest end of its path that no other run shares.
    config : dict
        ``config.json``; empty where there is none (a folder of hand-made features has only results).
    metrics : list of dict
        The rows of ``metrics.jsonl``.
    results : tuple of Result
        Every finished result below ``results/``.
    problems : list of str
        Sentences about files that are there and cannot be read.
    """

    path: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    results: tuple[Result, ...] = ()
    problems: list[str] = field(default_factory=list)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the command that made the run."""
        options = self.config.get("config", {})
        return options if isinstance(options, dict) else {}

    @property
    def supervised(self) -> bool:
        """Whether it is an end-to-end network, which has no embeddings."""
        return "task" in self.options

    @property
    def config_path(self) -> Path:
        """Its ``config.json``."""
        return self.path / "config.json"

    @property
    def metrics_path(self) -> Path:
        """Its ``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    def results_of(self, *commands: str, task: str | None = None) -> list[Result]:
        """Results that one of the commands wrote, for one task or all of them."""
        return [r for r in self.results if r.command in commands and task in (None, r.record.get("task"))]

    def classified(self, task: str) -> Result | None:
        """The result that speaks for a task: ``results/TASK``, else the one of most modalities, else the first by name.

        Tests on another store stand in the task's section only, named as external.
        """
        results = [r for r in self.results_of("probe", "supervise", task=task) if not self.external_store(r)]

        def order(result: Result) -> tuple[bool, int, str]:
            modalities = result.record.get("modalities")
            return result.path.name != task, -len(modalities if isinstance(modalities, list) else ()), str(result.path)

        return min(results, key=order, default=None)

    def external_store(self, result: Result) -> str:
        """The store that a classifier was tested on, where it is another than the run's own; else an empty string."""
        if result.command == "classify":
            store, own = str(result.record.get("store") or ""), result.record.get("trained_on")
            own = str(own or self.options.get("store"))
            return "" if self.same_place(store, own) else store or "another store"
        named = result.record.get("embeddings") if result.command != "supervise" else None
        if not isinstance(named, str) or self.same_place(named, str(self.path / EMBEDDINGS)):
            return ""
        own_store = (describe(self.path / EMBEDDINGS) or {}).get("store") or self.options.get("store")
        found = next((d for place in self.places(named) if (d := describe(place)) is not None), None)
        if found is None:
            # Moved or deleted: names are what is left, such as those that `reproduce` gives.
            words = f"{Path(named).name} {result.path.name}"
            return f"the store of {named}" if "external" in words or "transfer" in words else ""
        store = str(found.get("store") or "")
        return "" if own_store is None or self.same_place(store, str(own_store)) else store or f"the store of {named}"

    @property
    def overlaps(self) -> bool:
        """Whether a result that speaks for the run was tested on people whom it was trained on."""
        own = [r for r in self.results if not self.external_store(r)]
        noted = self.embeddings is not None and self.embeddings.description.overlap
        return noted or self.config.get("overlap") is True or any(r.record.get("overlap") is True for r in own)

    @property
    def unknown_training(self) -> str:
        """Why it cannot be told on whom the encoder was trained; empty where its ``config.json`` says so."""
        config = self.config
        if not config and self.embeddings is not None and self.embeddings.kind == "embedding":
            places = self.places(str(self.embeddings.description.run))
            folder = next((place for place in places if (place / "config.json").is_file()), None)
            if folder is None:
                return f"the run of its embeddings, {self.embeddings.description.run}, is not to be found"
            try:
                config = RunDirectory(folder).config()
            except (SleepfmError, OSError, ValueError) as error:
                return f"the run of its embeddings cannot be read ({error})"
        options = config.get("config")
        imported = options.get("imported_from") if isinstance(options, dict) else None
        if imported:
            return f"its weights were imported from {imported}, which does not say whom they were trained on"
        origin = config.get("initialised_from")
        if isinstance(origin, dict) and origin:
            return (
                f"its weights started from those of {origin.get('path', 'another run')}, whose subjects it does not say"
            )
        return ""

    def same_place(self, one: str, other: str) -> bool:
        """Whether two names that the run's files give to folders can mean one folder."""
        try:
            return bool({p.resolve() for p in self.places(one)} & {p.resolve() for p in self.places(other)})
        except (OSError, ValueError):  # no name that a folder can have
            return False

    @cached_property
    def embeddings(self) -> Embeddings | None:
        """The embeddings folder: ``RUN/embeddings``, or the one its results were made from."""
        from sleepfm_fast.embeddings import Embeddings

        ordered = sorted(self.results, key=lambda r: bool(self.external_store(r)))  # those of its own store first
        named = [str(r.record["embeddings"]) for r in ordered if r.record.get("embeddings")]
        candidates = [self.path / EMBEDDINGS, self.path, *(p for n in dict.fromkeys(named) for p in self.places(n))]
        for folder in candidates:
            if (folder / "embeddings.json").is_file():
                try:
                    return Embeddings(folder)
                except SleepfmError as error:
                    self.problems.append(str(error))
                except MISSHAPEN as error:
                    self.problems.append(f"the embeddings folder {folder} cannot be opened ({error!r}).")
        return None

    def results_of_earlier_embeddings(self) -> list[str]:
        """Sentences about results that were made from what the embeddings folder held before it was made again."""
        if self.embeddings is None:
            return []
        now, sentences = digest_of_file(self.embeddings.path / "embeddings.json"), []
        for result in self.results:
            made_of, named = result.record.get("made_of"), result.record.get("embeddings")
            then = made_of.get("embeddings") if isinstance(made_of, dict) else None
            if not isinstance(then, str) or not isinstance(named, str) or then == now:
                continue
            if self.same_place(named, str(self.embeddings.path)):
                sentences.append(
                    f"the result {result.path} was made from what {named} held before that was made again; its figures "
                    "are those of then. Give its command again with --overwrite to use the present ones."
                )
        return sentences

    @cached_property
    def store(self) -> ClipStore | None:
        """The clip store of the embeddings, else the one trained on, where it can still be found."""
        from sleepfm_fast.clips import ClipStore

        embedded = self.embeddings.description.store if self.embeddings is not None else None
        for named in dict.fromkeys(str(n) for n in (embedded, self.options.get("store")) if n):
            for folder in self.places(named):
                if (folder / "store.json").is_file():
                    try:
                        return ClipStore(folder)
                    except SleepfmError as error:
                        self.problems.append(str(error))
                    except (*MISSHAPEN, OSError) as error:
                        self.problems.append(f"the clip store {folder} cannot be opened ({error!r}).")
        return None

    @property
    def store_named(self) -> str:
        """How the run's files name its store, STORE where they do not."""
        embedded = self.embeddings.description.store if self.embeddings is not None else ""
        return str(self.options.get("store") or embedded or "STORE")

    @property
    def embeddings_named(self) -> str:
        """Where its embeddings are, or would be by convention."""
        return str(self.embeddings.path if self.embeddings is not None else self.path / EMBEDDINGS)

    def places(self, named: str) -> list[Path]:
        """Where a folder may be that the run's files name: as written, or beside the run if both were moved."""
        return places_of(named, self.path)


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """Open run folders in the order given.

    Raises
    ------
    SleepfmError
        When one of them is missing or holds nothing that a report can show.
    """
    if len({p.resolve() for p in paths}) != len(paths):
        raise SleepfmError("a run is named twice; name each run once.")
    return [open_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]


def replicates_beside(runs: Sequence[Run]) -> list[Run]:
    """Networks trained on draws of few subjects of a run's store, in ``*-replicate-*`` folders beside it.

    They are points of few-shot curves and not runs that a reader compares, so the report is not asked for them.
    """
    known = {run.path.resolve() for run in runs}
    found = []
    for parent in dict.fromkeys(path.parent for path in known):
        for path in sorted(parent.glob("*-replicate-*")):
            if path not in known and (path / FOLDER).is_dir():
                try:
                    run = open_run(path, path.name)
                except (SleepfmError, OSError):
                    continue
                if any(run.same_place(str(run.options.get("store")), r.store_named) for r in runs):
                    found.append(run)
    return found


def open_run(path: Path, name: str) -> Run:
    """Read what one folder holds."""
    if not path.is_dir():
        raise SleepfmError(
            f"there is no run folder {path}. Give the folder that train wrote: python -m sleepfm_fast.train STORE RUN"
        )
    run = Run(path, name)
    if run.config_path.is_file():
        try:
            run.config = RunDirectory(path).config()
        except (SleepfmError, OSError, ValueError) as error:
            run.problems.append(str(error))
    run.metrics = read_rows(run)
    run.results = tuple(read_results(run))
    files = ("config.json", "metrics.jsonl", FOLDER, EMBEDDINGS, "embeddings.json")
    if not any((path / file).exists() for file in files):
        raise SleepfmError(
            f"{path} is not a run folder: it has none of {', '.join(files)}. Give the folder that train wrote, or one "
            "with results/."
        )
    return run


def over_nights(result: Result) -> dict[str, Any]:
    """The figures of a classifier, or of a comparison, over whole nights; empty where it has none."""
    nights = result.record.get("nights")
    return nights if isinstance(nights, dict) else {}


def describe(folder: Path) -> dict[str, Any] | None:
    """Read ``embeddings.json`` of a folder without its arrays; None where there is none that can be read."""
    found = read_object(folder / "embeddings.json")
    return found if wrong_entry(found) is None else None


def read_rows(run: Run) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl``; a last line that is being written is no problem, another bad line is named."""
    try:
        lines = run.metrics_path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        run.problems.append(f"{run.metrics_path} cannot be read ({error}).")
        return []
    rows: list[dict[str, Any]] = []
    for i, line in enumerate(lines):
        try:
            row = from_json(line)
            if isinstance(row, dict):
                rows.append(row)
        except ValueError:
            if i + 1 < len(lines):
                run.problems.append(f"line {i + 1} of {run.metrics_path} is not JSON and is left out.")
    return rows


def read_results(run: Run) -> list[Result]:
    """Read every result that can be read; the others become problems."""
    results = []
    for folder in result_folders(run.path):
        try:
            result = read_result(folder)
            if not isinstance(result.record.get("command"), str) or not isinstance(result.record.get("arrays"), dict):
                raise SleepfmError(
                    f"{folder / 'result.json'} does not say which command wrote it, or what arrays it has; write it "
                    "again."
                )
            results.append(result)
        except SleepfmError as error:
            run.problems.append(str(error))
    return results


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name each path by its shortest end that tells it from the others."""
    parts = [p.resolve().parts for p in paths]
    deepest = max(len(p) for p in parts) if parts else 0
    for n in range(1, deepest + 1):
        names = ["/".join(p[-n:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(p) for p in paths]
