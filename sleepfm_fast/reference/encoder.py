"""The published encoder, operation by operation in plain PyTorch, with its state-dict names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["PublishedEncoder"]


class Block(nn.Module):
    """Expansion, depthwise convolution, projection; with stride 1 also dropout and a residual."""

    def __init__(self, n_in: int, n_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        width = 6 * n_in
        self.conv1 = nn.Conv1d(n_in, width, 1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=stride, padding=1, groups=width)
        self.conv3 = nn.Conv1d(width, n_out, 1)
        self.b0 = nn.BatchNorm1d(width)
        self.b1 = nn.BatchNorm1d(width)
        self.act = nn.ReLU6()
        self.drop = nn.Dropout(dropout)
        self.residual = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, n] -> [B, n_out, n / stride]."""
        y = self.act(self.b0(self.conv1(x)))
        y = self.conv3(self.act(self.b1(self.conv2(y))))
        out: Tensor = x + self.drop(y) if self.residual else y
        return out


class Stage(nn.Module):
    """Blocks, of which the last changes the number of channels and halves the length, and a batch norm."""

    def __init__(self, n_in: int, n_out: int, n_blocks: int, dropout: float) -> None:
        super().__init__()
        blocks: OrderedDict[str, nn.Module] = OrderedDict(
            (f"s{i}", Block(n_in, n_in, 1, dropout)) for i in range(n_blocks - 1)
        )
        blocks[f"s{n_blocks + 1}"] = Block(n_in, n_out, 2, dropout)
        self.stack = nn.Sequential(blocks)
        self.bn = nn.BatchNorm1d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, n] -> [B, n_out, n / 2]."""
        y: Tensor = self.bn(self.stack(x))
        return y


class PublishedEncoder(nn.Module):
    """The 1-D EfficientNet of SleepFM as published: what tests compare with, and a rival in the benchmarks.

    Parameters
    ----------
    n_channels : int
        Input channels.
    channels, depth, dim, dropout
        As in :class:`sleepfm_fast.encoder.EncoderConfig`.
    """

    def __init__(
        self,
        n_channels: int,
        channels: Sequence[int] = (32, 16, 24, 40, 80, 112, 192, 320, 1280),
        depth: Sequence[int] = (1, 2, 2, 3, 3, 3, 3),
        dim: int = 512,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        stem, *widths, last = channels
        self.stage1 = nn.Conv1d(n_channels, stem, 3, stride=2, padding=1)
        self.b0 = nn.BatchNorm1d(stem)
        self.names = []
        n_in = stem
        for i, (n_out, n_blocks) in enumerate(zip(widths, depth, strict=True)):
            self.names.append(f"stage{i + 2}")
            self.add_module(self.names[-1], Stage(n_in, n_out, n_blocks, dropout))
            n_in = n_out
        self.pool = nn.MaxPool1d(3, stride=1, padding=1)
        self.stage9 = nn.Conv1d(n_in, last, 1)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(last, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, n] -> [B, dim]."""
        x = self.b0(self.stage1(x))
        for name in self.names:
            x = getattr(self, name)(x)
            if name in ("stage3", "stage6"):
                x = self.pool(x)
        y: Tensor = self.fc(self.drop(torch.relu(self.stage9(x).mean(dim=2))))
        return y
