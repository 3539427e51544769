"""Building blocks of SleepFM's encoder: inverted bottlenecks and stages of them, fused where the op covers them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sleepfm_fast.model.precision import cpu_precision
from sleepfm_fast.ops.batch_norm import batch_norm
from sleepfm_fast.ops.max_pool import max_pool
from sleepfm_fast.ops.mbconv import mbconv
from sleepfm_fast.ops.stem import stem
from sleepfm_fast.ops.unsupported import is_transforming

__all__ = [
    "MBConvBlock",
    "MBConvStage",
    "OfBatch",
    "convolve_and_normalise",
    "has_global_hooks",
    "has_hooks",
    "is_pointwise",
    "normalise",
    "pool",
    "track",
    "track_all",
]


GLOBAL_HOOKS = tuple(f"_global_{when}_hooks" for when in ("forward", "forward_pre", "backward", "backward_pre"))
"""Attributes of ``nn.modules.module`` in which torch (from 2.0 on) keeps hooks that are called with every module."""


def has_global_hooks() -> bool:
    """Whether torch would call a global hook with every module; True too if torch has no such attribute any more."""
    return any(getattr(nn.modules.module, name, True) for name in GLOBAL_HOOKS)


def has_hooks(*layers: nn.Module) -> bool:
    """Whether calling one of the layers also calls somebody's hook (Grad-CAM, pruning, counting of operations)."""
    return has_global_hooks() or any(
        len(hooks) > 0
        for layer in layers
        for hooks in (
            layer._forward_pre_hooks,
            layer._forward_hooks,
            layer._backward_pre_hooks,
            layer._backward_hooks,
        )
    )


def running_statistics(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Mean and variance that a batch norm uses in evaluation."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("this batch norm tracks no running statistics; the encoder needs them for evaluation.")
    return norm.running_mean, norm.running_var


def track(norm: nn.BatchNorm1d, statistics: Tensor, n_values: int) -> None:
    """Let a batch norm's running statistics follow a batch's mean and population variance, as it would itself."""
    mean, variance = running_statistics(norm)
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # the plain average of all batches
            momentum = 1.0 / float(norm.num_batches_tracked)
    if momentum is None:  # torch keeps what is there when it cannot count
        return
    mean.lerp_(statistics[0].to(mean.dtype), momentum)
    variance.lerp_((statistics[1] * (n_values / (n_values - 1))).to(variance.dtype), momentum)


class OfBatch(NamedTuple):
    """What a batch norm saw: mean and population variance ``[2, width]`` of so many values."""

    norm: nn.BatchNorm1d
    statistics: Tensor
    n_values: int


def track_all(seen: Sequence[OfBatch]) -> None:
    """As :func:`track`, of many batch norms: a few launches on a GPU where each would have six."""
    momenta = {of.norm.momentum for of in seen}
    dtypes = {running.dtype for of in seen for running in running_statistics(of.norm)}
    counts = [of.norm.num_batches_tracked for of in seen if of.norm.num_batches_tracked is not None]
    momentum = next(iter(momenta), None)
    if momentum is None or len(momenta) > 1 or len(dtypes) > 1:
        for of in seen:
            track(*of)
        return
    widths = [of.statistics.shape[1] for of in seen]
    together = torch.cat([of.statistics for of in seen], dim=1)
    torch._foreach_mul_(together[1].split(widths), [of.n_values / (of.n_values - 1) for of in seen])
    means, variances = zip(*(running_statistics(of.norm) for of in seen), strict=True)
    together = together.to(means[0].dtype)
    torch._foreach_lerp_([*means, *variances], [*together[0].split(widths), *together[1].split(widths)], momentum)
    if counts:
        torch._foreach_add_(counts, 1)


def is_affine(norm: nn.Module) -> bool:
    """Whether a batch norm is just a multiplication and an addition, and nobody asks for its gradient or output."""
    return (
        type(norm) is nn.BatchNorm1d
        and norm.affine
        and norm.track_running_stats
        and not norm.training
        and not has_hooks(norm)
        and not torch.is_grad_enabled()
    )


def affine(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] of a batch norm in evaluation, in float64."""
    mean, variance = running_statistics(norm)
    scale = norm.weight.double() / (variance.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - mean.double() * scale


def convolve_and_normalise(conv: nn.Conv1d, norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """``norm(conv(x))``, the stem; in evaluation the batch norm is folded into the convolution, in training one op."""
    # Under autocast on a CPU the stem stays in float32: its few multiplications cost less than rounding would.
    # (Torch has no autocast for the meta device, where a network may be tried out without memory.)
    half = x.dtype != torch.float32 or (
        x.device.type not in ("cpu", "meta") and torch.is_autocast_enabled(x.device.type)
    )
    if (
        half
        or x.is_meta
        or cpu_precision() is None
        or type(conv) is not nn.Conv1d
        or conv.padding_mode != "zeros"
        or has_hooks(conv)
        or is_transforming()
    ):
        y: Tensor = norm(conv(x))
        return y
    if is_affine(norm):
        scale, shift = affine(norm)
        weight = (conv.weight * scale[:, None, None]).to(conv.weight.dtype)
        bias = (shift if conv.bias is None else conv.bias * scale + shift).to(conv.weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return functional.conv1d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    if not is_stem(conv, norm, x):
        return norm(conv(x))  # type: ignore[no-any-return]
    bias = x.new_zeros(len(conv.weight)) if conv.bias is None else conv.bias
    y, statistics = stem(x, conv.weight, bias, norm.weight, norm.bias, eps=norm.eps)
    track(norm, statistics, y.shape[0] * y.shape[2])
    return y


def is_of_three(conv: nn.Conv1d) -> bool:
    """Whether a convolution has the compiled ops' kernel, stride and padding, and float32 weights."""
    return (
        conv.weight.dtype == torch.float32
        and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3,), (2,), (1,), (1,))
        and conv.groups == 1
        and conv.padding_mode == "zeros"
    )


def is_pointwise(conv: nn.Module) -> bool:
    """Whether a layer is a product of its weight with every sample, and its bias."""
    return type(conv) is nn.Conv1d and (conv.kernel_size, conv.stride, conv.padding, conv.groups) == (
        (1,),
        (1,),
        (0,),
        1,
    )


def is_plain_stem(conv: nn.Conv1d) -> bool:
    """Whether the stem is that convolution with a bias, and nobody has a hook there."""
    return type(conv) is nn.Conv1d and is_of_three(conv) and conv.bias is not None and not has_hooks(conv)


def is_in_training(norm: nn.Module) -> bool:
    """Whether a batch norm takes the batch's statistics, of one process, and nobody has a hook there."""
    return (
        type(norm) is nn.BatchNorm1d
        and norm.affine
        and norm.training
        and norm.track_running_stats
        and not has_hooks(norm)
    )


def is_stem(conv: nn.Conv1d, norm: nn.BatchNorm1d, x: Tensor) -> bool:
    """Whether the compiled op covers this call; float32 without hooks of the convolution is known."""
    return (
        x.device.type == "cpu"
        and is_of_three(conv)
        and not (x.requires_grad and torch.is_grad_enabled())
        and is_in_training(norm)
        and x.shape[0] * x.shape[2] > 2
    )


def normalise(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """``norm(x)``, the batch norm that ends a stage; with the compiled op where it covers the call."""
    covered = (
        is_in_training(norm)
        and not is_transforming()
        and x.device.type == "cpu"
        and x.dtype == norm.weight.dtype == torch.float32
        and x.shape[0] * x.shape[2] > 1
    )
    if not covered:
        return norm(x)  # type: ignore[no-any-return]
    y, statistics = batch_norm(x, norm.weight, norm.bias, eps=norm.eps)
    track(norm, statistics, x.shape[0] * x.shape[2])
    return y


def is_plain_pool(layer: nn.MaxPool1d) -> bool:
    """Whether a layer is the maximum of three that the compiled op takes, without hooks."""
    plain = type(layer) is nn.MaxPool1d and not has_hooks(layer) and not layer.ceil_mode and not layer.return_indices
    return plain and (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == (3, 1, 1, 1)


def pool(layer: nn.MaxPool1d, x: Tensor) -> Tensor:
    """``layer(x)``; with the compiled op where it covers the call.

    In evaluation a gradient may be differentiated in turn (a penalty on a saliency map), which the op refuses.
    """
    fused = layer.training or not torch.is_grad_enabled()
    if fused and is_plain_pool(layer) and x.device.type == "cpu" and x.dtype == torch.float32 and not is_transforming():
        return max_pool(x)
    return layer(x)  # type: ignore[no-any-return]


class MBConvBlock(nn.Module):
    """Inverted bottleneck: 1x1 expansion, depthwise convolution of 3, 1x1 projection without norm or activation."""

    def __init__(self, n_in: int, n_out: int, expansion: int, stride: int, dropout: float) -> None:
        super().__init__()
        width = n_in * expansion
        self.conv1 = nn.Conv1d(n_in, width, kernel_size=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=stride, padding=1, groups=width)
        self.conv3 = nn.Conv1d(width, n_out, kernel_size=1)
        self.b0 = nn.BatchNorm1d(width)
        self.b1 = nn.BatchNorm1d(width)
        self.act = nn.ReLU6()
        self.drop = nn.Dropout(dropout)
        self.residual = stride == 1
        self.fuse = True  # False: operation by operation, as published

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, n] -> [B, n_out, n / stride]."""
        if self.can_fuse(x):
            return self.fused(x)
        y: Tensor = self.conv3(self.wide(x))
        return x + self.drop(y) if self.residual else y

    def wide(self, x: Tensor) -> Tensor:
        """[B, n_in, n] -> [B, width, n / stride], operation by operation."""
        y: Tensor = self.act(self.b1(self.conv2(self.act(self.b0(self.conv1(x))))))
        return y

    def can_fuse(self, x: Tensor) -> bool:
        """Whether the compiled op covers this call.

        SyncBatchNorm, tensors of half precision, other devices, layers with hooks, and transforms of torch.func go the
        long way; autocast to bfloat16 is a precision of the op.
        """
        return (
            self.fuse
            and x.device.type == "cpu"
            and self.has_plain_layers()
            and x.dtype == self.conv1.weight.dtype == torch.float32
            and not is_transforming()
            and self.has_biases()
            and self.has_plain_norms()
            and (self.training or not self.drop.training)
            and not has_hooks(self.conv1, self.b0, self.conv2, self.b1, self.act, self.conv3, self.drop)
            and cpu_precision() is not None
            and (self.training or not torch.is_grad_enabled())
            and (not self.training or x.shape[0] * ((x.shape[2] - 1) // self.conv2.stride[0] + 1) > 1)
        )

    def has_plain_layers(self) -> bool:
        """Whether the layers beside the batch norms compute what the ops do: nobody has put others in their place."""
        conv = self.conv2
        return (
            is_pointwise(self.conv1)
            and type(conv) is nn.Conv1d
            and (conv.kernel_size, conv.padding, conv.dilation, conv.padding_mode) == ((3,), (1,), (1,), "zeros")
            and conv.stride in ((1,), (2,))
            and conv.groups == conv.in_channels == conv.out_channels
            and is_pointwise(self.conv3)
            and type(self.act) is nn.ReLU6
            and type(self.drop) is nn.Dropout
        )

    def has_plain_norms(self) -> bool:
        """Whether the batch norms are those of one process, alike, with weights, running statistics and one mode."""
        return (
            type(self.b0) is nn.BatchNorm1d
            and type(self.b1) is nn.BatchNorm1d
            and self.b0.affine
            and self.b1.affine
            and self.b0.training == self.b1.training == self.training
            and self.b0.track_running_stats
            and self.b1.track_running_stats
            and self.b0.eps == self.b1.eps
        )

    def has_biases(self) -> bool:
        """Whether every convolution has one, as built."""
        return all(layer.bias is not None for layer in (self.conv1, self.conv2, self.conv3))

    def weights(self) -> tuple[Tensor, ...]:
        """Arguments of the compiled ops: w1, b1, gamma0, beta0, wd, bd, gamma1, beta1, w3, b3; every bias is there."""
        assert self.conv1.bias is not None
        assert self.conv2.bias is not None
        assert self.conv3.bias is not None
        return (
            self.conv1.weight.flatten(1),  # a view, as its gradient is; that of [:, :, 0] fills a matrix and copies
            self.conv1.bias,
            self.b0.weight,
            self.b0.bias,
            self.conv2.weight.flatten(1),
            self.conv2.bias,
            self.b1.weight,
            self.b1.bias,
            self.conv3.weight.flatten(1),
            self.conv3.bias,
        )

    def fused(self, x: Tensor, after: nn.BatchNorm1d | None = None) -> Tensor:
        """[B, n_in, n] -> [B, n_out, n / stride] in one op; updates the running statistics in training.

        In evaluation the batch norm that comes ``after`` can be folded into the projection of a block without residual.
        """
        norms = (self.b0, self.b1)
        weights = self.weights()
        if after is not None:
            scale, shift = affine(after)
            weight = (weights[8] * scale[:, None]).to(weights[8].dtype)
            weights = (*weights[:8], weight, (weights[9] * scale + shift).to(weight.dtype))
        running = None if self.training else (*running_statistics(norms[0]), *running_statistics(norms[1]))
        y, statistics = mbconv(
            x,
            *weights,
            stride=self.conv2.stride[0],
            running=running,
            eps=norms[0].eps,
            residual=self.residual,
            dropout=self.drop.p if self.residual and self.drop.training else 0.0,
            precision=cpu_precision() or "float32",
        )
        if self.training:
            track(norms[0], statistics[:2], x.shape[0] * x.shape[2])
            track(norms[1], statistics[2:], y.shape[0] * y.shape[2])
        return y


class MBConvStage(nn.Module):
    """Residual blocks that keep the channels, then one block that changes them and halves the length; batch norm."""

    def __init__(self, n_in: int, n_out: int, expansion: int, n_blocks: int, dropout: float) -> None:
        super().__init__()
        blocks: OrderedDict[str, nn.Module] = OrderedDict(
            (f"s{i}", MBConvBlock(n_in, n_in, expansion, 1, dropout)) for i in range(n_blocks - 1)
        )
        # The published state dict numbers the last block n_blocks + 1 and leaves a gap.
        blocks[f"s{n_blocks + 1}"] = MBConvBlock(n_in, n_out, expansion, 2, dropout)
        self.stack = nn.Sequential(blocks)
        self.bn = nn.BatchNorm1d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, n] -> [B, n_out, n / 2]."""
        *blocks, last = self.stack
        if is_affine(self.bn) and isinstance(last, MBConvBlock) and not has_hooks(self.stack, last):
            for block in blocks:
                x = block(x)
            if last.can_fuse(x):
                return last.fused(x, after=self.bn)
            return self.bn(last(x))  # type: ignore[no-any-return]
        return normalise(self.bn, self.stack(x))
