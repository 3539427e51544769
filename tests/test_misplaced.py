"""Paths of the wrong kind, and in the wrong order: what was given, what was expected, and where the likely one is."""

import importlib
import json
import re
import shutil

import numpy as np
import pytest
from nights import write_night
from synthetic_embeddings import columns_of, write_folder

from sleepfm_fast import preprocess
from sleepfm_fast.__main__ import COMMANDS
from sleepfm_fast.cli.misplaced import Place, mistaken, reads, refuse_misplaced, writes
from sleepfm_fast.cli.path_kinds import Kind, kind_of, likely_paths
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.cohorts.recording_files import find_recordings
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.results import read_result, write_result
from sleepfm_fast.rundir import RunDirectory


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """One folder of every kind, laid out as the documentation has it."""
    root = tmp_path_factory.mktemp("project")
    (root / "edfs" / "site").mkdir(parents=True)
    write_night(root / "edfs" / "site" / "n1.edf")
    assert preprocess.cli([str(root / "edfs"), str(root / "store"), "--workers", "1", "--backend", "threading"]) == 0
    for name, command in (("run", "train"), ("cnn", "supervise")):
        RunDirectory(root / name).create({"command": command, "config": {"store": str(root / "store")}})
    x = np.ones((4, 3, 4), np.float32) / 2
    columns = columns_of([0, 0, 1, 1], [0, 0, 2, 2])
    write_folder(root / "run" / "embeddings", x, columns, run=str(root / "run"), store=str(root / "store"))
    record = {"command": "probe", "task": "stage", "embeddings": str(root / "run" / "embeddings")}
    write_result(root / "run" / "results" / "stage", record, {})
    features = root / "features"
    shutil.copytree(root / "run" / "embeddings", features)
    (features / "embeddings.json").write_text(
        json.dumps({**json.loads((features / "embeddings.json").read_text()), "kind": "feature"})
    )
    (root / "out" / "runs").mkdir(parents=True)
    (root / "out" / "reproduction.json").write_text('{"format": "sleepfm_fast reproduction"}')
    (root / "predictions").mkdir()
    (root / "predictions" / "predictions.json").write_text('{"format": "sleepfm_fast predictions"}')
    (root / "seed" / "X" / "a").mkdir(parents=True)
    (root / "h5").mkdir()
    (root / "h5" / "night.h5").touch()
    (root / "cohort").mkdir()
    (root / "cohort" / "simulation.json").write_text("{}")
    for file in ("best.pt", "notes.txt", "run/best.safetensors"):
        (root / file).touch()
    (root / "empty").mkdir()
    return root


KINDS = {
    "store": Kind.STORE,
    "run": Kind.RUN,
    "cnn": Kind.SUPERVISED,
    "run/embeddings": Kind.EMBEDDINGS,
    "features": Kind.FEATURES,
    "run/results/stage": Kind.RESULT,
    "out": Kind.REPRODUCTION,
    "predictions": Kind.PREDICTIONS,
    "edfs": Kind.RECORDINGS,
    "edfs/site": Kind.RECORDINGS,
    "edfs/site/n1.edf": Kind.RECORDING,
    "cohort": Kind.COHORT,
    "seed": Kind.SCRIPT_CLIPS,
    "h5": Kind.NIGHTS_H5,
    "best.pt": Kind.CHECKPOINT,
    "run/best.safetensors": Kind.CHECKPOINT,
    "run/results": Kind.OTHER,
    "notes.txt": Kind.OTHER,
    "empty": Kind.EMPTY,
    "nowhere": Kind.NOTHING,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_recognised(project, name):
    assert kind_of(project / name) is KINDS[name]


def test_what_is_damaged_or_somebody_elses_is_left_to_its_reader(tmp_path):
    for file in ("store.json", "embeddings.json", "config.json", "result.json"):
        (tmp_path / file).write_text("{")
        assert kind_of(tmp_path) is Kind.OTHER
        (tmp_path / file).write_text('{"format": "mine"}')
        assert kind_of(tmp_path) is Kind.OTHER
    (tmp_path / "night.edf").touch()
    assert kind_of(tmp_path) is Kind.RECORDINGS


@pytest.mark.parametrize(
    ("given", "expected", "found"),
    [
        ("run", Kind.STORE, "store"),
        ("run/embeddings", Kind.STORE, "store"),
        ("run/embeddings", Kind.RUN, "run"),
        ("run/results/stage", Kind.RUN, "run"),
        ("run/results/stage", Kind.EMBEDDINGS, "run/embeddings"),
        ("run", Kind.EMBEDDINGS, "run/embeddings"),
        ("run", Kind.RESULT, "run/results/stage"),
        ("store", Kind.EMBEDDINGS, "run/embeddings"),
        ("store", Kind.RECORDINGS, "edfs"),
        ("edfs/site/n1.edf", Kind.RECORDINGS, "edfs/site"),
        ("run/best.safetensors", Kind.RUN, "run"),
    ],
)
def test_the_likely_one_is_found(project, given, expected, found):
    assert likely_paths(project / given, [expected])[0] == project / found
    assert len({p.resolve() for p in likely_paths(project / given, [expected])}) == len(
        likely_paths(project / given, [expected])
    ), "each once"
    sentence = mistaken(project / given, expected)
    assert sentence.startswith(f"{project / given} is {KINDS[given].value}; {expected.value} was expected. Give ")
    assert found in sentence


def test_what_makes_one_is_said_where_there_is_none(project, tmp_path):
    shutil.copytree(project / "edfs", tmp_path / "deep" / "er" / "edfs")
    sentence = mistaken(tmp_path / "deep" / "er" / "edfs", Kind.STORE)
    assert sentence.endswith(f"Make one: python -m sleepfm_fast.preprocess {tmp_path}/deep/er/edfs STORE")
    assert mistaken(tmp_path / "nowhere", Kind.STORE) == ""
    assert mistaken(project / "store", Kind.STORE) == ""


def test_readers_of_the_library_say_it_too(project):
    for read, given, expected in (
        (ClipStore, "run", "a clip store"),
        (ClipStore, "edfs/site/n1.edf", "a clip store"),
        (Embeddings, "run", "an embeddings folder"),
        (Embeddings, "store", "an embeddings folder"),
        (read_result, "run/embeddings", "a result folder"),
        (lambda path: RunDirectory(path).config(), "store", "a run folder"),
        (lambda path: find_recordings([path]), "run", "a folder of recordings"),
    ):
        with pytest.raises(SleepfmError, match=rf"is {KINDS[given].value}; {expected} was expected\. (Give|Make one)"):
            read(project / given)
    with pytest.raises(SleepfmError, match="is a clip store and is not overwritten"):
        RunDirectory(project / "store").refuse_if_present()


# Arguments, and what the sentence must hold: the kind given, the kind expected (or the order), the likely one.
WRONG = {
    "train": [
        ("run store", "the order is STORE RUN: .*run is a run folder and was given as STORE, .*store is a clip store"),
        ("new store", "the order is STORE RUN: .*store is a clip store and was given as RUN, .*new does not exist"),
        ("edfs new", "STORE: .*edfs is a folder of recordings; a clip store was expected. Give .*store"),
        ("edfs/site/n1.edf new", "n1.edf is a recording; a clip store was expected"),
        ("store edfs", "edfs is a folder of recordings; RUN is what train writes .* Name a new folder"),
        ("run/embeddings new", "embeddings is an embeddings folder; a clip store was expected. Give .*store"),
    ],
    "supervise": [("run store --task stage", "the order is STORE RUN"), ("features new --task sex", "hand-made")],
    "classify": [
        ("store cnn", "the order is RUN STORE RESULT"),
        ("cnn run/embeddings new", "STORE: .*is an embeddings folder; a clip store was expected. Give .*store"),
    ],
    "embed": [
        ("store run new", "the order is RUN STORE EMBEDDINGS"),
        ("run new store", "the order is RUN STORE EMBEDDINGS"),
        ("run/embeddings store new", "RUN: .*is an embeddings folder; a run folder was expected. Give .*run"),
        ("run edfs new", "STORE: .*a clip store was expected. Give .*store"),
        ("run store cnn", "cnn is a run folder of supervise; EMBEDDINGS is what embed writes"),
    ],
    "features": [("new store", "the order is STORE FEATURES"), ("run new", "a clip store was expected. Give .*store")],
    "import_checkpoint": [("new best.pt", "the order is CHECKPOINT RUN"), ("run new", "a checkpoint was expected")],
    "probe": [
        ("run --task stage", "EMBEDDINGS: .*run is a run folder; an embeddings folder was expected. Give .*embeddings"),
        ("store new --task stage", "is a clip store; an embeddings folder was expected"),
        ("new run/embeddings --task age", "the order is EMBEDDINGS RESULT"),
        ("run/results/stage --task sdb", "is a result folder; an embeddings folder was expected. Give .*embeddings"),
    ],
    "few_shot": [("run new --task stage", "an embeddings folder was expected. Give .*embeddings")],
    "retrieve": [("run", "an embeddings folder was expected. Give .*embeddings")],
    "predict": [
        ("run/embeddings run/results/stage new", "the order is RESULT EMBEDDINGS PREDICTIONS"),
        ("run run/embeddings new", "RESULT: .*run is a run folder; a result folder was expected. Give .*stage"),
    ],
    "transfer": [
        ("run features new", "TRAINING: .*an embeddings folder was expected. Give .*embeddings"),
        ("run/embeddings features run/embeddings --overwrite", "as TRAINING, which is read, and as EMBEDDINGS, which"),
    ],
    "compare": [
        ("run/embeddings run/results/stage", "FIRST: .*a result folder was expected. Give .*stage"),
        (
            "run/results/stage run/results/stage run/../run/results/stage --overwrite",
            "Name another folder as RESULT",
        ),
    ],
    "report": [
        ("run store", "RUN: .*store is a clip store; a run folder was expected. Give .*run"),
        ("run/results/stage", "RUN: .*is a result folder; a run folder was expected. Give .*run"),
    ],
    "reproduce": [
        ("out store", "the order is STORE OUT"),
        ("store", "store is a clip store; OUT is what reproduce writes"),
        ("edfs new", "STORE: .*a clip store was expected. Give .*store"),
    ],
    "preprocess": [
        ("store edfs", "the order is FILES-OR-FOLDER STORE"),
        ("store edfs/site/n1.edf", "the order is FILES-OR-FOLDER STORE"),
        ("store new", "is a clip store; a folder of recordings was expected. Give .*edfs"),
        ("run --inspect", "is a run folder; a folder of recordings was expected. Give .*edfs"),
        ("edfs run", "run is a run folder; STORE is what preprocess writes"),
    ],
    "convert": [
        ("new seed --from seed", "the order is SOURCE STORE"),
        ("store new --from seed", "is a clip store; a folder of clips .*was expected"),
    ],
    "simulate": [("store", "store is a clip store; OUT is what simulate writes")],
}


def test_every_command_is_tried():
    assert set(WRONG) == set(COMMANDS)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"), [(n, *case) for n, cases in WRONG.items() for case in cases]
)
def test_a_command_says_what_was_given_what_was_expected_and_where_it_is(
    project, monkeypatch, capsys, name, arguments, sentence
):
    monkeypatch.chdir(project)
    before = sorted(str(p) for p in project.rglob("*"))
    command = importlib.import_module(f"sleepfm_fast.{name}")
    assert command.cli(arguments.split()) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    said = captured.err.strip().splitlines()[-1]
    assert re.search(sentence, said), said
    assert sorted(str(p) for p in project.rglob("*")) == before, "nothing was written"


def test_nothing_is_refused_that_belongs_or_is_unknown(project):
    places = [reads("STORE", project / "store", Kind.STORE), writes("RUN", project / "run", Kind.RUN)]
    refuse_misplaced("train", places)
    for path in (None, project / "nowhere", project / "empty", project / "notes.txt"):
        refuse_misplaced("train", [reads("STORE", path, Kind.STORE), writes("RUN", path, Kind.RUN)])
    assert not Place("STORE", None, (Kind.STORE,)).is_wrong
