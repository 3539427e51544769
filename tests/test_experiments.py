"""The stored experiments: pages show what the files hold, and verdicts follow the intervals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
if not BENCH.is_dir():
    pytest.skip("the experiments are in the clone, not in the package", allow_module_level=True)
sys.path.insert(0, str(BENCH))

import couplings  # noqa: E402
import report  # noqa: E402
import reproduction  # noqa: E402


@pytest.mark.parametrize("experiment", [couplings, reproduction])
def test_the_page_shows_the_stored_experiment(experiment):
    document = json.loads(experiment.RESULT.read_text())
    page = experiment.DOC.read_text()
    assert experiment.redrawn(page, document) == page
    assert report.is_experiment(experiment.RESULT), "the benchmarks' tables leave experiments out"
    # A changed figure would be seen.
    changed = json.loads(experiment.RESULT.read_text().replace('"value": 0.9', '"value": 0.1'))
    assert changed != document
    assert experiment.redrawn(page, changed) != page


def test_all_couplings_and_single_routes_are_switched_off():
    assert set(couplings.ARMS["everything off"].off) == set(couplings.ALL)
    for arm in couplings.ARMS.values():
        assert set(arm.off) <= set(couplings.ALL)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.4, 0.6, "chance"), (0.51, 0.6, "above"), (0.3, 0.49, "below"), (None, None, "chance")],
)
def test_the_verdict_is_the_place_of_the_interval(low, high, expected):
    assert couplings.verdict({"value": 0.5, "low": low, "high": high, "chance": 0.5}) == expected


def test_the_stored_arms_are_those_of_the_script():
    document = json.loads(couplings.RESULT.read_text())
    assert set(document["arms"]) == set(couplings.ARMS)
    for name, arm in document["arms"].items():
        assert arm["off"] == [c.replace("_", "-") for c in couplings.ARMS[name].off]
    assert document["cohort"] == {
        "subjects": couplings.SUBJECTS,
        "hours": couplings.HOURS,
        "seed": couplings.COHORT_SEED,
    }


def test_removing_a_coupling_removed_its_result():
    """The claims of docs/simulator.md, read from the stored intervals."""
    arms = json.loads(couplings.RESULT.read_text())["arms"]

    def judged(arm, *figures):
        return {couplings.verdict(arms[arm][figure]) for figure in figures}

    pairs = [f"{a} -> {b} recall@10" for a in couplings.SEEN[1:] for b in couplings.SEEN[1:] if a != b]
    heart_breath = ["ecg -> respiratory recall@10", "respiratory -> ecg recall@10"]
    assert judged("everything on", *pairs, "stage ecg", "stage brain", "sdb ecg", "sdb brain") == {"above"}
    assert judged("heart on its own", *heart_breath, "stage ecg", "sdb ecg") == {"chance"}
    assert judged("heart on its own", "stage brain", "sdb respiratory", "respiratory -> brain recall@10") == {"above"}
