"""A supervised network on other recordings: another montage, nights without labels, and what is refused."""

import csv
import json

import numpy as np
import pytest
from known_nights import ECG, EEG, FLOW, staged_night
from nights import Lead
from test_supervise import LEARN, last_json

from sleepfm_fast import classify, preprocess, supervise, train
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.results import read_result

STAGES = ["W"] * 6 + ["2"] * 6


@pytest.fixture(scope="module")
def learnt(planted, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    assert supervise.cli([str(planted), str(run), *LEARN]) == 0
    return run


def store_of(folder, leads, stages, n=3):
    folder.mkdir()
    for i in range(n):
        staged_night(folder / f"new{i}.edf", stages, seed=100 + i, leads=leads)
    store = folder.parent / f"{folder.name}-store"
    assert preprocess.cli([str(folder), str(store), "--workers", "1"]) == 0
    return store


def call(capsys, *arguments):
    capsys.readouterr()
    status = classify.cli([str(a) for a in (*arguments, "--bootstraps", "20", "--threads", "1")])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return last_json(captured.out), captured.err


def refused(capsys, *arguments):
    capsys.readouterr()
    assert classify.cli([str(a) for a in arguments]) == 1
    return capsys.readouterr().err


def test_on_its_own_store_it_repeats_the_runs_test(planted, learnt, tmp_path, capsys):
    result, _ = call(capsys, learnt, planted, tmp_path / "result")
    own, again = read_result(learnt / "results" / "stage"), read_result(tmp_path / "result")
    assert (again.command, again.record["task"]) == ("classify", "stage")
    for name in ("clip", "label", "subject", "recording", "onset_s", "score", "probability"):
        np.testing.assert_array_equal(own.array(name), again.array(name))
    assert result["macro"] == own.record["macro"]
    assert again.record["test"] == own.record["test"]


def test_another_montage_is_an_external_validation(learnt, tmp_path, capsys):
    store = store_of(tmp_path / "edf", [EEG, Lead("E1-M2", 100), FLOW], STAGES)
    result, err = call(capsys, learnt, store, tmp_path / "result", "--subjects", "all")
    assert "the store lacks ecg ECG" in err
    assert result["macro"]["auroc"]["value"] > 0.95
    assert result["test"]["n_clips"] == 36
    assert result["test"]["n_subjects"] == 3


def test_nights_without_labels_get_a_table(learnt, tmp_path, capsys):
    # Scored nowhere: the file has the signals of STAGES and no annotation that tells them.
    store = store_of(tmp_path / "edf", [EEG, ECG, FLOW], ["?"] * 6)
    result, _ = call(capsys, learnt, store, "--table", tmp_path / "out" / "stages.csv", "--subjects", "all")
    assert result["clips"] == 18
    rows = list(csv.DictReader((tmp_path / "out" / "stages.csv").read_text().splitlines()))
    opened = ClipStore(store)
    assert [row["recording"] for row in rows] == [opened.recordings[r].id for r in opened.recording]
    assert [float(row["onset_s"]) for row in rows] == np.asarray(opened.onset_s).tolist()
    assert {row["class"] for row in rows} == {"N2"}, "staged_night draws what is not W as large slow waves"
    for row in rows:
        assert float(row["p_W"]) + float(row["p_N2"]) == pytest.approx(1, abs=1e-3)
    assert "nothing to test" in refused(capsys, learnt, store, tmp_path / "result", "--subjects", "all")
    assert not (tmp_path / "result").exists()


def test_nothing_is_overwritten_unasked(learnt, planted, tmp_path, capsys):
    table = tmp_path / "stages.csv"
    table.write_text("mine")
    assert "exists and is not overwritten" in refused(capsys, learnt, planted, "--table", table)
    assert table.read_text() == "mine"
    call(capsys, learnt, planted, "--table", table, "--overwrite")
    assert table.read_text().startswith("recording,onset_s,duration_s,class,p_W,p_N2\n")


def test_what_cannot_be_is_refused_in_a_sentence(learnt, planted, cohort_store, tmp_path, capsys):
    assert "nothing would be written" in refused(capsys, learnt, planted)
    assert "--bootstraps is -1" in refused(capsys, learnt, planted, tmp_path / "r", "--bootstraps", "-1")
    run = tmp_path / "contrastive"
    assert train.cli([str(cohort_store), str(run), "--preset", "tiny", "--max-steps", "1"]) == 0
    assert "holds a run of train, not of supervise" in refused(capsys, run, cohort_store, tmp_path / "r")


def test_trained_subjects_are_never_tested(learnt, planted, tmp_path, capsys):
    split = json.loads((learnt / "config.json").read_text())["subjects"]
    (tmp_path / "edf").mkdir()
    name = next(s for s, code in split.items() if code == 0)
    staged_night(tmp_path / "edf" / f"{name}.edf", STAGES, seed=0)
    staged_night(tmp_path / "edf" / "p01-again.edf", STAGES, seed=1)
    assert preprocess.cli([str(tmp_path / "edf"), str(tmp_path / "store"), "--workers", "1"]) == 0
    capsys.readouterr()
    status = classify.cli([str(learnt), str(tmp_path / "store"), str(tmp_path / "r"), "--bootstraps", "0"])
    err = capsys.readouterr().err
    if status == 0:
        record = read_result(tmp_path / "r").record
        tested = {record["subjects"][s] for s in np.unique(read_result(tmp_path / "r").array("subject"))}
        assert name not in tested
    else:
        assert "is a test subject" in err
