"""Figures by age group and sex: equal to evaluating the stratum alone, unknown subjects apart, one class noted."""

from __future__ import annotations

import numpy as np
import pytest

from sleepfm_fast.evaluation.classification import HeldOut
from sleepfm_fast.evaluation.figures import evaluate
from sleepfm_fast.evaluation.interval_notice import FEW_SUBJECTS
from sleepfm_fast.evaluation.strata import by_stratum, say_strata, strata_notice
from sleepfm_fast.evaluation.tasks import TASKS
from sleepfm_fast.evaluation.whole_nights import by_night

AGES = (10.0, 17.9, 18.0, 40.0, 40.0, 70.0, 80.0, None, float("nan"))
SEXES = ("M", "F", "F", "M", None, "M", "F", "F", "X")


def held_out(label, n_each=50):
    subject = np.repeat(np.arange(len(AGES), dtype=np.int32), n_each)
    n = len(subject)
    label = np.asarray(label(subject) if callable(label) else label, np.int8)
    names = tuple(f"s{i}" for i in range(len(AGES)))
    return HeldOut(np.arange(n), label, subject, subject, np.zeros(n), names, names, AGES, SEXES)


def test_a_stratum_is_what_evaluating_it_alone_gives(capsys):
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
            assert "confusion" not in found
            assert (found["macro"], found["classes"], found["accuracy"]) == (
                alone["macro"],
                alone["classes"],
                alone["accuracy"],
            )
    assert strata["age"]["18-35"]["macro"]["auroc"].low is None  # one subject
    assert strata["age"]["50+"]["macro"]["auroc"].low is not None
    say_strata(strata)
    head, *lines = capsys.readouterr().err.splitlines()[-9:]
    assert head.startswith("stratum")
    sizes = [(f"{f} {name}", len(members)) for f, groups in subjects.items() for name, members in groups.items()]
    for line, (name, n) in zip(lines, sizes, strict=True):
        assert line.startswith(f"{name:<13}{n:>9}{50 * n:>9}")
        assert "classes" not in line  # all are there


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
    f1 = strata["age"]["50+"]["classes"]["50+"]["f1"]
    assert f1.low < f1.value < f1.high  # of the two subjects who have the class, since nobody here has another
    assert strata["sex"]["M"]["macro"]["n_classes"] == 3


def test_no_facts_at_all_is_one_unknown_stratum():
    test = held_out(np.arange(450) % 2)
    test = HeldOut(*(getattr(test, f) for f in list(HeldOut.__dataclass_fields__)[:7]), (None,) * 9, (None,) * 9)
    strata = by_stratum(
        test, np.zeros((450, 2)), np.full((450, 2), 0.5), np.arange(2, dtype=np.int8), TASKS["sdb"], 5, 0
    )
    assert {fact: list(groups) for fact, groups in strata.items()} == {"age": ["unknown"], "sex": ["unknown"]}
    assert strata["age"]["unknown"]["classes"]["event"]["auroc"].value == 0.5


def test_a_subject_belongs_to_the_age_group_of_each_night():
    # Two nights each: everyone is 34 at the first and 36 at the second.
    label = np.arange(450) % 5
    subject = held_out(label).subject
    night = 2 * subject + (np.arange(450) % 50 >= 25)
    nights, ages = tuple(f"n{i}" for i in range(18)), (34.0, 36.0) * 9
    base = held_out(label)
    test = HeldOut(base.clip, base.label, subject, night, base.onset_s, base.subjects, nights, AGES, SEXES, ages)
    score = np.random.default_rng(0).standard_normal((450, 5))
    strata = by_stratum(test, score, score, np.arange(5, dtype=np.int8), TASKS["stage"], 0, 0)
    assert list(strata["age"]) == ["18-35", "35-50"]
    for name, here in (("18-35", night % 2 == 0), ("35-50", night % 2 == 1)):
        entry = strata["age"][name]
        assert (entry["n_clips"], entry["n_subjects"]) == (225, 9)
        assert entry["accuracy"].value == pytest.approx((score.argmax(1) == label)[here].mean())


def test_the_nights_of_a_stratum_are_resampled_by_the_same_seed():
    test = held_out(lambda subject: subject % 2)
    score = np.random.default_rng(0).standard_normal((450, 2)) + 0.2 * np.eye(2)[test.label]
    probability = np.exp(score) / np.exp(score).sum(1, keepdims=True)
    trained, task = np.arange(2, dtype=np.int8), TASKS["sex"]
    found = by_stratum(test, score, probability, trained, task, 40, 3)["sex"]["F"]["nights"]
    here = np.isin(test.subject, [1, 2, 6, 7])
    whose = (test.label[here], test.subject[here], test.recording[here])
    alone = by_night(probability[here], trained, *whose, task, 40, 3)
    assert (found["macro"], found["accuracy"]) == (alone["macro"], alone["accuracy"])


def test_strata_of_few_subjects_are_noticed_once_the_whole_has_more():
    def of(**groups):
        return {fact: {str(i): {"n_subjects": n} for i, n in enumerate(sizes)} for fact, sizes in groups.items()}

    assert strata_notice(of(age=[30, 3, 1], sex=[17, 17])) == (
        "in strata of few subjects the intervals are too narrow: with 3, for a mean, they contain the true value about "
        "75 times in 100, not 95."
    )
    assert "with 4, for" in strata_notice(of(age=[6, 4], sex=[10]))
    assert strata_notice(of(age=[5, 4], sex=[9])) == ""  # few in all, which is said already
    assert strata_notice(of(age=[30, 1, 1], sex=[FEW_SUBJECTS, 22])) == ""  # one subject has no interval
    assert strata_notice(of(age=[1], sex=[1])) == strata_notice({}) == ""
