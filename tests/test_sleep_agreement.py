"""Bias and limits of agreement of predicted sleep figures, against the formulas written out and SciPy's bootstrap."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy import stats
from test_predict import planted

from sleepfm_fast import predict, probe
from sleepfm_fast.evaluation.sleep_agreement import AGREEMENT_COLUMNS, say_agreement, sleep_agreement
from sleepfm_fast.scoring.sleep_figures import SLEEP_COLUMNS

NAME = "total_sleep_time_min"


def night(subject, predicted, scored, *, split="", without=0):
    """A row of a night, all of whose figures are the same."""
    return {
        "subject": subject, "split": split, "epochs_compared": 100 - without, "scored_epochs": 100,
        **{f"{name}_within_scored": predicted for name in SLEEP_COLUMNS},
        **{f"scored_{name}": scored for name in SLEEP_COLUMNS},
    }  # fmt: skip


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def many():
    rng = np.random.default_rng(0)
    scored = rng.normal(400, 40, 60)
    return scored + rng.normal(-8, 20, 60), scored


def test_bias_and_limits_are_those_of_bland_and_altman(many):
    predicted, scored = many
    nights = [night(f"s{i:02d}", *pair) for i, pair in enumerate(zip(predicted, scored, strict=True))]
    row = sleep_agreement(nights)[0]
    assert tuple(row) == AGREEMENT_COLUMNS
    d = predicted - scored
    assert (row["figure"], row["nights"], row["subjects"]) == (NAME, 60, 60)
    assert row["scored_mean"] == pytest.approx(scored.mean(), rel=1e-12)
    assert row["predicted_mean"] == pytest.approx(predicted.mean(), rel=1e-12)
    assert row["bias"] == pytest.approx(d.mean(), rel=1e-12)
    assert row["sd"] == pytest.approx(d.std(ddof=1), rel=1e-12)
    assert row["lower_limit"] == pytest.approx(d.mean() - 1.96 * d.std(ddof=1), rel=1e-12)
    assert row["upper_limit"] == pytest.approx(d.mean() + 1.96 * d.std(ddof=1), rel=1e-12)

    def upper(x, axis):
        return x.mean(axis) + 1.96 * x.std(axis, ddof=1)

    for of, name, spread in ((np.mean, "bias", d.std() / 60**0.5), (upper, "upper_limit", d.std() * (3 / 60) ** 0.5)):
        theirs = stats.bootstrap((d,), of, n_resamples=20_000, method="percentile", rng=1, axis=0).confidence_interval
        assert row[f"{name}_lo"] == pytest.approx(theirs.low, abs=0.3 * spread)
        assert row[f"{name}_hi"] == pytest.approx(theirs.high, abs=0.3 * spread)


def test_large_figures_lose_no_digits():
    """The variance is computed around the bias; sums of squares of 1e8 would leave none of it."""
    row = sleep_agreement([night("a", 1e8 + x, 0.0) for x in (1.0, 2.0, 4.0)])[0]
    assert row["sd"] == pytest.approx(np.std([1, 2, 4], ddof=1), rel=1e-6)


def test_nights_that_are_no_test_or_lack_predictions_do_not_count():
    kept = [night("a", 380.0, 400.0), night("b", 410.0, 400.0, split="test")]
    others = [night("c", 0.0, 400.0, split="train"), night("d", 0.0, 400.0, split="validation")]
    others += [night("e", 0.0, 400.0, without=1), night("f", None, 400.0), night("g", 0.0, None)]
    assert sleep_agreement([*others[:2], *kept, *others[2:]]) == sleep_agreement(kept)
    assert sleep_agreement(kept)[0]["bias"] == -5
    assert sleep_agreement(others) == sleep_agreement(kept[:1]) == sleep_agreement([]) == []


def test_nights_of_one_subject_have_no_interval(capsys):
    rows = sleep_agreement([night("a", 380.0, 400.0), night("a", 410.0, 400.0)])
    assert (rows[0]["nights"], rows[0]["subjects"], rows[0]["bias"]) == (2, 1, -5)
    assert [rows[0][f"{name}{end}"] for name in ("bias", "upper_limit") for end in ("_lo", "_hi")] == [None] * 4
    say_agreement(rows)
    said = capsys.readouterr().err
    assert "2 nights of 1 subject" in said
    assert "bias -5.0, limits" in said
    assert "no intervals" in said


def test_subjects_are_drawn_and_not_nights(many):
    """With every night four times, intervals over nights would be half as wide."""
    once = sleep_agreement([night(f"s{i}", *pair) for i, pair in enumerate(zip(*many, strict=True))])[0]
    often = sleep_agreement([night(f"s{i}", *pair) for i, pair in enumerate(zip(*many, strict=True)) for _ in range(4)])
    width = [row["bias_hi"] - row["bias_lo"] for row in (once, often[0])]
    assert width[1] == pytest.approx(width[0], rel=1e-9)


def test_predict_writes_what_its_nights_say(tmp_path, capsys):
    folder = planted(tmp_path / "emb", presets={"weights": {"sha256": "a"}})
    probe.main(probe.Config(folder, "stage", tmp_path / "result", bootstraps=0))
    predict.main(predict.Config(tmp_path / "result", folder, tmp_path / "out"))
    assert "sleep figures, predicted minus scored, of 3 nights of 3 subjects:" in capsys.readouterr().err
    nights = [row for row in rows_of(tmp_path / "out" / "nights.csv") if row["split"] == "test"]
    assert len(nights) == 3
    for row in rows_of(tmp_path / "out" / "agreement.csv"):
        name = row["figure"]
        d = [float(n[f"{name}_within_scored"]) - float(n[f"scored_{name}"]) for n in nights]
        assert float(row["bias"]) == pytest.approx(np.mean(d), rel=1e-4, abs=1e-4), "six digits are written"
    unscored = planted(tmp_path / "new", seed=5, labelled=False, presets={"weights": {"sha256": "a"}})
    predict.main(predict.Config(tmp_path / "result", unscored, tmp_path / "unscored"))
    assert not (tmp_path / "unscored" / "agreement.csv").exists()
    assert "predicted minus scored" not in capsys.readouterr().err
