"""The evaluation against what one would write with scikit-learn and NumPy: same figures, other time and memory."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from sleepfm_fast.metrics import bootstrap_curves, bootstrap_subjects
from sleepfm_fast.ranks import pair_ranks


def test_bootstrapped_curves(versus, quick):
    n, n_subjects, n_bootstraps = (2_000, 10, 8) if quick else (20_000, 50, 64)
    rng = np.random.default_rng(0)
    y = rng.random(n) < 0.2
    s = rng.standard_normal(n) + y
    subject = rng.integers(0, n_subjects, n)
    draws = bootstrap_subjects(n_subjects, n_bootstraps, seed=0)

    def scikit_learn():
        weights = [drawn[subject] for drawn in draws]
        return (
            np.array([roc_auc_score(y, s, sample_weight=w) for w in weights]),
            np.array([average_precision_score(y, s, sample_weight=w) for w in weights]),
        )

    def agree(results):
        np.testing.assert_allclose(results["ours"], results["scikit-learn"], atol=1e-11)

    versus(
        f"AUROC and AUPRC of {n_bootstraps} resamples of {n} clips",
        {"ours": lambda: bootstrap_curves(y, s, subject, draws), "scikit-learn": scikit_learn},
        agree=agree,
        rounds=4,
    ).require("scikit-learn", at_least=10)


MEMORY_SETUP = """
import numpy as np
from sleepfm_fast.ranks import pair_ranks
rng = np.random.default_rng(0)
x = rng.standard_normal((2, {n}, {dim}), dtype=np.float32)
x /= np.linalg.norm(x, axis=2, keepdims=True)
pair_ranks(x[0, :64], x[1, :64])
"""
DENSE_BODY = """
s = x[0] @ x[1].T
own = np.diag(s)
forward, backward = 1 + (s > own[:, None]).sum(1), 1 + (s > own).sum(0)
"""


CHUNK = 2048  # rows of similarities at a time: 64 MB of float32 at N = 8,000
CHUNKED_BODY = """
import torch
a, b = torch.from_numpy(x[0]), torch.from_numpy(x[1])
own = (a * b).sum(1)
forward, backward = [], torch.zeros(len(a), dtype=torch.int64)
for rows in torch.arange(len(a)).split(2048):
    s = torch.mm(a[rows], b.T)
    s.diagonal(int(rows[0])).fill_(-torch.inf)
    forward.append((s > own[rows, None]).sum(1))
    backward += (s > own).sum(0)
"""


def chunked(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks as one writes them with torch.mm: linear memory, ties and near-ties left to rounding."""
    own = (a * b).sum(1)
    forward, backward = [], torch.zeros(len(a), dtype=torch.int64)
    for start in range(0, len(a), CHUNK):
        rows = slice(start, start + CHUNK)
        s = torch.mm(a[rows], b.T)
        s.diagonal(start).fill_(-torch.inf)
        forward.append((s > own[rows, None]).sum(1))
        backward += (s > own).sum(0)
    return 1 + torch.cat(forward), 1 + backward


def test_retrieval_ranks(versus, quick):
    n, dim = (500, 64) if quick else (8_000, 512)
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((n, dim))
    a, b = (shared + rng.standard_normal((n, dim)) for _ in range(2))
    a, b = ((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (a, b))

    def dense():
        s = a @ b.T
        own = np.diag(s)
        return 1 + (s > own[:, None]).sum(1), 1 + (s > own).sum(0)

    def agree(results):
        # A float32 rank may be off where two similarities, or one and its own second product, differ by less than
        # float32 resolves.
        for arm in ("NumPy, dense", "torch.mm in chunks"):
            for ours, theirs in zip(results["ours"], results[arm], strict=True):
                assert (ours != np.asarray(theirs)).mean() < 0.01
                assert np.abs(ours - np.asarray(theirs)).max() <= 2

    setup = MEMORY_SETUP.format(n=n, dim=dim)
    result = versus(
        f"ranks in both directions among {n} clips, D = {dim}",
        {
            "ours": lambda: pair_ranks(a, b),
            "NumPy, dense": dense,
            "torch.mm in chunks": lambda: chunked(torch.from_numpy(a), torch.from_numpy(b)),
        },
        agree=agree,
        rounds=4,
        peak={
            "ours": (setup, "pair_ranks(x[0], x[1])"),
            "NumPy, dense": (setup, DENSE_BODY),
            "torch.mm in chunks": (setup, CHUNKED_BODY),
        },
    )
    for rival in ("NumPy, dense", "torch.mm in chunks"):
        result.require(rival, at_least=1.5)
