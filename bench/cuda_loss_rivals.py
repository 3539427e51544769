"""The contrastive loss on a GPU as each library computes it; every function gives one scalar from ``[M, N, D]``.

Libraries of a symmetric or one-sided softmax between two sets of rows are called once (twice) a modality with the unit
rows and the mean of the others' unit rows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from sleepfm_fast import ops

Loss = Callable[[Tensor, Tensor], Tensor]
LOG_TEMPERATURE = 2.659
M, D = 3, 512


def inputs(n: int, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Embeddings whose modalities have a part in common, and a temperature; both want gradients."""
    generator = torch.Generator(device).manual_seed(n)
    shared = torch.randn(n, D, generator=generator, device=device)
    x = shared + 2.0 * torch.randn(M, n, D, generator=generator, device=device)
    return x.to(dtype).requires_grad_(), torch.tensor(LOG_TEMPERATURE, device=device, requires_grad=True)


def highest(x: Tensor, log_temperature: Tensor) -> Tensor:
    return ops.contrastive_loss(x, log_temperature, precision="highest")[0]


def high(x: Tensor, log_temperature: Tensor) -> Tensor:
    return ops.contrastive_loss(x, log_temperature, precision="high")[0]


def operands(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows, and the mean of the other modalities' unit rows."""
    e = F.normalize(x, dim=-1)
    return e, (e.sum(0) - e) / (len(x) - 1)


def eager(x: Tensor, log_temperature: Tensor) -> Tensor:
    e, others = operands(x)
    target = torch.arange(x.shape[1], device=x.device)
    loss = x.new_zeros((), dtype=torch.float32)
    for rows, columns in zip(e, others, strict=True):
        logits = log_temperature.exp() * (rows @ columns.T)
        loss = loss + F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    return loss / (2 * len(x))


def memeff(x: Tensor, log_temperature: Tensor) -> Tensor:
    """MemoryEfficientCLIP; its temperature is a number, so it has no gradient to it."""
    from memeff import MemoryEfficientCLIPLoss

    e, others = operands(x)
    loss = MemoryEfficientCLIPLoss(temperature=TEMPERATURE, normalized_inputs=True, stable=False)
    return sum(loss(rows, columns) for rows, columns in zip(e, others, strict=True)) / len(x)


TEMPERATURE = 2.718281828459045**-LOG_TEMPERATURE


def inf_cl(x: Tensor, log_temperature: Tensor) -> Tensor:
    from inf_cl import cal_flash_loss

    e, others = operands(x)
    scale = log_temperature.exp()
    loss = x.new_zeros((), dtype=torch.float32)
    for rows, columns in zip(e, others, strict=True):
        loss = (
            loss + cal_flash_loss(rows, columns, scale=scale).mean() + cal_flash_loss(columns, rows, scale=scale).mean()
        )
    return loss / (2 * len(x))


def cut_cross_entropy(x: Tensor, log_temperature: Tensor) -> Tensor:
    """Without its filter, which drops small gradients: it takes 16-bit operands only."""
    from cut_cross_entropy import linear_cross_entropy

    e, others = operands(x)
    scaled = (log_temperature.exp() * e).bfloat16()
    e, others = e.bfloat16(), others.bfloat16()
    target = torch.arange(x.shape[1], device=x.device)
    loss = x.new_zeros((), dtype=torch.float32)
    for rows, plain, columns in zip(scaled, e, others, strict=True):
        loss = loss + linear_cross_entropy(rows, columns, target, filter_eps=None)
        loss = loss + linear_cross_entropy((log_temperature.exp() * columns).bfloat16(), plain, target, filter_eps=None)
    return loss / (2 * len(x))


def liger(x: Tensor, log_temperature: Tensor) -> Tensor:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    e, others = operands(x)
    target = torch.arange(x.shape[1], device=x.device)
    scale, one_sided = log_temperature.exp(), LigerFusedLinearCrossEntropyLoss()
    loss = x.new_zeros((), dtype=torch.float32)
    for rows, columns in zip(e, others, strict=True):
        loss = loss + one_sided(columns, scale * rows, target) + one_sided(rows, scale * columns, target)
    return loss / (2 * len(x))


LIBRARIES: dict[str, tuple[str, Loss]] = {
    "memeff (no gradient to the temperature)": ("memeff", memeff),
    "inf-cl": ("inf_cl", inf_cl),
    "cut-cross-entropy, exact": ("cut_cross_entropy", cut_cross_entropy),
    "liger-kernel": ("liger_kernel", liger),
}


def libraries() -> dict[str, Loss]:
    """The libraries that are installed and have a GPU to run on."""
    if not torch.cuda.is_available():
        return {}
    return {name: loss for name, (module, loss) in LIBRARIES.items() if importlib.util.find_spec(module)}


def step(loss: Loss, x: Tensor, log_temperature: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Forward and backward: loss and both gradients."""
    x.grad = log_temperature.grad = None
    value = loss(x, log_temperature)
    value.backward()
    return value.detach(), x.grad, log_temperature.grad
