"""Training the published encoder on the CPU, one modality: our fused blocks against the same network run by PyTorch."""

from __future__ import annotations

import math

import pytest
from encoder_rivals import N_CHANNELS, PLAIN, has_bfloat16, networks, peaks, random_clips, trainer

# What torch.compile itself calls.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_step(versus, quick, precision):
    half = precision == "bfloat16"
    if half and not quick and not has_bfloat16():
        pytest.skip("this processor has no products of bfloat16, and PyTorch emulates them")
    x = random_clips(2 if quick else 32)
    arms = networks(timed=not quick, bfloat16=half)

    def agree(results):  # with dropout, every arm draws for itself; what they compute without is compared below
        assert all(math.isfinite(loss) for loss in results.values())
        assert results["ours"] == pytest.approx(results[PLAIN], rel=0.5)

    versus(
        f"training step, published encoder, {len(x)} clips of {N_CHANNELS} channels" + ", bfloat16" * half,
        {arm: trainer(network, bfloat16, x) for arm, (network, bfloat16) in arms.items()},
        agree=agree,
        rounds=6,
        peak=None if quick else peaks("trainer", half),
    ).require(PLAIN, at_least=1.3)


@pytest.mark.parametrize("half", [False, True])
def test_arms_train_alike_without_dropout(half):
    """Three steps without dropout: the losses of every arm follow the same curve."""
    x = random_clips(2)
    curves = {}
    for arm, (network, bfloat16) in networks(timed=False, dropout=0.0, bfloat16=half).items():
        step = trainer(network, bfloat16, x)
        curves[arm] = [step() for _ in range(3)]
    for arm, curve in curves.items():
        assert curve == pytest.approx(curves[PLAIN], rel=0.1 if half else 2e-3), arm
