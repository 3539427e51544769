"""Retrieval on folders whose answer is known, and what the command refuses."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from called import called
from synthetic_embeddings import MODALITIES, columns_of, unit, write_folder

from sleepfm_fast import retrieve
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.evaluation import found_clips
from sleepfm_fast.evaluation.candidates import balanced_order, draw_pairs
from sleepfm_fast.evaluation.metrics import bootstrap_subjects
from sleepfm_fast.evaluation.retrieval_figures import chance_median
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


run = partial(called, retrieve.cli)


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
        found = {"value": 1.0, "low": None, "high": None, "n_resamples": 1000}  # of subjects who are all alike
        assert d["recall@1"] == {**found, "chance": 1 / N, "times_chance": N}
        found |= {"low": 1.0, "high": 1.0}  # a median does not move although subjects may differ
        assert d["median_rank"] == {**found, "chance": (N + 1) / 2}
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
    embeddings = Embeddings(folder)
    counts = np.zeros(N)
    for seed in range(300):
        chosen = draw_pairs(embeddings, np.arange(N), 120, "uniform", seed)
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
    assert "more than the clips available; all are used: 600 of respiratory and brain, 600 of" in err


def test_only_the_pairs_that_have_fewer_candidates_are_named(tmp_path, capsys):
    mask = np.ones((N, 3), bool)
    mask[::2, 2] = False
    folder, _, _ = folder_of(tmp_path, alignment=0.5, mask=mask)
    _, result, err = run(capsys, folder, "--candidates", "400")
    sizes = {(d["query"], d["candidates"]): d["n_clips"] for d in result["directions"]}
    assert sizes["respiratory", "brain"] == 400
    assert sizes["brain", "ecg"] == sizes["respiratory", "ecg"] == 300
    assert "respiratory and brain" not in err
    assert "of brain and ecg" in err


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
        ({}, ("result", "--examples", "-1"), "--examples is -1"),
        ({}, ("--sample", "balanced", "--candidates", "9"), "none of the 600 clips has one"),
        ({"n_subjects": 1, "split_of": [2]}, ("--scope", "other-subjects"), "there is one subject. Choose another"),
        ({"n": 12, "n_subjects": 12}, ("--scope", "night"), "every recording has one clip. Choose another"),
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
    monkeypatch.setattr("sleepfm_fast.evaluation.found_clips.BLOCK", 77)
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


def test_intervals_equal_resampling_by_hand(tmp_path, capsys):
    folder, x, subject = folder_of(tmp_path, alignment=0.7)
    _, result, _ = run(capsys, folder, "--bootstraps", "40", "--seed", "3")
    draws = bootstrap_subjects(12, 40, 3)
    clips = [np.concatenate([np.repeat(np.flatnonzero(subject == s), t) for s, t in enumerate(d)]) for d in draws]
    figures = {"recall@10": lambda r: (r <= 10).mean(), "median_rank": np.median, "mean_rank": np.mean}
    resampled = {name: [] for name in figures}
    for d in result["directions"]:
        ranks = dense(x[:, MODALITIES.index(d["query"])], x[:, MODALITIES.index(d["candidates"])])
        for name, figure in figures.items():
            resampled[name].append([figure(ranks[c]) for c in clips])
            limits = np.percentile(resampled[name][-1], [2.5, 97.5])
            assert (d[name]["low"], d[name]["high"]) == pytest.approx(tuple(limits))
    for name, rows in resampled.items():
        limits = np.percentile(np.mean(rows, axis=0), [2.5, 97.5])
        mean = result["mean"][name]
        assert (mean["low"], mean["high"]) == pytest.approx(tuple(limits))
        assert mean["value"] == pytest.approx(np.mean([d[name]["value"] for d in result["directions"]]))


# ---- scopes ----------------------------------------------------------------------------------------------------------


def nights_of(tmp_path, n=400, n_subjects=5, *, night_bias=0.0, seed=0):
    """Clips of unequal nights, two a subject but the last, whose rows are interleaved; two clips are equal in all."""
    rng = np.random.default_rng(seed)
    recording = rng.choice(2 * n_subjects - 1, n, p=rng.dirichlet(np.full(2 * n_subjects - 1, 3.0)))
    subject = recording // 2
    columns = columns_of(subject, np.full(n, 2))
    columns["recording"] = recording.astype(np.int32)
    of_night = rng.standard_normal((2 * n_subjects - 1, 1, DIM))
    x = rng.standard_normal((n, 1, DIM)) + rng.standard_normal((n, 3, DIM)) + night_bias * of_night[recording]
    x[1::7] = x[0::7][: len(x[1::7])]
    names = tuple(f"r{i}" for i in range(2 * n_subjects - 1))
    return write_folder(tmp_path / "emb", x, columns, recordings=names), unit(x).astype(np.float32), recording, subject


def ranks_among(a, b, allowed):
    s = a.astype(np.float64) @ b.astype(np.float64).T
    own = np.diag(s)[:, None]
    off = ~np.eye(len(s), dtype=bool)
    ahead = ((s > own) | ((s == own) & np.tri(len(s), k=-1, dtype=bool))) & off & allowed
    return 1 + ahead.sum(1)


@pytest.mark.parametrize("scope", ["night", "other-subjects", "cohort"])
def test_a_scope_equals_ranking_its_candidates_alone(tmp_path, capsys, scope):
    folder, x, recording, subject = nights_of(tmp_path)
    _, result, _ = run(capsys, folder, tmp_path / "out", "--scope", scope, "--examples", "5")
    same = {"night": recording, "other-subjects": subject, "cohort": np.zeros(400)}[scope]
    allowed = (
        (same[:, None] == same) if scope != "other-subjects" else (same[:, None] != same) | np.eye(400, dtype=bool)
    )
    sizes = allowed.sum(1)
    written = read_result(tmp_path / "out")
    assert written.record["scope"] == result["scope"] == scope
    for d in result["directions"]:
        i, j = (MODALITIES.index(d[side]) for side in ("query", "candidates"))
        ranks = ranks_among(x[:, i], x[:, j], allowed)
        name = f"{d['query']}_{d['candidates']}"
        np.testing.assert_array_equal(written.array(f"rank_{name}"), ranks)
        np.testing.assert_array_equal(written.array(f"n_candidates_{name}"), sizes)
        assert d["n_candidates"] == [sizes.min(), sizes.max()]
        assert d["recall@10"]["chance"] == pytest.approx((np.minimum(10, sizes) / sizes).mean())
        assert d["recall@10"]["value"] == pytest.approx((ranks <= 10).mean())
        assert d["mean_rank"]["chance"] == pytest.approx((sizes + 1).mean() / 2)
    for e in written.record["examples"]:
        assert allowed[e["clip"], e["found"]].all()
        assert e["found_similarity"] == sorted(e["found_similarity"], reverse=True)
        assert (e["clip"] in e["found"]) == (e["rank"] <= len(e["found"]))
        if e["clip"] in e["found"]:
            assert e["found"][e["rank"] - 1] == e["clip"]


def test_nights_of_one_clip_ask_nothing(tmp_path, capsys):
    subject = np.array([0, 0, 0, 1, 2, 2])
    x = np.random.default_rng(0).standard_normal((6, 3, DIM))
    folder = write_folder(tmp_path / "emb", x, columns_of(subject, np.full(6, 2)))
    _, result, _ = run(capsys, folder, "--scope", "night")
    assert {d["n_clips"] for d in result["directions"]} == {5}
    assert result["directions"][0]["n_candidates"] == [2, 3]


def test_chance_median_of_unequal_nights_is_that_of_random_ranks():
    assert chance_median(np.array([10] * 4)) == 5.5
    assert chance_median(np.array([9])) == 5
    assert chance_median(np.array([1, 1, 1])) == 1
    rng = np.random.default_rng(0)
    sizes = np.repeat([3, 40, 1000], 3000)
    drawn = rng.integers(1, sizes + 1, (200, sizes.size))
    assert abs(chance_median(sizes) - np.median(drawn)) <= 1


def test_whose_clips_the_best_candidates_are(tmp_path, capsys):
    (tmp_path / "none").mkdir()
    folder, x, recording, subject = nights_of(tmp_path, night_bias=2.0)
    _, result, _ = run(capsys, folder, "--k", "10")
    for d in result["directions"]:
        i, j = (MODALITIES.index(d[side]) for side in ("query", "candidates"))
        s = x[:, i].astype(np.float64) @ x[:, j].astype(np.float64).T
        found = np.argsort(-s, axis=1, kind="stable")[:, :10]
        other = found != np.arange(400)[:, None]
        found_with = d["company"]
        assert (found_with["k"], found_with["n_queries"]) == (10, 400)
        for name, of in (("own_recording", recording), ("own_subject", subject)):
            share = ((of[found] == of[:, None]) & other).sum() / other.sum()
            assert found_with[name]["value"] == pytest.approx(share)
            assert found_with[name]["chance"] == pytest.approx(((np.bincount(of)[of] - 1) / 399).mean())
        assert found_with["own_recording"]["value"] > 2 * found_with["own_recording"]["chance"]
    folder, _, _, _ = nights_of(tmp_path / "none", night_bias=0.0)
    for d in run(capsys, folder, "--k", "10")[1]["directions"]:
        assert abs(d["company"]["own_recording"]["value"] - d["company"]["own_recording"]["chance"]) < 0.05


@pytest.mark.parametrize("n", [1, 3, 10])
def test_the_best_of_equals_is_the_earlier_whatever_the_block(tmp_path, monkeypatch, n):
    monkeypatch.setattr(found_clips, "BLOCK", 7)
    x = np.zeros((40, 3, 3))
    x[..., 0] = 1
    x[25:, 0] = [0, 1, 0]
    folder = write_folder(tmp_path / "emb", x, columns_of(np.zeros(40), np.full(40, 2)))
    found, similarity = found_clips.best_candidates(
        Embeddings(folder), np.array([30]), np.arange(40), ("brain", "respiratory"), n
    )
    assert found.tolist() == [list(range(n))]
    assert (similarity == 1).all()


# ---- candidates drawn over event types -------------------------------------------------------------------------------


def assert_as_even_as_can_be(event, subject, drawn):
    """No type, and of a type no subject, is more than one ahead of another that is not used up."""
    for kinds, of_type in [(event, drawn), *((subject, drawn[event[drawn] == e]) for e in np.unique(event))]:
        among = np.arange(len(event)) if kinds is event else np.flatnonzero(event == event[of_type[0]])
        there = np.bincount(kinds[among], minlength=kinds.max() + 1)
        taken = np.bincount(kinds[of_type], minlength=kinds.max() + 1)
        left = taken < there
        if left.any():
            assert taken.max() - taken[left].min() <= 1


def test_a_balanced_order_is_as_even_as_can_be_at_every_length():
    rng = np.random.default_rng(0)
    event = rng.choice(4, 500, p=[0.7, 0.2, 0.08, 0.02])
    subject = rng.choice(6, 500, p=[0.5, 0.2, 0.1, 0.1, 0.06, 0.04])
    order = balanced_order(event, subject, rng.permutation(500))
    assert sorted(order) == list(range(500))
    for n in (4, 7, 40, 100, 250, 499):
        assert_as_even_as_can_be(event, subject, order[:n])


def test_balanced_sample_option(tmp_path, capsys):
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(6), 100)
    stage = rng.choice([-1, 0, 2, 4], 600, p=[0.1, 0.2, 0.6, 0.1])
    sdb = np.where(rng.random(600) < 0.05, 1, np.where(subject == 5, -1, 0))
    mask = rng.random((600, 3)) < 0.9
    columns = columns_of(subject, np.full(600, 2), stage=stage, sdb=sdb)
    folder = write_folder(tmp_path / "emb", rng.standard_normal((600, 3, DIM)), columns, mask=mask)
    asked = (folder, tmp_path / "out", "--candidates", "90", "--sample", "balanced")
    _, result, _ = run(capsys, *asked)
    assert result["sample"] == "balanced"
    for d in result["directions"]:
        assert d["n_clips"] == sum(d["event_types"].values()) == 90
        clips = read_result(tmp_path / "out").array(f"clip_{d['query']}_{d['candidates']}")
        i, j = (MODALITIES.index(d[side]) for side in ("query", "candidates"))
        assert mask[clips][:, [i, j]].all()
        assert (stage[clips] >= 0).all()
        for name, count in d["event_types"].items():
            s, e = name.split("/")
            code = {"W": 0, "N2": 2, "R": 4}[s], {"unscored": -1, "none": 0, "event": 1}[e]
            assert count == ((stage[clips] == code[0]) & (sdb[clips] == code[1])).sum()
        # Nine types share 90 clips: types of fewer than 10 clips give all, N2 is not the majority that it is in all.
        assert d["event_types"]["N2/none"] < 25
        eligible = np.flatnonzero(mask[:, [i, j]].all(1) & (stage >= 0))
        drawn = np.searchsorted(eligible, clips)
        assert_as_even_as_can_be((3 * stage + sdb + 1)[eligible], subject[eligible], drawn)
    again = run(capsys, *asked, "--overwrite")[1]
    assert again["directions"] == result["directions"]
    assert run(capsys, *asked, "--overwrite", "--seed", "1")[1]["directions"] != result["directions"]


BOUNDED = """
import resource, sys
from pathlib import Path
from sleepfm_fast import retrieve
from sleepfm_fast.cli.command import to_json

small, large = (Path(p) for p in sys.argv[1:3])
retrieve.main(retrieve.Config(small, small.parent / "a", bootstraps=10))
# RLIMIT_DATA bounds private writable memory; pages of the mapped file, which the system may drop, do not count.
held = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData:"))
resource.setrlimit(resource.RLIMIT_DATA, (held + int(sys.argv[3]) * 2**20,) * 2)
record = retrieve.main(retrieve.Config(large, large.parent / "b", bootstraps=10))
print(to_json(record["mean"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA bounds mapped memory on Linux only")
def test_memory_is_bounded(tmp_path):
    # One matrix of 12,000 x 12,000 float32 similarities is 550 MiB.
    n = 12_000
    x = np.random.default_rng(0).standard_normal((n, 3, 16), dtype=np.float32)
    write_folder(tmp_path / "large", x, columns_of(np.arange(n) // 600, np.full(n, 2)), batch=4096)
    write_folder(tmp_path / "small", x[:50], columns_of(np.arange(50) // 10, np.full(50, 2)))
    arguments = [sys.executable, "-c", BOUNDED, str(tmp_path / "small"), str(tmp_path / "large"), "250"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert abs(json.loads(done.stdout)["mean_rank"]["value"] / (n / 2) - 1) < 0.03
