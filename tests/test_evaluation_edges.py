"""The smallest and oddest folders that the evaluation commands must survive."""

from __future__ import annotations

import numpy as np
import pytest
from called import last_json
from synthetic_embeddings import columns_of, write_folder

from sleepfm_fast import few_shot, probe, retrieve

DIM = 4


def run(command, capsys, *arguments):
    status = command.cli([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, last_json(out) if status == 0 else err


@pytest.mark.parametrize("scope", ["cohort", "night", "other-subjects"])
def test_retrieval_between_two_clips(tmp_path, capsys, scope):
    subject = [0, 0] if scope == "night" else [0, 1]
    x = np.random.default_rng(0).standard_normal((2, 3, DIM))
    folder = write_folder(tmp_path / "emb", x, columns_of(subject, [2, 2]))
    status, result = run(retrieve, capsys, folder, tmp_path / "out", "--scope", scope)
    assert status == 0
    assert len(result["directions"]) == 6
    for d in result["directions"]:
        assert d["n_candidates"] == [2, 2]
        assert d["recall@1"]["chance"] == 0.5
        assert d["recall@10"]["value"] == d["recall@10"]["chance"] == 1.0
        assert d["median_rank"]["chance"] == 1.5


def test_probe_of_two_training_clips_and_one_test_clip(tmp_path, capsys):
    x = np.zeros((3, 3, DIM))
    x[[0, 2], :, 0] = 1
    x[1, :, 1] = 1
    folder = write_folder(tmp_path / "emb", x, columns_of([0, 0, 1], [0, 0, 2], stage=[0, 3, 0]))
    for more in ((), ("--solver", "blocks"), ("--standardise",)):
        status, result = run(probe, capsys, folder, "--task", "stage", *more)
        assert status == 0
        assert result["accuracy"] == {"value": 1.0, "low": None, "high": None, "n_resamples": 0}
        assert result["classes"]["W"]["note"] == "the only class of the test clips"
        assert result["macro"]["auroc"]["value"] is None
        assert result["strata"]["sex"]["F"]["n_clips"] == 1
        assert result["calibration"]["as_fitted"]["predicted_class"]["brier"]["low"] is None


def test_identical_embeddings_carry_nothing(tmp_path, capsys):
    # Every clip the same vector: AUROC one half by ties, and ranks that are the clips' order, not 1.
    n = 60
    subject = np.repeat(np.arange(6), 10)
    columns = columns_of(subject, np.where(subject < 3, 0, 2), stage=np.arange(n) % 5)
    folder = write_folder(tmp_path / "emb", np.ones((n, 3, DIM)), columns)
    for solver in ("sklearn", "blocks"):
        status, result = run(probe, capsys, folder, "--task", "stage", "--solver", solver, "--standardise")
        assert status == 0
        assert result["macro"]["auroc"]["value"] == 0.5
    for scope, median in (("cohort", 15.5), ("night", 5.5)):
        status, result = run(retrieve, capsys, folder, "--scope", scope)
        assert {d["median_rank"]["value"] for d in result["directions"]} == {median}
        assert {d["median_rank"]["chance"] for d in result["directions"]} == {median}
        for d in result["directions"]:
            assert d["recall@1"]["times_chance"] == pytest.approx(1)


@pytest.mark.parametrize("command", [probe, few_shot])
def test_a_modality_that_is_missing_throughout(tmp_path, capsys, command):
    n = 80
    subject = np.repeat(np.arange(8), 10)
    mask = np.tile([True, True, False], (n, 1))
    columns = columns_of(subject, np.where(subject < 5, 0, 2), stage=np.arange(n) % 3)
    x = np.random.default_rng(0).standard_normal((n, 3, DIM))
    folder = write_folder(tmp_path / "emb", x, columns, mask=mask)
    out = (tmp_path / "out",) if command is few_shot else ()
    status, err = run(command, capsys, folder, *out, "--task", "stage")
    assert status == 1
    assert "has all of respiratory, brain, ecg. Probe a single modality with --modality" in err
    status, result = run(command, capsys, folder, *out, "--task", "stage", "--modality", "brain")
    assert status == 0
    assert result["test"]["n_clips"] == 30
    status, found = run(retrieve, capsys, folder)
    assert status == 0
    assert found["mean"]["n_directions"] == 2


def test_a_resample_of_one_sex_has_no_figure_that_tells_the_sexes_apart(tmp_path, capsys):
    # Four test subjects, two of them women: a resample of women only would have a precision of 1 whatever the scores.
    n, rng = 200, np.random.default_rng(3)
    subject = np.repeat(np.arange(10), 20)
    x = rng.standard_normal((n, 3, DIM))
    folder = write_folder(
        tmp_path / "emb", x, columns_of(subject, np.where(subject < 6, 0, 2)), sexes=tuple("MFMFMF" + "FFMM")
    )
    status, result = run(probe, capsys, folder, "--task", "sex", "--bootstraps", "2000")
    assert status == 0
    woman = result["classes"]["F"]
    assert woman["auprc"]["n_resamples"] == woman["auroc"]["n_resamples"] < 2000 * (1 - 0.5**4)
    assert woman["auprc"]["high"] < 1
