"""The demo's steps, on a cohort and a training small enough for a test; its figures are checked nowhere."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from sleepfm_fast import demo
from sleepfm_fast.train import Config


@pytest.mark.slow
def test_the_demo_ends_with_a_report_and_can_be_run_again(tmp_path, monkeypatch, capsys):
    recipe = demo.recipe
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "SUBJECTS", 8)
    monkeypatch.setattr(demo, "HOURS", 0.2)
    monkeypatch.setattr(demo, "recipe", lambda config: dataclasses.replace(recipe(config), epochs=1, batch_size=16))
    first = demo.demo(Config())
    said = capsys.readouterr().err
    run = demo.FOLDER / "run"
    assert f"on one page: {run / 'report.html'}" in said
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "The recordings are simulated" in page
    numbers = json.loads((run / "report.json").read_text(encoding="utf-8"))
    titles = [figure["title"] for section in numbers["sections"] for figure in section["figures"]]
    for title in ("Sleep staging: AUROC, mean of stages", "Confusion matrix", "Clips by modality", "Channels"):
        assert title in titles
    assert any("→" in title and "rank" in title for title in titles), "retrieval examples are drawn from the store"
    # What the last lines say is on the page.
    assert f"{first['stage_macro_auroc']:.3f}" in page
    again = demo.demo(Config())
    assert again["stage_macro_auroc"] == first["stage_macro_auroc"]
    # The seconds differ, the rest is the same page.
    without = [re.sub(r"[0-9.]+ s<", "<", text) for text in (page, (run / "report.html").read_text(encoding="utf-8"))]
    assert len(without[0].split("<h2")) == len(without[1].split("<h2"))
    for before, after in zip(*(text.split("<h2") for text in without), strict=True):
        assert before == after or "Files behind" in before
