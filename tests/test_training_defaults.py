"""The stored experiment on training options: the page quotes it, the defaults are what it chose."""

import json
import re
import shlex
from pathlib import Path

import pytest
import tyro

from sleepfm_fast import train
from sleepfm_fast.training.settings import resolve

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "bench" / "results" / "training-defaults.json"
if not RESULT.is_file():
    pytest.skip("the experiments are in the clone, not in the package", allow_module_level=True)


def test_the_page_quotes_the_stored_figures():
    document = json.loads(RESULT.read_text())
    page = (ROOT / "docs" / "training.md").read_text()
    for arm in document["compared"].values():
        test = arm["test"]
        row = " | ".join(f"{test[name]['mean']:.3f}" for name in ("stage_auroc", "sdb_auroc", "recall_at_10"))
        assert f"| {row} |" in page
    scores = [f"{arm['validation']['score']['mean']:.3f}" for arm in document["compared"].values()]
    assert f"the score is {scores[0]}, {scores[1]} and {scores[2]}" in page


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_what_the_pages_recommend_was_compared(page):
    """Options that stand by themselves are advice; those of an experiment's command say what was run."""
    advised = re.findall(r"`(--[^`]*--optimiser[^`]*|--optimiser[^`]*)`", (ROOT / page).read_text())
    assert advised
    compared = [arm["options"] for arm in json.loads(RESULT.read_text())["compared"].values()]
    for words in advised:
        settings = resolve(tyro.cli(train.Config, args=shlex.split(words), use_underscores=False))
        arms = [{name: getattr(settings, name) for name in options} for options in compared]
        assert any(arm == options for arm, options in zip(arms, compared, strict=True)), words


def test_the_defaults_are_the_chosen_options():
    chosen = json.loads(RESULT.read_text())["chosen"]
    settings = resolve(train.Config())
    assert {name: getattr(settings, name) for name in chosen} == chosen


def test_it_is_no_benchmark():
    assert json.loads(RESULT.read_text())["kind"] == "experiment"
