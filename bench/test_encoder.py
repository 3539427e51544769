"""The published encoder on the CPU, one modality: our fused blocks against the same network operation by operation."""

from __future__ import annotations

import pytest
import torch

from sleepfm_fast.encoder import PRESETS, EfficientNet1d
from sleepfm_fast.mbconv_blocks import MBConvBlock

N_CHANNELS = 7


def encoder(*, fuse: bool) -> EfficientNet1d:
    torch.manual_seed(0)
    network = EfficientNet1d(N_CHANNELS, PRESETS["seed"])
    for module in network.modules():
        if isinstance(module, MBConvBlock):
            module.fuse = fuse
    return network


def clips(n_clips: int) -> torch.Tensor:
    return torch.randn(n_clips, N_CHANNELS, 7680, generator=torch.Generator().manual_seed(1))


def test_embedding(versus, quick):
    x = clips(2 if quick else 32)
    ours, theirs = encoder(fuse=True).eval(), encoder(fuse=False).eval()

    def embed(network):
        with torch.inference_mode():
            return network(x)

    def agree(results):
        torch.testing.assert_close(*results.values(), rtol=1e-3, atol=1e-4)

    versus(
        f"embedding, published encoder, {len(x)} clips of {N_CHANNELS} channels",
        {"ours": lambda: embed(ours), "PyTorch, operation by operation": lambda: embed(theirs)},
        agree=agree,
        rounds=8,
    ).require("PyTorch, operation by operation", at_least=1.5)


def test_training_step(versus, quick):
    x = clips(2 if quick else 32)

    def step(network):
        optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

        def run():
            torch.manual_seed(2)  # dropout
            loss = network(x).square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            return float(loss.detach())

        return run

    def agree(results):
        assert results["ours"] == pytest.approx(results["PyTorch, operation by operation"], rel=1e-3)

    versus(
        f"training step, published encoder, {len(x)} clips of {N_CHANNELS} channels",
        {
            "ours": step(encoder(fuse=True).train()),
            "PyTorch, operation by operation": step(encoder(fuse=False).train()),
        },
        agree=agree,
        rounds=6,
    ).require("PyTorch, operation by operation", at_least=1.3)
