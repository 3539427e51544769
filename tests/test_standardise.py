"""Filling, marking and scaling features: the arithmetic, and that only fitted clips have a say."""

import numpy as np
import pytest

from sleepfm_fast.standardise import Standardiser


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    x = rng.normal([5, -300, 1e-3, 0], [2, 40, 1e-5, 1e6], (501, 4)).astype(np.float32)
    return np.column_stack([x, np.full(501, 7.0, np.float32)])


def test_columns_get_mean_0_and_variance_1(x):
    s = Standardiser.fit(x)
    y = s(x)
    assert y.dtype == np.float32
    assert s.width == 5, "nothing is missing, so nothing is marked"
    np.testing.assert_allclose(y[:, :4].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(y[:, :4].std(0), 1, rtol=1e-4)
    np.testing.assert_array_equal(y[:, 4], 0)  # a constant column is silent, not infinite


def test_what_is_missing_becomes_the_median_and_is_marked_once_a_pattern(x):
    x[::3, 0] = x[::3, 1] = np.nan  # two features of one channel
    x[5, 2] = np.nan
    s = Standardiser.fit(x)
    assert s.marked.tolist() == [0, 2]
    assert s.names("abcde") == (*"abcde", "a missing", "c missing")
    median = np.nanmedian(x.astype(np.float64), axis=0)
    np.testing.assert_allclose(s.fill[:3], [*median[:2], median[2]])
    y = s(x)
    filled = np.where(np.isnan(x), median, x)
    expected = (filled - filled.mean(0))[:, :4] / filled.std(0)[:4]
    np.testing.assert_allclose(y[:, :4], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(y[:, 5], np.arange(501) % 3 == 0)
    np.testing.assert_array_equal(y[:, 6], np.arange(501) == 5)


def test_a_clip_gets_the_same_whatever_it_stands_with(x):
    x[::3, 0] = np.nan
    s = Standardiser.fit(x)
    np.testing.assert_array_equal(s(x)[100:101], s(x[100:101]))
    assert s(x[:0]).shape == (0, s.width)


def test_a_column_that_no_fitted_clip_has_says_nothing(x):
    fitted = x.copy()
    fitted[:, 1] = np.nan
    s = Standardiser.fit(fitted)
    assert len(s.marked) == 0
    assert np.isfinite(s(x)).all()
    np.testing.assert_array_equal(s(fitted)[:, 1], 0)


def test_what_only_tested_clips_miss_is_filled(x):
    s = Standardiser.fit(x)
    tested = np.full((3, 5), np.nan, np.float32)
    expected = (np.median(x.astype(np.float64), axis=0) - s.centre) / s.scale
    np.testing.assert_allclose(s(tested), np.tile(expected, (3, 1)), rtol=1e-5, atol=1e-6)


def test_many_columns_and_few_clips():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((7, 150)).astype(np.float32)
    x[rng.random((7, 150)) < 0.3] = np.nan
    y = Standardiser.fit(x)(x)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y[:, :150].mean(0), 0, atol=1e-6)
    assert np.isfinite(Standardiser.fit(x[:1])(x)).all()
    assert np.isfinite(Standardiser.fit(x[:0])(x)).all()


def test_another_number_of_columns_is_refused(x):
    with pytest.raises(ValueError, match="5 columns"):
        Standardiser.fit(x)(x[:, :4])
