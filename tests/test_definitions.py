"""Folders that another version computed by other definitions: told from those of this version, and said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from nights import write_night
from report_runs import classify, embed, start
from synthetic_embeddings import columns_of, description_of

from sleepfm_fast import predict, preprocess, probe, report, transfer
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.changed_store import say_changed_store
from sleepfm_fast.evaluation.embedding_writer import EmbeddingWriter
from sleepfm_fast.results import definitions_note, find_results, read_result
from sleepfm_fast.rundir import RunDirectory
from sleepfm_fast.runs.resumption import reconcile
from sleepfm_fast.storage.definitions import DEFINITIONS, definitions_of, recorded_definitions
from sleepfm_fast.storage.standing import difference, key_of
from sleepfm_fast.store.label_rules import label_rules_note

SPLIT_OF = np.array([0] * 6 + [1] + [2] * 3)


def measured(path: Path, definitions: int | None, **description) -> Path:
    """Features of ten subjects that tell the stage; None: as a version without numbers of definitions wrote them."""
    rng = np.random.default_rng(1)
    label, subject = np.repeat(np.arange(5), 40), np.tile(np.arange(10), 20)
    x = rng.standard_normal((200, 1, 2)).astype(np.float32)
    x[:, 0, 0] += label
    key = {"command": "features"} | ({} if definitions is None else {"definitions": definitions})
    with EmbeddingWriter(path, 200, ("ecg",), 2, features={"ecg": ("hf_ms2", "lf_ms2")}, key=key) as writer:
        writer.append(x, None)
        writer.finish(columns_of(subject, SPLIT_OF[subject], stage=label), description_of(10, **description))
    return path


def as_of_before(folder: Path) -> None:
    """Make a result one of a version that knew no numbers of definitions."""
    file = folder / "result.json"
    record = json.loads(file.read_text())
    for place in (record, record["made_of"]):
        place.pop("definitions", None)
    record.pop("feature_definitions", None)
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("record", "number"), [({}, 1), ({"definitions": 3}, 3), ({"definitions": "2"}, 0), ({"definitions": True}, 0)]
)
def test_a_record_without_a_number_is_of_the_first_definitions(record, number):
    assert recorded_definitions(record) == number


def test_a_command_of_the_first_definitions_has_the_key_that_it_always_had(monkeypatch):
    monkeypatch.setitem(DEFINITIONS, "probe", 1)
    config = probe.Config(Path("emb"), "stage")
    first = key_of("probe", config, {})
    assert "definitions" not in first
    monkeypatch.setitem(DEFINITIONS, "probe", 3)
    third = key_of("probe", config, {})
    assert third == {**first, "definitions": 3}
    assert difference(first, third).startswith("definitions (1 there, 3 now: another version of sleepfm_fast computed")
    assert difference(third, third) == ""


def test_a_finished_result_of_earlier_definitions_is_not_taken_for_this_one(tmp_path, capsys):
    folder = measured(tmp_path / "features", definitions_of("features"))
    given = [str(folder), str(tmp_path / "result"), "--task", "stage", "--bootstraps", "0"]
    assert probe.cli(given) == 0
    assert read_result(tmp_path / "result").record["definitions"] == definitions_of("probe") > 1
    assert "definitions" not in json.loads(capsys.readouterr().out)
    assert probe.cli(given) == 0
    assert "already finished" in capsys.readouterr().err
    as_of_before(tmp_path / "result")
    assert probe.cli(given) == 1
    said = capsys.readouterr().err
    assert f"the existing one differs in definitions (1 there, {definitions_of('probe')} now: another" in said
    assert probe.cli([*given, "--overwrite"]) == 0


def test_a_probe_and_features_of_different_definitions_do_not_go_together(tmp_path, capsys):
    now = definitions_of("features")
    old = measured(tmp_path / "old", None, store="there")
    new = measured(tmp_path / "new", now, store="here")
    for folder in (old, new):
        probe.main(probe.Config(folder, "stage", tmp_path / f"{folder.name}-result", bootstraps=0))
    said = capsys.readouterr().err
    assert f"the features of {old} were measured by definitions 1, and this version" in said
    assert f"the features of {new}" not in said
    assert "measured by definitions 1" in read_result(tmp_path / "old-result").record["store_note"]
    as_of_before(tmp_path / "old-result")
    with pytest.raises(SleepfmError, match=rf"by definitions 1, and those of .*new were measured by definitions {now}"):
        predict.main(predict.Config(tmp_path / "old-result", new, tmp_path / "none"))
    with pytest.raises(SleepfmError, match=f"by definitions {now}, and those of .*old were measured by definitions 1"):
        predict.main(predict.Config(tmp_path / "new-result", old, tmp_path / "none"))
    predict.main(predict.Config(tmp_path / "old-result", old, tmp_path / "predicted-old"))
    predict.main(predict.Config(tmp_path / "new-result", new, tmp_path / "predicted-new"))
    with pytest.raises(SleepfmError, match=f"measured by definitions 1, those of .*new by definitions {now}"):
        transfer.main(transfer.Config(old, new, tmp_path / "none"))
    other = measured(tmp_path / "other", now, store="elsewhere")
    transfer.main(transfer.Config(new, other, tmp_path / "joined"))
    assert Embeddings(tmp_path / "joined").definitions == now
    of_before = measured(tmp_path / "of-before", None, store="elsewhere")
    transfer.main(transfer.Config(old, of_before, tmp_path / "joined-before"))
    assert Embeddings(tmp_path / "joined-before").definitions == 1
    assert Embeddings(tmp_path / "joined-before").made_of.get("definitions") is None


def test_programs_that_know_no_numbers_of_definitions_refuse_features_that_have_them(tmp_path):
    """They read versions 1 and 2, and would take two definitions of a name for one."""
    folder = measured(tmp_path / "features", definitions_of("features"))
    assert json.loads((folder / "embeddings.json").read_text())["version"] == 3
    embed(tmp_path / "embeddings")
    assert json.loads((tmp_path / "embeddings" / "embeddings.json").read_text())["version"] == 2
    file = folder / "embeddings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 2}))
    assert Embeddings(folder).kind == "feature"


def test_a_report_says_which_results_are_of_other_definitions(tmp_path, capsys):
    start(tmp_path / "run")
    embeddings = embed(tmp_path / "run" / "embeddings")
    for task in ("stage", "sdb"):
        classify(tmp_path / "run" / "results" / task, embeddings, task)
    assert definitions_note(find_results(tmp_path / "run"), "Again.") == ""
    assert report.cli([str(tmp_path / "run")]) == 0
    assert "definitions" not in capsys.readouterr().err
    file = tmp_path / "run" / "results" / "stage" / "result.json"
    for number in (None, definitions_of("probe") + 1):  # an earlier version, and a later one
        record = {name: value for name, value in json.loads(file.read_text()).items() if name != "definitions"}
        file.write_text(json.dumps(record | ({} if number is None else {"definitions": number})))
        assert report.cli([str(tmp_path / "run"), "--overwrite"]) == 0
        said = capsys.readouterr().err
        assert f"notice: 1 result ({file.parent}) was computed by the definitions of another version" in said
        assert "computed by the definitions of another version" in (tmp_path / "run" / "report.html").read_text()


def test_a_store_whose_labels_follow_earlier_rules_is_named(tmp_path, monkeypatch, capsys):
    nights, store = tmp_path / "nights", tmp_path / "store"
    nights.mkdir()
    for i in range(2):
        write_night(nights / f"s{i}.edf", seed=i, stages="W12R")
    given = [str(nights), str(store), "--backend", "threading", "--workers", "1"]
    with monkeypatch.context() as earlier:
        earlier.setattr("sleepfm_fast.scoring.labels.LABEL_RULES", 1)
        assert preprocess.cli([*given, "--events-scored", "--meanings", "4=R"]) == 0
        assert label_rules_note(store) == ""
    assert f"the store {store} was made by another version" in label_rules_note(store)
    assert "the preprocess command that made it, given again" in label_rules_note(store)
    folder = measured(tmp_path / "features", definitions_of("features"), store=str(store))
    capsys.readouterr()
    assert "was made by another version" in say_changed_store(Embeddings(folder))
    (nights / "s1.edf").rename(tmp_path / "away.edf")
    assert preprocess.cli([*given, "--events-scored", "--meanings", "4=R"]) == 1
    assert "1 recording of" in (said := capsys.readouterr().err)
    assert "was made by the rules of another version and cannot be processed again without" in said
    (tmp_path / "away.edf").rename(nights / "s1.edf")
    assert preprocess.cli([*given, "--events-scored", "--meanings", "4=R"]) == 0
    assert label_rules_note(store) == ""
    assert label_rules_note(tmp_path / "none") == ""


def test_a_run_with_options_of_another_version_is_not_resumed_without_them(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create({"config": {"lr": 0.1, "mixing": 4}, "store_digest": "a", "ranks": 1})
    now = {"config": {"lr": 0.1}, "defaults": {"lr": 1.0}, "store_digest": "a", "ranks": 1}
    with pytest.raises(SleepfmError, match=re.escape("begun by another version of sleepfm_fast, with --mixing 4")):
        reconcile(run, now)
    assert reconcile(run, {**now, "defaults": {"mixing": 4}}) == []
