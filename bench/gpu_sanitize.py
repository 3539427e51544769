"""A few calls of every kernel at sizes beside tile boundaries, to be run under compute-sanitizer."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from contrastive_cases import MODES, embeddings, random_mask  # noqa: E402
from filter_batch import mixed_batch  # noqa: E402

from sleepfm_fast import ops  # noqa: E402

SIZES = ((1, 64), (33, 128), (130, 512), (1100, 128))  # N, D: a launch of its own, tiles, their remainders


def main() -> None:
    """Run on the GPU, or on the CPU where there is none."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for N, D in SIZES:
        for mode in MODES:
            x = embeddings("random", 3, N, D).to(device).requires_grad_()
            tau = torch.tensor(2.0, device=device, requires_grad=True)
            mask = random_mask(3, N).to(device)
            loss, _ = ops.contrastive_loss(x, tau, mode, mask=mask, precision="high" if N == 130 else "highest")
            loss.backward()
            assert bool(x.grad.isfinite().all())
    batch = mixed_batch()
    arguments = [tensor.to(device) for tensor in batch.tensors(n_channels=5)]
    for normalise in ("none", "zscore"):
        out = ops.filter_resample(*arguments, batch.bank, 7680, normalise=normalise)
        assert bool(out.isfinite().all())
    print(f"{len(SIZES) * len(MODES)} losses and 2 filters on {device}")


if __name__ == "__main__":
    main()
