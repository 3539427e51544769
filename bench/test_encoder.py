"""Training the published encoder on the CPU, one modality: our fused blocks against the same network run by PyTorch."""

from __future__ import annotations

import math

import pytest
from encoder_rivals import BFLOAT16, N_CHANNELS, PLAIN, networks, peaks, random_clips, trainer

# What torch.compile itself calls.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def test_training_step(versus, quick):
    x = random_clips(2 if quick else 32)
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
    x = random_clips(2)
    curves = {}
    for arm, (network, bfloat16) in networks(timed=False, dropout=0.0).items():
        step = trainer(network, bfloat16, x)
        curves[arm] = [step() for _ in range(3)]
    for arm, curve in curves.items():
        assert curve == pytest.approx(curves[PLAIN], rel=0.1 if arm == BFLOAT16 else 2e-3), arm
