"""Embedding with the published encoders on the CPU: one against PyTorch's ways, all three against the authors'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from encoder_rivals import (
    N_CHANNELS,
    PLAIN,
    embedder,
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
                torch.testing.assert_close(y, results["ours"], rtol=1e-3, atol=1e-4)

    versus(
        f"embedding, published encoder, {len(x)} clips of {N_CHANNELS} channels" + ", bfloat16" * half,
        {arm: embedder(network, bfloat16, x) for arm, (network, bfloat16) in arms.items()},
        agree=agree,
        rounds=6,
        peak=None if quick else peaks("embedder", half),
    ).require(PLAIN, at_least=1.5)


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

    def ours() -> dict[str, np.ndarray]:
        with torch.inference_mode():
            embeddings, _ = embed(batch)
            return dict(zip(model.modalities, F.normalize(embeddings, dim=-1).numpy(), strict=True))

    def agree(results):
        for name, found in results[AUTHORS].items():
            assert np.ptp(found, axis=0).max() > 0.02, f"{name}: all clips have almost the same embedding"
            # Unit embeddings; in bfloat16 8 bits through 40 convolutions.
            np.testing.assert_allclose(results["ours"][name], found, atol=0.05 if half else 2e-5, err_msg=name)

    versus(
        f"embedding, preset seed, three modalities, {len(next(iter(stored.values())))} clips" + ", bfloat16" * half,
        {"ours": ours, AUTHORS: lambda: seed_embeddings(twins, stored)},
        agree=agree,
        rounds=6,
    ).require(AUTHORS, at_least=1.5)
