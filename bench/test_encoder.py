"""The published encoder on the CPU, one modality: our fused blocks against the same network run by PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
from encoder_rivals import BFLOAT16, N_CHANNELS, PLAIN, embedder, networks, trainer

# What torch.compile itself calls.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

# Each arm's memory above what the network, the clips and (training) one step's gradients and momenta take.
PEAK_SETUP = """
import sys
sys.path.insert(0, "bench")
import torch
from encoder_rivals import embedder, networks, trainer
network = networks(timed=False)[{arm!r}][0]
run = {make}(network, False, torch.randn(32, 7, 7680))
"""


def clips(n_clips: int) -> torch.Tensor:
    return torch.randn(n_clips, N_CHANNELS, 7680, generator=torch.Generator().manual_seed(1))


def peaks(make: str) -> dict[str, tuple[str, str]]:
    return {arm: (PEAK_SETUP.format(arm=arm, make=make), "run()") for arm in ("ours", PLAIN)}


def test_embedding(versus, quick):
    x = clips(2 if quick else 32)
    arms = networks(timed=not quick, training=False)

    def agree(results):
        for arm, y in results.items():
            if arm == BFLOAT16:  # 8 bits through 40 convolutions
                assert (y - results["ours"]).norm() < 0.35 * results["ours"].norm()
            else:
                torch.testing.assert_close(y, results["ours"], rtol=1e-3, atol=1e-4)

    versus(
        f"embedding, published encoder, {len(x)} clips of {N_CHANNELS} channels",
        {arm: embedder(network, bfloat16, x) for arm, (network, bfloat16) in arms.items()},
        agree=agree,
        rounds=6,
        peak=None if quick else peaks("embedder"),
    ).require(PLAIN, at_least=1.5)


def test_training_step(versus, quick):
    x = clips(2 if quick else 32)
    arms = networks(timed=not quick)

    def agree(results):  # with dropout, every arm draws for itself; what they compute without is compared below
        assert all(math.isfinite(loss) for loss in results.values())
        assert results["ours"] == pytest.approx(results[PLAIN], rel=0.5)

    versus(
        f"training step, published encoder, {len(x)} clips of {N_CHANNELS} channels",
        {arm: trainer(network, bfloat16, x) for arm, (network, bfloat16) in arms.items()},
        agree=agree,
        rounds=6,
        peak=None if quick else peaks("trainer"),
    ).require(PLAIN, at_least=1.3)


def test_arms_train_alike_without_dropout():
    """Three steps without dropout: the losses of every arm follow the same curve."""
    x = clips(2)
    curves = {}
    for arm, (network, bfloat16) in networks(timed=False, dropout=0.0).items():
        step = trainer(network, bfloat16, x)
        curves[arm] = [step() for _ in range(3)]
    for arm, curve in curves.items():
        assert curve == pytest.approx(curves[PLAIN], rel=0.1 if arm == BFLOAT16 else 2e-3), arm
