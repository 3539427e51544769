"""Every MBConv block of the published network in evaluation on a GPU: our kernel and torch's layers, bfloat16.

Without a GPU ``--quick`` runs the twin of the kernel in its place, on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cuda_events
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from emulated_mbconv import random_weights

from sleepfm_fast import reference
from sleepfm_fast.ops.mbconv_evaluate import mbconv_evaluate, pack

CUDA = torch.cuda.is_available()
N_CLIPS = 512
# Channels in and out, stride, samples, and the nanoseconds a clip that were computed for an H200
# (docs/kernels/encoder-blocks-cuda.md).
BLOCKS = (
    *((32, 16, 2, 3840, 267), (16, 16, 1, 1920, 108), (16, 24, 2, 1920, 84), (24, 24, 1, 960, 81)),
    *((24, 40, 2, 960, 70), (40, 40, 1, 480, 88), (40, 80, 2, 480, 78), (80, 80, 1, 240, 136)),
    *((80, 112, 2, 240, 140), (112, 112, 1, 120, 121), (112, 192, 2, 120, 132)),
)
FIRST = "PyTorch, batch norms folded"
LAST = "PyTorch, 2-D channels last, batch norms folded"


def layers(x: Tensor, weights: list[Tensor], stride: int, residual: bool, last: bool) -> Callable[[], Tensor]:
    """Torch's own: x [B, T, C] and the result are laid out as the layers want them, which is not timed."""
    w1, b1, wd, bd, w3, b3 = (weight.to(x) for weight in weights)
    if last:
        image = x.transpose(1, 2)[:, :, None]  # [B, C, 1, T], channels last in memory
        kernels = [w.contiguous(memory_format=torch.channels_last) for w in (w1[..., None, None], w3[..., None, None])]

        def two_dimensional() -> Tensor:
            y = F.relu6(F.conv2d(image, kernels[0], b1))
            y = F.relu6(F.conv2d(y, wd[:, None, None], bd, (1, stride), (0, 1), groups=len(wd)))
            y = F.conv2d(y, kernels[1], b3)
            return ((image + y) if residual else y)[:, :, 0].transpose(1, 2)

        return two_dimensional
    rows = x.transpose(1, 2).contiguous()

    def one_dimensional() -> Tensor:
        y = F.relu6(F.conv1d(rows, w1[..., None], b1))
        y = F.relu6(F.conv1d(y, wd[:, None], bd, stride, 1, groups=len(wd)))
        y = F.conv1d(y, w3[..., None], b3)
        return ((rows + y) if residual else y).transpose(1, 2)

    return one_dimensional


@pytest.mark.parametrize(
    ("n_in", "n_out", "stride", "n_samples", "predicted_ns"), BLOCKS, ids=[f"{b[0]}-{b[1]}" for b in BLOCKS]
)
def test_block_eager_cuda(versus, quick, n_in, n_out, stride, n_samples, predicted_ns):
    if not CUDA and not quick:
        pytest.skip("no CUDA device")
    device, n_clips = cuda_events.device(), N_CLIPS if CUDA else 1
    weights, residual = random_weights(n_in, 6 * n_in, n_out), stride == 1
    block = pack(*weights, stride=stride, residual=residual, dtype=torch.bfloat16).to(device)
    x = torch.randn(n_clips, n_samples, n_in, generator=torch.Generator().manual_seed(1)).to(device, torch.bfloat16)

    def ours() -> Tensor:
        if CUDA:
            return mbconv_evaluate(x, block)
        return reference.mbconv_evaluate(x.float(), *weights, stride=stride, residual=residual, rounded=x.dtype).to(x)

    def agree(results):
        exact = results["ours"].double()
        for arm, y in results.items():
            assert y.shape == exact.shape, arm
            assert float((y.double() - exact).norm() / exact.norm()) < 0.03, arm

    versus(
        f"CUDA: MBConv block of {n_in} channels to {n_out}, stride {stride}, {n_clips} clips of {n_samples} samples",
        {
            "ours": ours,
            FIRST: layers(x, weights, stride, residual, last=False),
            LAST: layers(x, weights, stride, residual, last=True),
        },
        agree=agree,
        rounds=4,
        measure=cuda_events.measure,
        more={"predicted_s": 1e-9 * predicted_ns * n_clips, "device": str(device)},
    )
