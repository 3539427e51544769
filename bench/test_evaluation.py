"""The evaluation against what one would write with scikit-learn and NumPy: same figures, other time and memory."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import memory
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from sleepfm_fast.embeddings import Description, Embeddings
from sleepfm_fast.evaluation.block_logistic import GRADIENT_TOLERANCE
from sleepfm_fast.evaluation.embedding_writer import EmbeddingWriter
from sleepfm_fast.evaluation.logistic import Features, fit
from sleepfm_fast.evaluation.metrics import bootstrap_curves, bootstrap_subjects
from sleepfm_fast.ranks import pair_ranks

ONE_SORT = "NumPy, one sort for all"


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

    def one_sort():
        # By hand: scores are sorted once for all resamples, and only positive clips are looked at. `above` is the
        # weight of what scores higher, `up_to` that with ties; ties share their threshold.
        order = np.argsort(-s)
        descending, group = -s[order], subject[order]
        positive = np.flatnonzero(y[order])
        first, last = (np.searchsorted(descending, descending[positive], side) for side in ("left", "right"))
        before, until = (np.searchsorted(positive, place) for place in (first, last))

        def curves(drawn):
            weights = drawn.astype(np.float64)[group]
            total, own = (np.concatenate([[0.0], np.cumsum(w)]) for w in (weights, weights[positive]))
            tp, up_to = own[until], total[last]
            fp = up_to - tp
            fp_above = total[first] - own[before]
            w = weights[positive]
            area = 1 - w @ (fp + fp_above) / (2 * own[-1] * (total[-1] - own[-1]))
            return area, w @ (tp / np.maximum(up_to, 1e-300)) / own[-1]

        return np.array([curves(drawn) for drawn in draws]).T

    def agree(results):
        for rival in ("scikit-learn", ONE_SORT):
            np.testing.assert_allclose(results["ours"], results[rival], atol=1e-11)

    result = versus(
        f"AUROC and AUPRC of {n_bootstraps} resamples of {n} clips",
        {"ours": lambda: bootstrap_curves(y, s, subject, draws), "scikit-learn": scikit_learn, ONE_SORT: one_sort},
        agree=agree,
        rounds=10,
    )
    result.require("scikit-learn", at_least=10)
    result.require(ONE_SORT, at_least=2)


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


CHUNK = 512  # rows of similarities at a time: 16 MB of float32 at N = 8,000
RIVALS_SETUP = """
import sys
sys.path.insert(0, {folder!r})
import test_evaluation
import torch
"""


def counted(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks as they are quickest with NumPy, into memory that is used again: ties and near-ties left to rounding."""
    own = np.einsum("ij,ij->i", a, b)
    forward, backward = np.empty(len(a), np.int64), np.zeros(len(a), np.int64)
    place = np.empty((CHUNK, len(b)), np.float32)
    for start in range(0, len(a), CHUNK):
        rows = a[start : start + CHUNK]
        s = np.matmul(rows, b.T, out=place[: len(rows)])
        np.fill_diagonal(s[:, start:], -np.inf)
        forward[start : start + CHUNK] = np.count_nonzero(s > own[start : start + CHUNK, None], axis=1)
        backward += np.count_nonzero(s > own, axis=0)
    return 1 + forward, 1 + backward


def compare(s: torch.Tensor, of_rows: torch.Tensor, of_columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many similarities of each row and of each column are larger."""
    return (s > of_rows[:, None]).sum(1, dtype=torch.int32), (s > of_columns).sum(0, dtype=torch.int32)


def chunked(a: np.ndarray, b: np.ndarray, larger=compare) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks as one writes them with torch.mm: linear memory, ties and near-ties left to rounding."""
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    own = (a * b).sum(1)
    forward, backward = [], torch.zeros(len(a), dtype=torch.int64)
    for start in range(0, len(a), CHUNK):
        rows = slice(start, start + CHUNK)
        s = torch.mm(a[rows], b.T)
        s.diagonal(start).fill_(-torch.inf)
        of_rows, of_columns = larger(s, own[rows], own)
        forward.append(of_rows)
        backward += of_columns
    return 1 + torch.cat(forward), 1 + backward


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch.compile's own
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
        for result in results.values():
            for ours, theirs in zip(results["ours"], result, strict=True):
                assert (ours != np.asarray(theirs)).mean() < 0.01
                assert np.abs(ours - np.asarray(theirs)).max() <= 2

    setup = MEMORY_SETUP.format(n=n, dim=dim)
    with_torch = setup + RIVALS_SETUP.format(folder=str(Path(__file__).parent))
    rivals = {"NumPy, dense": dense, "NumPy in chunks": lambda: counted(a, b)}
    peak = {"ours": (setup, "pair_ranks(x[0], x[1])"), "NumPy, dense": (setup, DENSE_BODY)}
    peak["NumPy in chunks"] = (with_torch, "test_evaluation.counted(x[0], x[1])")
    if quick:
        rivals["torch.mm in chunks"] = lambda: chunked(a, b)
    else:
        larger = torch.compile(compare, dynamic=False)
        rivals["torch.mm in chunks, comparisons compiled"] = lambda: chunked(a, b, larger)
        compiled = "larger = torch.compile(test_evaluation.compare, dynamic=False)\n"
        compiled += f"for m in (512, {n % CHUNK}): larger(torch.zeros(m, {n}), torch.zeros(m), torch.zeros({n}))\n"
        body = "test_evaluation.chunked(x[0], x[1], larger)"
        peak["torch.mm in chunks, comparisons compiled"] = (with_torch + compiled, body)
    result = versus(
        f"ranks in both directions among {n} clips, D = {dim}",
        {"ours": lambda: pair_ranks(a, b), **rivals},
        agree=agree,
        rounds=6,
        peak=peak,
    )
    for rival in rivals:
        result.require(rival, at_least=2 if rival == "NumPy, dense" else 1.5)


def test_recall_against_a_nearest_neighbour_index(versus, quick):
    """What one writes with faiss: the ten nearest of every query. It gives recall@10 and no rank beyond."""
    n, dim = (500, 64) if quick else (8_000, 512)
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((n, dim))
    a, b = (shared + 2 * rng.standard_normal((n, dim)) for _ in range(2))
    a, b = ((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (a, b))

    def ours():
        return [(ranks <= 10).mean() for ranks in pair_ranks(a, b)]

    arms = {"ours": ours}
    if importlib.util.find_spec("faiss") is not None:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())

        def nearest(queries, candidates):
            index = faiss.IndexFlatIP(dim)
            index.add(candidates)
            return (index.search(queries, 10)[1] == np.arange(n)[:, None]).any(1).mean()

        arms["faiss, the ten nearest"] = lambda: [nearest(a, b), nearest(b, a)]

    def agree(results):
        for recalls in results.values():
            np.testing.assert_allclose(recalls, results["ours"], atol=2 / n)

    versus(f"recall@10 in both directions among {n} clips, D = {dim}", arms, agree=agree, rounds=4)


FIT_SETUP = """
import numpy as np
import sklearn.linear_model, scipy.optimize
from sleepfm_fast.embeddings import Embeddings
from sleepfm_fast.evaluation.logistic import Features, fit
embeddings = Embeddings({folder!r})
labels = np.asarray(embeddings.stage)
clips = np.arange(len(labels))
fit(Features(embeddings, clips[:500], embeddings.modalities), labels[:500], solver={solver!r}, quiet=True)
"""
FIT_BODY = "fit(Features(embeddings, clips, embeddings.modalities), labels, solver={solver!r}, quiet=True)"


def written(folder: Path, n: int, dim: int) -> Embeddings:
    """Write clips whose vectors lean towards their stage's axis."""
    rng = np.random.default_rng(0)
    stage = rng.choice(5, n, p=(0.21, 0.07, 0.51, 0.09, 0.12))
    with EmbeddingWriter(folder, n, ("respiratory", "brain", "ecg"), dim) as writer:
        for start in range(0, n, 4096):
            rows = stage[start : start + 4096]
            x = rng.standard_normal((len(rows), 3, dim), dtype=np.float32)
            x[np.arange(len(rows)), :, rows] += 2.0
            writer.append(x)
        columns = {name: np.zeros(n) for name in ("recording", "subject", "split")}
        columns |= {"clip": np.arange(n), "onset_s": 30.0 * np.arange(n), "stage": stage, "sdb": np.full(n, -1)}
        writer.finish(columns, Description(("s",), ("r",), (None,), (None,), "run", "store", "none"))
    return Embeddings(folder)


def test_probe_fit(versus, quick, tmp_path):
    n, dim = (3_000, 64) if quick else (40_000, 512)
    embeddings = written(tmp_path / "embeddings", n, dim)
    clips, labels = np.arange(n), np.asarray(embeddings.stage)
    x = Features(embeddings, clips[:2000], embeddings.modalities)[:].astype(np.float64)

    def ours():
        return fit(Features(embeddings, clips, embeddings.modalities), labels, solver="blocks", quiet=True)[0].logits(x)

    def scikit_learn(dtype):
        features = embeddings.read(clips).reshape(n, -1).astype(dtype, copy=False)
        model = LogisticRegression(class_weight="balanced", max_iter=10_000, tol=GRADIENT_TOLERANCE)
        model.fit(features, labels)
        return model.decision_function(x.astype(dtype)).astype(np.float64)

    def agree(results):
        # All stop where no entry of the gradient of the mean loss exceeds 1e-5, each on its own side of the minimum,
        # and within 0.02 of it.
        ours, exact, rounded = (z - z.mean(1, keepdims=True) for z in results.values())
        np.testing.assert_allclose(ours, exact, atol=3e-2)
        np.testing.assert_allclose(ours, rounded, atol=3e-2)
        assert (ours.argmax(1) == rounded.argmax(1)).mean() > 0.99

    folder = str(tmp_path / "embeddings")
    held = {}
    if not quick:
        for arm, solver in (("ours, blocks", "blocks"), ("scikit-learn, float64", "sklearn")):
            setup, body = (source.format(folder=folder, solver=solver) for source in (FIT_SETUP, FIT_BODY))
            held[arm] = memory.peak_anonymous_mib(setup, body)
    versus(
        f"probe fitted on {n} clips x {3 * dim} from disk",
        {
            "ours, blocks": ours,
            "scikit-learn, float64": lambda: scikit_learn(np.float64),
            "scikit-learn, float32": lambda: scikit_learn(np.float32),
        },
        agree=agree,
        rounds=4,
        more={"peak_anonymous_mib": held, "features_mib": n * 3 * dim * 4 / 2**20},
    )
    if not quick:
        assert held["ours, blocks"] < 0.2 * held["scikit-learn, float64"]
