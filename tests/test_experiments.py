"""The stored experiments: pages show what the files hold, and verdicts follow the intervals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
if not BENCH.is_dir():
    pytest.skip("the experiments are in the clone, not in the package", allow_module_level=True)
sys.path.insert(0, str(BENCH))

import couplings  # noqa: E402
import paper_size  # noqa: E402
import report  # noqa: E402
import reproduction  # noqa: E402
import sinus_arrhythmia  # noqa: E402
import training_defaults  # noqa: E402


@pytest.mark.parametrize("experiment", [couplings, reproduction, sinus_arrhythmia])
def test_the_page_shows_the_stored_experiment(experiment):
    document = json.loads(experiment.RESULT.read_text())
    page = experiment.DOC.read_text()
    assert experiment.redrawn(page, document) == page
    assert report.is_experiment(experiment.RESULT), "the benchmarks' tables leave experiments out"
    # A changed figure would be seen.
    changed = json.loads(experiment.RESULT.read_text().replace('"value": 0.9', '"value": 0.1'))
    assert changed != document
    assert experiment.redrawn(page, changed) != page


def test_the_page_shows_the_stored_study():
    document, page = json.loads(reproduction.STUDY.read_text()), reproduction.DOC.read_text()
    assert reproduction.redrawn(page, document) == page
    assert (document["encoder"], document["settings"]["preset"]) == ("seed", "study")


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


def test_without_sinus_arrhythmia_heart_rate_does_not_find_the_breath():
    """The claims of docs/simulator.md about the matcher that reads heart rate and nothing else."""
    arms = json.loads(sinus_arrhythmia.RESULT.read_text())["arms"]
    assert list(arms) == list(sinus_arrhythmia.ARMS)
    directions = ("heart rate -> breath recall@10", "breath -> heart rate recall@10")
    for name, arm in arms.items():
        assert arm["off"] == [c.replace("_", "-") for c in couplings.ARMS[name].off]
        expected = "chance" if "respiratory-sinus-arrhythmia" in arm["off"] else "above"
        assert {couplings.verdict(arm[d]) for d in directions} == {expected}, name
    # The trained encoders do not use it, as the page says.
    trained = json.loads(couplings.RESULT.read_text())["arms"]
    both = ("ecg -> respiratory recall@10", "respiratory -> ecg recall@10")
    assert {couplings.verdict(trained["no sinus arrhythmia"][d]) for d in both} == {"above"}
    only = trained["sinus arrhythmia as the only tie of the heart"]
    assert "above" not in {couplings.verdict(only[d]) for d in both}


def test_the_matcher_finds_a_shifted_copy_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    belt = rng.standard_normal((40, 120))
    rate = np.roll(belt, 3, axis=1) + 0.3 * rng.standard_normal((40, 120))
    assert (sinus_arrhythmia.similarity(rate, belt).argmax(axis=1) == np.arange(40)).all()
    hits = sinus_arrhythmia.similarity(rng.standard_normal((40, 120)), belt).argmax(axis=1) == np.arange(40)
    assert hits.sum() < 6


def test_an_outcome_of_other_settings_is_made_again(tmp_path, monkeypatch):
    made = []

    def outcome():
        made.append(couplings.TRAINING["epochs"])
        return {"stage all": 0.5 + len(made)}

    arm, file = couplings.ARMS[couplings.COMPLETE], tmp_path / "outcome.json"
    first = couplings.kept(file, couplings.settings_of(arm), outcome)
    assert couplings.kept(file, couplings.settings_of(arm), outcome) == first
    assert len(made) == 1
    monkeypatch.setitem(couplings.TRAINING, "epochs", 99)
    assert couplings.kept(file, couplings.settings_of(arm), outcome)["stage all"] == 2.5
    monkeypatch.setattr(couplings, "SUBJECTS", 7)
    assert couplings.kept(file, couplings.settings_of(arm), outcome)["stage all"] == 3.5
    assert couplings.kept(file, couplings.settings_of(arm, seed=1), outcome)["stage all"] == 4.5


def test_arms_of_other_settings_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.setattr(couplings, "run_arm", lambda arm, folder: {"stage all": 0.5})
    one, other = list(couplings.ARMS)[:2]
    couplings.run_arms(tmp_path, [one, other])
    assert set(couplings.run_arms(tmp_path, [one])) == {one, other}
    monkeypatch.setitem(couplings.TRAINING, "epochs", 99)
    with pytest.raises(SystemExit, match="other settings"):
        couplings.run_arms(tmp_path, [one])


def test_kept_figures_are_of_one_cohort_and_one_training(tmp_path, monkeypatch):
    from sleepfm_fast import embed, preprocess, train

    outcome = {"best_validation_loss": 1.0, "best_epoch": 1, "temperature": 1.0, "elapsed_s": 1.0}
    trained = []
    monkeypatch.setattr(preprocess, "main", lambda config: {})
    monkeypatch.setattr(embed, "main", lambda config: {})
    monkeypatch.setattr(train, "main", lambda config: trained.append(config) or outcome)
    monkeypatch.setattr(training_defaults, "figures", lambda path, split: {})
    small = {"subjects": 1, "hours": 0.05}
    for epochs, n in ((1, 1), (1, 1), (2, 2), (1, 2)):
        training_defaults.Experiment(tmp_path, "tiny", epochs, **small).trained({}, 0)
        assert len(trained) == n
    training_defaults.Experiment(tmp_path, "seed", 1, **small).trained({}, 0)
    assert [config.preset for config in trained] == ["tiny", "tiny", "seed"]
    with pytest.raises(SystemExit, match="other options"):
        training_defaults.Experiment(tmp_path, "tiny", 1, subjects=2, hours=0.05)


def test_each_reading_at_the_papers_size_says_what_the_folder_holds(tmp_path, monkeypatch):
    folder, out = tmp_path / "embeddings", tmp_path / "out.json"
    paper_size.write(folder, 40, 20, 8)
    monkeypatch.setattr(paper_size, "watched", lambda arguments: {"command": arguments[0]})

    def measured(*options):
        monkeypatch.setattr(sys, "argv", ["paper_size.py", str(folder), str(out), *options])
        paper_size.main()
        return json.loads(out.read_text())

    # The folder stands: its sizes count, not those asked for.
    first = measured("--only", "retrieve", "--test-clips", "999")
    assert first["retrieve"]["sizes"] == {"train_clips": 40, "test_clips": 20, "dim": 8}
    folder = tmp_path / "smaller"
    paper_size.write(folder, 30, 10, 8)
    second = measured("--only", "probe")
    assert second["probe"]["sizes"]["test_clips"] == 10
    assert second["retrieve"] == first["retrieve"]
