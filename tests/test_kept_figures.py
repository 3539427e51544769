"""Figures of given inputs are those of before, unless the number of their definitions was raised."""

from __future__ import annotations

import copy

import kept_figures
import pytest
from kept_figures import GROUPS, additions, computed, kept, refusals


@pytest.mark.parametrize("name", GROUPS)
def test_no_figure_changes_under_its_number(name, tmp_path):
    before = kept()
    assert before[name]["number"] == GROUPS[name].number, "the number was raised: run python tests/kept_figures.py"
    now = {**before, name: computed(name, tmp_path)}
    assert refusals(before, now) == []
    new = additions(before[name]["figures"], now[name]["figures"])
    assert new == [], "there are new figures: run python tests/kept_figures.py"


def test_a_figure_that_changed_is_named_and_not_written(monkeypatch, tmp_path, capsys):
    before = kept()
    now = copy.deepcopy(before)
    now["labels"]["figures"]["a.csv"]["stage"][2] = 4
    now["probe"]["figures"]["stage"]["macro"]["auroc"]["value"] += 1e-3
    now["compare"]["figures"].pop("macro")
    said = refusals(before, now)
    assert [sentence.partition(":")[0] for sentence in said] == ["labels", "probe", "compare"]
    assert "/a.csv/stage/2: 2 before, 4 now). If that is meant, raise LABEL_RULES in" in said[0]
    assert "its number in sleepfm_fast/storage/definitions.py" in said[1]
    assert ": nothing now" not in said[1]
    assert "nothing now" in said[2]
    now["probe"]["number"] += 1
    assert [sentence.partition(":")[0] for sentence in refusals(before, now)] == ["labels", "compare"]

    monkeypatch.setattr(kept_figures, "computed", lambda name, folder: now[name])
    monkeypatch.setattr(kept_figures, "FILE", tmp_path / "kept.json")
    kept_figures.FILE.write_bytes(
        original := kept_figures.Path(kept_figures.__file__).with_suffix(".json").read_bytes()
    )
    assert kept_figures.main() == 1
    assert "labels: the same inputs give other figures" in capsys.readouterr().err
    assert kept_figures.FILE.read_bytes() == original
    for name in ("labels", "compare"):
        now[name]["number"] += 1
    assert kept_figures.main() == 0
    assert kept() == now


def test_rounding_is_no_change():
    before = kept()
    now = copy.deepcopy(before)
    now["probe"]["figures"]["stage"]["macro"]["auroc"]["value"] += 1e-6
    assert refusals(before, now) == []


def test_new_figures_are_kept_without_a_new_number(monkeypatch, tmp_path):
    """As those of another preset of filters, which is what is to be made instead of changing one."""
    before = kept()
    now = copy.deepcopy(before)
    now["filters"]["figures"]["new eeg 200"] = [0.5]
    assert additions(before["filters"]["figures"], now["filters"]["figures"]) == ["/new eeg 200/0"]
    monkeypatch.setattr(kept_figures, "computed", lambda name, folder: now[name])
    monkeypatch.setattr(kept_figures, "FILE", tmp_path / "kept.json")
    kept_figures.FILE.write_bytes(kept_figures.Path(kept_figures.__file__).with_suffix(".json").read_bytes())
    assert kept_figures.main() == 0
    assert kept() == now
