"""Age and sex over nights: a night by the mean probability of its clips, intervals over subjects, in every place."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from report_runs import classify, embed, start
from sklearn.metrics import average_precision_score, roc_auc_score
from synthetic_embeddings import columns_of, unit, write_folder
from test_report import figures_of, make

from sleepfm_fast import compare, few_shot, predict, probe
from sleepfm_fast.evaluation import few_shot_points
from sleepfm_fast.evaluation.classification import HeldOut, conclude, log_odds, probability_of
from sleepfm_fast.evaluation.metrics import bootstrap_subjects
from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.results import read_result

NIGHTS_OF = (1, 3, 2, 1, 1, 2, 4, 1, 1, 2, 1, 1)  # of each subject
SUBJECT_OF = np.repeat(np.arange(len(NIGHTS_OF)), NIGHTS_OF)  # of each night
CLIPS_OF = 5 + np.arange(len(SUBJECT_OF)) % 7  # of each night
SEXES = ("M", "F") * 6
AGES = (10.0, 30.0, 40.0, 60.0, 12.0, 25.0, 45.0, 70.0, 9.0, 33.0, 41.0, 80.0)


def held_out(task, *, sexes=SEXES, recording_ages=()):
    """Clips of subjects with one to four nights, in no order, and the class of each."""
    night = np.repeat(np.arange(len(SUBJECT_OF)), CLIPS_OF)
    onset = np.concatenate([30.0 * np.arange(n) for n in CLIPS_OF])
    order = np.random.default_rng(0).permutation(len(night))
    night, onset = night[order].astype(np.int32), onset[order]
    subject = SUBJECT_OF[night].astype(np.int32)
    if task == "sex":
        label = np.array([TASKS["sex"].names.index(sex) for sex in sexes])[subject]
    else:
        ages = np.array(recording_ages)[night] if len(recording_ages) else np.array(AGES)[subject]
        label = np.searchsorted((18, 35, 50), ages, "right")
    people = tuple(f"p{i}" for i in range(len(NIGHTS_OF)))
    nights = tuple(f"n{i}" for i in range(len(SUBJECT_OF)))
    return HeldOut(
        order, label.astype(np.int8), subject, night, onset, people, nights, AGES, sexes, tuple(recording_ages)
    )


def concluded(path, task, seed=3, signal=0.7, **more):
    test = held_out(task, **more)
    k = len(TASKS[task].names)
    logits = np.random.default_rng(seed).standard_normal((len(test.label), k)) + signal * np.eye(k)[test.label]
    odds = log_odds(logits).astype(np.float32)
    record = {"command": "probe", "task": task}
    return conclude(record, test, odds, np.arange(k, dtype=np.int8), bootstraps=80, seed=5, path=path), test, odds


def by_hand(test, odds):
    """Mean probability, class and subject of every night, in plain loops."""
    p, rows = probability_of(odds), []
    for night in range(len(SUBJECT_OF)):
        here = np.flatnonzero(test.recording == night)
        rows.append((p[here].mean(axis=0), test.label[here[0]], test.subject[here[0]]))
    mean, label, subject = zip(*rows, strict=True)
    return np.array(mean), np.array(label), np.array(subject)


@pytest.mark.parametrize("task", ["age", "sex"])
def test_figures_over_nights_are_those_of_scikit_learn(tmp_path, task, capsys):
    result, test, odds = concluded(tmp_path / task, task, signal=0.7 if task == "age" else 0.35)
    mean, label, subject = by_hand(test, odds)
    nights = result["nights"]
    assert (nights["n_nights"], nights["n_subjects"]) == (20, 12)
    assert read_result(tmp_path / task).record["nights"] == nights
    weights = bootstrap_subjects(12, 80, 5)[:, subject].astype(float)
    for k in TASKS[task].scored:
        entry = nights["classes"][TASKS[task].names[k]]
        assert entry["n_test"] == (label == k).sum()
        assert entry["auroc"]["value"] == pytest.approx(roc_auc_score(label == k, mean[:, k]))
        assert entry["auprc"]["value"] == pytest.approx(average_precision_score(label == k, mean[:, k]))
        drawn = [w for w in weights if 0 < w[label == k].sum() < w.sum()]
        values = [roc_auc_score(label == k, mean[:, k], sample_weight=w) for w in drawn]
        assert entry["auroc"]["n_resamples"] == len(drawn)
        limits = (entry["auroc"]["low"], entry["auroc"]["high"])
        if np.ptp(values) < 1e-9:
            assert limits == (None, None)
        else:
            assert limits == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    right = mean.argmax(1) == label
    assert nights["accuracy"]["value"] == pytest.approx(right.mean())
    assert nights["accuracy"]["low"] == pytest.approx(np.percentile((weights @ right) / weights.sum(1), 2.5))
    assert nights["confusion"]["n_nights"] == np.sum(nights["confusion"]["counts"]) == 20
    # More clips tell more than one: that is what the figure is for.
    assert nights["macro"]["auroc"]["value"] > result["macro"]["auroc"]["value"] + 0.1
    said = capsys.readouterr().err
    assert "over nights, each by the mean probability of its clips (20 nights of 12 subjects):" in said
    assert said.index("over nights") < said.index("stratum")
    assert "class    nights" in said


@pytest.mark.parametrize("task", ["age", "sex"])
def test_strata_over_nights_are_those_of_the_nights_alone(tmp_path, task, capsys):
    result, test, odds = concluded(tmp_path / task, task)
    mean, label, subject = by_hand(test, odds)
    of_sex = np.array([SEXES[s] for s in subject])
    for sex in ("M", "F"):
        here = of_sex == sex
        nights = result["strata"]["sex"][sex]["nights"]
        assert (nights["n_nights"], nights["n_subjects"]) == (here.sum(), 6)
        assert nights["accuracy"]["value"] == pytest.approx((mean.argmax(1) == label)[here].mean())
        assert "confusion" not in nights
        for k in TASKS[task].scored:
            entry = nights["classes"][TASKS[task].names[k]]
            assert entry["n_test"] == (label[here] == k).sum()
            if 0 < entry["n_test"] < here.sum():
                assert entry["auroc"]["value"] == pytest.approx(roc_auc_score(label[here] == k, mean[here, k]))
    assert sum(entry["nights"]["n_nights"] for entry in result["strata"]["age"].values()) == 20
    said = capsys.readouterr().err
    assert "strata over nights:" in said
    assert "stratum       subjects   nights" in said
    assert said.count(f"\n{'age 0-18':<13}") == 2  # over clips, then over nights


def test_calibration_over_nights_is_that_of_the_mean_probabilities(tmp_path, capsys):
    test = held_out("sex")
    logits = np.random.default_rng(1).standard_normal((len(test.label), 2)) + 0.7 * np.eye(2)[test.label]
    odds = log_odds(logits).astype(np.float32)
    prior = np.array([0.8, 0.2])
    result = conclude(
        {"command": "probe", "task": "sex"}, test, odds, np.arange(2, dtype=np.int8), bootstraps=60, seed=5, prior=prior
    )
    nights = result["calibration"]["nights"]
    assert (nights["n_nights"], nights["n_subjects"]) == (20, 12)
    p = probability_of(odds)
    corrected = p * prior / (p * prior).sum(1, keepdims=True)
    weights = bootstrap_subjects(12, 60, 5)
    for name, of_clips in (("as_fitted", p), ("prior_corrected", corrected)):
        mean, label, subject = (
            np.array(column)
            for column in zip(
                *(
                    (of_clips[here].mean(0), test.label[here[0]], test.subject[here[0]])
                    for here in (np.flatnonzero(test.recording == night) for night in range(20))
                ),
                strict=True,
            )
        )
        squares = np.square(mean[:, 1] - label)
        found = nights[name]["classes"]["F"]
        assert found["brier"]["value"] == pytest.approx(squares.mean())
        drawn = weights[:, subject]
        limits = np.percentile((drawn @ squares) / drawn.sum(1), [2.5, 97.5])
        assert (found["brier"]["low"], found["brier"]["high"]) == pytest.approx(tuple(limits))
        place = np.minimum((10 * mean[:, 1]).astype(int), 9)
        assert [b["n"] for b in found["bins"]] == np.bincount(place, minlength=10).tolist()
        right = mean.argmax(1) == label
        brier = np.square(mean.max(1) - right).mean()
        assert nights[name]["predicted_class"]["brier"]["value"] == pytest.approx(brier)
        assert "expected_calibration_error" not in found
    assert "over nights, Brier score of the predicted class: " in capsys.readouterr().err


def two_nights_each(path, n_train, n_test, n_clips, shift, seed, **about):
    """Embeddings of subjects with two nights each, every other one shifted along the first coordinate."""
    n_nights = 2 * (n_train + n_test)
    night = np.repeat(np.arange(n_nights), n_clips)
    subject = night // 2
    columns = columns_of(subject, np.array([0] * n_train + [2] * n_test)[subject])
    columns |= {"recording": night.astype(np.int32), "clip": np.tile(np.arange(n_clips), n_nights).astype(np.int32)}
    columns["onset_s"] = columns["clip"] * 30.0
    x = np.random.default_rng(seed).standard_normal((len(night), 3, 6))
    x[:, :, 0] += shift * (subject % 2)[:, None]
    return write_folder(path, unit(x), columns, recordings=tuple(f"n{i}" for i in range(n_nights)), **about)


@pytest.mark.parametrize("task", ["sex", "age"])
def test_few_shot_over_nights_ends_at_the_probe_and_takes_points_of_before(tmp_path, capsys, task):
    ages = tuple(30.0 if i % 2 else 60.0 for i in range(18))
    folder = two_nights_each(tmp_path / "emb", n_train=10, n_test=8, n_clips=10, shift=0.6, seed=4, ages=ages)
    asked = [str(folder), str(tmp_path / "curve"), "--task", task, "--subjects", "1", "4"]
    assert few_shot.cli(asked) == 0
    said = capsys.readouterr().err
    assert "over nights, each by the mean probability of its clips:" in said
    assert probe.cli([str(folder), str(tmp_path / "probe"), "--task", task, "--bootstraps", "0"]) == 0
    record, whole = read_result(tmp_path / "curve").record, read_result(tmp_path / "probe").record["nights"]
    assert record["test"]["n_nights"] == whole["n_nights"] == 16
    last = record["curve"][-1]["nights"]
    for figure in ("auroc", "auprc", "f1"):
        assert last["macro"][figure] == pytest.approx(whole["macro"][figure]["value"])
    assert last["accuracy"] == pytest.approx(whole["accuracy"]["value"])
    four = [p["nights"]["macro_absent_at_chance"]["auroc"] for p in record["curve"] if p["subjects"] == 4]
    mean = {row["subjects"]: row for row in record["summary"]}[4]["nights"]["macro_absent_at_chance"]["auroc"]
    assert (mean["mean"], mean["n"]) == (pytest.approx(np.mean(four)), 3)
    alone = [p["nights"] for p in record["curve"] if p["subjects"] == 1]
    assert all(p["macro_absent_at_chance"]["auroc"] == 0.5 for p in alone)  # one person has one class
    # A run that an earlier version left unfinished.
    curve = record["curve"]
    shutil.rmtree(tmp_path / "curve")
    key = {name: value for name, value in record["made_of"].items() if name not in few_shot.WHICH_POINTS}
    points = few_shot_points.Points(few_shot_points.partial_path(tmp_path / "curve"), key)
    points.add({name: value for name, value in curve[0].items() if name != "nights"})
    points.add(curve[1])
    assert few_shot.cli(asked) == 0
    assert "continuing: 1 of 7 points is finished" in capsys.readouterr().err
    assert read_result(tmp_path / "curve").record["curve"] == curve


def test_two_visits_of_a_subject_may_be_of_two_age_groups(tmp_path):
    ages = np.array(AGES)[SUBJECT_OF] + 10.0 * np.arange(len(SUBJECT_OF))
    result, test, odds = concluded(tmp_path / "age", "age", recording_ages=tuple(ages))
    _, label, _ = by_hand(test, odds)
    counts = np.bincount(np.searchsorted((18, 35, 50), ages, "right"), minlength=4)
    np.testing.assert_array_equal(np.bincount(label, minlength=4), counts)
    assert [entry["n_test"] for entry in result["nights"]["classes"].values()] == counts.tolist()


def test_one_class_among_the_nights_has_no_figure_and_says_why(tmp_path, capsys):
    result, _, _ = concluded(tmp_path / "sex", "sex", sexes=("F",) * 12)
    nights = result["nights"]
    assert nights["classes"]["F"]["note"] == "the only class of the test nights"
    assert nights["macro"]["auroc"] == {"value": None, "low": None, "high": None, "n_resamples": 0}
    assert nights["accuracy"]["value"] is not None
    result, _, _ = concluded(tmp_path / "age", "age", recording_ages=(30.0,) * 10 + (40.0,) * 10)
    nights = result["nights"]
    assert nights["classes"]["50+"]["note"] == "absent from the test nights"
    assert nights["macro"]["n_classes"] == 2
    assert "the only class of the test nights" in capsys.readouterr().err


def test_one_test_subject_has_no_intervals(tmp_path):
    test = held_out("sex")
    one = test.subject == 1
    alone = HeldOut(*(getattr(test, f)[one] for f in ("clip", "label", "subject", "recording", "onset_s")),
                    test.subjects, test.recordings, test.ages, test.sexes)  # fmt: skip
    odds = log_odds(np.random.default_rng(0).standard_normal((one.sum(), 2)))
    nights = conclude(
        {"command": "probe", "task": "sex"}, alone, odds, np.arange(2, dtype=np.int8), bootstraps=20, seed=0
    )["nights"]
    assert (nights["n_nights"], nights["n_subjects"]) == (3, 1)
    assert nights["accuracy"]["value"] is not None
    assert nights["accuracy"]["low"] is None


def test_stages_and_events_have_no_figures_over_nights(tmp_path):
    start(tmp_path / "run")
    embeddings = embed(tmp_path / "run" / "embeddings")
    for task in ("stage", "sdb"):
        classify(tmp_path / "run" / "results" / task, embeddings, task)
        assert "nights" not in read_result(tmp_path / "run" / "results" / task).record


def test_nights_of_a_probe_are_those_that_predict_writes(tmp_path, capsys):
    folder = two_nights_each(tmp_path / "emb", n_train=6, n_test=6, n_clips=12, shift=0.5, seed=2)
    result, predictions = tmp_path / "sex", tmp_path / "predictions"
    assert probe.cli([str(folder), str(result), "--task", "sex", "--bootstraps", "0"]) == 0
    assert predict.cli([str(result), str(folder), str(predictions)]) == 0
    capsys.readouterr()
    with (predictions / "nights.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    truth, p = np.array([row["known"] == "F" for row in rows]), np.array([float(row["p_F"]) for row in rows])
    nights = read_result(result).record["nights"]
    assert nights["n_nights"] == len(rows) == 12
    assert nights["macro"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, p))
    assert nights["accuracy"]["value"] == pytest.approx(np.mean([row["predicted"] == row["known"] for row in rows]))


def test_compare_over_nights_takes_results_of_before_too(tmp_path, capsys):
    first, test, one = concluded(tmp_path / "a", "age")
    second, _, other = concluded(tmp_path / "b", "age", seed=4, signal=0.4)
    file = tmp_path / "b" / "result.json"
    before = json.loads(file.read_text())
    del before["nights"]
    file.write_text(json.dumps(before))
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "c"), "--bootstraps", "40"]
    assert compare.cli(arguments) == 0
    said = capsys.readouterr().err
    nights = read_result(tmp_path / "c").record["nights"]
    assert (nights["n_nights"], nights["n_classes"]) == (20, 4)
    for name in ("auroc", "auprc", "f1"):
        found, pair = nights["macro"][name], [r["nights"]["macro"][name]["value"] for r in (first, second)]
        assert (found["first"], found["second"]) == pytest.approx(tuple(pair))
        assert found["difference"] == pytest.approx(pair[0] - pair[1])
        assert found["low"] <= found["difference"] <= found["high"]
    (mean, label, subject), (theirs, _, _) = by_hand(test, one), by_hand(test, other)
    right = (mean.argmax(1) == label).astype(float) - (theirs.argmax(1) == label)
    weights = bootstrap_subjects(12, 40, 0)[:, subject]
    limits = np.percentile((weights @ right) / weights.sum(1), [2.5, 97.5])
    assert (nights["accuracy"]["low"], nights["accuracy"]["high"]) == pytest.approx(tuple(limits))
    assert "over nights, macro auroc" in said
    assert "over nights, 50+ auprc" in said


def test_compare_over_nights_whatever_the_order_of_clips(tmp_path, capsys):
    _, test, _ = concluded(tmp_path / "a", "age")
    _, _, odds = concluded(tmp_path / "b", "age", seed=4, signal=0.4)
    rows = np.random.default_rng(9).permutation(len(test.label))
    of_clips = ("clip", "label", "subject", "recording", "onset_s")
    moved = dataclasses.replace(test, **{name: getattr(test, name)[rows] for name in of_clips})
    record = {"command": "probe", "task": "age"}
    conclude(record, moved, odds[rows], np.arange(4, dtype=np.int8), bootstraps=0, seed=5, path=tmp_path / "moved")
    found = []
    for second in ("b", "moved"):
        assert compare.cli([str(tmp_path / x) for x in ("a", second)] + ["--bootstraps", "10"]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1])["nights"])
    for name in ("auroc", "auprc", "f1"):
        assert found[1]["macro"][name] == pytest.approx(found[0]["macro"][name])
    assert found[1]["accuracy"] == pytest.approx(found[0]["accuracy"])


def test_the_report_shows_figures_over_nights_and_reads_results_without(tmp_path):
    run = tmp_path / "run"
    start(run)
    embeddings = embed(run / "embeddings", n_subjects=8, ages=(30.0, 40.0) * 4)
    results = run / "results"
    for name, seed in (("age", 1), ("age-2", 2)):
        classify(results / name, embeddings, "age", seed=seed)
    compare.main(compare.Config(results / "age", results / "age-2", results / "difference", bootstraps=20))
    few_shot.main(few_shot.Config(embeddings.path, results / "curve", "age", subjects=(2, 3), replicates=1))
    _, page, numbers, _ = make(run)
    figures = figures_of(numbers)
    record = read_result(results / "age").record
    (card,) = [f for (_, _, t), f in figures.items() if t == "Age group: AUROC over nights, mean of groups"]
    assert card["data"]["run"]["figure"] == record["nights"]["macro"]["auroc"]
    assert "2 nights of 2 test subjects; mean of the 2 of 4 classes that have it" in card["data"]["run"]["note"]
    tables = [f for (s, _, t), f in figures.items() if (s, t) == ("Age group", "Figures of each class, over nights")]
    assert tables[0]["data"] == record["nights"]
    assert "A night counts once, by the mean probability of its clips (2 nights of 2 subjects)" in tables[0]["caption"]
    (together,) = [f for (_, _, t), f in figures.items() if t == "All classifiers of this task, over nights"]
    assert [row["test_nights"] for row in together["data"]] == [2, 2]
    (differences,) = [f for (_, _, t), f in figures.items() if t == "Differences"]
    assert differences["data"][0]["nights"] == read_result(results / "difference").record["nights"]
    assert "over nights" in "".join(page.text)
    (calibrated,) = [f for (s, _, t), f in figures.items() if (s, t) == ("Age group", "Calibration, over nights")][:1]
    assert calibrated["data"] == record["calibration"]["nights"]
    assert "no mean distance from the diagonal" in calibrated["caption"]
    (groups,) = [f for (s, _, t), f in figures.items() if t == "By group of subjects, over nights"][:1]
    assert groups["data"]["sex M"] == record["strata"]["sex"]["M"]["nights"]
    (curve,) = [f for (_, _, t), f in figures.items() if t == "Age group: macro AUROC, over nights"]
    assert curve["data"]["run: probe"]["replicates"] == [
        [p["nights"]["macro_absent_at_chance"]["auroc"]] for p in read_result(results / "curve").record["curve"]
    ]
    for file in results.glob("*/result.json"):
        old = json.loads(file.read_text())
        old.pop("nights", None)
        (old.get("calibration") or {}).pop("nights", None)
        for entry in (*(old.get("curve") or ()), *(e for g in (old.get("strata") or {}).values() for e in g.values())):
            entry.pop("nights", None)
        file.write_text(json.dumps(old))
    _, _, numbers, _ = make(run)
    titles = {t for (_, _, t) in figures_of(numbers)}
    assert "Age group: AUROC over clips, mean of groups" in titles
    assert not any("over nights" in t for t in titles)
