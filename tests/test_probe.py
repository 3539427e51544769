"""The probe on folders whose answer is known: planted classes, noise, absent classes, one subject, refusals."""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
from called import called
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, roc_auc_score
from synthetic_embeddings import columns_of, unit, write_folder

from sleepfm_fast import probe
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.evaluation import logistic
from sleepfm_fast.evaluation.classification import log_odds, probability_of
from sleepfm_fast.evaluation.labelled_clips import labelled_clips
from sleepfm_fast.results import find_results, read_result

DIM = 12
SPLIT_OF = np.array([0] * 8 + [1] * 2 + [2] * 6)  # 16 subjects


def planted(
    tmp_path, *, signal, n_each=40, classes=5, seed=0, mask=None, change=None, split_of=SPLIT_OF, sdb=False, **more
):
    """Clips whose every modality points towards its class's axis with strength ``signal``, in noise."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(len(split_of)), n_each)
    label = rng.integers(0, classes, subject.size)
    if change is not None:
        label = change(label, split_of[subject])
    x = rng.standard_normal((subject.size, 3, DIM))
    x[np.arange(subject.size), :, np.maximum(label, 0)] += signal * (label >= 0)[:, None]
    columns = columns_of(subject, split_of[subject], **{"sdb" if sdb else "stage": label})
    folder = write_folder(tmp_path / "emb", x, columns, mask=mask, **more)
    return folder, unit(x), columns


run = partial(called, probe.cli)


def test_planted_classes_are_found(tmp_path, capsys):
    folder, _, _ = planted(tmp_path, signal=30.0)
    status, result, err = run(capsys, folder, "--task", "stage", "--bootstraps", "50")
    assert status == 0
    assert result["macro"]["auroc"]["value"] == 1.0
    assert result["macro"]["auprc"]["value"] == 1.0
    assert result["macro"]["f1"]["value"] == 1.0
    assert result["macro"]["n_classes"] == 5
    # Nobody differs from anybody, which is no 95 % interval from 1 to 1.
    assert result["accuracy"] == {"value": 1.0, "low": None, "high": None, "n_resamples": 50}
    assert "macro" in err
    assert result["overlap"] is False


def test_noise_is_at_chance(tmp_path, capsys):
    folder, _, _ = planted(tmp_path, signal=0.0, n_each=150)
    _, result, _ = run(capsys, folder, "--task", "stage")
    # 900 test clips: the standard error of a one-against-rest AUROC is about 0.022, less for the mean of five.
    assert abs(result["macro"]["auroc"]["value"] - 0.5) < 0.06
    assert result["macro"]["auroc"]["low"] < 0.5 + 0.05
    assert abs(result["accuracy"]["value"] - 0.2) < 0.07


@pytest.mark.parametrize("modality", ["all", "brain"])
@pytest.mark.parametrize("fit_on", ["train", "train+validation"])
def test_equals_scikit_learn_done_by_hand(tmp_path, capsys, modality, fit_on):
    folder, x, columns = planted(tmp_path, signal=1.5)
    x = x.astype(np.float32).astype(np.float64)
    _, result, _ = run(
        capsys, folder, "--task", "stage", "--modality", modality, "--fit-on", fit_on, "--c", "0.5", "--bootstraps", "0"
    )
    features = x.reshape(len(x), -1) if modality == "all" else x[:, 1]
    train = columns["split"] <= (fit_on != "train")
    test = columns["split"] == 2
    model = LogisticRegression(C=0.5, class_weight="balanced", max_iter=10000, tol=1e-5)
    model.fit(features[train], columns["stage"][train])
    truth, p = columns["stage"][test], model.predict_proba(features[test])
    for k, name in enumerate(("W", "N1", "N2", "N3", "R")):
        entry = result["classes"][name]
        assert entry["auroc"]["value"] == pytest.approx(roc_auc_score(truth == k, p[:, k]), abs=1e-5)
        assert entry["auprc"]["value"] == pytest.approx(average_precision_score(truth == k, p[:, k]), abs=1e-4)
        assert entry["prevalence"] == pytest.approx((truth == k).mean())
        assert (entry["auroc"]["low"], entry["auroc"]["n_resamples"]) == (None, 0)
    np.testing.assert_array_equal(result["confusion"]["counts"], confusion_matrix(truth, p.argmax(1)))
    assert result["macro"]["f1"]["value"] == pytest.approx(f1_score(truth, p.argmax(1), average="macro"))
    aurocs = [e["auroc"]["value"] for e in result["classes"].values()]
    assert result["macro"]["auroc"]["value"] == pytest.approx(np.mean(aurocs))
    assert result["train"]["n_subjects"] == (8 if fit_on == "train" else 10)


def test_log_odds_order_as_probabilities_but_do_not_saturate():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((300, 4)) * 60).astype(np.float32)
    model = LogisticRegression(max_iter=1000)
    for classes in (2, 4):
        model.fit(x, np.arange(300) % classes)
        model.coef_ *= 10
        z = x.astype(np.float64) @ model.coef_.T + model.intercept_
        odds, p = log_odds(np.hstack([0 * z, z]) if classes == 2 else z), model.predict_proba(x.astype(np.float64))
        inside = (p > 1e-9) & (p < 1 - 1e-9)
        assert inside.sum() > 10
        np.testing.assert_allclose(odds[inside], np.log(p / (1 - p))[inside], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(probability_of(odds), p, atol=1e-12)
        assert len(np.unique(odds[:, 0])) == 300
        np.testing.assert_array_equal(odds.argmax(1), p.argmax(1))


def test_sdb_scores_the_event_class(tmp_path, capsys):
    folder, _, _ = planted(
        tmp_path, signal=0.8, classes=2, sdb=True, change=lambda y, s: np.where(np.arange(len(y)) % 5, 0, y)
    )
    status, result, _ = run(capsys, folder, "--task", "sdb")
    assert status == 0
    assert list(result["classes"]) == ["event"]
    event = result["classes"]["event"]
    assert 0.7 < event["auroc"]["low"] < event["auroc"]["value"] < event["auroc"]["high"] <= 1.0
    assert event["prevalence"] == pytest.approx(0.1, abs=0.06)
    assert result["macro"]["auprc"] == event["auprc"]
    assert result["confusion"]["rows_true_columns_predicted"] == ["none", "event"]


def test_main_gives_what_the_command_prints(tmp_path, capsys):
    folder, _, _ = planted(tmp_path, signal=1.0)
    printed = run(capsys, folder, "--task", "stage", "--bootstraps", "20")[1]
    returned = probe.main(probe.Config(folder, "stage", bootstraps=20))
    assert returned["classes"] == printed["classes"]
    assert returned["macro"] == printed["macro"]
    assert returned["confusion"] == printed["confusion"]


def test_the_interval_holds_the_estimate_and_is_seeded(tmp_path, capsys):
    folder, _, _ = planted(tmp_path, signal=1.0)
    first = run(capsys, folder, "--task", "stage", "--bootstraps", "300")[1]
    again = run(capsys, folder, "--task", "stage", "--bootstraps", "300")[1]
    other = run(capsys, folder, "--task", "stage", "--bootstraps", "300", "--seed", "1")[1]
    for figure in ("auroc", "auprc", "f1"):
        interval = first["macro"][figure]
        assert interval["low"] < interval["value"] < interval["high"]
        assert interval == again["macro"][figure]
        assert interval["low"] != other["macro"][figure]["low"]
        assert interval["value"] == other["macro"][figure]["value"]


def test_clips_without_label_are_dropped_and_counted(tmp_path, capsys):
    folder, _, columns = planted(tmp_path, signal=3.0, change=lambda y, s: np.where(np.arange(len(y)) % 7 == 0, -1, y))
    _, result, _ = run(capsys, folder, "--task", "stage", "--bootstraps", "0")
    test = columns["split"] == 2
    assert result["test"]["n_dropped_unlabelled"] == (test & (columns["stage"] < 0)).sum() > 0
    assert result["test"]["n_clips"] == (test & (columns["stage"] >= 0)).sum()
    assert np.sum(result["confusion"]["counts"]) == result["test"]["n_clips"]


def test_clips_lacking_a_modality_are_dropped_and_counted(tmp_path, capsys):
    mask = np.random.default_rng(0).random((16 * 40, 3)) < 0.8
    folder, _, columns = planted(tmp_path, signal=3.0, mask=mask)
    test = columns["split"] == 2
    _, result, err = run(capsys, folder, "--task", "stage", "--bootstraps", "0")
    lacking = int((test & ~mask.all(1)).sum())
    assert result["test"]["n_dropped_lacking_modality"] == lacking
    assert f"notice: {lacking} of {test.sum()} labelled test clips lack" in err
    assert "--modality NAME uses every clip that has that one" in err
    _, result, err = run(capsys, folder, "--task", "stage", "--modality", "ecg", "--bootstraps", "0")
    assert result["test"]["n_clips"] == (test & mask[:, 2]).sum()
    assert f"{(test & ~mask[:, 2]).sum()} of {test.sum()} labelled test clips lack ecg and are left out." in err
    assert result["modalities"] == ["ecg"]


def test_a_clip_that_lacks_both_counts_as_unlabelled(tmp_path, capsys):
    mask = np.random.default_rng(0).random((16 * 40, 3)) < 0.8
    folder, _, columns = planted(
        tmp_path, signal=3.0, mask=mask, change=lambda y, s: np.where(np.arange(len(y)) % 7 == 0, -1, y)
    )
    _, result, err = run(capsys, folder, "--task", "stage", "--bootstraps", "0")
    test, labelled = columns["split"] == 2, columns["stage"] >= 0
    lacking = (test & labelled & ~mask.all(1)).sum()
    assert result["test"]["n_dropped_unlabelled"] == (test & ~labelled).sum()
    assert result["test"]["n_dropped_lacking_modality"] == lacking < (test & ~mask.all(1)).sum()
    assert result["test"]["n_clips"] == (test & labelled & mask.all(1)).sum()
    assert f"notice: {lacking} of {(test & labelled).sum()} labelled test clips lack" in err


def test_rows_labels_and_subjects_of_labelled_clips_stay_together(tmp_path, capsys):
    rng = np.random.default_rng(0)
    n = 400
    mask = rng.random((n, 3)) < 0.8
    columns = columns_of(np.arange(n) // 40, (np.arange(n) // 40) % 3, stage=rng.integers(-1, 4, n))
    columns["recording"] = (np.arange(n) // 20).astype(np.int32)  # two nights a subject
    people = {"recordings": tuple(f"r{i}" for i in range(20))}
    folder = write_folder(tmp_path / "emb", rng.standard_normal((n, 3, DIM)), columns, mask=mask, **people)
    embeddings = Embeddings(folder)
    found = labelled_clips(embeddings, ("train", "test"), "stage", ("ecg", "respiratory"))
    inside = columns["split"] != 1
    rows = np.flatnonzero(inside & (columns["stage"] >= 0) & mask[:, 0] & mask[:, 2])
    n_lacking = int((inside & (columns["stage"] >= 0)).sum()) - len(rows)
    for part, which in (
        (found, np.arange(len(rows))),
        (found.of(np.arange(len(rows)) % 3 == 1), np.arange(len(rows))[1::3]),
    ):
        np.testing.assert_array_equal(part.clips, rows[which])
        np.testing.assert_array_equal(part.labels, columns["stage"][rows[which]])
        np.testing.assert_array_equal(part.subject, columns["subject"][rows[which]])
        assert len(part) == len(which)
        assert part.counts(("W", "N1", "N2", "N3", "R")) == {
            "n_clips": len(which),
            "n_subjects": len(np.unique(columns["subject"][rows[which]])),
            "n_dropped_unlabelled": int((inside & (columns["stage"] < 0)).sum()),
            "n_dropped_lacking_modality": n_lacking,
            "class_counts": {
                name: int((columns["stage"][rows[which]] == k).sum())
                for k, name in enumerate(("W", "N1", "N2", "N3", "R"))
            },
        }
    assert "labelled train or test clips lack one of ecg, respiratory and are left out" in capsys.readouterr().err


def test_a_class_absent_from_training(tmp_path, capsys):
    folder, _, _ = planted(tmp_path, signal=30.0, change=lambda y, s: np.where((s != 2) & (y == 1), 2, y))
    _, result, err = run(capsys, folder, "--task", "stage", "--bootstraps", "20")
    n1 = result["classes"]["N1"]
    assert n1["auroc"]["value"] is None
    assert n1["f1"]["value"] == 0.0
    assert "absent from the training clips" in n1["note"]
    assert "absent from the training clips" in err
    assert result["macro"]["n_classes"] == 4
    assert np.array(result["confusion"]["counts"])[:, 1].sum() == 0
    assert result["macro"]["f1"]["value"] < 0.9


def test_a_class_absent_from_the_test(tmp_path, capsys):
    folder, _, _ = planted(tmp_path, signal=30.0, change=lambda y, s: np.where((s == 2) & (y == 1), 2, y))
    _, result, _ = run(capsys, folder, "--task", "stage", "--bootstraps", "20")
    n1 = result["classes"]["N1"]
    assert (n1["auroc"]["value"], n1["auprc"]["value"], n1["f1"]["value"], n1["n_test"]) == (None, None, None, 0)
    assert n1["note"] == "absent from the test clips"
    assert result["macro"]["auroc"]["value"] == 1.0
    assert result["macro"]["f1"]["value"] == 1.0


def test_only_one_class_in_the_test(tmp_path, capsys):
    folder, _, _ = planted(tmp_path, signal=30.0, change=lambda y, s: np.where(s == 2, 3, y))
    status, result, _ = run(capsys, folder, "--task", "stage", "--bootstraps", "20")
    assert status == 0
    assert result["classes"]["N3"]["note"] == "the only class of the test clips"
    assert result["macro"]["auroc"]["value"] is None
    assert result["macro"]["n_classes"] == 0
    assert result["accuracy"]["value"] == 1.0


def test_resamples_that_lack_a_class_are_left_out_and_counted(tmp_path, capsys):
    # Subjects 10 and 11 have R among the 6 test subjects; (1 - 2/6)^6 of the resamples, a tenth, draw neither.
    def change(label, split):
        own = np.repeat(np.arange(16), 40)
        return np.where((split == 2) & (own > 11) & (label == 4), 3, label)

    folder, _, _ = planted(tmp_path, signal=2.0, change=change)
    _, result, err = run(capsys, folder, "--task", "stage", "--bootstraps", "500")
    n = result["classes"]["R"]["auroc"]["n_resamples"]
    assert abs(n / 500 - (1 - (4 / 6) ** 6)) < 0.06
    assert (result["classes"]["R"]["n_subjects"], result["classes"]["R"]["n_subjects_of_others"]) == (2, 6)
    assert (
        "only 2 subjects have clips of R: intervals of this class, and of means over it, contain the true value about "
        "50" in err
    )
    assert result["macro"]["auroc"]["n_resamples"] == n
    assert result["classes"]["R"]["f1"]["n_resamples"] == n
    assert result["classes"]["W"]["auroc"]["n_resamples"] == 500


def test_a_class_of_one_subject_has_no_interval(tmp_path, capsys):
    def change(label, split):
        own = np.repeat(np.arange(16), 40)
        return np.where((split == 2) & (own != 10) & (label == 4), 3, label)

    folder, _, _ = planted(tmp_path, signal=2.0, change=change)
    _, result, err = run(capsys, folder, "--task", "stage", "--bootstraps", "200")
    for entry in (*(result["classes"]["R"][f] for f in ("auroc", "auprc", "f1")), *list(result["macro"].values())[1:]):
        assert entry["value"] is not None
        assert (entry["low"], entry["high"], entry["n_resamples"]) == (None, None, 0)
    assert result["classes"]["W"]["auroc"]["low"] is not None
    assert result["accuracy"]["low"] is not None
    assert (
        "notice: one subject has clips of R, which says nothing of others like them: the figures of this class" in err
    )


def test_few_test_subjects_are_said_to_make_narrow_intervals(tmp_path, capsys):
    folder, _, _ = planted(tmp_path, signal=2.0)  # 6 test subjects
    _, _, err = run(capsys, folder, "--task", "stage", "--bootstraps", "50")
    assert "notice: with 6 subjects the intervals are too narrow" in err
    _, _, err = run(capsys, folder, "--task", "stage", "--bootstraps", "0")
    assert "too narrow" not in err


def test_one_subject_overlaps_and_has_no_interval(tmp_path, capsys):
    folder, _, _ = planted(tmp_path, signal=30.0, n_each=60, split_of=np.array([0]), overlap=True)
    status, result, err = run(capsys, folder, "--task", "stage")
    assert status == 0
    assert result["overlap"] is True
    assert "same subjects" in result["overlap_note"]
    assert f"notice: {result['overlap_note']}" in err
    assert result["macro"]["auroc"] == {"value": 1.0, "low": None, "high": None, "n_resamples": 0}
    assert "nothing to bootstrap over" in err


def test_max_train_clips_and_iterations(tmp_path, capsys):
    folder, _, _ = planted(tmp_path, signal=1.0)
    _, result, err = run(
        capsys, folder, "--task", "stage", "--max-train-clips", "100", "--max-iter", "1", "--bootstraps", "0"
    )
    assert result["train"]["n_clips"] == 100
    left = result["train"]["n_dropped_not_drawn"]
    assert f"100 of {100 + left} labelled training clips are drawn" in err
    everything = run(capsys, folder, "--task", "stage", "--max-iter", "1", "--bootstraps", "0")[1]["train"]
    assert (everything["n_clips"], everything["n_dropped_not_drawn"]) == (100 + left, 0)
    assert result["fit"]["n_iter"] == 1
    assert result["fit"]["converged"] is False
    assert "before it converged" in err


def test_blocks_change_nothing(tmp_path, capsys, monkeypatch):
    folder, _, _ = planted(tmp_path, signal=1.0)
    whole = run(capsys, folder, "--task", "stage", "--bootstraps", "30")[1]
    monkeypatch.setattr(logistic, "BLOCK", 37)
    blocks = run(capsys, folder, "--task", "stage", "--bootstraps", "30")[1]
    for result in (whole, blocks):
        result.pop("seconds")
        result["fit"].pop("fit_seconds")
    assert whole == blocks


@pytest.mark.parametrize(
    ("more", "arguments", "match"),
    [
        ({"split_of": np.array([0, 0, 1])}, ("--task", "stage"), "has no test subjects (clips: train 80, validation"),
        ({"split_of": np.array([2, 2, 1])}, ("--task", "stage"), "has no train subjects"),
        ({}, ("--task", "sdb"), "has a label for --task sdb"),
        ({"change": lambda y, s: np.where(s == 2, -1, y)}, ("--task", "stage"), "none of the 240 test clips"),
        ({"change": lambda y, s: np.where(s == 0, 2, y)}, ("--task", "stage"), "every labelled training clip is 'N2'"),
        (
            {"mask": np.tile([True, False, True], (640, 1))},
            ("--task", "stage", "--modality", "brain"),
            "labelled train clips has brain. Probe another modality with --modality.",
        ),
        (
            {"mask": np.tile([True, False, True], (640, 1))},
            ("--task", "stage"),
            "labelled train clips has all of respiratory, brain, ecg. Probe a single modality with --modality.",
        ),
        ({}, ("--task", "stage", "--c", "0"), "--c is 0.0"),
        ({}, ("--task", "stage", "--max-iter", "0"), "--max-iter is 0"),
        ({}, ("--task", "stage", "--bootstraps", "-1"), "--bootstraps is -1"),
    ],
)
def test_refusals(tmp_path, capsys, more, arguments, match):
    folder, _, _ = planted(tmp_path, signal=1.0, **more)
    status, _, err = run(capsys, folder, *arguments)
    assert status == 1
    assert match in err
    assert "error: " in err.splitlines()[-1]


def test_missing_modality_unfinished_and_missing_folder(tmp_path, capsys):
    x = np.random.default_rng(0).standard_normal((4, 1, DIM))
    folder = write_folder(tmp_path / "emb", x, columns_of([0, 0, 1, 1], [0, 0, 2, 2]), modalities=("brain",))
    status, _, err = run(capsys, folder, "--task", "stage", "--modality", "ecg")
    assert status == 1
    assert "has no ecg embeddings; it has brain" in err
    (folder / "embeddings.json").unlink()
    status, _, err = run(capsys, folder, "--task", "stage")
    assert status == 1
    assert "not a finished embeddings folder" in err
    status, _, err = run(capsys, tmp_path / "nothing", "--task", "stage")
    assert status == 1
    assert "no embeddings folder" in err


@pytest.mark.parametrize("arguments", [("emb", "--task", "height"), ("emb",), ("emb", "--task", "stage", "--oops")])
def test_wrong_usage_is_status_2(capsys, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert probe.cli(list(arguments)) == 2
    capsys.readouterr()


@pytest.mark.parametrize("command", ["probe", "retrieve"])
def test_help_imports_neither_torch_nor_scikit_learn(command):
    code = (
        "import sys\n"
        f"from sleepfm_fast import {command}\n"
        f"assert {command}.cli(['--help']) == 0\n"
        "heavy = {'torch', 'sklearn', 'numba', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "EMBEDDINGS" in done.stdout or "Embeddings folder" in done.stdout


# ---- age and sex -----------------------------------------------------------------------------------------------------


def subjects_planted(tmp_path, ages, sexes, code, *, n_each=30, n_classes=4):
    """Clips that point towards the axis of their subject's code."""
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(len(ages)), n_each)
    x = rng.standard_normal((subject.size, 3, DIM))
    x[np.arange(subject.size), :, np.asarray(code)[subject]] += 20.0
    split_of = (np.arange(len(ages)) >= len(ages) // 2) * 2
    columns = columns_of(subject, split_of[subject])
    return write_folder(tmp_path / "emb", x, columns, ages=tuple(ages), sexes=tuple(sexes))


def test_age_groups_are_half_open_and_unknown_ages_left_out(tmp_path, capsys):
    ages = [0.5, 17.9, 18.0, 34.9, 35.0, 49.9, 50.0, 91.0, None] * 2
    folder = subjects_planted(tmp_path, ages, [None] * 18, [0, 0, 1, 1, 2, 2, 3, 3, 4] * 2)
    status, result, _ = run(capsys, folder, "--task", "age", "--bootstraps", "20")
    assert status == 0
    assert result["test"]["class_counts"] == {"0-18": 60, "18-35": 60, "35-50": 60, "50+": 60}
    assert result["test"]["n_dropped_unlabelled"] == 30
    assert list(result["classes"]) == ["0-18", "18-35", "35-50", "50+"]
    assert result["macro"]["auroc"]["value"] == 1.0
    assert result["macro"]["f1"]["value"] == 1.0


def test_sex_scores_one_class(tmp_path, capsys):
    sexes = ["M", "F", None, "F", "M", "F"] * 2
    code = [{"M": 0, "F": 1, None: 2}[s] for s in sexes]
    folder = subjects_planted(tmp_path, [None] * 12, sexes, code)
    status, result, _ = run(capsys, folder, "--task", "sex", "--bootstraps", "20")
    assert status == 0
    assert list(result["classes"]) == ["F"]
    assert result["test"]["class_counts"] == {"M": 60, "F": 90}
    assert result["classes"]["F"]["auroc"]["value"] == 1.0
    assert result["macro"]["f1"] == result["classes"]["F"]["f1"]


def test_subjects_without_age_are_refused_by_name(tmp_path, capsys):
    folder = subjects_planted(tmp_path, [None] * 8, ["M"] * 8, [0] * 8)
    status, _, err = run(capsys, folder, "--task", "age")
    assert status == 1
    assert "has a label for --task age (the subject's age). Give a table" in err
    status, _, err = run(capsys, folder, "--task", "sex")
    assert status == 1
    assert "every labelled training clip is 'M'" in err


# ---- the result folder -----------------------------------------------------------------------------------------------


def test_the_result_folder_holds_what_the_figures_were_computed_from(tmp_path, capsys):
    folder, _, columns = planted(tmp_path, signal=1.5, change=lambda y, s: np.where((s != 2) & (y == 1), 2, y))
    _, printed, _ = run(capsys, folder, tmp_path / "run" / "results" / "stage", "--task", "stage", "--bootstraps", "20")
    (result,) = find_results(tmp_path / "run")
    record = result.record
    assert result.command == "probe"
    assert {k: v for k, v in record.items() if k in printed} == printed
    assert record["class_names"] == ["W", "N1", "N2", "N3", "R"]
    assert record["trained_classes"] == [0, 2, 3, 4]
    assert record["subjects"][10] == "s010"
    test = np.flatnonzero(columns["split"] == 2)
    np.testing.assert_array_equal(result.array("clip"), test)
    np.testing.assert_array_equal(result.array("label"), columns["stage"][test])
    for name in ("subject", "recording", "onset_s"):
        np.testing.assert_array_equal(result.array(name), columns[name][test])
    p, score = result.array("probability"), result.array("score")
    assert p.shape == score.shape == (len(test), 4)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    for column, k in enumerate(record["trained_classes"]):
        entry = record["classes"][record["class_names"][k]]
        assert entry["auroc"]["value"] == pytest.approx(roc_auc_score(columns["stage"][test] == k, score[:, column]))
    expected = np.array([p.argmax(1) == i for i in range(4)]).sum(1)
    np.testing.assert_array_equal(np.array(record["confusion"]["counts"]).sum(0)[[0, 2, 3, 4]], expected)


def test_a_result_is_refused_before_any_work_and_replaced_when_asked(tmp_path, capsys):
    folder, _, _ = planted(tmp_path, signal=1.5)
    asked = (folder, tmp_path / "result", "--task", "stage", "--bootstraps", "0")
    assert run(capsys, *asked)[0] == 0
    status, _, err = run(capsys, tmp_path / "no embeddings", tmp_path / "result", "--task", "stage")
    assert status == 1
    assert "--overwrite" in err
    status, _, _ = run(capsys, *asked, "--c", "2", "--overwrite")
    assert status == 0
    assert read_result(tmp_path / "result").record["fit"]["c"] == 2


# ---- the penalty chosen on validation subjects -----------------------------------------------------------------------


def test_c_is_chosen_on_the_validation_subjects(tmp_path, capsys):
    folder, x, columns = planted(tmp_path, signal=0.9)
    asked = (folder, "--task", "stage", "--bootstraps", "0", "--choose-c", "--c-grid", "0.3", "0.001", "30")
    _, result, err = run(capsys, *asked)
    choice = result["fit"]["choice"]
    assert [t["c"] for t in choice["tried"]] == [0.001, 0.3, 30]
    x = x.astype(np.float32).astype(np.float64).reshape(len(x), -1)
    train, validation = columns["split"] == 0, columns["split"] == 1
    for t in choice["tried"]:
        model = LogisticRegression(C=t["c"], class_weight="balanced", max_iter=10000, tol=1e-5)
        p = model.fit(x[train], columns["stage"][train]).predict_proba(x[validation])
        truth = columns["stage"][validation]
        expected = np.mean([roc_auc_score(truth == k, p[:, k]) for k in range(5)])
        assert t["auroc"] == pytest.approx(expected, abs=1e-4)
        assert t["log_loss"] == pytest.approx(-np.log(p[np.arange(len(p)), truth]).mean(), abs=1e-4)
    best = max(choice["tried"], key=lambda t: t["auroc"])["c"]
    assert result["fit"]["c"] == best
    assert choice["refitted"] is False
    assert choice["n_validation_subjects"] == 2
    by_hand = run(capsys, folder, "--task", "stage", "--bootstraps", "0", "--c", best)[1]
    assert by_hand["macro"] == result["macro"]
    assert f"C = {best:g}: macro AUROC" in err
    # Fitted on both, the choice is the same and the probe is the one that a given C fits on both.
    both = run(capsys, *asked, "--fit-on", "train+validation")[1]
    assert both["fit"]["choice"]["tried"] == choice["tried"]
    assert both["fit"]["choice"]["refitted"] is True
    by_hand = run(capsys, folder, "--task", "stage", "--bootstraps", "0", "--c", best, "--fit-on", "train+validation")[
        1
    ]
    assert by_hand["macro"] == both["macro"] != result["macro"]


def test_choosing_c_needs_validation_subjects_with_two_classes(tmp_path, capsys):
    folder, _, _ = planted(tmp_path, signal=1.0, change=lambda y, s: np.where(s == 1, 2, y))
    status, _, err = run(capsys, folder, "--task", "stage", "--choose-c")
    assert status == 1
    assert "only the class N2" in err
    status, _, err = run(capsys, folder, "--task", "stage", "--choose-c", "--c-grid", "1", "-1")
    assert status == 1
    assert "--c-grid is 1.0 -1.0" in err


def test_strata_and_calibration_are_in_the_record(tmp_path, capsys):
    folder, _, _ = planted(tmp_path, signal=1.5)
    _, result, err = run(capsys, folder, tmp_path / "result", "--task", "stage", "--bootstraps", "20")
    assert set(result["strata"]["sex"]) == {"M", "F"}
    assert set(result["strata"]["age"]) == {"50+", "unknown"}
    assert sum(s["n_clips"] for s in result["strata"]["age"].values()) == result["test"]["n_clips"]
    counts = np.array(list(result["train"]["class_counts"].values()))
    assert list(result["calibration"]["prior"].values()) == pytest.approx(counts / counts.sum())
    assert "age unknown" in err
    p = read_result(tmp_path / "result").array("probability").astype(np.float64)
    bins = result["calibration"]["as_fitted"]["classes"]["W"]["bins"]
    for b in bins:
        inside = (p[:, 0] >= b["low"]) & (p[:, 0] < b["high"])
        assert b["n"] == inside.sum()


@pytest.mark.parametrize("solver", ["sklearn", "blocks"])
def test_either_solver_gives_the_figures(tmp_path, capsys, solver):
    folder, _, _ = planted(tmp_path, signal=1.5)
    _, result, _ = run(capsys, folder, "--task", "stage", "--bootstraps", "0", "--solver", solver)
    default = run(capsys, folder, "--task", "stage", "--bootstraps", "0")[1]
    assert result["fit"]["solver"] == solver
    assert result["macro"]["auroc"]["value"] == pytest.approx(default["macro"]["auroc"]["value"], abs=1e-4)
