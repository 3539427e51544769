"""Figures by age group and sex: equal to evaluating the stratum alone, unknown subjects apart, one class noted."""

from __future__ import annotations

import numpy as np

from sleepfm_fast.evaluation.classification import HeldOut
from sleepfm_fast.evaluation.figures import evaluate
from sleepfm_fast.evaluation.strata import by_stratum, say_strata
from sleepfm_fast.evaluation.tasks import TASKS

AGES = (10.0, 17.9, 18.0, 40.0, 40.0, 70.0, 80.0, None, float("nan"))
SEXES = ("M", "F", "F", "M", None, "M", "F", "F", "X")


def held_out(label, n_each=50):
    subject = np.repeat(np.arange(len(AGES), dtype=np.int32), n_each)
    n = len(subject)
    label = np.asarray(label(subject) if callable(label) else label, np.int8)
    names = tuple(f"s{i}" for i in range(len(AGES)))
    return HeldOut(np.arange(n), label, subject, subject, np.zeros(n), names, names, AGES, SEXES)


def test_a_stratum_is_what_evaluating_it_alone_gives():
    rng = np.random.default_rng(0)
    test = held_out(rng.integers(0, 5, 450))
    score = rng.standard_normal((450, 5)) + 2 * np.eye(5)[test.label]
    trained = np.arange(5, dtype=np.int8)
    strata = by_stratum(test, score, score, trained, TASKS["stage"], 30, 0)
    subjects = {
        "age": {"0-18": [0, 1], "18-35": [2], "35-50": [3, 4], "50+": [5, 6], "unknown": [7, 8]},
        "sex": {"M": [0, 3, 5], "F": [1, 2, 6, 7], "unknown": [4, 8]},
    }
    assert {fact: list(groups) for fact, groups in strata.items()} == {f: list(g) for f, g in subjects.items()}
    for fact, groups in subjects.items():
        for name, members in groups.items():
            here = np.isin(test.subject, members)
            alone = evaluate(score[here], trained, test.label[here], test.subject[here], TASKS["stage"], 30, 0)
            found = strata[fact][name]
            assert found["n_clips"] == 50 * len(members)
            assert found["n_subjects"] == len(members)
            assert (found["macro"], found["classes"], found["accuracy"]) == (
                alone["macro"],
                alone["classes"],
                alone["accuracy"],
            )
    assert strata["age"]["18-35"]["macro"]["auroc"].low is None  # one subject
    assert strata["age"]["50+"]["macro"]["auroc"].low is not None


def test_absent_classes_and_one_class_strata_are_noted(capsys):
    rng = np.random.default_rng(1)
    test = held_out(
        lambda subject: np.where(subject <= 1, 2, np.where(subject == 2, np.arange(450) % 2, np.arange(450) % 5))
    )
    score = rng.standard_normal((450, 5))
    strata = by_stratum(test, score, score, np.arange(5, dtype=np.int8), TASKS["stage"], 10, 0)
    children = strata["age"]["0-18"]
    assert children["macro"]["auroc"].value is None
    assert children["macro"]["n_classes"] == 0
    assert children["classes"]["N2"]["note"] == "the only class of the test clips"
    young = strata["age"]["18-35"]
    assert young["macro"]["n_classes"] == 2
    assert young["classes"]["R"]["note"] == "absent from the test clips"
    say_strata(strata)
    assert "AUROC, AUPRC over 2 of 5 classes" in capsys.readouterr().err


def test_the_task_itself_as_a_stratum_has_one_class_in_each():
    test = held_out(lambda subject: np.array([0, 0, 1, 2, 2, 3, 3, 0, 0])[subject])
    score = np.random.default_rng(0).standard_normal((450, 4))
    strata = by_stratum(test, score, score, np.arange(4, dtype=np.int8), TASKS["age"], 10, 0)
    for name in TASKS["age"].names:
        assert strata["age"][name]["macro"]["auroc"].value is None
        assert strata["age"][name]["accuracy"].value is not None
    assert strata["sex"]["M"]["macro"]["n_classes"] == 3


def test_no_facts_at_all_is_one_unknown_stratum():
    test = held_out(np.arange(450) % 2)
    test = HeldOut(*(getattr(test, f) for f in list(HeldOut.__dataclass_fields__)[:7]), (None,) * 9, (None,) * 9)
    strata = by_stratum(
        test, np.zeros((450, 2)), np.full((450, 2), 0.5), np.arange(2, dtype=np.int8), TASKS["sdb"], 5, 0
    )
    assert {fact: list(groups) for fact, groups in strata.items()} == {"age": ["unknown"], "sex": ["unknown"]}
    assert strata["age"]["unknown"]["classes"]["event"]["auroc"].value == 0.5
