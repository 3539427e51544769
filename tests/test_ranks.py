"""Streamed ranks against the definition computed densely, with ties, odd sizes and known answers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from instruction_sets import passed_with

import sleepfm_fast
from sleepfm_fast.ranks import pair_ranks


def dense_ranks(a, b):
    """Compute the definition literally, in float64."""
    s = a.astype(np.float64) @ b.astype(np.float64).T
    n = len(s)
    own = np.diag(s)[:, None]
    off = ~np.eye(n, dtype=bool)
    earlier = np.tri(n, k=-1, dtype=bool)
    return 1 + ((s > own) & off).sum(1) + ((s == own) & earlier).sum(1)


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 31, 64, 65, 257, 1000])
@pytest.mark.parametrize("dim", [1, 7, 64, 512])
@pytest.mark.parametrize("alignment", [0.0, 1.0])
def test_equals_the_dense_definition(n, dim, alignment):
    rng = np.random.default_rng(n * dim)
    shared = rng.standard_normal((n, dim))
    a, b = (unit(alignment * shared + rng.standard_normal((n, dim))) for _ in range(2))
    if dim == 1:  # every similarity is exactly +1 or -1: ties only
        a, b = np.sign(a), np.sign(b)
    forward, backward = pair_ranks(a, b, query_block=100, candidate_block=70)
    np.testing.assert_array_equal(forward, dense_ranks(a, b))
    np.testing.assert_array_equal(backward, dense_ranks(b, a))


def test_exact_ties_are_broken_by_clip_order():
    # Small integers: every product and sum is exact in float32 and float64, so equal means equal.
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-2, 3, (300, 6)).astype(np.float32) for _ in range(2))
    forward, backward = pair_ranks(a, b, query_block=64, candidate_block=50)
    s = a @ b.T
    assert ((s == np.diag(s)[:, None]).sum(1) > 5).mean() > 0.9  # the case has ties
    np.testing.assert_array_equal(forward, dense_ranks(a, b))
    np.testing.assert_array_equal(backward, dense_ranks(b, a))


@pytest.mark.parametrize("blocks", [(16, 16), (1000, 16), (16, 1000), (4096, 2048)])
def test_duplicates_tie_exactly_whatever_the_blocks(blocks):
    # 20 real-valued vectors, each 15 times: duplicates must tie although a BLAS may sum differently at block edges.
    rng = np.random.default_rng(1)
    copies = np.tile(np.arange(20), 15)
    a, b = unit(rng.standard_normal((20, 333)))[copies], unit(rng.standard_normal((20, 333)))[copies]
    forward, backward = pair_ranks(a, b, query_block=blocks[0], candidate_block=blocks[1])
    s = a[:20].astype(np.float64) @ b[:20].astype(np.float64).T
    own = np.diag(s)[:, None]
    turn = np.arange(300) // 20  # earlier copies of the same candidate
    np.testing.assert_array_equal(forward, 1 + 15 * (s > own).sum(1)[copies] + turn)
    np.testing.assert_array_equal(backward, 1 + 15 * (own < s.T).sum(1)[copies] + turn)


def test_nearly_equal_similarities_are_ordered_as_in_float64():
    # Candidates differ by a few units in the last place, far below what a float32 product resolves.
    rng = np.random.default_rng(2)
    base = rng.standard_normal(256)
    a = unit(base + 1e-6 * rng.standard_normal((400, 256)))
    b = unit(base + 1e-6 * rng.standard_normal((400, 256)))
    forward, backward = pair_ranks(a, b, query_block=128, candidate_block=96)
    s = a.astype(np.longdouble) @ b.astype(np.longdouble).T
    gaps = np.abs(s - np.diag(s)[:, None])[~np.eye(400, dtype=bool)]
    assert np.median(gaps) < 1e-7
    np.testing.assert_array_equal(forward, dense_ranks(a, b))
    np.testing.assert_array_equal(backward, dense_ranks(b, a))
    in_float32 = a @ b.T
    assert (1 + (in_float32 > np.diag(in_float32)[:, None]).sum(1) != forward).any()


@pytest.mark.parametrize("spread", [1.0, 0.1, 1e-3])
def test_narrow_cones_around_different_axes(spread):
    rng = np.random.default_rng(7)
    shared = rng.standard_normal((500, 40))
    a, b = (unit(rng.standard_normal(40) + spread * (shared + rng.standard_normal((500, 40)))) for _ in range(2))
    forward, backward = pair_ranks(a, b, query_block=128, candidate_block=96)
    np.testing.assert_array_equal(forward, dense_ranks(a, b))
    np.testing.assert_array_equal(backward, dense_ranks(b, a))
    assert len(np.unique(forward)) > 50


def test_identical_modalities_are_always_first():
    x = unit(np.random.default_rng(3).standard_normal((500, 32)))
    for ranks in pair_ranks(x, x):
        np.testing.assert_array_equal(ranks, 1)


def test_opposite_modalities_are_always_last():
    x = unit(np.random.default_rng(3).standard_normal((500, 32)))
    for ranks in pair_ranks(x, -x):
        np.testing.assert_array_equal(ranks, 500)


def test_constant_embeddings_give_every_rank_once():
    x = np.full((100, 8), 0.25, np.float32)
    for ranks in pair_ranks(x, x, query_block=33, candidate_block=9):
        np.testing.assert_array_equal(ranks, np.arange(1, 101))


def test_independent_modalities_rank_uniformly():
    rng = np.random.default_rng(5)
    a, b = (unit(rng.standard_normal((2000, 48))) for _ in range(2))
    for ranks in pair_ranks(a, b):
        # The mean of 2000 uniform ranks has standard deviation 2000 / sqrt(12 * 2000) = 12.9.
        assert abs(ranks.mean() - 1000.5) < 5 * 12.9
        hits = (ranks <= 100).sum()  # binomial, p = 0.05
        assert abs(hits - 100) < 5 * np.sqrt(2000 * 0.05 * 0.95)


def test_progress_counts_every_similarity_once():
    x = unit(np.random.default_rng(3).standard_normal((150, 8)))
    done = []
    pair_ranks(x, x, query_block=64, candidate_block=40, progress=done.append)
    assert sum(done) == 150**2


def test_wrong_operands():
    x = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match="expected one"):
        pair_ranks(x, np.ones((4, 4), np.float32))
    with pytest.raises(ValueError, match="not finite"):
        pair_ranks(x, np.full((3, 4), np.nan, np.float32))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads):
    rng = np.random.default_rng(8)
    a, b = (unit(rng.standard_normal((900, 100))) for _ in range(2))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        ranks = pair_ranks(a, b, query_block=500, candidate_block=333)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(ranks[0], dense_ranks(a, b))
    np.testing.assert_array_equal(ranks[1], dense_ranks(b, a))


@pytest.mark.parametrize("name", ["portable", "avx2", "avx512"])
def test_every_instruction_set(name):
    if name == sleepfm_fast.build_info()["cpu_instruction_set_in_use"]:
        pytest.skip(f"all tests of this file run with {name} in this process")
    cases = ["equals_the_dense_definition and 257", "nearly_equal", "duplicates", "exact_ties"]
    assert passed_with(name, __file__, "-k", " or ".join(cases)) == 14


def test_memory_does_not_grow_with_the_square():
    # 20,000 clips: the matrix would take 1.6 GB in float32; operands 2 x 1.3 MB, blocks 34 MB.
    # VmHWM and not ru_maxrss, which a child inherits from the process that started it.
    code = """
import numpy as np
from pathlib import Path
from sleepfm_fast.ranks import pair_ranks

def peak_kib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

rng = np.random.default_rng(0)
small = rng.standard_normal((64, 16)).astype(np.float32)
pair_ranks(small, small)
a, b = (rng.standard_normal((20_000, 16)).astype(np.float32) for _ in range(2))
before = peak_kib()
pair_ranks(a, b)
print((peak_kib() - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150
