"""Two results compared: paired by clip, resampled together, and refused where they do not belong together."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from called import called
from synthetic_embeddings import columns_of, write_folder

from sleepfm_fast import compare, retrieve
from sleepfm_fast.evaluation.classification import HeldOut, conclude, log_odds
from sleepfm_fast.evaluation.metrics import auprc, auroc, bootstrap_subjects
from sleepfm_fast.results import read_result

N, SUBJECTS = 900, 15
TRAINED = np.arange(5, dtype=np.int8)


def held_out(rows, *, label=None, names="s", shuffle=0):
    """Test clips, one recording a subject; ``shuffle`` numbers subjects and recordings in another order."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, N).astype(np.int8)
    subject = np.sort(rng.integers(0, SUBJECTS, N)).astype(np.int32)
    order = np.random.default_rng(shuffle).permutation(SUBJECTS) if shuffle else np.arange(SUBJECTS)
    code = np.argsort(order)[subject].astype(np.int32)
    onset = np.concatenate([np.arange(n) * 30.0 for n in np.bincount(subject)])
    people = tuple(f"{names}{i}" for i in order)
    recordings = tuple(f"r{i}" for i in order)
    nobody = (None,) * SUBJECTS
    label = truth if label is None else label(truth)
    return (
        HeldOut(
            np.arange(N)[rows], label[rows], code[rows], code[rows], onset[rows], people, recordings, nobody, nobody
        ),
        truth,
        subject,
    )


def result_of(path, signal, seed, rows=None, *, trained=TRAINED, command="probe", task="stage", **more):
    rows = np.arange(N) if rows is None else rows
    test, truth, subject = held_out(rows, **more)
    rng = np.random.default_rng(seed)
    # What makes a subject hard is shared by all classifiers.
    hard = np.random.default_rng(1).uniform(0.1, 2, SUBJECTS)[subject][:, None]
    score = log_odds(rng.standard_normal((N, 5)) + signal * hard * np.eye(5)[truth])
    conclude(
        {"command": command, "task": task}, test, score[rows][:, trained], trained, bootstraps=200, seed=0, path=path
    )
    return score.astype(np.float32), truth, subject


run = partial(called, compare.cli)


def test_the_difference_is_resampled_pairwise(tmp_path, capsys):
    one, truth, subject = result_of(tmp_path / "a", 1.5, 2)
    two, _, _ = result_of(tmp_path / "b", 1.2, 3)
    status, record, err = run(capsys, tmp_path / "a", tmp_path / "b", tmp_path / "out", "--bootstraps", 60)
    assert status == 0
    assert (record["overlap"], record["overlap_note"]) == (False, "")
    assert read_result(tmp_path / "out").record["macro"] == record["macro"]
    draws = bootstrap_subjects(SUBJECTS, 60, 0)
    for name, figure in (("auroc", auroc), ("auprc", auprc)):
        differences = np.array(
            [
                [figure(truth == k, one[:, k], w) - figure(truth == k, two[:, k], w) for k in range(5)]
                for w in (np.ones(N), *(drawn[subject].astype(float) for drawn in draws))
            ]
        )
        for found, values in (
            (record["macro"][name], differences.mean(1)),
            (record["classes"]["N2"][name], differences[:, 2]),
        ):
            assert found["difference"] == pytest.approx(values[0])
            assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(values[1:], [2.5, 97.5])))
    a, b = (read_result(tmp_path / x).record for x in "ab")
    for name in ("auroc", "auprc", "f1"):
        assert record["macro"][name]["first"] == pytest.approx(a["macro"][name]["value"])
        assert record["macro"][name]["second"] == pytest.approx(b["macro"][name]["value"])
        for stage, entry in record["classes"].items():
            pair = [x["classes"][stage][name]["value"] for x in (a, b)]
            assert (entry[name]["first"], entry[name]["second"]) == pytest.approx(tuple(pair))
            assert entry[name]["difference"] == pytest.approx(pair[0] - pair[1])
    for name in ("accuracy", "cohen_kappa"):
        assert record[name]["difference"] == pytest.approx(a[name]["value"] - b[name]["value"])
    assert "macro auroc" in err


def test_pairing_finds_what_two_intervals_hide(tmp_path, capsys):
    result_of(tmp_path / "a", 1.5, 2)
    result_of(tmp_path / "b", 1.2, 2)
    _, record, _ = run(capsys, tmp_path / "a", tmp_path / "b")
    a, b = (read_result(tmp_path / x).record["macro"]["auroc"] for x in "ab")
    assert a["low"] < b["high"], "the two intervals overlap"
    assert record["macro"]["auroc"]["low"] > 0, "the interval of the difference excludes 0"


def test_a_result_does_not_differ_from_itself(tmp_path, capsys):
    result_of(tmp_path / "a", 1.0, 2)
    _, record, _ = run(capsys, tmp_path / "a", tmp_path / "a")
    for entry in (*record["macro"].values(), record["accuracy"], *record["classes"]["R"].values()):
        assert (entry["difference"], entry["low"], entry["high"]) == (0, 0, 0)


def test_clips_are_matched_by_recording_and_onset(tmp_path, capsys):
    rng = np.random.default_rng(5)
    result_of(tmp_path / "a", 1.5, 2)
    result_of(tmp_path / "b", 1.2, 3)
    left = np.sort(rng.choice(N, 700, replace=False))
    right = rng.permutation(N)[:650]
    result_of(tmp_path / "c", 1.5, 2, left)
    result_of(tmp_path / "d", 1.2, 3, right, shuffle=7)
    _, record, err = run(capsys, tmp_path / "c", tmp_path / "d", "--bootstraps", 0)
    both = np.intersect1d(left, right)
    assert record["n_clips"] == len(both)
    assert record["n_clips_only_in"] == [700 - len(both), 650 - len(both)]
    assert f"{700 - len(both)} test clips are only in" in err
    result_of(tmp_path / "e", 1.5, 2, both)
    result_of(tmp_path / "f", 1.2, 3, both)
    _, alone, _ = run(capsys, tmp_path / "e", tmp_path / "f", "--bootstraps", 0)
    assert record["macro"]["auroc"]["difference"] == pytest.approx(alone["macro"]["auroc"]["difference"])
    assert record["accuracy"]["low"] is None


def test_classes_that_only_one_classifier_knows_are_left_out_of_the_macro(tmp_path, capsys):
    result_of(tmp_path / "a", 1.5, 2)
    result_of(tmp_path / "b", 1.2, 3, trained=np.array([0, 2, 3, 4], np.int8), command="supervise")
    _, record, err = run(capsys, tmp_path / "a", tmp_path / "b", "--bootstraps", 20)
    assert record["n_classes"] == 4
    assert "macro AUROC and AUPRC are over the 4 of 5 classes that both results can score" in err
    assert set(record["classes"]["N1"]) == {"f1"}
    rest = [record["classes"][c]["auroc"]["difference"] for c in ("W", "N2", "N3", "R")]
    assert record["macro"]["auroc"]["difference"] == pytest.approx(np.mean(rest))


def test_refusals(tmp_path, capsys):
    result_of(tmp_path / "a", 1.5, 2)
    result_of(tmp_path / "relabelled", 1.5, 2, label=lambda y: (y + (np.arange(N) < 9)).astype(np.int8) % 5)
    result_of(tmp_path / "renamed", 1.5, 2, names="t")
    result_of(tmp_path / "left", 1.5, 2, np.arange(400))
    result_of(tmp_path / "right", 1.5, 2, np.arange(400, N))
    for second, match in (
        ("nothing", "holds no result"),
        ("relabelled", "9 of the 900 clips"),
        ("renamed", "name the subjects of the shared recordings differently"),
    ):
        status, _, err = run(capsys, tmp_path / "a", tmp_path / second)
        assert status == 1
        assert match in err.splitlines()[-1]
    status, _, err = run(capsys, tmp_path / "left", tmp_path / "right")
    assert (status, "share no test clip" in err) == (1, True)
    status, _, err = run(capsys, tmp_path / "a", tmp_path / "a", tmp_path / "left")
    assert (status, "--overwrite" in err) == (1, True)
    assert run(capsys, tmp_path / "a", tmp_path / "a", tmp_path / "out")[0] == 0
    status, _, err = run(capsys, tmp_path / "a", tmp_path / "out")
    assert (status, "is a result of compare; give two results" in err) == (1, True)


# ---- retrieval -------------------------------------------------------------------------------------------------------


def retrieved(tmp_path, name, alignment, seed, *, keep=None, arguments=(), mask=None):
    """Write embeddings of the same nights in which modalities share more or less, and retrieve."""
    rng = np.random.default_rng(seed)
    rows = np.arange(240) if keep is None else keep
    subject = np.repeat(np.arange(8), 30)[rows]
    shared = np.random.default_rng(9).standard_normal((240, 1, 16))
    x = (alignment * shared + rng.standard_normal((240, 3, 16)))[rows]
    columns = columns_of(subject, np.full(len(rows), 2))
    columns["clip"] = (np.arange(240) % 30)[rows].astype(np.int32)
    columns["onset_s"] = columns["clip"] * 30.0
    folder = write_folder(tmp_path / f"{name}-embeddings", x, columns, mask=mask)
    assert retrieve.cli([str(folder), str(tmp_path / name), "--k", "1", "5", "25", *arguments]) == 0
    return read_result(tmp_path / name)


def test_retrievals_are_compared_query_by_query(tmp_path, capsys):
    mask = np.ones((240, 3), bool)
    mask[::9, 2] = mask[-1, 2] = False  # the last clip of all too
    a, b = retrieved(tmp_path, "a", 1.2, 1, mask=mask), retrieved(tmp_path, "b", 0.8, 2, mask=mask)
    capsys.readouterr()
    status, record, err = run(capsys, a.path, b.path, "--bootstraps", 50)
    assert status == 0
    draws = bootstrap_subjects(8, 50, 0)
    figures = {f"recall@{k}": lambda r, k=k: (r <= k).mean() for k in (5, 25)}
    figures |= {"median_rank": np.median, "mean_rank": np.mean}
    sums = {name: np.zeros(51) for name in figures}
    for d in record["directions"]:
        name = f"{d['query']}_{d['candidates']}"
        clips = a.array(f"clip_{name}")
        assert d["n_clips"] == len(clips)
        ranks = [r.array(f"rank_{name}").astype(float) for r in (a, b)]
        subject = np.repeat(np.arange(8), 30)[clips]
        resamples = [np.arange(len(clips))]
        resamples += [
            np.concatenate([np.repeat(np.flatnonzero(subject == s), t) for s, t in enumerate(w)]) for w in draws
        ]
        for figure, compute in figures.items():
            values = np.array([compute(ranks[0][rows]) - compute(ranks[1][rows]) for rows in resamples])
            sums[figure] += values
            assert d[figure]["difference"] == pytest.approx(values[0])
            assert (d[figure]["low"], d[figure]["high"]) == pytest.approx(tuple(np.percentile(values[1:], [2.5, 97.5])))
    for figure, total in sums.items():
        found = record["mean"][figure]
        assert found["difference"] == pytest.approx(total[0] / 6)
        assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(total[1:] / 6, [2.5, 97.5])))
    assert record["mean"]["recall@5"]["low"] > 0
    assert record["mean"]["mean_rank"]["high"] < 0
    assert "respiratory -> brain recall@5" in err


def test_a_direction_that_one_retrieval_lacks_is_left_out(tmp_path, capsys):
    never, late, early = np.ones((3, 240, 3), bool)
    never[:, 2] = late[:120, 2] = early[120:, 2] = False
    every = retrieved(tmp_path, "every", 1.2, 1)
    a, b, c = (retrieved(tmp_path, name, 0.8, 2, mask=mask) for name, mask in (("a", never), ("b", late), ("c", early)))
    capsys.readouterr()
    for pair in ((every, a), (a, every), (b, c)):  # b and c have no ECG in common
        status, record, _ = run(capsys, *(r.path for r in pair), "--bootstraps", 20)
        assert status == 0
        assert [(d["query"], d["candidates"]) for d in record["directions"]] == [
            ("respiratory", "brain"),
            ("brain", "respiratory"),
        ]
        both = [d["recall@5"]["difference"] for d in record["directions"]]
        assert record["mean"]["recall@5"]["difference"] == pytest.approx(np.mean(both))


def test_retrievals_within_nights_match_whatever_the_rows(tmp_path, capsys):
    a = retrieved(tmp_path, "a", 1.2, 1, arguments=("--scope", "night"))
    # The same nights but the first, so that rows and numbers of subjects differ.
    b = retrieved(tmp_path, "b", 1.2, 1, keep=np.arange(30, 240), arguments=("--scope", "night"))
    capsys.readouterr()
    status, record, _ = run(capsys, a.path, b.path)
    assert status == 0
    assert record["n_clips"] == 210
    assert record["n_clips_only_in"] == [30, 0]
    assert {d["n_clips"] for d in record["directions"]} == {210}
    for entry in record["mean"].values():
        assert (entry["difference"], entry["low"], entry["high"]) == (0, 0, 0)


def test_retrievals_within_nights_of_equally_many_other_candidates_do_not_compare(tmp_path, capsys):
    # Of every night the first 20 clips, and the last 20: 10 are shared, and both had 20 candidates.
    place = np.arange(240) % 30
    a = retrieved(tmp_path, "a", 1.2, 1, keep=np.flatnonzero(place < 20), arguments=("--scope", "night"))
    b = retrieved(tmp_path, "b", 1.2, 1, keep=np.flatnonzero(place >= 10), arguments=("--scope", "night"))
    capsys.readouterr()
    status, _, err = run(capsys, a.path, b.path)
    assert status == 1
    assert "among other candidates (of 160 and 160 clips they share 80)" in err.splitlines()[-1]
    # All of a night's 20 candidates are shared, but the other result had 30.
    c = retrieved(tmp_path, "c", 1.2, 1, arguments=("--scope", "night"))
    capsys.readouterr()
    for pair in ((a, c), (c, a)):
        status, _, err = run(capsys, *(r.path for r in pair))
        assert status == 1
        assert "among other candidates (of " in err.splitlines()[-1]


def test_retrievals_of_one_subject_differ_without_an_interval(tmp_path, capsys):
    kept = np.arange(30)
    a, b = (retrieved(tmp_path, name, strength, 1, keep=kept) for name, strength in (("a", 1.2), ("b", 0.5)))
    capsys.readouterr()
    status, record, _ = run(capsys, a.path, b.path)
    assert status == 0
    for figures in (record["mean"], record["directions"][0]):
        for name in ("recall@5", "median_rank", "mean_rank"):
            assert figures[name]["difference"] == pytest.approx(figures[name]["first"] - figures[name]["second"])
            assert figures[name]["low"] is None


def test_retrievals_without_a_common_direction_are_refused(tmp_path, capsys):
    no_ecg, no_flow = np.ones((2, 240, 3), bool)
    no_ecg[:, 2] = no_flow[:, 0] = False
    a, b = retrieved(tmp_path, "a", 1.2, 1, mask=no_ecg), retrieved(tmp_path, "b", 1.2, 1, mask=no_flow)
    capsys.readouterr()
    status, _, err = run(capsys, a.path, b.path)
    assert status == 1
    assert "have no direction of retrieval in common" in err.splitlines()[-1]


def test_a_class_of_one_subject_differs_without_an_interval(tmp_path, capsys):
    # Only the first subject keeps its clips of R.
    rng = np.random.default_rng(0)
    subject, truth = np.repeat(np.arange(12), 30), rng.integers(0, 4, 360)
    truth[:30:3] = 4
    names = tuple(f"s{i}" for i in range(12))
    for name, seed, k in (("a", 1, 5), ("b", 2, 5), ("c", 2, 4)):  # the last does not know R
        odds = log_odds(np.random.default_rng(seed).standard_normal((360, 5)) + 1.5 * np.eye(5)[truth])
        onset = 30.0 * (np.arange(360) % 30)
        test = HeldOut(np.arange(360), truth.astype(np.int8), subject.astype(np.int32), subject.astype(np.int32), onset,
                       names, names, (None,) * 12, (None,) * 12)  # fmt: skip
        conclude({"command": "probe", "task": "stage"}, test, odds[:, :k], np.arange(k, dtype=np.int8), bootstraps=20,
                 seed=0, path=tmp_path / name)  # fmt: skip
    capsys.readouterr()
    status, record, err = run(capsys, tmp_path / "a", tmp_path / "b")
    assert status == 0
    assert record["class_subjects"]["R"] == {"n_test": 10, "n_subjects": 1, "n_subjects_of_others": 12}
    of_r = record["classes"]["R"]
    for entry in (of_r["auroc"], of_r["auprc"], of_r["f1"], *record["macro"].values()):
        assert entry["difference"] is not None
        assert entry["low"] is None
    assert record["classes"]["W"]["auroc"]["low"] is not None
    assert record["accuracy"]["low"] is not None
    assert "notice: one subject has clips of R, which says nothing of others like them" in err
    status, record, _ = run(capsys, tmp_path / "a", tmp_path / "c")
    assert status == 0
    assert record["macro"]["auroc"]["low"] is not None  # over the four that both know
    assert record["macro"]["f1"]["low"] is None


def test_events_differ_by_the_f1_of_events(tmp_path, capsys):
    truth = np.random.default_rng(0).integers(0, 2, 300)
    subject = np.repeat(np.arange(10), 30).astype(np.int32)
    names = tuple(f"s{i}" for i in range(10))
    for name, signal in (("a", 1.5), ("b", 0.5)):
        odds = log_odds(np.random.default_rng(2).standard_normal((300, 2)) + signal * np.eye(2)[truth])
        test = HeldOut(np.arange(300), truth.astype(np.int8), subject, subject, 30.0 * (np.arange(300) % 30), names,
                       names, (None,) * 10, (None,) * 10)  # fmt: skip
        conclude({"command": "probe", "task": "sdb"}, test, odds, np.arange(2, dtype=np.int8), bootstraps=20, seed=0,
                 path=tmp_path / name)  # fmt: skip
    _, record, _ = run(capsys, tmp_path / "a", tmp_path / "b")
    a, b = (read_result(tmp_path / x).record for x in "ab")
    for found in (record["macro"]["f1"], record["classes"]["event"]["f1"]):
        assert (found["first"], found["second"]) == pytest.approx(
            (a["macro"]["f1"]["value"], b["macro"]["f1"]["value"])
        )
        assert found["low"] < found["difference"] < found["high"]


def test_retrievals_among_other_candidates_do_not_compare(tmp_path, capsys):
    a, b = retrieved(tmp_path, "a", 1.2, 1), retrieved(tmp_path, "b", 1.2, 1, arguments=("--candidates", "100"))
    ecg_off, ecg_off_elsewhere = np.ones((2, 240, 3), bool)
    ecg_off[::9, 2] = ecg_off_elsewhere[1::9, 2] = False
    e = retrieved(tmp_path, "e", 1.2, 1, mask=ecg_off)
    f = retrieved(tmp_path, "f", 1.2, 1, mask=ecg_off_elsewhere)
    other_draw = retrieved(tmp_path, "d", 1.2, 1, arguments=("--candidates", "100", "--seed", "5"))
    night = retrieved(tmp_path, "c", 1.2, 1, arguments=("--scope", "night"))
    result_of(tmp_path / "stage", 1.5, 2)
    capsys.readouterr()
    for first, second, match in (
        (a.path, b.path, "among other candidates (of 240 and 100 clips they share 100)"),
        (b.path, other_draw.path, "among other candidates (of 100 and 100 clips they share "),
        (a.path, night.path, "c of --scope night; give two results that retrieve made with the same --scope."),
        (e.path, f.path, "among other candidates (of 213 and 213 clips they share 186)"),
        (a.path, tmp_path / "stage", "they share no figure"),
    ):
        status, _, err = run(capsys, first, second)
        assert status == 1
        assert match in err.splitlines()[-1]
