"""Embedding with the published encoders on the CPU: one against PyTorch's ways, all three against the authors'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from encoder_rivals import (
    FOLDED_COMPILED,
    N_CHANNELS,
    PLAIN,
    embedder,
    engines,
    frozen,
    has_bfloat16,
    networks,
    peaks,
    random_clips,
    set_running_statistics,
)

from sleepfm_fast import inference
from sleepfm_fast.encoder import PRESETS, SleepModel
from sleepfm_fast.reference.encoder import PublishedEncoder
from sleepfm_fast.reference.seed_training import seed_embeddings

# What torch.compile itself calls.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

AUTHORS = "authors' generator, restated"
PRECISIONS = ["float32", "bfloat16"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_embedding(versus, quick, precision):
    half = precision == "bfloat16"
    if half and not quick and not has_bfloat16():
        pytest.skip("this processor has no products of bfloat16, and PyTorch emulates them")
    x = random_clips(2 if quick else 32)
    arms = networks(timed=not quick, training=False, bfloat16=half)

    def agree(results):
        for arm, y in results.items():
            if half:  # 8 bits through 40 convolutions
                assert (y - results["ours"]).norm() < 0.35 * results["ours"].norm(), arm
            else:
                torch.testing.assert_close(y, results["ours"], rtol=1e-4, atol=2e-5)  # of 0.05; 4e-6 apart

    compiled = engines(arms[PLAIN][0], x, bfloat16=half)
    result = versus(
        f"embedding, published encoder, {len(x)} clips of {N_CHANNELS} channels" + ", bfloat16" * half,
        {arm: embedder(network, bfloat16, x) for arm, (network, bfloat16) in arms.items()} | compiled,
        agree=agree,
        rounds=6,
        peak=None if quick else peaks("embedder", half),
    )
    result.require(PLAIN, at_least=1.5)
    for rival in compiled:
        result.require(rival, at_least=0.8)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_embedding_of_three_modalities(versus, quick, source, some_clips, precision):
    """From clips filtered and in memory to unit embeddings as NumPy arrays."""
    half = precision == "bfloat16"
    if half and not quick and not has_bfloat16():
        pytest.skip("this processor has no products of bfloat16")
    batch = source(some_clips(4 if quick else 32))
    torch.manual_seed(0)
    model = SleepModel({name: span.stop - span.start for name, span in source.spans.items()}, PRESETS["seed"])
    set_running_statistics(model, lambda: model(batch.x, batch.present))
    twins = {name: PublishedEncoder(n) for name, n in model.modalities.items()}
    for name, twin in twins.items():
        twin.load_state_dict(model.encoders[name].state_dict())
    stored = {name: x.double() for name, x in batch.x.items()}
    embed = inference.embedder(model, precision)
    by_modality: dict[str, dict[str, Callable[[], torch.Tensor]]] = {}
    for name, encoder in twins.items():
        runs = engines(encoder, batch.x[name].contiguous(), bfloat16=half)
        if not quick:
            runs[FOLDED_COMPILED] = embedder(frozen(encoder), half, batch.x[name])
        for arm, run in runs.items():
            by_modality.setdefault(arm, {})[name] = run

    def unit(runs: dict[str, Callable[[], torch.Tensor]]) -> dict[str, np.ndarray]:
        return {name: F.normalize(run(), dim=-1).numpy() for name, run in runs.items()}

    def ours() -> dict[str, np.ndarray]:
        with torch.inference_mode():
            embeddings, _ = embed(batch)
            return dict(zip(model.modalities, F.normalize(embeddings, dim=-1).numpy(), strict=True))

    def agree(results):
        for name, found in results[AUTHORS].items():
            assert np.ptp(found, axis=0).max() > 0.02, f"{name}: all clips have almost the same embedding"
            # Unit embeddings; in bfloat16 8 bits through 40 convolutions.
            for arm, embeddings in results.items():
                message = f"{arm}, {name}"
                np.testing.assert_allclose(embeddings[name], found, atol=0.05 if half else 2e-5, err_msg=message)
                assert np.linalg.norm(embeddings[name] - found) < 0.35 * np.linalg.norm(found), message

    result = versus(
        f"embedding, preset seed, three modalities, {len(next(iter(stored.values())))} clips" + ", bfloat16" * half,
        {"ours": ours, AUTHORS: lambda: seed_embeddings(twins, stored)}
        | {arm: partial(unit, runs) for arm, runs in by_modality.items()},
        agree=agree,
        rounds=6,
    )
    result.require(AUTHORS, at_least=1.5)
    for rival in by_modality:
        result.require(rival, at_least=0.8)
