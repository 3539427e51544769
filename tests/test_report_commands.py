"""The commands that a report prints make the store again, from what the store itself recorded."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from nights import contents, write_night
from report_runs import classify, embed, start

from sleepfm_fast import compare, convert, features, probe, transfer
from sleepfm_fast.cohorts.store_inputs import INPUTS, inputs_of, with_inputs
from sleepfm_fast.preprocess import cli
from sleepfm_fast.reporting.headline import headline_section
from sleepfm_fast.reporting.reproduction import commands_of
from sleepfm_fast.reporting.sources import open_runs


def printed(run, store):
    """Arguments of the commands that make the store of a run."""
    start(run, store=str(store))
    (opened,) = open_runs([run])
    words = [shlex.split(command) for command in commands_of(opened)]
    assert opened.problems == []
    return [w[3:] for w in words if w[2] in ("sleepfm_fast.preprocess", "sleepfm_fast.convert")]


@pytest.fixture
def nights(tmp_path):
    """A cohort in two folders, its scoring, table and corrections elsewhere."""
    for name in ("my nights/s1", "my nights/s2", "more", "scoring"):
        (tmp_path / name).mkdir(parents=True)
    for i, name in enumerate(("my nights/s1/a", "my nights/s2/b", "more/c")):
        write_night(tmp_path / f"{name}.edf", stages="----", seed=i)
        (tmp_path / "scoring" / f"{name[-1]}.csv").write_text("onset,duration,stage\n0,30,Wake\n30,60,doze\n90,30,4\n")
    (tmp_path / "people.csv").write_text("subject,age,sex\na,50,F\nb,60,M\nc,70,F\n")
    (tmp_path / "corrections.json").write_text('{"*": {"C4-M1": {"exclude": true}}}')
    return tmp_path


def preprocess(*arguments):
    assert cli([*map(str, arguments), "--backend", "threading", "--workers", "1"]) == 0


def test_every_option_that_changed_the_store_is_repeated(nights, monkeypatch, capsys):
    monkeypatch.chdir(nights)
    options = ["--labels", "scoring", "--participants", "people.csv", "--overrides", "corrections.json"]
    options += ["--montage", "aasm", "--events-scored", "--meanings", "doze=N1", "4=N3"]
    preprocess("my nights", "more", "store", *options)
    (words,) = printed(nights / "run", nights / "store")
    at = words.index("--montage")
    assert words[:3] == [str(nights / "more"), str(nights / "my nights"), str(nights / "store")]
    made = {words[i]: words[i + 1] for i in range(3, len(words) - 1) if words[i].startswith("--")}
    assert made["--labels"] == str(nights / "scoring")
    assert made["--participants"] == str(nights / "people.csv")
    assert made["--overrides"] == str(nights / "corrections.json")
    assert words[at : at + 6] == ["--montage", "aasm", "--events-scored", "--meanings", "doze=N1", "4=N3"]
    again = nights / "again"
    (nights / "elsewhere").mkdir()
    monkeypatch.chdir(nights / "elsewhere")  # the paths hold from anywhere
    preprocess(*(str(again) if word == str(nights / "store") else word for word in words))
    assert contents(again) == contents(nights / "store")


def test_nights_that_came_later_have_a_command_of_their_own(nights, monkeypatch, capsys):
    monkeypatch.chdir(nights)
    preprocess("my nights", "store", "--labels", "scoring")
    preprocess("more", "store", "--participants", "people.csv")
    preprocess("more", "store", "--participants", "people.csv")  # nothing to do, nothing to say
    preprocess("more/c.edf", "store")
    store = str(nights / "store")
    assert printed(nights / "run", nights / "store") == [
        [str(nights / "my nights"), store, "--labels", str(nights / "scoring")],
        [str(nights / "more"), store, "--participants", str(nights / "people.csv")],
    ]
    # made again with scoring: what it was made from before no longer counts
    preprocess("more", "store", "--labels", "scoring", "--overwrite")
    assert printed(nights / "run", nights / "store")[1] == [
        str(nights / "more"),
        store,
        "--labels",
        str(nights / "scoring"),
    ]


def test_a_store_like_another_says_so(nights, capsys):
    preprocess(nights / "my nights", nights / "store", "--montage", "aasm")
    preprocess(nights / "more", nights / "store2", "--like", nights / "store")
    (words,) = printed(nights / "run", nights / "store2")
    assert words == [str(nights / "more"), str(nights / "store2"), "--like", str(nights / "store")]
    preprocess(*(str(nights / "again") if word == str(nights / "store2") else word for word in words))
    assert contents(nights / "again") == contents(nights / "store2")


def test_a_store_that_says_nothing_of_its_inputs(nights, monkeypatch, capsys):
    monkeypatch.chdir(nights)
    preprocess("my nights", "store", "--labels", "scoring")
    file = nights / "store" / "store.json"
    content = json.loads(file.read_text())
    del content["configuration"][INPUTS]  # as earlier versions wrote it
    file.write_text(json.dumps(content))
    folders = [str(nights / "my nights" / name) for name in ("s1", "s2")]
    assert printed(nights / "run", nights / "store") == [[*folders, str(nights / "store")]]
    preprocess("my nights", "store", "--labels", "scoring")  # the next run fills it in
    assert printed(nights / "run", nights / "store")[0][-2:] == ["--labels", str(nights / "scoring")]
    content["configuration"][INPUTS] = [3]
    file.write_text(json.dumps(content))
    start(nights / "run", store=str(nights / "store"))
    (opened,) = open_runs([nights / "run"])
    assert not any("preprocess" in command for command in commands_of(opened))
    assert "the command that made the store cannot be told" in opened.problems[0]
    for overwrite in (False, True):  # what makes no sense goes with the next night
        assert with_inputs({INPUTS: [3]}, {"paths": []}, overwrite=overwrite) == {INPUTS: [{"paths": []}]}


def test_a_converted_store_says_so(nights, capsys):
    (clips := nights / "scripts" / "X" / "r").mkdir(parents=True)
    for i in range(2):
        np.save(clips / f"r_{i}.npy", np.random.default_rng(i).normal(0, 300, (13, 7680)))
    arguments = [
        nights / "scripts",
        nights / "store",
        "--from",
        "seed",
        "--participants",
        nights / "people.csv",
        "--joined",
    ]
    for _ in range(2):
        assert convert.cli([*map(str, arguments), "--workers", "1"]) == 0
    assert printed(nights / "run", nights / "store") == [[str(argument) for argument in arguments]]


def test_inputs_are_listed_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = inputs_of([Path("x")], labels=None, joined=False), inputs_of([Path("y")], labels=None, fs_hz=128.0)
    assert a == {"paths": [str(tmp_path / "x")]}
    both = with_inputs(with_inputs({"digest": "d"}, a), b)
    assert both == {"digest": "d", INPUTS: [a, b]}
    assert with_inputs(both, a) == both
    assert with_inputs(both, a, overwrite=True) == {"digest": "d", INPUTS: [b, a]}


def commands(run):
    (opened,) = open_runs([run])
    found = commands_of(opened)
    assert opened.problems == []
    return found


def test_results_of_other_stores_and_differences_come_with_their_commands(tmp_path):
    start(tmp_path / "run", store="store")
    embeddings = embed(tmp_path / "run" / "embeddings", store="store", presets={"precision": "bfloat16"})
    results = tmp_path / "run" / "results"
    for name, seed in (("b", 1), ("c", 2)):
        classify(results / name, embeddings, "stage", seed=seed)
    classify(results / "external", embeddings, "stage", command="classify", run="CNN", store="my store", tested="all")
    compare.main(compare.Config(results / "c", results / "b", results / "a-difference", bootstraps=7, seed=5))
    found = commands(tmp_path / "run")
    assert found[1].endswith(f"store {tmp_path}/run/embeddings --precision bfloat16")
    assert (
        found[-2] == f"python -m sleepfm_fast.classify CNN 'my store' {results}/external --bootstraps 20 --subjects all"
    )
    wanted = f"{results}/c {results}/b {results}/a-difference --bootstraps 7 --seed 5"
    assert found[-1] == f"python -m sleepfm_fast.compare {wanted}", "after the results that it is of"


def test_a_probe_of_joined_embeddings_comes_with_the_commands_that_join_them(tmp_path):
    run = tmp_path / "run"
    start(run, store="store")
    own = embed(run / "embeddings", store="store", run=str(run))
    other = embed(tmp_path / "other", store="store2", run=str(run), seed=1, presets={"precision": "bfloat16"})
    joined = run / "transfer"
    transfer.main(transfer.Config(own.path, other.path, joined, subjects="all"))
    for name in ("external-stage", "external-stage-again"):
        probe.main(probe.Config(joined, "stage", run / "results" / name, bootstraps=3))
    found = [command.removeprefix("python -m sleepfm_fast.") for command in commands(run)][1:]
    assert found[:3] == [
        f"embed {run} store {run}/embeddings",
        f"embed {run} store2 {tmp_path}/other --precision bfloat16",
        f"transfer {own.path} {other.path} {joined} --subjects all",
    ]
    assert [command.split()[:3] for command in found[3:]] == [
        ["probe", str(joined), f"{run}/results/{name}"] for name in ("external-stage", "external-stage-again")
    ]
    # Joined by a version that did not keep whose folders they were: one is the run's, the other only the user knows.
    file = joined / "embeddings.json"
    content = json.loads(file.read_text())
    del content["presets"]["joined"]
    file.write_text(json.dumps(content))
    assert f"python -m sleepfm_fast.transfer {own.path} TESTING {joined} --subjects all" in commands(run)


def test_hand_made_features_come_with_their_command(cohort_store, tmp_path):
    out = tmp_path / "run" / "embeddings"
    features.main(features.Config(cohort_store, out, test_share=0.3, backend="threading", workers=1))
    probe.main(probe.Config(out, "sdb", tmp_path / "run" / "results" / "sdb", bootstraps=3))
    found = commands(tmp_path / "run")[-2:]
    assert found[0] == f"python -m sleepfm_fast.features {cohort_store} {out} --test-share 0.3"
    assert found[1].startswith(f"python -m sleepfm_fast.probe {out} {tmp_path}/run/results/sdb --task sdb")
    assert "--bootstraps 3" in found[1]


def test_what_is_missing_of_a_folder_of_embeddings_is_made_from_it(tmp_path):
    """`report EMBEDDINGS`: the folder is no run that could be embedded with."""
    embed(tmp_path / "emb")
    start(tmp_path / "run")
    said = {}
    for name in ("emb", "run"):
        (missing,) = headline_section(open_runs([tmp_path / name])).groups[0].items
        said[name] = [line.split()[2].removeprefix("sleepfm_fast.") for line in missing.command.splitlines()]
    assert said == {"emb": ["probe", "probe", "retrieve"], "run": ["embed", "probe", "probe", "retrieve"]}
