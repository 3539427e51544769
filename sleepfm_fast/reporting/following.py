"""The command that most users want next, ready to be pasted into a shell.

Each function answers for one command: it takes the command's configuration and its result, and returns the line, or
None where what comes next is not known. Folders that a next command would write get names that nothing has yet.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepfm_fast.cli.json_text import read_object
from sleepfm_fast.cli.option_ranges import option
from sleepfm_fast.cli.path_kinds import Kind, entries, kind_of, places_of

if TYPE_CHECKING:
    from sleepfm_fast.embeddings import Embeddings

__all__ = [
    "after_checkpoint", "after_embeddings", "after_nights", "after_predictions", "after_preprocess", "after_probe",
    "after_result", "after_store", "after_supervised", "after_training", "after_transfer", "typed",
]  # fmt: skip

RUNS = (Kind.RUN, Kind.SUPERVISED)
ADVISED = {"passed_over", "eeg_lost", "eeg_apart", "common_reference"}
"""Findings that advise --montage aasm."""
USUAL = ("edf", "nights", "recordings", "store", "run", "embeddings", "features")
"""Names that say what a folder is, not whose."""


def typed(command: str, *paths: object, options: str = "") -> str:
    """A command with its positionals, quoted where a shell needs it."""
    words = (str(path) for path in paths)
    quoted = " ".join(shlex.quote(f"./{word}" if word.startswith("-") else word) for word in words)
    return f"python -m sleepfm_fast.{command} {quoted} {options}".rstrip()


def beside(path: Path, kind: str) -> Path:
    """A path in the same folder that nothing has, for what is made of ``path``: a store of nights, a_run of a_store."""
    place = path if path.name not in ("", "..") else path.resolve()
    if place.name.lower() in USUAL:
        return free(place.with_name(kind))
    stem, _, was = place.name.rpartition("_")
    return free(place.with_name(f"{stem if stem and was in USUAL else place.name}_{kind}"))


def free(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... where nothing stands."""
    names = itertools.chain([path.name], (f"{path.name}-{n}" for n in itertools.count(2)))
    return next(place for place in map(path.with_name, names) if not place.exists())


def options_of(config: Any, *without: str) -> str:
    """Options of a configuration that differ from their defaults, but for some, as they are typed."""
    words: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.default is dataclasses.MISSING or value == field.default or field.name in without:
            continue
        words.append(option(field.name))
        if value is not True:
            words += map(str, value) if isinstance(value, tuple) else [str(value)]
    return shlex.join(words)


def after_nights(config: Any, result: dict[str, Any]) -> str:
    """Of ``simulate``: a clip store; the table of participants lies in the folder and is found."""
    return typed("preprocess", config.out, beside(config.out, "store"))


def after_preprocess(config: Any, result: dict[str, Any]) -> str | None:
    """Of ``preprocess``: training, or embeddings by the run of --like; with --inspect, the store as looked at."""
    if not config.inspect:
        if result.get("absent"):  # other tasks of the array are needed first
            return None
        if config.like is not None and result["clips"] and kind_of(config.like) is Kind.RUN:
            return typed("embed", config.like, config.paths[-1], beside(config.paths[-1], "embeddings"))
        return after_store(config, {**result, "store": config.paths[-1]})
    if not result["clips"]:
        return None
    folder = config.paths[0] if config.paths[0].is_dir() else config.paths[0].parent
    options = options_of(config, "paths", "inspect", "json", "workers")
    # With auto all of the EEG would be left out, say; with a montage by name nothing better is known.
    if ADVISED & result["findings_by_code"].keys() and config.montage == "auto" and config.like is None:
        options = f"{options} --montage aasm".lstrip()
    elif result["montage_unresolved"] is not None:  # auto would be refused: what was shown instead
        options = f"{options} --montage {result['montage']['name']}".lstrip()
    return typed("preprocess", *config.paths, beside(folder, "store"), options=options)


def after_store(config: Any, result: dict[str, Any]) -> str | None:
    """Of ``convert`` and ``preprocess``: training, once the store has clips."""
    store = Path(result["store"])
    return typed("train", store, beside(store, "run")) if result.get("clips") else None


def after_training(config: Any, result: dict[str, Any]) -> str | None:
    """Of ``train``: embeddings. The demo has made them."""
    return None if config.store is None else typed("embed", config.run, config.store, config.run / "embeddings")


def after_checkpoint(config: Any, result: dict[str, Any]) -> str:
    """Of ``import_checkpoint``: embeddings of a store, which only the user knows."""
    return typed("embed", config.run, "STORE", config.run / "embeddings")


def after_embeddings(config: Any, result: dict[str, Any]) -> str | None:
    """Of ``embed`` and ``features``: a task of which training and test subjects have labels, else retrieval.

    Embeddings of a further cohort, made with a run whose own were staged, are staged with that probe.
    """
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.tasks import TASKS

    path = Path(result.get("embeddings") or result["features"])
    embeddings = Embeddings(path)
    run = run_of(path)
    former = getattr(config, "run", None)
    if former is not None and (run is None or is_of_another_store(embeddings, run)):
        line = predicted(former, embeddings)
        if line is not None:
            return line
    for task in TASKS:
        if can_be_probed(embeddings, task):
            place = beside(path, task) if run is None else free(run / "results" / task)
            return typed("probe", path, place, options=f"--task {task}")
    return retrieval(embeddings, run)


def is_of_another_store(embeddings: Embeddings, run: Path) -> bool:
    """Whether embeddings that lie in a run's folder are of a store that the run was not trained on."""
    options = read_object(run / "config.json").get("config")
    named = options.get("store") if isinstance(options, dict) else None
    if not isinstance(named, str):
        return False
    trained_on = next((place for place in places_of(named, run) if kind_of(place) == Kind.STORE), None)
    return trained_on is not None and trained_on.resolve() != embeddings.store_path.resolve()


def after_transfer(config: Any, result: dict[str, Any]) -> str | None:
    """Of ``transfer``: a probe of the first task of which both laboratories have labels.

    Where the second has none, its nights by a probe of the first, or first that probe.
    """
    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.tasks import TASKS

    path = config.embeddings
    embeddings, run = Embeddings(path), run_of(path)
    for task in TASKS:
        if can_be_probed(embeddings, task):
            place = beside(path, task) if run is None else free(run / "results" / f"external-{task}")
            return typed("probe", path, place, options=f"--task {task}")
    first, run = Embeddings(config.training), run_of(config.training)
    if run is not None and (line := predicted(run, Embeddings(config.testing))) is not None:
        return line
    for task in TASKS:
        if can_be_probed(first, task):
            place = beside(config.training, task) if run is None else free(run / "results" / task)
            return typed("probe", config.training, place, options=f"--task {task}")
    return None


def predicted(run: Path, embeddings: Embeddings) -> str | None:
    """Classes of nights by a probe that the run has, and whose modalities any of their clips has."""
    from sleepfm_fast.evaluation.tasks import TASKS

    path = embeddings.path
    for task in TASKS:
        record = read_object(run / "results" / task / "result.json")
        if record.get("command") == "probe" and has_clip_of(embeddings, record["modalities"]):
            return typed("predict", run / "results" / task, path, beside(path, "predictions"))
    return None


def after_predictions(config: Any, result: dict[str, Any]) -> str | None:
    """Of ``predict``: where the nights are another store's and were scored after all, the test of the probe on them."""
    import numpy as np

    from sleepfm_fast.embeddings import Embeddings
    from sleepfm_fast.evaluation.tasks import labels_of

    path = config.embeddings
    embeddings, fitted_on = Embeddings(path), Path(str(read_object(config.result / "result.json").get("embeddings")))
    if kind_of(fitted_on) not in (Kind.EMBEDDINGS, Kind.FEATURES):
        return None
    stores = [e.store_path for e in (Embeddings(fitted_on), embeddings)]
    if kind_of(stores[0]) != Kind.STORE or stores[0].resolve() == stores[1].resolve():
        return None
    if not (labels_of(embeddings, result["task"], np.arange(len(embeddings))) >= 0).any():
        return None
    run = run_of(fitted_on)
    place = beside(path, "transfer") if run is None else free(run / "transfer")
    return typed("transfer", fitted_on, path, place, options="--subjects all")


def after_probe(config: Any, result: dict[str, Any]) -> str | None:
    """Of ``probe``: retrieval, where the run has none yet, else the report."""
    from sleepfm_fast.embeddings import Embeddings

    run = None if config.result is None else run_of(config.result)
    # RUN/transfer and the like hold others' clips too.
    own = None if run is None else (run / "embeddings").resolve()
    if run is not None and config.embeddings.resolve() == own and not any(is_retrieval(r) for r in results_of(run)):
        line = retrieval(Embeddings(config.embeddings), run)
        if line is not None:
            return line
    return after_result(config, result)


def after_result(config: Any, result: dict[str, Any]) -> str | None:
    """Of all that write a result: the report of the run that the result is in."""
    run = None if config.result is None else run_of(config.result)
    return None if run is None else report(run)


def after_supervised(config: Any, result: dict[str, Any]) -> str:
    """Of ``supervise``, which has made its result: the report."""
    return report(config.run)


def report(run: Path) -> str:
    """The report of a run, in place of one that stands there."""
    stands = any((run / name).exists() for name in ("report.html", "report.json"))
    return typed("report", run, options="--overwrite" if stands else "")


def retrieval(embeddings: Embeddings, run: Path | None) -> str | None:
    """Retrieval between the modalities of test clips, where there are two of each."""
    if embeddings.kind == "feature" or len(embeddings.modalities) < 2 or embeddings.clips_of("test").size < 2:
        return None
    place = beside(embeddings.path, "retrieval") if run is None else free(run / "results" / "retrieval")
    return typed("retrieve", embeddings.path, place)


def run_of(path: Path) -> Path | None:
    """The run folder that embeddings or a result lie in by convention: RUN/embeddings, RUN/results/NAME."""
    folder = path.parent.parent if path.parent.name == "results" else path.parent
    return folder if kind_of(folder) in RUNS else None


def results_of(run: Path) -> Iterator[dict[str, Any]]:
    """What the results of a run say of themselves."""
    return (read_object(folder / "result.json") for folder in entries(run / "results"))


def is_retrieval(record: dict[str, Any]) -> bool:
    """Whether a result is of ``retrieve``."""
    return record.get("command") == "retrieve"


def has_clip_of(embeddings: Embeddings, modalities: Sequence[str]) -> bool:
    """Whether any clip has all of the modalities."""
    import numpy as np

    if not set(modalities) <= set(embeddings.modalities):
        return False
    columns = [embeddings.modalities.index(m) for m in modalities]
    return bool(np.asarray(embeddings.mask)[:, columns].all(axis=1).any())


def can_be_probed(embeddings: Embeddings, task: str) -> bool:
    """Whether clips with every modality have two classes in the training subjects and one in the test subjects."""
    import numpy as np

    from sleepfm_fast.evaluation.tasks import labels_of

    for split, fewest in (("train", 2), ("test", 1)):
        clips = embeddings.clips_of(split)
        labels = labels_of(embeddings, task, clips)[np.asarray(embeddings.mask)[clips].all(axis=1)]
        if len(np.unique(labels[labels >= 0])) < fewest:
            return False
    return True
