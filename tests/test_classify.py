"""A supervised network on other recordings: another montage, nights without labels, and what is refused."""

import csv
import itertools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from known_nights import ECG, EEG, FLOW, staged_night
from nights import Lead
from safetensors import safe_open
from safetensors.torch import save_file
from test_supervise import LEARN, last_json

from sleepfm_fast import classify, compare, preprocess, supervise, train
from sleepfm_fast.clips import ClipStore
from sleepfm_fast.results import read_result
from sleepfm_fast.runs.splits import SPLITS, hash_fraction
from sleepfm_fast.scoring.sleep_figures import SLEEP_COLUMNS

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
    argv = [str(a) for a in (*arguments, "--threads", "1")]
    has_result = len(list(itertools.takewhile(lambda a: not a.startswith("--"), argv))) == 3
    status = classify.cli([*argv, "--bootstraps", "20"] if has_result else argv)
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: tensor[:-1], "has the shape [1] there, [2] in the model"),
        (
            lambda tensor: tensor.to(torch.complex64),
            "has the type complex64 there, floating-point numbers in the model",
        ),
    ],
)
def test_weights_of_another_network_are_named(planted, learnt, tmp_path, capsys, change, words):
    run = shutil.copytree(learnt, tmp_path / "run")
    with safe_open(str(run / "best.safetensors"), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        metadata = file.metadata()
    name = next(name for name in sorted(tensors) if tensors[name].ndim == 1 and tensors[name].is_floating_point())
    tensors[name] = change(tensors[name]).clone()
    save_file(tensors, str(run / "best.safetensors"), metadata)
    err = refused(capsys, run, planted, tmp_path / "result")
    assert f"error: {run / 'best.safetensors'} holds another network: {name.removeprefix('model/')} {words}." in err


def test_calibration_of_a_network_with_balanced_classes_is_corrected_as_the_runs_is(planted, tmp_path, capsys):
    run = tmp_path / "run"
    assert supervise.cli([str(planted), str(run), *LEARN, "--max-steps", "3", "--class-weights", "balanced"]) == 0
    own = read_result(run / "results" / "stage").record["calibration"]
    _, err = call(capsys, run, planted, tmp_path / "result")
    assert read_result(tmp_path / "result").record["calibration"] == own
    assert own["prior_corrected"]["predicted_class"]["bins"]
    assert "as fitted" in err
    assert "notice: " + str(run) not in err
    shutil.rmtree(run / "results")
    _, err = call(capsys, run, planted, tmp_path / "without")
    assert list(read_result(tmp_path / "without").record["calibration"]) == ["as_fitted"]
    assert f"notice: {run} was trained with balanced classes, and no result in it says how frequent they were" in err


def test_another_montage_is_an_external_validation(learnt, tmp_path, capsys):
    store = store_of(tmp_path / "edf", [EEG, Lead("E1-M2", 100), FLOW], STAGES)
    result, err = call(capsys, learnt, store, tmp_path / "result", "--subjects", "all")
    assert "the store lacks ecg ECG" in err
    assert result["macro"]["auroc"]["value"] > 0.95
    assert result["test"]["n_clips"] == 36
    assert result["test"]["n_subjects"] == 3


def test_channels_that_a_store_made_like_the_run_has_in_no_night_are_said(learnt, tmp_path, capsys):
    """Its montage is the network's, so that nothing seems to be missing."""
    folder = tmp_path / "edf"
    folder.mkdir()
    for i in range(3):
        staged_night(folder / f"new{i}.edf", STAGES, seed=100 + i, leads=[EEG, FLOW] if i else [EEG, ECG])
    for only, said in ((1, "the store lacks ecg ECG; the network works without it"), (0, "ecg ECG in 1")):
        files = [str(folder / f"new{i}.edf") for i in range(only, 3)]
        store = tmp_path / f"store{only}"
        assert preprocess.cli([*files, str(store), "--like", str(learnt), "--workers", "1"]) == 0
        _, err = call(capsys, learnt, store, tmp_path / f"result{only}", "--subjects", "all")
        (notice,) = (line for line in err.splitlines() if "ecg ECG" in line)
        assert said in notice
        assert ('{"*": {"LABEL": {"alias": "ECG"}}}' in notice) == (only == 1)


def test_what_the_training_lacked_too_is_not_said(tmp_path, capsys):
    folder = tmp_path / "edf"
    folder.mkdir()
    for i in range(3):
        staged_night(folder / f"new{i}.edf", STAGES, seed=100 + i, leads=[EEG, ECG])
    store, run = tmp_path / "store", tmp_path / "run"
    assert preprocess.cli([str(folder), str(store), "--montage", "aasm", "--workers", "1"]) == 0
    assert supervise.cli([str(store), str(run), *LEARN, "--max-steps", "2"]) == 0
    _, err = call(capsys, run, store, tmp_path / "result", "--subjects", "all")
    assert "the store lacks" not in err


def test_onsets_of_a_table_are_whole():
    store = SimpleNamespace(recording=[0], onset_s=[28807.125], recordings=[SimpleNamespace(id="night")])
    text = classify.table_text(store, np.array([0]), ("W", "R"), np.array([[0.25, 0.75]]))
    assert text.splitlines()[1] == "night,28807.125,30,R,0.2500,0.7500"


def test_nights_without_labels_get_a_table(learnt, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(classify, "ROWS", 5)  # written in pieces: the clips of a large cohort take gigabytes as text
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


def test_predictions_are_a_folder_of_hypnograms(learnt, tmp_path, capsys):
    store = store_of(tmp_path / "edf", [EEG, ECG, FLOW], ["?"] * 6)
    folder = tmp_path / "predictions"
    call(capsys, learnt, store, "--table", tmp_path / "t.csv", "--predictions", folder, "--subjects", "all")
    rows = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    table = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [(r["recording"], r["onset_s"], r["predicted"]) for r in rows] == [
        (r["recording"], r["onset_s"], r["class"]) for r in table
    ]
    nights = list(csv.DictReader((folder / "nights.csv").read_text().splitlines()))
    assert [(night["split"], night["epochs_compared"]) for night in nights] == [("", "0")] * len(nights)
    for night in nights:
        assert night["scored_epochs"] == "0"
        assert night["total_sleep_time_min"]
        assert {night["scored_min"], night["total_sleep_time_min_within_scored"], night["scored_n2_min"]} == {""}
    # Other software's way back: the same nights, scored by these files.
    again = tmp_path / "again"
    scored = [str(tmp_path / "edf"), str(again), "--labels", str(folder / "hypnograms"), "--workers", "1"]
    assert preprocess.cli(scored) == 0
    assert np.asarray(ClipStore(again).stage).tolist() == [2] * 18
    assert "exists and is not overwritten: the existing one differs in subjects (all there, test now)" in (
        refused(capsys, learnt, store, "--predictions", folder, "--table", tmp_path / "t.csv")
    )


def test_predictions_say_what_a_subject_served_the_network_for(learnt, planted, tmp_path, capsys):
    call(capsys, learnt, planted, "--predictions", tmp_path / "p", "--subjects", "all")
    nights = list(csv.DictReader((tmp_path / "p" / "nights.csv").read_text().splitlines()))
    known = json.loads((learnt / "config.json").read_text())["subjects"]
    assert [night["split"] for night in nights] == [SPLITS[known[night["subject"]]] for night in nights]


def test_predicted_sleep_is_compared_with_the_scorers_in_the_epochs_that_were_scored(learnt, tmp_path, capsys):
    stages = ["?"] * 3 + ["W", "W", "2", "?", "2", "2"] + ["?"] * 3  # lights off after three epochs, on before the last
    store = store_of(tmp_path / "edf", [EEG, ECG, FLOW], stages)
    call(capsys, learnt, store, "--predictions", tmp_path / "p", "--subjects", "all")
    nights, scorers = (
        list(csv.DictReader((folder / "nights.csv").read_text().splitlines())) for folder in (tmp_path / "p", store)
    )
    assert [night["recording"] for night in nights] == [night["recording"] for night in scorers]
    for night, scorer in zip(nights, scorers, strict=True):
        assert night["total_sleep_time_min"] == "5", "all but the two epochs of W"
        assert (night["scored_epochs"], night["scored_min"]) == (scorer["scored_clips"], scorer["scored_min"])
        assert (night["scored_epochs"], night["scored_min"]) == ("5", "3")
        for name in SLEEP_COLUMNS:
            assert night[f"scored_{name}"] == scorer[name]
            # Right in every epoch, so equal in every figure.
            assert night[f"{name}_within_scored"] == scorer[name]
        assert night["total_sleep_time_min_within_scored"] == "1.5"
        assert night["sleep_latency_min_within_scored"] == "1"


def test_nothing_is_overwritten_unasked(learnt, planted, tmp_path, capsys):
    table = tmp_path / "stages.csv"
    table.write_text("mine")
    assert "exists and is not overwritten" in refused(capsys, learnt, planted, "--table", table)
    assert table.read_text() == "mine"
    for option in ([], ["--overwrite"]):
        assert "is a folder; give a file" in refused(capsys, learnt, planted, "--table", tmp_path, *option)
    call(capsys, learnt, planted, "--table", table, "--overwrite")
    assert table.read_text().startswith("recording,onset_s,duration_s,class,p_W,p_N2\n")


def test_what_is_finished_is_not_classified_again(learnt, planted, tmp_path, capsys, monkeypatch):
    result, folder, table = (tmp_path / name for name in ("result", "predictions", "t.csv"))
    given = (learnt, planted, result, "--predictions", folder, "--table", table)
    first, _ = call(capsys, *given)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    classified = classify.classified
    monkeypatch.setattr(classify, "classified", None)
    again, err = call(capsys, *given)
    for path in (result, folder):
        assert f"{path} is already finished: this same command wrote it. To make it again, add --overwrite." in err
    assert {**again, "elapsed_s": 0} == {**first, "elapsed_s": 0}
    # Killed before the result and the table, which come last: they are made, and the predictions stay.
    monkeypatch.setattr(classify, "classified", classified)
    shutil.rmtree(result)
    assert "a table does not record what it was made from" in refused(capsys, *given, "--bootstraps", "20")
    table.unlink()
    again, err = call(capsys, *given)
    assert f"wrote {table}" in err
    assert f"{folder} is already finished" in err
    assert {**again, "elapsed_s": 0} == {**first, "elapsed_s": 0}
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # The table alone, which comes last.
    table.unlink()
    again, _ = call(capsys, *given)
    assert again["macro"] == first["macro"]
    assert table.read_bytes() == files[table]
    # Another network, in the same folder.
    run = tmp_path / "run"
    shutil.copytree(learnt, run)
    call(capsys, run, planted, "--predictions", tmp_path / "own")
    (run / "best.safetensors").write_bytes((run / "last.safetensors").read_bytes())
    for where in ("own", "predictions"):
        assert "the existing one differs in" in refused(capsys, run, planted, "--predictions", tmp_path / where)


def test_what_cannot_be_is_refused_in_a_sentence(learnt, planted, cohort_store, tmp_path, capsys):
    assert "nothing would be written" in refused(capsys, learnt, planted)
    assert "--bootstraps is -1" in refused(capsys, learnt, planted, tmp_path / "r", "--bootstraps", "-1")
    run = tmp_path / "contrastive"
    assert train.cli([str(cohort_store), str(run), "--preset", "tiny", "--max-steps", "1"]) == 0
    assert "holds a run of train, not of supervise" in refused(capsys, run, cohort_store, tmp_path / "r")


def copy_with(learnt, folder, subjects):
    """Copy the run; it then says that these subjects had these sides."""
    shutil.copytree(learnt, folder)
    saved = json.loads((folder / "config.json").read_text())
    saved["subjects"] |= subjects
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


def nights_of(folder, *names):
    (folder / "edf").mkdir(parents=True)
    for i, name in enumerate(names):
        staged_night(folder / "edf" / f"{name}.edf", STAGES, seed=i)
    assert preprocess.cli([str(folder / "edf"), str(folder / "store"), "--workers", "1"]) == 0
    return folder / "store"


def test_trained_subjects_are_never_tested(learnt, tmp_path, capsys):
    # By the rule both "stranger" and "p01-again5" are test subjects; that the run was trained with the latter decides.
    assert max(hash_fraction("sleepfm_fast", name) for name in ("stranger", "p01-again5")) < 0.2
    assert hash_fraction("sleepfm_fast", "visitor") > 0.3, "a training subject by the rule, unknown to the run"
    run = copy_with(learnt, tmp_path / "run", {"p01-again5": 0})
    store = nights_of(tmp_path / "cohort", "p01-again5", "stranger", "visitor", "guest", "somebody")
    result, _ = call(capsys, run, store, tmp_path / "r")
    record = read_result(tmp_path / "r").record
    assert {record["subjects"][s] for s in np.unique(read_result(tmp_path / "r").array("subject"))} == {"stranger"}
    assert (result["overlap"], result["test"]["n_subjects"]) == (False, 1)
    # A store of one person has no split of its own, but the run knows whom it has seen.
    alone = nights_of(tmp_path / "alone", "p01-again5")
    assert "is a test subject" in refused(capsys, run, alone, tmp_path / "a")
    result, err = call(capsys, run, nights_of(tmp_path / "visit", "visitor"), tmp_path / "v")
    assert (result["overlap"], "memorisation" in err) == (False, False)


def test_subjects_that_the_run_has_seen_are_counted(learnt, planted, tmp_path, capsys):
    codes = json.loads((learnt / "config.json").read_text())["subjects"].values()
    seen = sum(code != 2 for code in codes)
    assert 0 < seen < 12
    result, err = call(capsys, learnt, planted, tmp_path / "all", "--subjects", "all")
    assert result["overlap"] is True
    assert f"{seen} of the 12 subjects classified are subjects that {learnt} has seen" in result["overlap_note"]
    assert f"({sum(code == 0 for code in codes)} train and {sum(code == 1 for code in codes)} validation: " in err
    assert f"notice: {result['overlap_note']}" in err
    assert read_result(tmp_path / "all").record["overlap_note"] == result["overlap_note"]
    # The table alone says it too, and a comparison repeats it.
    table, err = call(capsys, learnt, planted, "--table", tmp_path / "all.csv", "--subjects", "all")
    assert table["overlap"] is True
    assert result["overlap_note"] in err
    assert compare.cli([str(learnt / "results" / "stage"), str(tmp_path / "all"), "--bootstraps", "20"]) == 0
    out, err = capsys.readouterr()
    compared = last_json(out)
    assert (compared["compared"], compared["overlap"]) == (["supervise", "classify"], True)
    assert compared["overlap_note"] == f"{tmp_path / 'all'}: {result['overlap_note']}"
    assert f"notice: {compared['overlap_note']}" in err
    assert compared["accuracy"]["difference"] == 0


def test_a_run_of_one_subject_says_that_it_has_seen_it(tmp_path, capsys):
    store = nights_of(tmp_path / "one", "only")
    assert supervise.cli([str(store), str(tmp_path / "run"), *LEARN, "--max-steps", "1"]) == 0
    result, err = call(capsys, tmp_path / "run", store, tmp_path / "r")
    assert (result["overlap"], result["test"]["n_clips"]) == (True, 12)
    assert "1 of the 1 subject classified" in err
    assert "(1 train: only)" in result["overlap_note"]
