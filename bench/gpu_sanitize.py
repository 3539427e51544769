"""A few calls of every kernel at sizes beside tile boundaries, to be run under compute-sanitizer.

``python bench/gpu_sanitize.py small mma gemm`` runs these paths of the loss (all by default), the filter and the
encoder's blocks. With the word ``between`` the blocks in training run without the library's products.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from contrastive_cases import MODES, embeddings, random_mask  # noqa: E402
from emulated_mbconv import random_weights  # noqa: E402
from filter_batch import NORMALISATIONS, mixed_batch  # noqa: E402

from sleepfm_fast import ops, reference  # noqa: E402
from sleepfm_fast.ops import contrastive_cuda, mbconv_between  # noqa: E402
from sleepfm_fast.ops.mbconv_evaluate import pack  # noqa: E402

# N, D: one sample, remainders of tiles, every padded D. A checked launch takes some hundred times as long.
SIZES = {
    "small": ((1, 64), (33, 128), (130, 512)),
    "mma": ((1, 64), (65, 256), (130, 512), (300, 128)),
    "gemm": ((33, 128), (300, 200)),
}
BETWEEN = "between"
# Channels in and out, stride; more samples than a warp's stretch.
BLOCKS = ((32, 16, 2), (16, 16, 1), (40, 80, 2), (80, 80, 1), (112, 192, 2))


def evaluate_blocks(device: torch.device) -> None:
    """Blocks in evaluation; the twin where there is no GPU."""
    for n_in, n_out, stride in BLOCKS:
        weights, options = random_weights(n_in, 96, n_out), {"stride": stride, "residual": stride == 1}
        x = torch.randn(3, 135, n_in, dtype=torch.bfloat16)
        if device.type == "cuda":
            block = pack(*weights, **options, dtype=x.dtype).to(device)
            y = ops.mbconv_evaluate(x.to(device), block)
        else:
            y = reference.mbconv_evaluate(x.float(), *weights, **options)
        assert bool(y.isfinite().all()), (n_in, n_out, stride)


def train_blocks(device: torch.device) -> None:
    """Blocks in training; the twin where there is no GPU."""
    for n_in, n_out, stride in BLOCKS:
        g = torch.Generator().manual_seed(0)
        width = 6 * n_in
        shapes = ((width, n_in), (width,), (width,), (width,), (width, 3), (width,), (width,), (width,))
        weights = [torch.randn(shape, generator=g).to(device) for shape in (*shapes, (n_out, width), (n_out,))]
        x = torch.randn(3, 135, n_in, generator=g).to(device, torch.bfloat16).requires_grad_()
        if device.type == "cuda":
            y, _ = ops.mbconv_train(x, *weights, stride=stride)
        else:
            y, _ = reference.mbconv_train(x.float(), *weights, stride=stride)
        y.sum().backward()
        assert bool(x.grad.isfinite().all()), (n_in, n_out, stride)


def between_products(device: torch.device) -> None:
    """Blocks in training, their own kernels alone: what the library's products would write is drawn."""
    eps = 1e-5
    for n_in, _, stride in BLOCKS:
        g = torch.Generator().manual_seed(0)
        width, n_samples = 6 * n_in, 135
        n_out = (n_samples - 1) // stride + 1
        c1, da2 = (torch.randn(3, n, width, generator=g).to(device, torch.bfloat16) for n in (n_samples, n_out))
        wd, bias = torch.randn(width, 3, generator=g).to(device), torch.zeros(width).to(device, torch.bfloat16)
        b1, gamma0, beta0, bd, gamma1, beta1 = torch.randn(6, width, generator=g).to(device)
        statistics0, parameters0 = mbconv_between.expansion_sums(c1, bias, b1, gamma0, beta0, wd, bd, eps)
        c2, statistics1, parameters1 = mbconv_between.depthwise(c1, parameters0, gamma1, beta1, stride, eps)
        a2 = mbconv_between.activate(c2, parameters1)
        *_, parameters = mbconv_between.gradient_sums(c2, da2, statistics1, parameters0, parameters1, gamma1, eps)
        g0, *_ = mbconv_between.depthwise_backward(c1, c2, da2, parameters, statistics0, gamma0, stride, eps)
        assert bool(a2.isfinite().all()), (n_in, stride)
        assert bool(g0.isfinite().all()), (n_in, stride)


def main(words: list[str]) -> None:
    """Run on the GPU, or on the CPU where there is none."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n_losses = 0
    for path in [word for word in words if word != BETWEEN] or SIZES:
        os.environ[contrastive_cuda.VARIABLE] = path
        for N, D in SIZES[path]:
            for mode, precision in zip(MODES, ("highest", "high"), strict=True):
                x = embeddings("random", 3, N, D).to(device).requires_grad_()
                tau = torch.tensor(2.0, device=device, requires_grad=True)
                loss, _ = ops.contrastive_loss(x, tau, mode, mask=random_mask(3, N).to(device), precision=precision)
                loss.backward()
                assert bool(x.grad.isfinite().all()), (path, N, D, mode)
                n_losses += 1
    batch = mixed_batch()
    arguments = [tensor.to(device) for tensor in batch.tensors(n_channels=5)]
    for normalise in NORMALISATIONS:
        out = ops.filter_resample(*arguments, batch.bank, 7680, normalise=normalise)
        assert bool(out.isfinite().all()), normalise
    evaluate_blocks(device)
    if BETWEEN in words and device.type == "cuda":
        between_products(device)
    else:
        train_blocks(device)
    print(f"{n_losses} losses, {len(NORMALISATIONS)} filters and {2 * len(BLOCKS)} blocks on {device}")


if __name__ == "__main__":
    main(sys.argv[1:])
