"""The few-shot curve: nested draws, agreement with the probe, absent classes, and going on after a stop."""

from __future__ import annotations

import json
import os
import re
import subprocess
from functools import partial

import numpy as np
import pytest
from called import called, last_json
from scipy import stats
from synthetic_embeddings import columns_of, write_folder

from sleepfm_fast import few_shot, probe
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation.few_shot_points import FORMAT, Points, partial_path
from sleepfm_fast.evaluation.few_shot_summary import mean_interval, summarise
from sleepfm_fast.evaluation.figures import FIGURES
from sleepfm_fast.results import claimed_result, read_result
from sleepfm_fast.storage import claims

DIM = 12
SPLIT_OF = np.array([0] * 9 + [1] * 2 + [2] * 5)


def planted(tmp_path, *, signal=1.2, n_each=30, change=None, name="emb", seed=0, split_of=SPLIT_OF, **more):
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(len(split_of)), n_each)
    label = rng.integers(0, 5, subject.size)
    if change is not None:
        label = change(label, subject)
    x = rng.standard_normal((subject.size, 3, DIM))
    x[np.arange(subject.size), :, np.maximum(label, 0)] += signal
    columns = columns_of(subject, split_of[subject], stage=label)
    return write_folder(tmp_path / name, x, columns, **more)


run = partial(called, few_shot.cli)


def test_the_curve(tmp_path, capsys):
    folder = planted(tmp_path)
    status, result, err = run(
        capsys, folder, tmp_path / "out", "--task", "stage", "--subjects", 1, 4, 2, 64, "--replicates", 2
    )
    assert status == 0
    assert [(p["subjects"], p["replicate"]) for p in result["curve"]] == [
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
        (4, 0),
        (4, 1),
        (9, 0),
    ]
    assert "there are 9 subjects to draw from; 64 stands for all of them" in err
    assert "a class that a draw lacks counts at chance; intervals over draws of subjects" in err
    draws = {(p["subjects"], p["replicate"]): set(p["drawn"]) for p in result["curve"]}
    for (n, replicate), drawn in draws.items():
        assert len(drawn) == n
        assert drawn < {f"s{i:03d}" for i in range(9)} or n == 9
        assert draws[1, replicate] <= drawn
        assert draws.get((4, replicate), drawn) >= drawn or n == 9
    assert draws[1, 0] != draws[1, 1]
    by_number = {row["subjects"]: row for row in result["summary"]}
    assert list(by_number) == [1, 2, 4, 9]
    assert by_number[9]["macro"]["auroc"]["mean"] > by_number[1]["macro"]["auroc"]["mean"]
    assert by_number[9]["macro"]["auroc"]["low"] is None
    pair = [p["macro"]["auroc"] for p in result["curve"] if p["subjects"] == 2]
    half = stats.t.ppf(0.975, 1) * np.std(pair, ddof=1) / np.sqrt(2)
    assert by_number[2]["macro"]["auroc"]["mean"] == pytest.approx(np.mean(pair))
    assert by_number[2]["macro"]["auroc"]["low"] == pytest.approx(max(np.mean(pair) - half, 0))
    assert read_result(tmp_path / "out").record["curve"] == result["curve"]
    assert not partial_path(tmp_path / "out").exists()


@pytest.mark.parametrize("more", [(), ("--fit-on", "train+validation"), ("--modality", "brain", "--standardise")])
def test_the_last_point_is_the_probe(tmp_path, capsys, more):
    folder = planted(tmp_path)
    _, result, _ = run(capsys, folder, tmp_path / "out", "--task", "stage", "--subjects", 2, *more)
    probe.cli([str(folder), "--task", "stage", "--bootstraps", "0", *more])
    probed = last_json(capsys.readouterr().out)
    last = result["curve"][-1]
    assert last["subjects"] == probed["train"]["n_subjects"] == (11 if "train+validation" in more else 9)
    assert last["n_clips"] == probed["train"]["n_clips"]
    assert last["macro"] == {
        "n_classes": 5,
        **{f: probed["macro"][f]["value"] for f in ("auroc", "auprc", "f1")},
    }
    for name, entry in last["classes"].items():
        assert entry == {f: probed["classes"][name][f]["value"] for f in ("auroc", "auprc", "f1")}
    assert last["macro_absent_at_chance"]["auroc"] == pytest.approx(last["macro"]["auroc"])


def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path, capsys, monkeypatch):
    folder = planted(tmp_path)
    asked = ("--task", "stage", "--subjects", 1, 2, 4, "--replicates", 2)
    whole = run(capsys, folder, tmp_path / "whole", *asked)[1]
    measure, calls = few_shot._measure, []

    def stop_after(n):
        def counted(*arguments):
            calls.append(1)
            if len(calls) > n:
                raise KeyboardInterrupt
            return measure(*arguments)

        return counted

    monkeypatch.setattr(few_shot, "_measure", stop_after(3))
    status, _, err = run(capsys, folder, tmp_path / "out", *asked)
    assert status == 130
    assert "the same command continues" in err
    assert not (tmp_path / "out").exists()
    with partial_path(tmp_path / "out").open("ab") as file:
        file.write(b'{"subjects": 4, "repl')  # killed while it wrote
    calls.clear()
    monkeypatch.setattr(few_shot, "_measure", stop_after(100))
    status, resumed, err = run(capsys, folder, tmp_path / "out", *asked)
    assert status == 0
    assert "continuing: 3 of 7 points are finished" in err
    assert len(calls) == 4
    whole.pop("seconds")
    resumed.pop("seconds")
    assert resumed == whole


def test_a_finished_curve_is_not_drawn_again(tmp_path, capsys, monkeypatch):
    folder = planted(tmp_path)
    asked = (folder, tmp_path / "out", "--task", "stage", "--subjects", 1, "--replicates", 1)
    first = run(capsys, *asked)[1]
    partial_path(tmp_path / "out").touch()  # a kill between the result and the end of the command
    monkeypatch.setattr(few_shot, "_measure", None)
    status, again, err = run(capsys, *asked)
    assert (status, again) == (0, first)
    assert (
        f"{tmp_path / 'out'} is already finished: this same command wrote it. To make it again, add --overwrite." in err
    )
    assert not partial_path(tmp_path / "out").exists()
    for more in (("--c", 2), ("--subjects", 1, 2)):
        status, _, err = run(capsys, *asked, *more)
        assert (status, "exists and is not overwritten" in err) == (1, True)
    # Other people under the same vectors: the ages are not in them.
    record = json.loads((folder / "embeddings.json").read_text())
    (folder / "embeddings.json").write_text(json.dumps({**record, "ages": [40.0] * len(record["ages"])}))
    status, _, err = run(capsys, *asked)
    assert (status, "exists and is not overwritten" in err) == (1, True)


def test_two_processes_do_not_write_one_curve(tmp_path, capsys):
    folder = planted(tmp_path)
    asked = (folder, tmp_path / "new" / "out", "--task", "stage", "--subjects", 1, "--replicates", 1)
    with claimed_result(tmp_path / "new" / "out"):
        status, _, err = run(capsys, *asked)
        assert status == 1
        assert f"another process (process {os.getpid()} on " in err
        assert f"is writing {tmp_path / 'new' / 'out'}. Wait for it, or give another folder." in err
    # A holder that was killed holds nobody up.
    claim = tmp_path / "new" / ".out.claim"
    dead = subprocess.Popen(["true"])
    dead.wait()
    claim.parent.mkdir()  # the empty folder went with the claim
    claim.write_text(json.dumps({**claims.this_process().__dict__, "pid": dead.pid, "started": "1"}))
    assert run(capsys, *asked)[0] == 0
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]


def test_points_of_another_experiment_are_not_mixed_in(tmp_path, capsys, monkeypatch):
    folder = planted(tmp_path)
    asked = (folder, tmp_path / "out", "--task", "stage", "--subjects", 1, "--replicates", 1)
    _keep_partial(monkeypatch)
    assert run(capsys, *asked)[0] == 1
    status, _, err = run(capsys, *asked, "--c", "0.5")
    assert status == 1
    assert "differs in c (1.0 there, 0.5 now). Remove it to start from the beginning, or add --overwrite." in err
    other = planted(tmp_path, name="other", seed=1)
    status, _, err = run(capsys, other, *asked[1:])
    assert (status, "differs in the embeddings" in err) == (1, True)
    # Other people under the same vectors: neither their ages nor their names are in the arrays.
    record = json.loads((folder / "embeddings.json").read_text())
    for change in ({"ages": [40.0] * len(record["ages"])}, {"subjects": record["subjects"][::-1]}):
        (folder / "embeddings.json").write_text(json.dumps({**record, **change}))
        status, _, err = run(capsys, *asked)
        assert (status, "differs in the embeddings" in err) == (1, True)
    (folder / "embeddings.json").write_text(json.dumps(record, indent=1) + "\n")
    monkeypatch.setattr("sleepfm_fast.storage.standing.__version__", "0")
    status, _, err = run(capsys, *asked)
    assert (status, "differs in version (" in err) == (1, True)
    partial_path(tmp_path / "out").write_text("thesis\n")
    status, _, err = run(capsys, *asked)
    assert (status, "does not hold the points" in err) == (1, True)
    monkeypatch.undo()
    status, result, _ = run(capsys, *asked, "--overwrite")
    assert status == 0
    assert len(result["curve"]) == 2


def _keep_partial(monkeypatch):
    """Let the run fail where it would write its result."""
    from sleepfm_fast.errors import SleepfmError

    def fail(*_, **__):
        raise SleepfmError("the disk is full")

    monkeypatch.setattr("sleepfm_fast.results.write_result", fail)


def test_an_empty_or_headless_partial_file_is_as_none(tmp_path, capsys):
    folder = planted(tmp_path)
    for content in (b"", b'{"format": "sleep'):
        partial_path(tmp_path / "out").write_bytes(content)
        status, result, _ = run(
            capsys, folder, tmp_path / "out", "--task", "stage", "--subjects", 1, "--replicates", 1, "--no-all-subjects"
        )
        assert status == 0
        assert len(result["curve"]) == 1
        (tmp_path / "out" / "result.json").unlink()
        (tmp_path / "out").rmdir()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"key": {}}\n', "the entry 'format' is missing"),
        ('{"format": "another", "key": {}}\n', "its format is 'another'"),
        ('{"format": "FORMAT"}\n', "it does not say what its points were made of"),
        ('{"format": "FORMAT", "key": [1]}\n', "it does not say what its points were made of"),
        ('{"format": "FORMAT", "key": {}}\n{"subjects": 1}\n', "the entry 'replicate' is missing"),
        ("[]\n", "it does not say what its points were made of"),
    ],
)
def test_what_holds_no_points_is_refused_and_stays(tmp_path, content, why):
    file = tmp_path / "points"
    file.write_text(content.replace("FORMAT", FORMAT))
    with pytest.raises(SleepfmError, match=re.escape(f"{file} does not hold the points of a few-shot curve ({why}")):
        Points(file, {})
    assert file.read_text() == content.replace("FORMAT", FORMAT)


def test_classes_absent_from_a_draw_count_at_chance_beside(tmp_path, capsys):
    # Only subject 8 has R; every other draw lacks it. Subject 5 has N2 only.
    def change(label, subject):
        label = np.where((label == 4) & (subject < 8), 3, label)
        return np.where(subject == 5, 2, label)

    folder = planted(tmp_path, change=change, signal=4.0)
    _, result, _ = run(capsys, folder, tmp_path / "out", "--task", "stage", "--subjects", 1, "--replicates", 12)
    one = {p["drawn"][0]: p for p in result["curve"] if p["subjects"] == 1}
    assert "s005" in one, "twelve draws of nine reach the subject of one class"
    only = one["s005"]
    assert "every clip drawn is 'N2'" in only["note"]
    assert only["macro"]["n_classes"] == 1
    assert only["macro_absent_at_chance"]["auroc"] == 0.5
    prevalence = np.array(list(result["test"]["class_counts"].values())) / result["test"]["n_clips"]
    assert only["macro_absent_at_chance"]["auprc"] == pytest.approx(prevalence.mean())
    assert only["accuracy"] == pytest.approx(prevalence[2])
    without = next(p for name, p in one.items() if name not in ("s005", "s008"))
    assert without["classes"]["R"]["auroc"] is None
    assert "absent from the training clips" in without["classes"]["R"]["note"]
    assert without["macro"]["n_classes"] == 4
    others = [without["classes"][c]["auroc"] for c in ("W", "N1", "N2", "N3")]
    assert without["macro"]["auroc"] == pytest.approx(np.mean(others))
    assert without["macro_absent_at_chance"]["auroc"] == pytest.approx(np.mean([*others, 0.5]))
    assert result["curve"][-1]["macro"]["n_classes"] == 5


def test_subjects_without_a_label_are_not_drawn(tmp_path, capsys):
    folder = planted(tmp_path, change=lambda label, subject: np.where(subject < 6, -1, label))
    _, result, _ = run(capsys, folder, tmp_path / "out", "--task", "stage", "--subjects", 1, "--replicates", 5)
    assert result["n_subjects_to_draw_from"] == 3
    assert {name for p in result["curve"] for name in p["drawn"]} <= {"s006", "s007", "s008"}


def test_sex_of_one_subject_is_one_class(tmp_path, capsys):
    folder = planted(tmp_path)
    status, result, _ = run(capsys, folder, tmp_path / "out", "--task", "sex", "--subjects", 1, 4)
    assert status == 0
    for p in result["curve"]:
        if p["subjects"] == 1:
            assert p["macro_absent_at_chance"]["auroc"] == 0.5
    assert result["summary"][0]["macro_absent_at_chance"]["auroc"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 3}


def test_one_subject_overlaps(tmp_path, capsys):
    folder = planted(tmp_path, split_of=np.array([0]), n_each=60, overlap=True, overlap_note="They overlap.")
    status, result, err = run(capsys, folder, tmp_path / "out", "--task", "stage")
    assert status == 0
    assert len(result["curve"]) == 1
    assert "notice: They overlap." in err


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--subjects", 0), "--subjects is 0"),
        (("--replicates", 0), "--replicates is 0"),
        (("--c", "nan"), "--c is nan"),
        (("--task", "sdb"), "has a label for --task sdb"),
        (("--modality", "ecg"), None),
    ],
)
def test_refusals(tmp_path, capsys, arguments, match):
    folder = planted(tmp_path)
    task = () if "--task" in arguments else ("--task", "stage")
    status, _, err = run(capsys, folder, tmp_path / "out", *task, "--subjects", 1, "--replicates", 1, *arguments)
    assert status == (1 if match else 0)
    assert match is None or match in err.splitlines()[-1]


def test_a_standing_result_is_refused_before_any_work(tmp_path, capsys):
    folder = planted(tmp_path)
    asked = (folder, tmp_path / "out", "--task", "stage", "--subjects", 1, "--replicates", 1)
    assert run(capsys, *asked)[0] == 0
    status, _, err = run(capsys, tmp_path / "nothing", *asked[1:])
    assert (status, "--overwrite" in err) == (1, True)


def test_intervals_are_cut_at_0_and_1_and_leave_out_what_is_unknown():
    entry = mean_interval([0.99, 1.0, 0.9, None])
    assert entry["n"] == 3
    assert entry["high"] == 1.0
    assert mean_interval([None]) == {"mean": None, "low": None, "high": None, "n": 0}
    assert mean_interval([0.25]) == {"mean": 0.25, "low": None, "high": None, "n": 1}


def test_the_interval_of_replicates_is_student_s():
    values = np.random.default_rng(0).uniform(0.4, 0.6, 7)
    entry = mean_interval(values.tolist())
    expected = stats.ttest_1samp(values, 0.5).confidence_interval(0.95)
    assert (entry["low"], entry["high"]) == pytest.approx((expected.low, expected.high))
    two = mean_interval([0.5, 0.5001])
    assert (two["mean"], two["low"]) == pytest.approx((0.50005, 0.50005 - 12.7062 * 0.00005))
    assert mean_interval([0.0, 0.1])["low"] == 0.0


def test_a_curve_has_one_row_a_number_of_subjects_ascending():
    def point(subjects, n_clips, value, **more):
        kinds = {kind: dict.fromkeys(FIGURES, value) for kind in ("macro", "macro_absent_at_chance")}
        return {"subjects": subjects, "n_clips": n_clips, **kinds, "classes": {"F": kinds["macro"]}, **more}

    def both(subjects, n_clips, value):
        return point(subjects, n_clips, value, nights=point(subjects, n_clips, value / 2))

    curve = [both(64, 900, 0.9), both(8, 100, 0.5), both(64, 1100, 0.8), both(8, 110, 0.7), point(8, 120, None)]
    few, many = summarise(curve)
    assert (few["subjects"], few["n_replicates"], few["mean_clips"]) == (8, 3, 110)
    assert (many["subjects"], many["n_replicates"], many["mean_clips"]) == (64, 2, 1000)
    for figure in FIGURES:
        assert few["macro"][figure] == few["classes"]["F"][figure] == mean_interval([0.5, 0.7])
        assert many["macro_absent_at_chance"][figure] == mean_interval([0.9, 0.8])
        assert few["nights"]["macro"][figure] == mean_interval([0.25, 0.35])
        assert many["nights"]["classes"]["F"][figure] == mean_interval([0.45, 0.4])


def test_a_refusal_leaves_no_folder_that_training_would_refuse(tmp_path, capsys):
    run_folder = tmp_path / "run"
    status, _, _ = run(capsys, run_folder / "embeddings", run_folder / "results" / "curve", "--task", "stage")
    assert status == 1
    assert not run_folder.exists()
    run_folder.mkdir()
    (run_folder / "results").mkdir()
    assert run(capsys, run_folder / "embeddings", run_folder / "results" / "curve", "--task", "stage")[0] == 1
    assert (run_folder / "results").is_dir(), "what stood before stays"
