"""The authors' pretraining, restated in plain PyTorch: their network operation by operation, their loop step by step.

``train --compat seed`` is compared with it, and the benchmarks of training and embedding measure against it. It keeps
the original's loss and scale, the statistics that are read from the device in every step, the optimiser, the schedule,
and the log temperature, which is clamped at 0 from below and unbounded above. Files, progress and the parallel wrapper
are left out.
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

__all__ = ["PublishedNetwork", "SeedTraining", "StepResult", "seed_embeddings"]

# Stage, its number of blocks, output channels; expansion 6 and kernel 3 throughout.
STAGES = ((2, 1, 16), (3, 2, 24), (4, 2, 40), (5, 3, 80), (6, 3, 112), (7, 3, 192), (8, 3, 320))
POOLED = (3, 6)


class Bottleneck(nn.Module):
    """1x1 expansion, depthwise convolution of 3, 1x1 projection; with stride 1 dropout, and the input is added."""

    def __init__(self, n_in: int, n_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        wide = 6 * n_in
        self.conv1 = nn.Conv1d(n_in, wide, 1)
        self.b0 = nn.BatchNorm1d(wide)
        self.conv2 = nn.Conv1d(wide, wide, 3, stride=stride, padding=1, groups=wide)
        self.b1 = nn.BatchNorm1d(wide)
        self.conv3 = nn.Conv1d(wide, n_out, 1)
        self.dropout = nn.Dropout(dropout)
        self.adds = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, n] -> [B, n_out, n / stride]."""
        y: Tensor = F.relu6(self.b0(self.conv1(x)))
        y = F.relu6(self.b1(self.conv2(y)))
        y = self.conv3(y)
        if self.adds:
            y = x + self.dropout(y)
        return y


class Stage(nn.Module):
    """Bottlenecks that keep the length, then one that halves it, then a batch norm."""

    def __init__(self, n_in: int, n_out: int, n_blocks: int, dropout: float) -> None:
        super().__init__()
        self.stack = nn.Sequential()
        for number in range(n_blocks - 1):
            self.stack.add_module(f"s{number}", Bottleneck(n_in, n_in, 1, dropout))
        self.stack.add_module(f"s{n_blocks + 1}", Bottleneck(n_in, n_out, 2, dropout))
        self.bn = nn.BatchNorm1d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, n] -> [B, n_out, n / 2]."""
        y: Tensor = self.bn(self.stack(x))
        return y


class PublishedNetwork(nn.Module):
    """SleepFM's encoder with the published names of its 318 tensors: [B, n_channels, 7680] -> [B, 512]."""

    def __init__(self, n_channels: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.stage1 = nn.Conv1d(n_channels, 32, 3, stride=2, padding=1)
        self.b0 = nn.BatchNorm1d(32)
        n_in = 32
        for number, n_blocks, n_out in STAGES:
            self.add_module(f"stage{number}", Stage(n_in, n_out, n_blocks, dropout))
            n_in = n_out
        self.stage9 = nn.Conv1d(n_in, 1280, 1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1280, 512)

    def forward(self, x: Tensor) -> Tensor:
        """Embed, not normalised."""
        x = self.b0(self.stage1(x))
        for number, _, _ in STAGES:
            x = self.get_submodule(f"stage{number}")(x)
            if number in POOLED:
                x = F.max_pool1d(x, 3, stride=1, padding=1)
        x = F.relu(F.adaptive_avg_pool1d(self.stage9(x), 1)).flatten(1)
        y: Tensor = self.fc(self.dropout(x))
        return y


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
