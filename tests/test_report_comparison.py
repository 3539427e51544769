"""The report's tables of several classifiers and of differences: every number in its own column and row."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from sleepfm_fast.reporting.comparison import difference_figures, overview, retrieval_differences, spread
from sleepfm_fast.results import Result

FIGURES = ("auroc", "auprc", "f1")


def figure(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "n_resamples": 100}


def of_classifier(shift, n, *, n_classes=5, **more):
    macro = {f: figure(shift + 0.1 * k, shift + 0.1 * k - 0.05, shift + 0.1 * k + 0.06) for k, f in enumerate(FIGURES)}
    classes = {
        name: {"n_test": 90, "n_subjects": 12, "n_subjects_of_others": 12} for name in ("W", "N1", "N2", "N3", "R")
    }
    of_all = {"accuracy": figure(shift + 0.3), "cohen_kappa": figure(shift + 0.4)}
    return {"macro": {**macro, "n_classes": n_classes}, "classes": classes, **of_all, **n, **more}


def result(record, command="probe", path="run/results/x"):
    return Result(Path(path), {**record, "command": command})


def rows_of(figure):
    """Texts of the cells of a figure's table, row by row."""
    rows = re.findall(r"<tr>(.*?)</tr>", figure.body, re.DOTALL)[1:]
    cells = (re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows)
    return [[re.sub(r"<svg.*?</svg>", "drawn", cell) for cell in row] for row in cells]


def positions(markup):
    return {name: [float(x) for x in re.findall(rf'{name}="([\d.]+)%"', markup)] for name in ("x1", "x2", "cx")}


def test_a_line_is_drawn_from_limit_to_limit_with_its_value_and_chance():
    drawn = spread(figure(0.7, 0.6, 0.9), 0.5)
    places = positions(drawn)
    assert places["cx"] == [70]
    assert [places[end][-2:] for end in ("x1", "x2")] == [[50, 60], [50, 90]]
    assert "0.700 on a line from 0 to 1, interval 0.600 to 0.900, chance 0.500" in drawn
    assert spread(figure(None)) == ""
    assert positions(spread(figure(1.2)))["cx"] == [100]


def test_every_classifier_has_its_figures_over_clips_and_over_nights():
    test = {"n_subjects": 12, "n_clips": 4321}
    one = of_classifier(0.5, {"test": test}, nights=of_classifier(0.4, {"n_nights": 17}))
    other = of_classifier(0.3, {"test": test}, n_classes=4)
    named = [("one", result(one)), ("other", result(other))]
    figures = overview(named)
    assert rows_of(figures) == [
        ["one", "4\u202f321", "0.500 [0.450, 0.560]", "drawn", "0.600 [0.550, 0.660]", "0.700 [0.650, 0.760]", "0.800",
         "0.900"],
        ["other (AUROC, AUPRC over 4 of 5 classes)", "4\u202f321", "0.300 [0.250, 0.360]", "drawn",
         "0.400 [0.350, 0.460]", "0.500 [0.450, 0.560]", "0.600", "0.700"],
    ]  # fmt: skip
    assert positions(figures.body)["cx"] == [50, 30]
    assert figures.body.count('class="chance"') == 2
    assert "external" not in figures.caption
    (nights,) = rows_of(overview(named[:1], nights=True))
    assert nights[:3] == ["one", "17", "0.400 [0.350, 0.460]"]
    external = overview([*named, ("external: third", result(other))])
    assert "Those named external were tested on another store" in external.caption


@pytest.mark.parametrize(("n", "said"), [(12, False), (3, True)])
def test_the_fewest_subjects_of_any_classifier_are_said(n, said):
    records = [of_classifier(0.5, {"test": {"n_subjects": m, "n_clips": 9}}) for m in (40, n)]
    caption = overview([("x", result(record)) for record in records]).caption
    assert (f"With {n} subjects the intervals are too narrow" in caption) is said
    rare = of_classifier(0.5, {"test": {"n_subjects": 40, "n_clips": 9}})
    rare["classes"]["R"]["n_subjects"] = 4
    assert "Of the rarest class only 4 subjects have clips" in overview([("x", result(rare))]).caption


def changed(value, low=None, high=None):
    return {"first": 0.5 + value, "second": 0.5, "difference": value, "low": low, "high": high}


def test_a_difference_has_its_sign_its_limits_and_its_order():
    class_subjects = {"R": {"n_test": 50, "n_subjects": 4, "n_subjects_of_others": 20}}
    macro = {"auroc": changed(0.02, -0.01, 0.05), "auprc": changed(-0.03, -0.06, -0.01), "f1": changed(0.04)}
    record = {
        "task": "stage", "first": "A", "second": "B", "n_subjects": 20, "n_clips": 999, "n_classes": 4, "macro": macro,
        "classes": {name: {} for name in ("W", "N1", "N2", "N3", "R")}, "class_subjects": class_subjects,
        "accuracy": changed(0.05), "cohen_kappa": changed(0.06),
    }  # fmt: skip
    run = SimpleNamespace(results_of=lambda command, task=None: [result(record, "compare")])
    (figures,) = difference_figures([run, run], "stage")
    assert rows_of(figures) == [
        ["A - B (AUROC, AUPRC over 4 of 5 classes)", "20", "+0.020 [-0.010, +0.050]", "-0.030 [-0.060, -0.010]",
         "+0.040", "+0.050", "+0.060"]
    ]  # fmt: skip
    assert "Of the rarest class only 4 subjects have clips" in figures.caption
    assert retrieval_differences([run]) == []
    mean = {"recall@1": changed(0.25, 0.1, 0.4), "median_rank": changed(-3.5, -4, -3)}
    record = {"first": "A", "second": "B", "scope": "night", "n_subjects": 6, "n_clips": 999, "mean": mean}
    run = SimpleNamespace(results_of=lambda command, task=None: [result(record, "compare")])
    (figures,) = retrieval_differences([run])
    assert rows_of(figures) == [["A - B", "night", "6", "+0.250 [+0.100, +0.400]", "-3.5 [-4.0, -3.0]"]]
    assert "With 6 subjects the intervals are too narrow" in figures.caption
