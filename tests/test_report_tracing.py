"""Every figure of a report is one that stands in a file of the run folder, and follows when the file changes."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from report_runs import full_run
from test_report import figures_of, make

INTERVAL = {"value", "low", "high"}

# What each headline is: the result of a full run that it is read from, and where it stands there.
HEADLINES = {
    "Sleep staging: AUROC, mean of stages": ("stage", "macro", "auroc"),
    "Sleep staging: AUPRC, mean of stages": ("stage", "macro", "auprc"),
    "Sleep staging: F1, mean of stages": ("stage", "macro", "f1"),
    "Sleep staging: Cohen's kappa": ("stage", "cohen_kappa"),
    "Sleep-disordered breathing: AUROC": ("sdb", "macro", "auroc"),
    "Sleep-disordered breathing: AUPRC": ("sdb", "macro", "auprc"),
    "Age group: AUROC over clips, mean of groups": ("age", "macro", "auroc"),
    "Age group: AUROC over nights, mean of groups": ("age", "nights", "macro", "auroc"),
    "Sex: AUROC over clips": ("sex", "macro", "auroc"),
    "Sex: AUROC over nights": ("sex", "nights", "macro", "auroc"),
    "Retrieval between modalities": ("retrieve", "mean", "recall@10"),
}
AGES = (30.0, 42.0, 61.0, 8.0, 42.0, 61.0)


def record_of(folder, name):
    return json.loads((folder / "results" / name / "result.json").read_text(encoding="utf-8"))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def intervals_in(value):
    """Every estimate with an interval, at any depth."""
    if isinstance(value, dict):
        if value.keys() >= INTERVAL:
            yield value
        for inner in value.values():
            yield from intervals_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from intervals_in(inner)


def redrawn(value, rng):
    """The same record with another number in the place of every estimate and its interval."""
    if isinstance(value, dict):
        new = {k: redrawn(v, rng) for k, v in value.items()}
        if value.keys() >= INTERVAL and isinstance(value["value"], float):
            low, middle, high = sorted(float(v) for v in rng.random(3))
            new.update(value=middle, low=low, high=high)
        return new
    return [redrawn(v, rng) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return full_run(tmp_path_factory.mktemp("traced") / "run", ages=AGES)


@pytest.fixture(scope="module", params=["as measured", "other numbers"])
def traced(request, folder, tmp_path_factory):
    """A run and its report; also one whose result files were given other numbers, which the report must follow."""
    if request.param == "other numbers":
        folder = shutil.copytree(folder, tmp_path_factory.mktemp("changed") / "run")
        rng = np.random.default_rng(3)
        for file in sorted(folder.rglob("result.json")):
            file.write_text(json.dumps(redrawn(json.loads(file.read_text()), rng)))
    text, _, numbers, _ = make(folder)
    return folder, text, numbers


def test_every_headline_is_the_number_of_its_result(traced):
    folder, text, numbers = traced
    (headline,) = [s for s in numbers["sections"] if s["section"] == "Headline figures"]
    assert [f["title"] for f in headline["figures"]] == list(HEADLINES), "name a new headline and its place above"
    section = text[text.index('id="headline"') :].partition("</section>")[0]
    shown = html.unescape(re.sub(r"<[^>]*>", "", section))
    for figure in headline["figures"]:
        name, *path = HEADLINES[figure["title"]]
        assert figure["files"] == [str(folder / "results" / name / "result.json")]
        record = record_of(folder, name)
        expected, (reading,) = at(record, path), figure["data"].values()
        assert reading["figure"] == expected, figure["title"]
        card = shown[shown.index(figure["title"]) :][:200]
        assert f"{expected['value']:.3f}" in card, figure["title"]
        own = card.partition("test subjects")[0]
        if expected["low"] is None:  # two test subjects, one of either sex: every resample with a value is the same
            assert "95 % interval" not in own, figure["title"]
        else:
            assert f"interval {expected['low']:.3f} to {expected['high']:.3f}" in own, figure["title"]
        if path == ["macro", "auprc"]:
            assert reading["chance"] == pytest.approx(np.mean([c["prevalence"] for c in record["classes"].values()]))
        elif name == "retrieve":
            assert reading["chance"] == expected["chance"]
        else:
            assert reading["chance"] == {"auroc": 0.5, "cohen_kappa": 0.0, "f1": None}[path[-1]]


def test_every_estimate_with_an_interval_stands_in_a_file_that_its_figure_names(traced):
    _, _, numbers = traced
    seen = 0
    for (section, group, title), figure in figures_of(numbers).items():
        records = [json.loads(Path(f).read_text()) for f in figure["files"] if f.endswith("result.json")]
        known = [estimate for record in records for estimate in intervals_in(record)]
        for estimate in intervals_in(figure["data"]):
            assert estimate in known, (section, group, title, estimate)
            seen += 1
    assert seen > 100


def test_confusion_matrices_and_areas_are_those_of_the_results(traced):
    folder, _, numbers = traced
    figures = figures_of(numbers)
    for section, name in (("Sleep staging", "stage"), ("Sleep-disordered breathing", "sdb"), ("Sex", "sex")):
        record = record_of(folder, name)
        mine = {title: figure for (s, _, title), figure in figures.items() if s == section}
        assert mine["Confusion matrix"]["data"]["counts"] == record["confusion"]["counts"]
        for title, key in (("ROC curves", "auroc"), ("Precision-recall curves", "auprc")):
            areas = {c: entry["area"] for c, entry in mine[title]["data"].items()}
            assert areas == {c: record["classes"][c][key]["value"] for c in areas}
            assert areas


def test_few_shot_curves_are_those_of_the_result(traced):
    folder, _, numbers = traced
    curve = record_of(folder, "few_shot-stage")["curve"]
    (figure,) = [f for (_, _, t), f in figures_of(numbers).items() if t == "Sleep staging: macro AUROC"]
    (drawn,) = figure["data"].values()
    for n, replicates, mean in zip(drawn["subjects"], drawn["replicates"], drawn["mean"], strict=True):
        expected = [p["macro"]["auroc"] for p in curve if p["subjects"] == n]
        assert replicates == pytest.approx(expected)
        assert mean == pytest.approx(np.mean(expected))


def test_recall_at_every_k_is_counted_from_the_ranks(folder):
    numbers = make(folder)[2]
    (figure,) = [f for (_, _, t), f in figures_of(numbers).items() if t == "Recall at every k"]
    data, directions = figure["data"], record_of(folder, "retrieve")["directions"]
    assert len(directions) == 6
    for d in directions:
        drawn = data[f"{d['query']} → {d['candidates']}"]
        ranks = np.load(folder / "results" / "retrieve" / f"rank_{d['query']}_{d['candidates']}.npy")
        assert str(folder / "results" / "retrieve" / f"rank_{d['query']}_{d['candidates']}.npy") in figure["files"]
        assert drawn == pytest.approx([(ranks <= k).mean() for k in data["k"]], abs=1e-4)
        assert d["recall@10"]["value"] == pytest.approx((ranks <= 10).mean())
