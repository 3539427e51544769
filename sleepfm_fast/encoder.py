"""Encoders: one 1-D convolutional network per modality, from a 30-s clip [C, 7680] to an embedding [dim].

Two designs: ``efficientnet``, the network of SleepFM (Thapa et al., ICML 2024) with its layer order and state-dict
names, so that its weights can be exchanged; ``strided``, a small network for demonstrations and tests on a CPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from sleepfm_fast.model.encoder_evaluation import average_over_time, covers
from sleepfm_fast.model.mbconv_blocks import MBConvStage, convolve_and_normalise, has_hooks, is_pointwise, pool
from sleepfm_fast.plurals import counted

__all__ = ["PRESETS", "EfficientNet1d", "Encoder", "EncoderConfig", "SleepModel", "StridedConvNet", "build_encoder"]


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of one encoder; the number of input channels comes from the modality."""

    design: Literal["efficientnet", "strided"] = "efficientnet"
    """``efficientnet`` (MBConv stages) or ``strided`` (plain strided convolutions)."""
    dim: int = 512
    """Length of the embedding."""
    channels: tuple[int, ...] = (32, 16, 24, 40, 80, 112, 192, 320, 1280)
    """Channels after the stem, after each stage and (efficientnet) after the last 1x1 convolution."""
    depth: tuple[int, ...] = (1, 2, 2, 3, 3, 3, 3)
    """Blocks in each MBConv stage (efficientnet)."""
    expansion: int = 6
    """Width of an MBConv block's depthwise convolution, in multiples of its input channels (efficientnet)."""
    dropout: float = 0.5
    """Dropout in the residual blocks and before the last layer."""
    kernels: tuple[int, ...] = ()
    """Kernel of each convolution, in samples of its input (strided)."""
    strides: tuple[int, ...] = ()
    """Stride of each convolution (strided)."""
    segments: int = 1
    """Equal parts of the clip that are pooled separately, so that the embedding knows when (strided)."""

    def __post_init__(self) -> None:
        """Refuse a shape that does not fit together; JSON's lists become tuples."""
        for name in ("channels", "depth", "kernels", "strides"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.design == "efficientnet" and len(self.channels) != len(self.depth) + 2:
            raise ValueError(
                f"an efficientnet with {len(self.depth)} stages has {len(self.depth) + 2} entries in channels (stem, "
                f"stages, last convolution); got {len(self.channels)}: {self.channels}."
            )
        if self.design == "strided" and not len(self.channels) == len(self.kernels) == len(self.strides) > 0:
            raise ValueError(
                "a strided network has as many kernels and strides as channels; got "
                f"{len(self.channels)} channels, {len(self.kernels)} kernels, {len(self.strides)} strides."
            )
        if self.design not in ("efficientnet", "strided"):
            raise ValueError(f"design is '{self.design}'; choose 'efficientnet' or 'strided'.")
        sizes = {"dim": (self.dim,), "expansion": (self.expansion,), "segments": (self.segments,)}
        sizes |= {name: getattr(self, name) for name in ("channels", "depth", "kernels", "strides")}
        for name, values in sizes.items():
            if any(value < 1 for value in values):
                raise ValueError(f"{name} is {', '.join(map(str, values))}; expected 1 or more.")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout is {self.dropout}; expected 0 to 1.")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> EncoderConfig:
        """Rebuild a configuration from ``dataclasses.asdict`` or its JSON."""
        return cls(**fields)


PRESETS: dict[str, EncoderConfig] = {
    "seed": EncoderConfig(),
    "tiny": EncoderConfig(
        design="strided",
        dim=128,
        channels=(16, 32, 64, 96),
        kernels=(24, 7, 5, 3),
        strides=(8, 4, 4, 2),
        dropout=0.1,
        segments=5,
    ),
}


class Encoder(nn.Module):
    """The part that all designs share: absent channels are removed before the first convolution.

    An absent channel contributes nothing to the stem, and the present ones are scaled by ``n_channels / n_present``,
    clip by clip, so that the stem's response keeps its expected size. (The stem is linear: scaling its input scales the
    response without the bias.) With all channels present the factor is exactly 1, and the network is the plain one. The
    samples of an absent channel never reach the result, so that they may be NaN.
    """

    n_channels: int
    dim: int

    def embed(self, x: Tensor) -> Tensor:
        """Run the network on clips whose absent channels are zero: [B, C, n] -> [B, dim]."""
        raise NotImplementedError

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """Embed clips of one modality.

        Parameters
        ----------
        x : Tensor
            Clips [B, C, n_samples], 7680 samples at 256 Hz.
        present : Tensor, optional
            bool [B, C], which channels each clip has; by default all of them. A clip without any channel gives the
            embedding of an input of zeros, which carries no meaning and which :class:`SleepModel` never asks for.

        Returns
        -------
        Tensor
            Embeddings [B, dim], not normalised.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x is a {type(x).__name__}; an encoder takes a tensor of clips: torch.as_tensor(x).")
        if x.dim() != 3 or x.shape[1] != self.n_channels:
            raise ValueError(
                f"expected clips of shape [batch, {self.n_channels} channels, samples], got {list(x.shape)}."
            )
        if present is not None:
            if present.shape != x.shape[:2] or present.dtype != torch.bool:
                raise ValueError(
                    f"present must be bool of shape {list(x.shape[:2])}, got {present.dtype} {list(present.shape)}."
                )
            # Reading the mask is free on the CPU; on a device it would make the host wait.
            if present.device.type == "cpu" and bool(present.all()):
                return self.embed(x.contiguous())
            present = present.to(x.device, non_blocking=True)
            scale = self.n_channels / present.sum(dim=1).clamp(min=1).to(x.dtype)
            x = torch.where(present[:, :, None], x * scale[:, None, None], 0.0)
        return self.embed(x)


class EfficientNet1d(Encoder):
    """The encoder of SleepFM: stem, MBConv stages, 1x1 convolution, global average, linear layer.

    As published, no activation follows the stem's batch norm, max pooling of 3 follows the second and the fifth MBConv
    stage (``stage3``, ``stage6``), and every convolution has a bias. The lengths for 7680 samples are 3840 after the
    stem, then 1920, 960, 480, 240, 120, 60, 30.

    Parameters
    ----------
    n_channels : int
        Input channels.
    config : EncoderConfig
        ``PRESETS["seed"]`` gives 318 state-dict tensors with the published names.
    """

    def __init__(self, n_channels: int, config: EncoderConfig) -> None:
        super().__init__()
        stem, *stages, last = config.channels
        self.n_channels = n_channels
        self.dim = config.dim
        self.stage1 = nn.Conv1d(n_channels, stem, kernel_size=3, stride=2, padding=1)
        self.b0 = nn.BatchNorm1d(stem)
        self.stage_names = [f"stage{i + 2}" for i in range(len(stages))]
        n_in = stem
        for name, n_out, n_blocks in zip(self.stage_names, stages, config.depth, strict=True):
            self.add_module(name, MBConvStage(n_in, n_out, config.expansion, n_blocks, config.dropout))
            n_in = n_out
        self.pool = nn.MaxPool1d(3, stride=1, padding=1)
        self.pooled_after: tuple[str, ...] = ("stage3", "stage6")
        self.stage9 = nn.Conv1d(n_in, last, kernel_size=1)
        self.drop = nn.Dropout(config.dropout)
        self.fc = nn.Linear(last, config.dim)

    def embed(self, x: Tensor) -> Tensor:
        """[B, C, n] -> [B, dim]."""
        if has_hooks(self.stage9) or not is_pointwise(self.stage9):
            pooled = self.stage9(self.before_last(x)).mean(dim=2)
        else:  # both are linear, so averaging 30 positions before the 1x1 convolution takes a thirtieth of its work
            average = average_over_time(self, x) if covers(self, x) else self.before_last(x).mean(dim=2)
            pooled = functional.linear(average, self.stage9.weight[:, :, 0], self.stage9.bias)
        y: Tensor = self.fc(self.drop(torch.relu(pooled)))
        return y

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Names and modules of the MBConv stages in order."""
        return [(name, getattr(self, name)) for name in self.stage_names]

    def before_last(self, x: Tensor) -> Tensor:
        """[B, C, n] -> [B, channels of the last stage, n / 256], layer by layer."""
        x = convolve_and_normalise(self.stage1, self.b0, x)
        for name, stage in self.stages():
            x = stage(x)
            if name in self.pooled_after:
                x = pool(self.pool, x)
        return x


class StridedConvNet(Encoder):
    """Strided convolutions with batch norm and ReLU, then mean and maximum over equal parts of the clip.

    The first convolution acts as a bank of band-pass filters (24 samples are 94 ms at 256 Hz). After its rectification
    the other layers measure envelopes on ever coarser grids. Pooling parts of the clip separately preserves when
    something happened, by which clips of the same night differ.
    """

    def __init__(self, n_channels: int, config: EncoderConfig) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.dim = config.dim
        self.segments = config.segments
        layers: list[nn.Module] = []
        n_in = n_channels
        for n_out, kernel, stride in zip(config.channels, config.kernels, config.strides, strict=True):
            # The batch norm's shift makes a bias redundant.
            layers += [
                nn.Conv1d(n_in, n_out, kernel, stride=stride, padding=(kernel - stride + 1) // 2, bias=False),
                nn.BatchNorm1d(n_out),
                nn.ReLU(),
            ]
            n_in = n_out
        self.layers = nn.Sequential(*layers)
        self.drop = nn.Dropout(config.dropout)
        self.fc = nn.Linear(2 * n_in * config.segments, config.dim)

    def embed(self, x: Tensor) -> Tensor:
        """[B, C, n] -> [B, dim]."""
        x = self.layers(x)
        length = x.shape[2] // self.segments
        if length == 0:
            raise ValueError(
                f"a clip this short leaves {counted(x.shape[2], 'position')} for {self.segments} segments."
            )
        x = x[:, :, : length * self.segments].reshape(*x.shape[:2], self.segments, length)
        y: Tensor = self.fc(self.drop(torch.cat((x.mean(dim=3), x.amax(dim=3)), dim=1).flatten(1)))
        return y


def build_encoder(n_channels: int, config: EncoderConfig) -> Encoder:
    """Make the encoder of one modality, with PyTorch's default initialisation from the global random state."""
    return (EfficientNet1d if config.design == "efficientnet" else StridedConvNet)(n_channels, config)


class SleepModel(nn.Module):
    """One encoder per modality and the temperature of the contrastive loss.

    Parameters
    ----------
    modalities : mapping
        Modality name -> number of channels; the order is that of the stacked embeddings.
    config : EncoderConfig
        Shape of every encoder.
    log_temperature : float
        Initial value: 0 as published. Short runs get much further from 2, because at 0 even perfectly aligned
        embeddings have a loss near chance.

    Attributes
    ----------
    encoders : ModuleDict
        Keyed by modality.
    log_temperature : Parameter
        0-d; the logits are ``cosine * exp(log_temperature)``.
    """

    count_everywhere: Callable[[int], int] | None = None
    """Sums a count over all ranks; set where batch norm is over all ranks, whose clips together must then suffice."""

    def __init__(self, modalities: Mapping[str, int], config: EncoderConfig, log_temperature: float = 0.0) -> None:
        super().__init__()
        self.modalities = dict(modalities)
        self.config = config
        self.encoders = nn.ModuleDict({name: build_encoder(n, config) for name, n in self.modalities.items()})
        self.log_temperature = nn.Parameter(torch.tensor(float(log_temperature)))

    def embed_modality(self, name: str, x: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embed the clips that have a modality.

        Clips without any of its channels are not passed to the encoder, so that batch norm never averages over invented
        input. In training, a modality that fewer than two clips of the batch have is skipped: it has no negatives, and
        batch norm over a single clip would track that clip instead of the data. (Its parameters then get no gradient;
        DistributedDataParallel needs ``find_unused_parameters=True`` where that can happen.)

        Parameters
        ----------
        name : str
            Modality.
        x : Tensor
            Clips [B, C, n_samples]; absent channels may hold anything, NaN included.
        present : Tensor, optional
            bool [B, C]; all present by default. Best on the CPU, since choosing rows by a mask on the device makes the
            host wait for it.

        Returns
        -------
        embeddings : Tensor
            [B, dim], not normalised; zeros where the modality is missing.
        mask : Tensor
            bool [B] on the device of ``x``: the rows that hold an embedding.
        """
        encoder = self.encoders[name]
        n = x.shape[0]
        n_least = 2 if self.training else 1
        have = torch.ones(n, dtype=torch.bool) if present is None else present.any(dim=1)
        n_have = n if present is None else int(have.sum())
        n_all = n_have if self.count_everywhere is None or not self.training else self.count_everywhere(n_have)
        if n_all < n_least:
            return x.new_zeros(n, self.config.dim), torch.zeros(n, dtype=torch.bool, device=x.device)
        if present is None or n_have == n:
            # The mask is created on the device: a copy from pageable memory may not be part of a CUDA graph.
            return encoder(x, present), torch.ones(n, dtype=torch.bool, device=x.device)
        rows = have.nonzero().squeeze(1)
        # Without non_blocking, torch would wait for all work queued on the device.
        of_x, mask = (values.to(x.device, non_blocking=True) for values in (rows, have))
        some = encoder(x[of_x], present[rows])
        return some.new_zeros(n, self.config.dim).index_copy(0, of_x, some), mask

    def forward(
        self, batch: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embed a batch of clips in all modalities.

        Parameters
        ----------
        batch : mapping
            Modality -> clips [B, C, n_samples].
        present : mapping, optional
            Modality -> bool [B, C]; a modality that it does not name is wholly present.

        Returns
        -------
        embeddings : Tensor
            [M, B, dim] in the order of ``modalities``, not normalised.
        mask : Tensor
            bool [M, B].
        """
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"batch is a {type(batch).__name__}; a model takes each modality's clips by its name, and which "
                "channels are present: model(batch.x, batch.present)."
            )
        missing = [name for name in self.modalities if name not in batch]
        if missing:
            raise ValueError(
                f"the batch has no clips for {', '.join(missing)}; it must name every modality of the model: "
                f"{', '.join(self.modalities)} (with present all False where a clip has none)."
            )
        pairs = [self.embed_modality(name, batch[name], (present or {}).get(name)) for name in self.modalities]
        return torch.stack([e for e, _ in pairs]), torch.stack([m for _, m in pairs])

    def n_parameters(self) -> int:
        """Return the number of trainable parameters."""
        return sum(math.prod(p.shape) for p in self.parameters() if p.requires_grad)

    def describe(self) -> dict[str, Any]:
        """Return what :meth:`from_description` needs to rebuild this model, as plain JSON values."""
        return {"modalities": dict(self.modalities), "encoder": dataclasses.asdict(self.config)}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> SleepModel:
        """Build an untrained model from :meth:`describe`."""
        return cls(description["modalities"], EncoderConfig.from_dict(description["encoder"]))
