"""Embeddings of two stores in one folder: who trains, who tests, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_embeddings import columns_of, unit, write_folder

from sleepfm_fast import transfer
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.errors import SleepfmError


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
    assert (result["training_clips"], result["test_clips"]) == (9, 6)
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
