"""A classifier's figures: those of scikit-learn, also where it lacks a class, and limits from the smaller side only."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    roc_auc_score,
)

from sleepfm_fast.evaluation.figures import evaluate, say_table
from sleepfm_fast.evaluation.metrics import NO_VALUE
from sleepfm_fast.evaluation.tasks import TASKS

STAGES = TASKS["stage"]


def test_a_classifier_that_lacks_a_class_is_scored_on_all_clips(capsys):
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 4], 600, p=[0.3, 0.1, 0.4, 0.2]).astype(np.int8)  # N3 is not tested
    trained = np.array([0, 2, 3, 4], np.int8)  # N1 is not known
    score = rng.standard_normal((600, 4)) + 1.2 * (labels[:, None] == trained)
    subject = rng.integers(0, 8, 600).astype(np.int32)
    found = evaluate(score, trained, labels, subject, STAGES, 20, 3, progress=False)
    predicted = trained[score.argmax(1)]
    assert found["accuracy"].value == pytest.approx(accuracy_score(labels, predicted))
    assert found["cohen_kappa"].value == pytest.approx(cohen_kappa_score(labels, predicted))
    np.testing.assert_array_equal(
        found["confusion"]["counts"], confusion_matrix(labels, predicted, labels=np.arange(5))
    )
    assert found["confusion"]["n_clips"] == 600
    f1 = f1_score(labels, predicted, labels=[0, 1, 2, 4], average=None)
    assert f1[1] == 0
    assert [found["classes"][n]["f1"].value for n in ("W", "N1", "N2", "R")] == pytest.approx(list(f1))
    assert found["macro"]["f1"].value == pytest.approx(f1.mean())
    for k, name in ((0, "W"), (2, "N2"), (4, "R")):
        entry, own = found["classes"][name], score[:, list(trained).index(k)]
        assert entry["auroc"].value == pytest.approx(roc_auc_score(labels == k, own))
        assert entry["auprc"].value == pytest.approx(average_precision_score(labels == k, own))
        assert (entry["n_test"], entry["n_subjects"]) == ((labels == k).sum(), 8)
        assert entry["prevalence"] == pytest.approx((labels == k).mean())
    assert found["macro"]["n_classes"] == 3
    assert found["macro"]["auroc"].value == pytest.approx(
        np.mean([found["classes"][n]["auroc"].value for n in ("W", "N2", "R")])
    )
    for name, note in (("N1", "absent from the training clips"), ("N3", "absent from the test clips")):
        entry = found["classes"][name]
        assert (entry["auroc"], entry["auprc"]) == (NO_VALUE, NO_VALUE)
        assert entry["note"].startswith(note)
    assert found["accuracy"].low < found["accuracy"].value < found["accuracy"].high
    say_table(found)
    head, *lines = capsys.readouterr().err.splitlines()
    assert head.split()[:4] == ["class", "clips", "subjects", "prev."]
    w, macro, rows = found["classes"]["W"], found["macro"], found["confusion"]["counts"]
    assert lines[0].split()[:4] == ["W", str(w["n_test"]), "8", f"{w['prevalence']:.3f}"]
    assert f"{w['auroc'].value:.3f} [{w['auroc'].low:.3f}, {w['auroc'].high:.3f}]" in lines[0]
    assert f"{macro['f1'].value:.3f} [{macro['f1'].low:.3f}, {macro['f1'].high:.3f}]" in lines[5]
    assert lines[5].endswith("AUROC, AUPRC over 3 of 5 classes")
    assert [line.split()[1:] for line in lines[-5:]] == [[str(n) for n in row] for row in rows.tolist()]


def test_limits_need_two_subjects_on_either_side():
    rng = np.random.default_rng(1)
    subject = np.repeat(np.arange(10, dtype=np.int32), 40)
    one_lacks = np.where(subject == 4, np.arange(400) % 2, 1).astype(np.int8)  # only p4 has clips without an event
    score = rng.standard_normal((400, 2)) + np.eye(2)[one_lacks]
    for labels, sides in ((one_lacks, (10, 1)), (1 - one_lacks, (1, 10))):
        trained = np.arange(2, dtype=np.int8)
        found = evaluate(score, trained, labels, subject, TASKS["sdb"], 50, 0, progress=False)
        event = found["classes"]["event"]
        assert (event["n_subjects"], event["n_subjects_of_others"]) == sides
        for figure in ("auroc", "auprc", "f1"):
            assert event[figure].value is not None
            assert event[figure].low is None
            assert found["macro"][figure] == event[figure]
        assert found["accuracy"].low is not None
    both = np.where(subject < 2, np.arange(400) % 2, 1).astype(np.int8)
    found = evaluate(score, trained, both, subject, TASKS["sdb"], 50, 0, progress=False)
    assert found["classes"]["event"]["f1"].low < found["classes"]["event"]["f1"].high
    assert found["macro"]["f1"] == found["classes"]["event"]["f1"]


def test_a_stage_of_one_subject_takes_the_limits_from_the_means_over_it():
    rng = np.random.default_rng(2)
    subject = np.repeat(np.arange(10, dtype=np.int32), 40)
    labels = (np.arange(400) % 4).astype(np.int8)
    labels[:8] = 4  # of REM the first subject alone has clips
    score = rng.standard_normal((400, 5)) + np.eye(5)[labels]
    found = evaluate(score, np.arange(5, dtype=np.int8), labels, subject, STAGES, 50, 0, progress=False)
    for figure in ("auroc", "auprc", "f1"):
        assert found["classes"]["N2"][figure].low is not None
        assert found["classes"]["R"][figure].low is None
        assert found["macro"][figure].low is None
    # Where nobody has it, it takes nothing.
    labels[:8] = 0
    found = evaluate(score, np.arange(5, dtype=np.int8), labels, subject, STAGES, 50, 0, progress=False)
    for figure in ("auroc", "auprc", "f1"):
        assert found["macro"][figure].low is not None
