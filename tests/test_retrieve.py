"""Retrieval on folders whose answer is known, and what the command refuses."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from synthetic_embeddings import MODALITIES, columns_of, unit, write_folder

from sleepfm_fast import retrieve
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.results import read_result

DIM = 24
N = 600


def folder_of(tmp_path, *, alignment, n=N, n_subjects=12, mask=None, split_of=None, seed=0, **more):
    """Make clips whose modalities share one vector with weight ``alignment`` against noise of weight 1."""
    rng = np.random.default_rng(seed)
    subject = np.sort(np.arange(n) % n_subjects)
    split = np.full(n_subjects, 2) if split_of is None else np.asarray(split_of)
    shared = rng.standard_normal((n, 1, DIM))
    noise = 0.0 if alignment == np.inf else rng.standard_normal((n, 3, DIM))
    x = np.broadcast_to(shared, (n, 3, DIM)) * (1.0 if alignment == np.inf else alignment) + noise
    return write_folder(tmp_path / "emb", x, columns_of(subject, split[subject]), mask=mask, **more), unit(x), subject


def run(capsys, folder, *arguments):
    status = retrieve.cli([str(folder), *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, json.loads(out.splitlines()[-1]) if status == 0 else None, err


def dense(a, b):
    s = a.astype(np.float32).astype(np.float64) @ b.astype(np.float32).astype(np.float64).T
    own = np.diag(s)[:, None]
    return 1 + (s > own).sum(1) - (np.diag(s) > own[:, 0])


def test_identical_modalities_are_found_always(tmp_path, capsys):
    folder, _, _ = folder_of(tmp_path, alignment=np.inf)
    status, result, err = run(capsys, folder)
    assert status == 0
    assert [(d["query"], d["candidates"]) for d in result["directions"]] == list(itertools.permutations(MODALITIES, 2))
    for d in result["directions"]:
        assert d["recall@1"] == {"value": 1.0, "low": 1.0, "high": 1.0, "chance": 1 / N, "times_chance": N}
        assert d["median_rank"] == {"value": 1.0, "chance": (N + 1) / 2}
        assert d["mean_rank"]["value"] == 1.0
        assert d["n_clips"] == N
    assert result["mean"]["n_directions"] == 6
    assert result["mean"]["recall@10"]["times_chance"] == pytest.approx(N / 10)
    assert "x chance" in err


def test_independent_modalities_are_found_by_chance(tmp_path, capsys):
    folder, _, _ = folder_of(tmp_path, alignment=0.0)
    _, result, _ = run(capsys, folder, "--k", "60")
    for d in result["directions"]:
        # Binomial with N = 600, p = 0.1: five standard errors are 0.061.
        assert abs(d["recall@60"]["value"] - 0.1) < 5 * np.sqrt(0.1 * 0.9 / N)
        assert d["recall@60"]["chance"] == 0.1
        # A median of 600 uniform ranks has a standard error of about 600 / (2 sqrt(600)) = 12.2.
        assert abs(d["median_rank"]["value"] - 300.5) < 5 * 12.2


def test_figures_equal_a_dense_computation(tmp_path, capsys):
    folder, x, _ = folder_of(tmp_path, alignment=0.7)
    _, result, _ = run(capsys, folder, "--k", "1", "5", "100")
    for d in result["directions"]:
        ranks = dense(x[:, MODALITIES.index(d["query"])], x[:, MODALITIES.index(d["candidates"])])
        for k in (1, 5, 100):
            r = d[f"recall@{k}"]
            assert r["value"] == pytest.approx((ranks <= k).mean())
            assert r["times_chance"] == pytest.approx((ranks <= k).mean() * N / k)
            assert r["low"] <= r["value"] <= r["high"]
        assert 1 < ranks.mean() < N / 3
        assert d["mean_rank"]["value"] == pytest.approx(ranks.mean())
        assert d["median_rank"]["value"] == np.median(ranks)


def test_only_clips_that_have_both_count(tmp_path, capsys):
    mask = np.random.default_rng(1).random((N, 3)) < 0.6
    folder, x, _ = folder_of(tmp_path, alignment=1.0, mask=mask)
    _, result, _ = run(capsys, folder)
    for d in result["directions"]:
        i, j = (MODALITIES.index(d[side]) for side in ("query", "candidates"))
        both = mask[:, i] & mask[:, j]
        ranks = dense(x[both, i], x[both, j])
        assert d["n_clips"] == both.sum()
        assert d["recall@10"]["chance"] == pytest.approx(10 / both.sum())
        assert d["recall@10"]["value"] == pytest.approx((ranks <= 10).mean())


def test_candidates_are_a_seeded_uniform_draw(tmp_path):
    folder, _, _ = folder_of(tmp_path, alignment=0.5)
    mask = np.asarray(Embeddings(folder).mask)
    counts = np.zeros(N)
    for seed in range(300):
        config = retrieve.Config(folder, candidates=120, seed=seed)
        chosen = retrieve._pairs(mask, np.arange(N), MODALITIES, config)
        clips = chosen["respiratory", "ecg"]
        assert len(np.unique(clips)) == 120
        assert (np.diff(clips) > 0).all()
        np.testing.assert_array_equal(clips, chosen["brain", "ecg"])
        counts[clips] += 1
    # Each clip is drawn in a fifth of the 300 draws: 60 +- 6.9.
    assert counts.min() > 60 - 5 * 6.9
    assert counts.max() < 60 + 5 * 6.9
    assert abs(counts[: N // 2].sum() / counts.sum() - 0.5) < 0.02


def test_candidates_option(tmp_path, capsys):
    folder, _, _ = folder_of(tmp_path, alignment=0.5)
    _, few, _ = run(capsys, folder, "--candidates", "100")
    _, again, _ = run(capsys, folder, "--candidates", "100")
    assert {d["n_clips"] for d in few["directions"]} == {100}
    assert few["directions"] == again["directions"]
    assert run(capsys, folder, "--candidates", "100", "--seed", "9")[1]["directions"] != few["directions"]
    _, every, _ = run(capsys, folder)
    _, more, err = run(capsys, folder, "--candidates", "9999")
    assert more["directions"] == every["directions"]
    assert "all of them are used" in err


def test_split_option(tmp_path, capsys):
    folder, _, _ = folder_of(tmp_path, alignment=0.5, split_of=[0] * 6 + [1] * 2 + [2] * 4)
    for split, n in (("test", 200), ("validation", 100), ("train", 300), ("all", 600)):
        assert run(capsys, folder, "--split", split)[1]["n_clips"] == n


def test_k_beyond_the_candidates_is_certain(tmp_path, capsys):
    folder, _, _ = folder_of(tmp_path, alignment=0.0, n=8, n_subjects=2)
    for d in run(capsys, folder, "--k", "10")[1]["directions"]:
        assert (d["recall@10"]["value"], d["recall@10"]["chance"], d["recall@10"]["times_chance"]) == (1.0, 1.0, 1.0)


def test_one_subject_says_so(tmp_path, capsys):
    folder, _, _ = folder_of(
        tmp_path, alignment=0.5, n=40, n_subjects=1, split_of=[0], overlap=True, overlap_note="They overlap."
    )
    status, result, err = run(capsys, folder)
    assert status == 0
    assert result["n_clips"] == 40
    assert (result["overlap"], result["overlap_note"]) == (True, "They overlap.")
    assert "notice: They overlap." in err
    assert "nothing to bootstrap over" in err
    assert result["directions"][0]["recall@1"]["low"] is None


def test_a_pair_that_never_occurs_together_is_noted(tmp_path, capsys):
    mask = np.ones((N, 3), bool)
    mask[::2, 0] = False
    mask[1::2, 2] = False
    folder, _, _ = folder_of(tmp_path, alignment=0.5, mask=mask)
    _, result, err = run(capsys, folder)
    notes = {(d["query"], d["candidates"]) for d in result["directions"] if "note" in d}
    assert notes == {("respiratory", "ecg"), ("ecg", "respiratory")}
    assert result["mean"]["n_directions"] == 4
    assert "fewer than two clips have both" in err


@pytest.mark.parametrize(
    ("more", "arguments", "match"),
    [
        ({"split_of": [0] * 12}, (), "the test split of"),
        ({"mask": np.tile([True, False, False], (N, 1))}, (), "no two modalities occur together"),
        ({}, ("--candidates", "1"), "--candidates is 1"),
        ({}, ("--k", "0"), "--k is"),
        ({}, ("--bootstraps", "-1"), "--bootstraps is -1"),
    ],
)
def test_refusals(tmp_path, capsys, more, arguments, match):
    folder, _, _ = folder_of(tmp_path, alignment=0.5, **more)
    status, _, err = run(capsys, folder, *arguments)
    assert status == 1
    assert match in err.splitlines()[-1]


def test_folder_refusals(tmp_path, capsys):
    x = np.ones((4, 1, DIM))
    folder = write_folder(tmp_path / "emb", x, columns_of([0, 0, 1, 1], [0, 0, 2, 2]), modalities=("brain",))
    assert "holds one modality" in run(capsys, folder)[2]
    (folder / "embeddings.json").unlink()
    status, _, err = run(capsys, folder)
    assert (status, "not a finished embeddings folder" in err) == (1, True)
    status, _, err = run(capsys, tmp_path / "nothing")
    assert (status, "no embeddings folder" in err) == (1, True)


def test_a_damaged_vector_stops_with_its_name(tmp_path, capsys):
    folder, _, _ = folder_of(tmp_path, alignment=0.5)
    with (folder / "embeddings.npy").open("r+b") as file:
        file.seek(-DIM * 4, 2)
        file.write(b"\0" * DIM * 4)
    status, _, err = run(capsys, folder)
    assert status == 1
    assert f"embeddings.npy is damaged: the ecg vector of clip {N - 1}" in err


@pytest.mark.parametrize("arguments", [("emb", "--split", "dev"), (), ("emb", "--oops")])
def test_wrong_usage_is_status_2(capsys, arguments):
    assert retrieve.cli(list(arguments)) == 2
    capsys.readouterr()


# ---- the result folder -----------------------------------------------------------------------------------------------


def test_the_result_folder_holds_ranks_and_examples(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sleepfm_fast.found_clips.BLOCK", 77)
    mask = np.random.default_rng(1).random((N, 3)) < 0.8
    folder, x, _ = folder_of(tmp_path, alignment=0.7, mask=mask)
    _, printed, _ = run(capsys, folder, tmp_path / "result", "--examples", "3")
    result = read_result(tmp_path / "result")
    assert {k: v for k, v in result.record.items() if k in printed} == printed
    assert result.record["scope"] == "cohort"
    assert len(result.record["examples"]) == 6 * 3
    for d in result.record["directions"]:
        name = f"{d['query']}_{d['candidates']}"
        i, j = (MODALITIES.index(d[side]) for side in ("query", "candidates"))
        clips = result.array(f"clip_{name}")
        np.testing.assert_array_equal(clips, np.flatnonzero(mask[:, i] & mask[:, j]))
        np.testing.assert_array_equal(result.array(f"rank_{name}"), dense(x[clips, i], x[clips, j]))
    for e in result.record["examples"]:
        i, j = (MODALITIES.index(e[side]) for side in ("query", "candidates"))
        clips = np.flatnonzero(mask[:, i] & mask[:, j])
        similarity = x[clips, j].astype(np.float32).astype(np.float64) @ x[e["clip"], i].astype(np.float32)
        best = np.argsort(-similarity, kind="stable")[:5]
        assert e["found"] == clips[best].tolist()
        np.testing.assert_allclose(e["found_similarity"], similarity[best])
        if e["rank"] <= 5:
            assert e["found"][e["rank"] - 1] == e["clip"]
    status, _, err = run(capsys, tmp_path / "no embeddings", tmp_path / "result")
    assert (status, "--overwrite" in err) == (1, True)
