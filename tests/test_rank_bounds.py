"""Ranks where the integers that screen them err as much as they may: the order stays that of the embeddings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from instruction_sets import passed_with

import sleepfm_fast
from sleepfm_fast import _C, ranks
from sleepfm_fast.ranks import pair_ranks


def exact_ranks(a, b):
    """Compute the definition from sums rounded once: products of float32 are exact in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    s = np.array([[math.fsum(x * y) for y in b] for x in a])
    n = len(s)
    own = np.diag(s)[:, None]
    return 1 + ((s > own) & ~np.eye(n, dtype=bool)).sum(1) + ((s == own) & np.tri(n, k=-1, dtype=bool)).sum(1)


def assert_exact(a, b):
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    forward, backward = pair_ranks(a, b)
    np.testing.assert_array_equal(forward, exact_ranks(a, b))
    np.testing.assert_array_equal(backward, exact_ranks(b, a))


def measured(x, mean):
    """Factor, step, length and residue of the rows of x, and the whole numbers that they stand for."""
    n, dim = x.shape
    factor, other = np.empty(n, np.float32), np.zeros(dim, np.float32)
    step, length, residue, inner = np.empty((4, n))
    out = tuple(each.ctypes.data for each in (factor, step, length, residue, inner))
    _C.measure_rank_rows(x.ctypes.data, (mean.ctypes.data, other.ctypes.data), (n, dim), out, 1)
    halved = np.float32(0.5) * x - np.float32(0.5) * mean
    return step, length, residue, np.rint(halved * factor[:, None]).astype(np.float64)


def hot(n, dim, columns):
    x = np.zeros((n, dim))
    x[np.arange(n), columns % dim] = 1
    return x


EXTREMES = {
    "normal": lambda rng, n, d: rng.standard_normal((n, d)),
    "one-hot": lambda rng, n, d: hot(n, d, rng.integers(0, d, n)) * rng.choice([-1, 1], (n, 1)),
    "two-hot": lambda rng, n, d: hot(n, d, np.arange(n)) + hot(n, d, np.arange(n) + 1),
    "constant": lambda rng, n, d: np.ones((n, d)) * rng.choice([-1, 1], (n, 1)),
    "all equal": lambda rng, n, d: np.full((n, d), 0.3),
    "signs": lambda rng, n, d: rng.choice([-1, 1], (n, d)),
    "heavy tails": lambda rng, n, d: rng.standard_cauchy((n, d)),
    "one outlier": lambda rng, n, d: rng.standard_normal((n, d)) * np.where(np.arange(n) == n // 2, 1e6, 1)[:, None],
    "scales": lambda rng, n, d: rng.standard_normal((n, d)) * 10.0 ** rng.integers(-18, 18, (n, 1)),
    "largest": lambda rng, n, d: rng.choice([-1, 1], (n, d)) * 1.5 * 2.0**127,
    "subnormal": lambda rng, n, d: rng.integers(-9, 10, (n, d)) * 2.0**-149,
    "zero": lambda rng, n, d: np.zeros((n, d)),
    "far from zero": lambda rng, n, d: 1000 + rng.standard_normal((n, d)),
    "mixed with zeros": lambda rng, n, d: rng.standard_normal((n, d)) * (np.arange(n) % 3 > 0)[:, None],
}


@pytest.mark.parametrize("dim", [1, 2, 3, 64, 257, 1601])
@pytest.mark.parametrize("kind", EXTREMES)
def test_extremes(kind, dim):
    n = 30
    rng = np.random.default_rng(dim)
    assert_exact(EXTREMES[kind](rng, n, dim), EXTREMES[kind](rng, n, dim))
    x = EXTREMES[kind](rng, n, dim)
    assert_exact(x, -x)


@pytest.mark.parametrize("dim", [1, 2, 7, 300, 4096, 100_003])
@pytest.mark.parametrize("kind", EXTREMES)
def test_whole_numbers_fit_and_residues_are_theirs(kind, dim):
    x = EXTREMES[kind](np.random.default_rng(dim), 9, dim).astype(np.float32)
    mean = x.mean(0, dtype=np.float64).astype(np.float32)
    step, length, residue, q = measured(x, mean)
    assert np.abs(q).max() <= 32767  # two products of 32767^2 fit into 32 bits
    assert np.square(q).sum(1).max() < 2**31  # so do all sums of products
    centred = x.astype(np.float64) - mean
    np.testing.assert_allclose(length, np.linalg.norm(centred, axis=1), rtol=1e-9)
    np.testing.assert_allclose(residue, np.linalg.norm(centred - step[:, None] * q, axis=1), rtol=1e-6)
    assert (residue <= 0.51 * math.sqrt(dim) * step + 1e-6 * length)[length > 1e-30].all()


@pytest.mark.parametrize("dim", [2, 4096, 40_000])
def test_sums_that_nearly_overflow(dim):
    # Equal and opposite vectors, as long as whole numbers may be: all products of a pair have one sign. Of the clips
    # that tie with the own, the earlier ones come first.
    sign = np.array([1, -1, 1, 1, -1, -1, 1, -1])
    x = np.ones((8, dim), np.float32) * sign[:, None].astype(np.float32)
    _, _, _, q = measured(x, np.zeros(dim, np.float32))
    assert np.square(q).sum(1).min() > 0.99 * 2**31
    earlier = [(sign[:i] == sign[i]).sum() for i in range(8)]
    for forward, backward in ((x, x), (x[:, ::-1].copy(), x)):
        for found in pair_ranks(forward, backward):
            np.testing.assert_array_equal(found, 1 + np.array(earlier))
    for found in pair_ranks(x, -x):
        np.testing.assert_array_equal(found, 5 + np.array(earlier))


def aligned_with_residues(rng, n, dim, sign):
    """Pairs of clips whose candidates lie along the residue of the first query, and are equally similar to it.

    The integers are then wrong about the rival by |e| |B|, half of the bound, as the residue of B is as long.
    """
    a = rng.standard_normal((n, dim)).astype(np.float32)
    mean = a.mean(0, dtype=np.float64).astype(np.float32)
    step, _, _, q = measured(a, mean)
    residue = a.astype(np.float64) - mean - step[:, None] * q
    b = np.empty((n, dim))
    for i in range(0, n, 2):
        along = sign * residue[i] / np.linalg.norm(residue[i])
        query = a[i].astype(np.float64)
        b[i] = -along
        b[i + 1] = along - 2 * query * (along @ query) / (query @ query)
    return a, b.astype(np.float32)


@pytest.mark.parametrize("sign", [-1, 1])
def test_errors_along_the_residues(sign, monkeypatch):
    a, b = aligned_with_residues(np.random.default_rng(3), 100, 512, sign)
    s = a.astype(np.float64) @ b.astype(np.float64).T
    first = np.arange(0, 100, 2)
    gaps = s[first, first + 1] - s[first, first]
    assert np.abs(gaps).max() < 1e-5
    assert 12 < (gaps > 0).sum() < 38
    assert_exact(a, b)
    # The case is as hard as is claimed: with two fifths of the bound, many of these would be wrong.
    right = pair_ranks(a, b)[0]
    bound = ranks._Modality.bound

    def too_small(modality):
        bound(modality)
        modality.residue *= 0.4

    monkeypatch.setattr(ranks._Modality, "bound", too_small)
    assert (pair_ranks(a, b)[0] != right)[first].sum() > 8


@pytest.mark.parametrize("dim", [1, 5, 512])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e18])
def test_candidates_that_differ_in_one_bit(dim, scale):
    rng = np.random.default_rng(dim)
    n = 60
    a = np.tile((scale * rng.standard_normal(dim)).astype(np.float32), (n, 1))
    b = np.tile((scale * rng.standard_normal(dim)).astype(np.float32), (n, 1))
    away = np.where(rng.random(n) < 0.5, -np.inf, np.inf).astype(np.float32)
    rows, columns = np.arange(n), rng.integers(0, dim, n)
    b[rows, columns] = np.nextafter(b[rows, columns], away)
    assert_exact(a, b)
    assert_exact(b, a)


@pytest.mark.parametrize("spread", [0.3, 0.1, 0.03, 1e-3, 1e-5])
def test_two_clusters(spread):
    # Within a cluster, similarities differ by far less than the length of the centred vectors suggests.
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((2, 128))
    a, b = (centres[np.arange(80) % 2] + spread * rng.standard_normal((80, 128)) for _ in range(2))
    assert_exact(a, b)


def test_more_open_pairs_than_a_list_holds():
    x = np.random.default_rng(5).standard_normal(50).astype(np.float32)
    for found in pair_ranks(np.tile(x, (700, 1)), np.tile(x, (700, 1))):
        np.testing.assert_array_equal(found, np.arange(1, 701))


def test_no_clips():
    for found in pair_ranks(np.empty((0, 8), np.float32), np.empty((0, 8), np.float32)):
        assert found.shape == (0,)


@pytest.mark.parametrize("name", ["portable", "avx2", "avx512"])
def test_every_instruction_set(name):
    if name == sleepfm_fast.build_info()["cpu_instruction_set_in_use"]:
        pytest.skip(f"all tests of this file run with {name} in this process")
    cases = "257 or 100003 or residues or overflow or one_bit or list_holds or clusters"
    assert passed_with(name, __file__, "-k", cases) > 0
