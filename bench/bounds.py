"""What the kernels' multiply-adds would take if the processor did nothing else: the first table of docs/kernels.md.

docs/kernels/ derives the counts and says how the rates were measured; the times beside them are those of stored runs.
"""

from __future__ import annotations

from typing import NamedTuple

# Multiply-adds a second from registers, two cores, by stored run: of float32, as the loss multiplies float32, and of
# 16-bit integers where measured. On Sapphire Rapids' tiles the loss takes six products of bytes for one, and 16-bit
# integers take four; a core does 3.6e12 multiply-adds of bytes a second.
RATES = {
    "cpu-2-core-epyc": {"float32": 115e9, "loss": 115e9},  # Zen 4 with AVX-512
    "cpu-2-core-epyc-avx2": {"float32": 103e9, "loss": 103e9, "int16": 204e9},  # Zen 3
    "cpu-2-core-xeon": {"float32": 231e9, "loss": 2 * 3.6e12 / 6, "int16": 2 * 3.6e12 / 4},  # Sapphire Rapids
}


class Bound(NamedTuple):
    """A kernel's task: what the page calls it, its name in stored runs, and what it must multiply."""

    title: str
    result: str
    multiply_adds: float
    kind: str
    rest: str  # what takes the time beyond


def loss(n_samples: int, rest: str) -> Bound:
    """Three products of three problems, D = 512."""
    name = f"contrastive loss, forward + backward, N = {n_samples}, D = 512, M = 3"
    kind = "loss" if n_samples > 128 else "float32"  # small batches use no tiles
    return Bound(f"contrastive loss, N = {n_samples}", name, 3 * 3 * n_samples**2 * 512, kind, rest)


BOUNDS = (
    Bound(
        "filter 0.3-35 Hz, 200 to 256 Hz, z-score, 9 channels, 8 h",
        "filter 0.3-35 Hz, resample 200 to 256 Hz, z-score clips, 9 channels, 8 h",
        4.1e9,
        "float32",
        "transforms' shuffles, z-score, 0.5 GB through memory, products on short columns",
    ),
    Bound(
        "resample only", "resample 200 to 256 Hz, 9 channels, 8 h", 3.3e9, "float32", "the same without the low branch"
    ),
    loss(32, "autograd and Python 0.15 ms"),
    loss(512, "packing, exponentials, the last step of the gradients"),
    loss(4096, "the same"),
    Bound(
        "encoder, evaluation, 32 clips of 7 channels",
        "embedding, published encoder, 32 clips of 7 channels",
        32 * 285e6,
        "float32",
        "ReLU6 and depthwise convolutions between the products",
    ),
    Bound(
        "encoder, training step, 32 clips of 7 channels",
        "training step, published encoder, 32 clips of 7 channels",
        3 * 32 * 285e6,
        "float32",
        "the same, batch norms' sums, memory in the early stages",
    ),
    Bound(
        "ranks among 8,000, D = 512",
        "ranks in both directions among 8000 clips, D = 512",
        8000**2 * 512,
        "int16",
        "additions occupy multipliers' pipes, counting",
    ),
)
