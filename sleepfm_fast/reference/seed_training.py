"""The authors' pretraining, restated in plain PyTorch: their loop, step by step.

``train --compat seed`` is compared with it, and the benchmarks of training and embedding measure against it. It keeps
the original's loss and scale, the statistics that are read from the device in every step, the optimiser, the schedule,
and the log temperature, which is clamped at 0 from below and unbounded above. Files, progress and the parallel wrapper
are left out. Their network is :class:`sleepfm_fast.reference.encoder.PublishedEncoder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["SeedTraining", "StepResult", "seed_embeddings"]


@dataclass(frozen=True)
class StepResult:
    """Results of a step: its loss before the update; and for each problem and direction, sum of losses and hits."""

    loss: float
    sums: list[float]
    hits: list[int]


@dataclass
class SeedTraining:
    """State of the loop.

    Parameters
    ----------
    encoders : mapping
        Modality -> module [B, C, n] -> [B, dim], in the order of the embeddings.
    mode : {"leave_one_out", "pairwise"}
    lr : float
    step_epochs : int
        Number of epochs after which the learning rate is divided by ten, again and again.
    momentum : float
    """

    encoders: Mapping[str, nn.Module]
    mode: Literal["leave_one_out", "pairwise"] = "leave_one_out"
    lr: float = 1e-3
    step_epochs: int = 5
    momentum: float = 0.9
    temperature: nn.Parameter = field(init=False)

    def __post_init__(self) -> None:
        """Make temperature, optimiser and schedule."""
        self.temperature = nn.Parameter(torch.zeros(()))
        parameters = [p for encoder in self.encoders.values() for p in encoder.parameters()]
        self.optimiser = torch.optim.SGD([*parameters, self.temperature], lr=self.lr, momentum=self.momentum)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimiser, self.step_epochs, gamma=0.1)

    def problems(self, e: Sequence[Tensor]) -> list[Tensor]:
        """Return the matrices of logits, [n, n] each, of unit embeddings."""
        scale = self.temperature.exp()
        m = len(e)
        if self.mode == "pairwise":
            return [e[i] @ e[j].T * scale for i in range(m) for j in range(i + 1, m)]
        others = [torch.stack([e[j] for j in range(m) if j != i]).sum(0) / (m - 1) for i in range(m)]
        return [e[i] @ others[i].T * scale for i in range(m)]

    def step(self, batch: Mapping[str, Tensor]) -> StepResult:
        """Update from clips [B, C, n] of every modality, of any float type (the original's files are float64)."""
        for encoder in self.encoders.values():
            encoder.train()
        clips = {name: batch[name].to(self.temperature.device, torch.float32) for name in self.encoders}
        embeddings = [F.normalize(encoder(clips[name])) for name, encoder in self.encoders.items()]
        n = len(embeddings[0])
        labels = torch.arange(n, device=self.temperature.device)
        total = torch.zeros((), device=self.temperature.device)
        sums: list[float] = []
        hits: list[int] = []
        for logits in self.problems(embeddings):
            for rows in (logits, logits.T):
                one = F.cross_entropy(rows, labels, reduction="sum")
                total = total + one
                sums.append(one.item())
                hits.append(int((rows.argmax(1) == labels).sum().item()))
        loss = total / len(sums) / n
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        if self.temperature < 0:
            with torch.no_grad():
                self.temperature.fill_(0)
        return StepResult(loss.item(), sums, hits)

    def end_epoch(self) -> None:
        """Lower the learning rate where it is due."""
        self.schedule.step()


@torch.no_grad()
def seed_embeddings(encoders: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Unit embeddings [B, dim] of one batch as the authors' generator makes them, modality by modality.

    Parameters
    ----------
    encoders : mapping
        Modality -> module [B, C, n] -> [B, dim]; put into evaluation.
    batch : mapping
        Modality -> clips [B, C, n] of any float type (the original's files are float64).
    """
    found = {}
    for name, encoder in encoders.items():
        encoder.eval()
        device = next(encoder.parameters()).device
        found[name] = F.normalize(encoder(batch[name].to(device, torch.float32))).cpu().numpy()
    return found
