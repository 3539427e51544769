"""Logistic regression block by block against scikit-learn: the same optimum, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from synthetic_embeddings import columns_of, write_folder

from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.evaluation import block_logistic, logistic
from sleepfm_fast.evaluation.block_logistic import GRADIENT_TOLERANCE, minimise
from sleepfm_fast.evaluation.logistic import Features, fit


def case(n, n_features, n_classes, seed=0):
    rng = np.random.default_rng(seed)
    code = rng.choice(n_classes, n, p=np.arange(1, n_classes + 1) / (n_classes * (n_classes + 1) / 2))
    x = rng.standard_normal((n, n_features))
    x[:, :n_classes] += 1.5 * np.eye(n_classes)[code]
    return x, code.astype(np.int64)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("block", [7, 64, 10_000])
def test_the_optimum_is_scikit_learns(n_classes, c, block, monkeypatch):
    monkeypatch.setattr(block_logistic, "BLOCK", block)
    x, code = case(500, 9, n_classes)
    theirs = LogisticRegression(C=c, class_weight="balanced", max_iter=10_000, tol=1e-10).fit(x, code)
    weight = len(code) / (n_classes * np.bincount(code))
    coef, intercept, _, _ = minimise(x, code, weight, c=c, max_iter=10_000, gradient_tolerance=1e-10)
    if n_classes == 2:
        assert (coef[0] == 0).all()
        coef, intercept = coef[1:], intercept[1:]
    scale = np.abs(theirs.coef_).max()
    np.testing.assert_allclose(coef, theirs.coef_, atol=1e-6 * scale)
    # Softmax intercepts are free up to a constant, which neither penalises.
    np.testing.assert_allclose(
        intercept - intercept.mean() * (n_classes > 2),
        theirs.intercept_ - theirs.intercept_.mean() * (n_classes > 2),
        atol=1e-6 * max(scale, 1),
    )


@pytest.mark.parametrize("n_classes", [2, 5])
def test_float32_rows_stop_where_scikit_learn_stops(n_classes):
    x, code = case(3000, 20, n_classes)
    x = x.astype(np.float32)
    weight = len(code) / (n_classes * np.bincount(code))
    theirs = LogisticRegression(class_weight="balanced", max_iter=10_000, tol=GRADIENT_TOLERANCE)
    theirs.fit(x.astype(np.float64), code)
    coef, intercept, n_iter, converged = minimise(x, code, weight, c=1.0, max_iter=10_000)
    assert converged
    assert abs(n_iter - theirs.n_iter_[0]) <= 2
    z, expected = x @ coef.T + intercept, x.astype(np.float64) @ theirs.coef_.T + theirs.intercept_
    if n_classes == 2:
        z = z[:, 1:]
    np.testing.assert_allclose(z - z.mean(1, keepdims=True) * (n_classes > 2), expected, atol=1e-3)


def test_extreme_logits_neither_overflow_nor_turn_to_nan():
    for n_classes in (2, 3):
        x, code = case(60, 4, n_classes)
        x *= 1e6
        weight = np.ones(n_classes)
        coef, _, _, _ = minimise(x, code, weight, c=1e6, max_iter=50)
        assert np.isfinite(coef).all()


def test_iterations_are_bounded_and_said():
    x, code = case(300, 5, 3)
    done = []
    _, _, n_iter, converged = minimise(
        x, code, np.ones(3), c=1.0, max_iter=2, progress=lambda passes, loss: done.append((passes, loss))
    )
    assert (n_iter, converged) == (2, False)
    assert [passes for passes, _ in done] == list(range(1, len(done) + 1))
    assert done[0][1] == pytest.approx(np.log(3))
    assert done[-1][1] < done[0][1]


# ---- on an embeddings folder -----------------------------------------------------------------------------------------


def folder_of(tmp_path, n=900, dim=6, mask=None):
    x, code = case(n, 3 * dim, 5)
    columns = columns_of(np.arange(n) % 9, np.zeros(n), stage=code)
    return Embeddings(write_folder(tmp_path / "emb", x.reshape(n, 3, dim), columns, mask=mask)), code.astype(np.int8)


@pytest.mark.parametrize("modalities", [("respiratory", "brain", "ecg"), ("ecg",), ("ecg", "brain")])
@pytest.mark.parametrize("standardise", [False, True])
def test_both_solvers_agree(tmp_path, monkeypatch, modalities, standardise):
    monkeypatch.setattr(block_logistic, "BLOCK", 100)
    embeddings, labels = folder_of(tmp_path)
    clips = np.arange(3, 900, 2)
    models = [
        fit(Features(embeddings, clips, modalities), labels[clips], solver=solver, standardise=standardise)[0]
        for solver in ("sklearn", "blocks")
    ]
    x = Features(embeddings, clips, modalities)[:]
    np.testing.assert_array_equal(x, embeddings.read(clips, modalities).reshape(len(clips), -1))
    z = [m.logits(x) for m in models]
    z = [one - one.mean(1, keepdims=True) for one in z]
    np.testing.assert_allclose(z[0], z[1], atol=1e-3)
    assert np.abs(z[0]).max() > 0.3


def test_standardising_equals_scaling_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(logistic, "BLOCK", 130)
    embeddings, labels = folder_of(tmp_path)
    features = Features(embeddings, np.arange(900), ("brain",))
    raw = features[:].astype(np.float64)
    model, about = fit(features, labels, standardise=True, solver="sklearn")
    assert about["standardise"] is True
    scaled = (raw - raw.mean(0)) / raw.std(0)
    by_hand = LogisticRegression(class_weight="balanced", max_iter=10_000).fit(scaled.astype(np.float32), labels)
    np.testing.assert_allclose(model.logits(raw), by_hand.decision_function(scaled), atol=2e-3)
    np.testing.assert_array_equal(features[:], raw.astype(np.float32))  # the caller's rows are as they were


def test_a_feature_that_does_not_vary_has_no_weight(tmp_path):
    x = np.full((40, 1, 3), 1.0)
    x[:, 0, 1] = np.where(np.arange(40) % 2, 1, -1)
    columns = columns_of(np.zeros(40), np.zeros(40), stage=np.arange(40) % 2)
    embeddings = Embeddings(write_folder(tmp_path / "emb", x, columns, modalities=("brain",)))
    features = Features(embeddings, np.arange(40), ("brain",))
    model, _ = fit(features, (np.arange(40) % 2).astype(np.int8), standardise=True, solver="blocks")
    assert (model.coef[:, [0, 2]] == 0).all()
    assert model.coef[1, 1] > 0.5


def test_a_damaged_vector_is_named_by_either_solver(tmp_path):
    embeddings, labels = folder_of(tmp_path)
    with (embeddings.path / "embeddings.npy").open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(np.nan).tobytes())
    for solver in ("sklearn", "blocks"):
        with pytest.raises(SleepfmError, match="clip 899"):
            fit(Features(embeddings, np.arange(900), ("ecg",)), labels, solver=solver)


def test_large_features_are_fitted_in_blocks(tmp_path, monkeypatch):
    embeddings, labels = folder_of(tmp_path)
    features = Features(embeddings, np.arange(900), ("ecg",))
    assert fit(features, labels)[1]["solver"] == "sklearn"
    monkeypatch.setattr(logistic, "LARGEST_IN_MEMORY", features.n_bytes - 1)
    assert fit(features, labels)[1]["solver"] == "blocks"


BOUNDED = """
import resource, sys
import numpy as np
from pathlib import Path
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.evaluation.logistic import Features, fit
import sleepfm_fast.evaluation.block_logistic, scipy.optimize, sklearn.linear_model, tqdm

embeddings = Embeddings(sys.argv[1])
clips = np.arange(len(embeddings))
labels = np.asarray(embeddings.stage)
fit(Features(embeddings, clips[:64], embeddings.modalities), labels[:64], solver="blocks")
# RLIMIT_DATA bounds private writable memory; pages of the mapped file, which the system may drop, do not count.
held = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData:"))
resource.setrlimit(resource.RLIMIT_DATA, (held + int(sys.argv[3]) * 2**20,) * 2)
model, about = fit(Features(embeddings, clips, embeddings.modalities), labels, solver=sys.argv[2])
print(about["solver"], about["converged"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA bounds mapped memory on Linux only")
def test_memory_is_bounded(tmp_path):
    # 60,000 clips x 768 features are 176 MiB; 64 MiB are allowed, of which the blocks take a fifth and the L-BFGS
    # history of 5 x 769 coefficients nearly nothing.
    n, dim = 60_000, 256
    rng = np.random.default_rng(0)
    stage = rng.integers(0, 5, n)
    vectors = rng.standard_normal((n, 3, dim), dtype=np.float32)
    vectors[np.arange(n), :, stage] += 3
    write_folder(tmp_path / "emb", vectors, columns_of(np.arange(n) // 1000, np.zeros(n), stage=stage), batch=4096)
    del vectors

    def call(solver):
        arguments = [sys.executable, "-c", BOUNDED, str(tmp_path / "emb"), solver, "64"]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    done = call("blocks")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "blocks True\n"
    refused = call("sklearn")
    assert refused.returncode != 0
    assert "--solver blocks" in refused.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and counts on MADV_DONTNEED")
def test_pages_of_the_folder_are_handed_back(tmp_path, monkeypatch):
    n, dim = 20_000, 128
    x = np.random.default_rng(0).standard_normal((n, 3, dim), dtype=np.float32)
    write_folder(tmp_path / "emb", x, columns_of(np.arange(n) // 1000, np.zeros(n)), batch=4096)

    def resident_mib():
        lines = Path("/proc/self/status").read_text().splitlines()
        # Of files in memory, as in /tmp on many systems, the pages count as shared memory.
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssFile:", "RssShmem:"))) / 1024

    def held_after_two_passes():
        embeddings = Embeddings(tmp_path / "emb")
        features = Features(embeddings, np.arange(n), embeddings.modalities)
        before, most = resident_mib(), 0.0
        for start in [*range(0, n, 1000)] * 2:
            assert np.abs(features[start : start + 1000]).max() > 0
            most = max(most, resident_mib() - before)
        return most

    file_mib = x.nbytes / 2**20  # 29
    assert held_after_two_passes() > 0.9 * file_mib  # less than RELEASE_BYTES: nothing is handed back
    monkeypatch.setattr("sleepfm_fast.embeddings.RELEASE_BYTES", 2**22)
    assert held_after_two_passes() < 0.35 * file_mib


def test_clips_outside_the_folder_are_an_error(tmp_path):
    embeddings, _ = folder_of(tmp_path)
    for clips in ([-1], [900]):
        with pytest.raises(IndexError, match="the folder has 900"):
            embeddings.copy(np.array(clips), embeddings.modalities)
    assert embeddings.copy(np.zeros(0, np.int64), ("ecg",)).shape == (0, 1, 6)
