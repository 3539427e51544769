"""Filling and marking features: only fitted clips have a say, and a probe of a folder of features works."""

import numpy as np
import pytest
from synthetic_embeddings import columns_of, description_of

from sleepfm_fast import probe
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.evaluation import imputation
from sleepfm_fast.evaluation.embedding_writer import EmbeddingWriter
from sleepfm_fast.evaluation.imputation import Imputer
from sleepfm_fast.evaluation.logistic import Features, fit


@pytest.fixture
def x():
    return np.random.default_rng(0).normal([5, -300, 1e-3, 0], [2, 40, 1e-5, 1e6], (501, 4)).astype(np.float32)


def test_a_whole_matrix_stays_as_it_is(x):
    impute = Imputer.fit(x)
    assert impute.width == 4
    np.testing.assert_array_equal(impute(x), x)


def test_what_is_missing_becomes_the_median_and_is_marked_once_a_pattern(x):
    x[::3, 0] = x[::3, 1] = np.nan  # two features of one channel
    x[5, 2] = np.nan
    impute = Imputer.fit(x)
    assert impute.marked.tolist() == [0, 2]
    assert impute.names("abcd") == (*"abcd", "a missing", "c missing")
    median = np.nanmedian(x, axis=0)
    y = impute(x)
    np.testing.assert_array_equal(y[:, :4], np.where(np.isnan(x), median, x))
    np.testing.assert_array_equal(y[:, 4], np.arange(501) % 3 == 0)
    np.testing.assert_array_equal(y[:, 5], np.arange(501) == 5)


def test_a_column_that_no_fitted_clip_has_says_nothing(x):
    fitted = x.copy()
    fitted[:, 1] = np.nan
    impute = Imputer.fit(fitted)
    assert len(impute.marked) == 0
    np.testing.assert_array_equal(impute(fitted)[:, 1], 0)


def test_what_only_tested_clips_miss_is_filled(x):
    np.testing.assert_array_equal(Imputer.fit(x)(np.full((3, 4), np.nan)), np.tile(np.median(x, axis=0), (3, 1)))


def test_no_clips_and_one_clip(x):
    assert np.isfinite(Imputer.fit(x[:1])(x)).all()
    assert Imputer.fit(x[:0])(x[:0]).shape == (0, 4)


def test_another_number_of_columns_is_refused(x):
    with pytest.raises(ValueError, match="4 columns"):
        Imputer.fit(x)(x[:, :3])


def test_of_many_clips_evenly_spaced_ones_are_looked_at(monkeypatch):
    monkeypatch.setattr(imputation, "LARGEST_SAMPLE", 5)
    assert imputation.sample(np.arange(100, 105)).tolist() == [100, 101, 102, 103, 104]
    assert imputation.sample(np.arange(101)).tolist() == [0, 25, 50, 75, 100]


NAMES = {"respiratory": ("a", "b", "c"), "brain": ("d",)}


def features_folder(path, *, poison_test=False, damage=lambda x: None):
    """Twenty subjects, a feature that tells the stage and is missing in half of them, and one of huge scale."""
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(20), 30)
    split = np.repeat([0] * 12 + [1] * 3 + [2] * 5, 30)
    stage = rng.integers(0, 2, 600)
    x = np.full((600, 2, 3), np.nan)
    x[:, 0, 0] = 1e6 * rng.standard_normal(600)
    x[:, 0, 1] = 1e-3 * (stage + 0.2 * rng.standard_normal(600))
    x[:, 0, 2] = stage + rng.standard_normal(600)
    x[:, 1, 0] = 3.0
    x[subject % 2 == 0, 0, 1] = np.nan
    if poison_test:
        x[split == 2] *= 1e9
    damage(x)
    with EmbeddingWriter(path, 600, tuple(NAMES), 3, features=NAMES) as writer:
        writer.append(x)
        writer.finish(columns_of(subject, split, stage=stage), description_of(20))
    return path


def test_a_probe_of_features_scales_them_and_fills_holes_unasked(tmp_path, capsys):
    folder = features_folder(tmp_path / "f")
    result = probe.main(probe.Config(folder, "stage", bootstraps=0))
    assert result["fit"]["standardise"]
    # Two classes share one row of weights; "b" tells N1 where it is there.
    ((name, weight), *others) = result["fit"]["strongest"]["N1"]
    assert list(result["fit"]["strongest"]) == ["N1"]
    assert name == "b"
    assert weight > 1
    assert {n for n, _ in others} == {"a", "c", "d", "b missing"}
    auroc = result["classes"]["W"]["auroc"]["value"]
    assert 0.8 < auroc < 1.0
    blocks = probe.main(probe.Config(folder, "stage", bootstraps=0, solver="blocks"))
    assert blocks["classes"]["W"]["auroc"]["value"] == pytest.approx(auroc, abs=1e-3)
    one = probe.main(probe.Config(folder, "stage", bootstraps=0, modality="brain"))
    assert one["classes"]["W"]["auroc"]["value"] == pytest.approx(0.5)


def test_nothing_of_the_test_subjects_reaches_the_classifier(tmp_path):
    models = []
    for name, poison in (("a", False), ("b", True)):
        e = Embeddings(features_folder(tmp_path / name, poison_test=poison))
        train = e.clips_of("train")
        model, _ = fit(Features(e, train, e.modalities), np.asarray(e.stage)[train])
        models.append(model)
    np.testing.assert_array_equal(models[0].coef, models[1].coef)
    np.testing.assert_array_equal(models[0].intercept, models[1].intercept)
    assert models[0].imputer is not None
    np.testing.assert_array_equal(models[0].imputer.fill, models[1].imputer.fill)
