"""Embeddings of two stores in one folder: who trains, who tests, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from called import last_json
from synthetic_embeddings import columns_of, unit, write_folder

from sleepfm_fast import features, probe, transfer
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.errors import SleepfmError

ROOT = Path(__file__).resolve().parents[1]


def folder(path, split, *, seed, dim=8, **description):
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(len(split)), 3)
    columns = columns_of(subject, np.repeat(split, 3), stage=rng.integers(0, 5, subject.size))
    mask = rng.random((subject.size, 3)) < 0.8
    mask[:, 0] = True
    return write_folder(path, unit(rng.standard_normal((subject.size, 3, dim))), columns, mask=mask, **description)


def test_training_clips_of_one_and_test_clips_of_the_other(tmp_path):
    a = folder(tmp_path / "a", [0, 1, 2, 0], seed=0, store="here")
    b = folder(tmp_path / "b", [2, 0, 2], seed=1, store="there")
    result = transfer.main(transfer.Config(a, b, tmp_path / "both"))
    assert (result["training_clips"], result["validation_clips"], result["test_clips"]) == (6, 3, 6)
    first, second, both = Embeddings(a), Embeddings(b), Embeddings(tmp_path / "both")
    both.verify()
    rows = (np.flatnonzero(np.asarray(first.split) != 2), np.flatnonzero(np.asarray(second.split) == 2))
    np.testing.assert_array_equal(both.mask, np.concatenate([first.mask[rows[0]], second.mask[rows[1]]]))
    vectors = np.concatenate([first.vectors[rows[0]], second.vectors[rows[1]]])
    np.testing.assert_allclose(both.vectors, vectors, rtol=1e-6)
    assert both.clips_of("test").tolist() == list(range(9, 15))
    assert both.clips_of("train").tolist() == [0, 1, 2, 6, 7, 8]
    # Subjects of equal names stay two people.
    names = [both.description.subjects[i] for i in both.subject]
    assert names[0] == "training/s000"
    assert names[9] == "external/s000"
    assert both.description.recordings[int(both.recording[-1])] == "external/s002_night1"
    np.testing.assert_array_equal(both.stage[9:], second.stage[rows[1]])
    assert both.description.ages[5] == second.description.ages[1]


def test_everybody_of_the_other_laboratory(tmp_path, capsys):
    a = folder(tmp_path / "a", [0, 1, 2, 0], seed=0, store="here")
    others = ("x", "y", "z")
    b = folder(tmp_path / "b", [0, 0, 1], seed=1, store="there", subjects=others)
    assert transfer.cli([str(a), str(b), str(tmp_path / "none")]) == 1
    assert "--subjects all takes everybody" in capsys.readouterr().err
    result = transfer.main(transfer.Config(a, b, tmp_path / "all", subjects="all"))
    assert (result["test_clips"], result["test_subjects"], result["overlap"]) == (9, 3, False)
    joined = Embeddings(tmp_path / "all")
    assert joined.clips_of("test").tolist() == list(range(9, 18))
    assert joined.clips_of("train").tolist() == [0, 1, 2, 6, 7, 8]
    assert "test: all subjects of there" in joined.description.split_rule
    assert {joined.description.subjects[i] for i in joined.subject[9:]} == {f"external/{name}" for name in others}


def test_people_who_may_be_on_both_sides_are_counted(tmp_path, capsys):
    a = folder(tmp_path / "a", [0, 1, 2, 0], seed=0, store="here")
    # s000 and s001 were trained and validated on, s002 was not.
    b = folder(tmp_path / "b", [0, 1, 2, 2, 2], seed=1, store="there", subjects=("s000", "s001", "s002", "p", "q"))
    result = transfer.main(transfer.Config(a, b, tmp_path / "all", subjects="all"))
    assert result["overlap"]
    assert "2 of the 5 subjects tested have the names of training or validation subjects (s000, s001)" in (
        capsys.readouterr().err
    )
    assert probe.cli([str(tmp_path / "all"), "--task", "stage", "--bootstraps", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["overlap_note"] == result["overlap_note"]
    assert not transfer.main(transfer.Config(a, b, tmp_path / "test"))["overlap"]


def test_two_stores_of_one_name_are_two(tmp_path, monkeypatch):
    """Each was named by its laboratory, from its own folder."""
    folders = []
    for name in ("here", "there"):
        (tmp_path / name / "store").mkdir(parents=True)
        (tmp_path / name / "store" / "store.json").write_text("{}")
        folders.append(folder(tmp_path / name / "embeddings", [0, 2], seed=0, store="store"))
    monkeypatch.chdir(tmp_path)
    assert [Embeddings(f).store_path for f in folders] == [tmp_path / n / "store" for n in ("here", "there")]
    assert transfer.main(transfer.Config(*folders, tmp_path / "both"))["test_clips"] == 3
    again = folder(tmp_path / "again", [0, 2], seed=1, store=str(tmp_path / "here" / "store"))
    with pytest.raises(SleepfmError, match="external validation is between two stores"):
        transfer.main(transfer.Config(folders[0], again, tmp_path / "same"))


def test_what_cannot_be_joined_is_refused(tmp_path):
    a = folder(tmp_path / "a", [0, 2], seed=0, store="here")
    for name, options, words in (
        ("same", {"store": "here"}, "both folders are of the store here"),
        ("run", {"store": "there", "run": "other"}, "embedded by runs/x"),
        ("dim", {"store": "there", "dim": 4}, "of length 8"),
    ):
        b = folder(tmp_path / name, [0, 2], seed=1, **options)
        with pytest.raises(SleepfmError, match=words):
            transfer.main(transfer.Config(a, b, tmp_path / "both"))
    untested = folder(tmp_path / "untested", [0, 0], seed=1, store="there")
    with pytest.raises(SleepfmError, match="no test clips to give"):
        transfer.main(transfer.Config(a, untested, tmp_path / "both"))
    assert not (tmp_path / "both").exists()


def test_a_probe_is_validated_externally_through_the_command_line(tmp_path, capsys):
    # The modalities carry the stage in both laboratories, so a probe of the one must work in the other.
    rng = np.random.default_rng(4)
    direction = rng.standard_normal((5, 3, 16))
    folders = []
    for name, split in (("here", [0, 0, 1, 2]), ("there", [2, 0, 2])):
        subject = np.repeat(np.arange(len(split)), 40)
        stage = rng.integers(0, 5, subject.size)
        x = unit(2 * direction[stage] + rng.standard_normal((subject.size, 3, 16)))
        folders.append(
            write_folder(
                tmp_path / name,
                x,
                columns_of(subject, np.repeat(split, 40), stage=stage),
                store=name,
                subjects=tuple(f"{name}-{i}" for i in range(len(split))),
            )
        )
    arguments = [str(p) for p in (*folders, tmp_path / "both")]
    done = subprocess.run(
        [sys.executable, "-m", "sleepfm_fast", "transfer", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert last_json(done.stdout) == {
        "embeddings": arguments[2], "training_clips": 80, "validation_clips": 40, "test_clips": 80,
        "test_subjects": 2, "overlap": False, "overlap_note": "",
    }  # fmt: skip
    assert probe.cli([arguments[2], str(tmp_path / "result"), "--task", "stage", "--bootstraps", "0"]) == 0
    result = last_json(capsys.readouterr().out)
    assert (result["train"]["n_subjects"], result["test"]["n_subjects"], result["overlap"]) == (2, 2, False)
    assert result["macro"]["auroc"]["value"] > 0.95
    assert transfer.cli([*arguments, "--subjects", "all"]) == 1
    assert "exists and is not overwritten: the existing one differs in subjects (test there, all now), shape (" in (
        capsys.readouterr().err
    )
    assert transfer.cli([*arguments, "--overwrite"]) == 0


def test_a_stores_embeddings_and_features_do_not_mix(cohort_store, tmp_path, capsys):
    features_of, joined = tmp_path / "features", tmp_path / "joined"
    assert features.cli([str(cohort_store), str(features_of), "--workers", "1"]) == 0
    own = Embeddings(features_of)
    x = folder(tmp_path / "x", [0, 2], seed=0, store="there")
    capsys.readouterr()
    assert transfer.cli([str(features_of), str(x), str(joined)]) == 1
    assert "holds features (" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(features_of, other)
    record = json.loads((other / "embeddings.json").read_text())
    (other / "embeddings.json").write_text(json.dumps({**record, "store": "there"}))
    assert transfer.cli([str(features_of), str(other), str(joined)]) == 0
    both = Embeddings(joined)
    assert (both.kind, both.features) == ("feature", own.features)
    np.testing.assert_array_equal(both.vectors[both.clips_of("test")], own.vectors[own.clips_of("test")])


def test_whom_the_encoder_has_seen_is_counted_whoever_stands_on_the_training_side(tmp_path, capsys):
    """The run may have been trained on TESTING's store: TRAINING then knows none of its subjects."""
    presets = {"weights": {"sha256": "a"}}
    a = folder(tmp_path / "a", [0, 1, 0], seed=0, store="new", subjects=("x", "y", "z"), presets=presets)
    b = folder(
        *(tmp_path / "b", [0, 1, 2, 2]), seed=1, store="own", subjects=("s0", "s1", "s2", "s3"),
        presets={**presets, "subjects_seen": {"s0": "train", "s1": "validation"}},
    )  # fmt: skip
    result = transfer.main(transfer.Config(a, b, tmp_path / "all", subjects="all"))
    assert result["overlap"]
    said = "2 of the 4 subjects tested are some that the encoder was trained or validated on (s0, s1)"
    assert said in capsys.readouterr().err
    seen = Embeddings(tmp_path / "all").description.presets["subjects_seen"]
    assert seen == {"external/s0": "train", "external/s1": "validation"}
    assert not transfer.main(transfer.Config(a, b, tmp_path / "test"))["overlap"]
