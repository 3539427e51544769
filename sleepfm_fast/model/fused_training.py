"""Training of the published encoder on CUDA with fused MBConv blocks, channels last from the stem to the average."""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn

from sleepfm_fast.encoder import EfficientNet1d, SleepModel
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.model.fused_blocks import PoolChannelsLast, check_fused_blocks
from sleepfm_fast.model.mbconv_blocks import (
    MBConvBlock,
    MBConvStage,
    OfBatch,
    convolve_and_normalise,
    has_hooks,
    is_plain_pool,
    track_all,
)
from sleepfm_fast.model.precision import Precision
from sleepfm_fast.ops.mbconv_train import MULTIPLE, mbconv_train

__all__ = ["check_fused_training", "fuse_encoder", "fuse_training"]


def check_fused_training(model: SleepModel, precision: Precision, *, compiled: bool, synchronised: bool) -> None:
    """Refuse to train a model with fused blocks where no kernel would run.

    Raises
    ------
    SleepfmError
        As :func:`sleepfm_fast.model.fused_blocks.check_fused_blocks`; together with ``--compile``, and with batch norms
        over several processes.
    """
    check_fused_blocks(model, precision)
    if compiled:
        raise SleepfmError(
            "--compile and --fused-blocks both replace what runs between the convolutions; give one of them."
        )
    if synchronised:
        raise SleepfmError(
            "--batch-norm synchronised takes statistics over all processes, which the kernels of --fused-blocks take "
            "over one process's clips; give one of them."
        )


def fuse_training(model: SleepModel) -> None:
    """Let the encoders of a model train with fused blocks, in place; names and values of the weights stay the same.

    To be run under autocast to bfloat16. In evaluation the layers run as they are, and so do, in training, blocks that
    the kernels do not cover: those with hooks, with other layers or with SyncBatchNorm.
    """
    for encoder in model.encoders.values():
        assert isinstance(encoder, EfficientNet1d)
        fuse_encoder(encoder)


def fuse_encoder(encoder: EfficientNet1d) -> None:
    """As :func:`fuse_training`, one encoder."""
    encoder.before_last = MethodType(before_last, encoder)  # type: ignore[method-assign]


def before_last(encoder: EfficientNet1d, x: Tensor) -> Tensor:
    """[B, C, n] -> [B, channels of the last stage, n / 256], as :meth:`EfficientNet1d.before_last`."""
    if not encoder.training or not is_plain_pool(encoder.pool):
        return EfficientNet1d.before_last(encoder, x)
    x = convolve_and_normalise(encoder.stage1, encoder.b0, x).to(torch.bfloat16).transpose(1, 2).contiguous()
    pool = PoolChannelsLast(encoder.pool)
    seen: list[OfBatch] = []
    for name, stage in encoder.stages():
        x = of_stage(stage, x, seen)
        if name in encoder.pooled_after:
            x = pool(x)
    track_all(seen)
    return x.transpose(1, 2)


def of_stage(stage: nn.Module, x: Tensor, seen: list[OfBatch]) -> Tensor:
    """[B, n, n_in] -> [B, n / 2, n_out]; layers that are not covered (hooks, other types) are called as they are.

    Appends the fused blocks' batch statistics to ``seen``, from which the running statistics are updated later.
    """
    if type(stage) is not MBConvStage or type(stage.stack) is not nn.Sequential or has_hooks(stage, stage.stack):
        return channels_first(stage, x)
    for block in stage.stack:
        x = fused(block, x, seen) if type(block) is MBConvBlock and is_covered(block) else channels_first(block, x)
    if type(stage.bn) not in (nn.BatchNorm1d, nn.SyncBatchNorm) or has_hooks(stage.bn):
        return channels_first(stage.bn, x)
    # [B n, n_out]: a batch norm takes its statistics over clips and samples alike.
    return stage.bn(x.flatten(0, 1)).view(x.shape)  # type: ignore[no-any-return]


def channels_first(layer: nn.Module, x: Tensor) -> Tensor:
    """[B, n, n_in] -> [B, n', n_out], by a layer that wants the channels before the samples."""
    y: Tensor = layer(x.transpose(1, 2))
    return y.transpose(1, 2).contiguous().to(x.dtype)


def is_covered(block: MBConvBlock) -> bool:
    """Whether the kernels may replace the block's layers: plain ones without hooks, of shapes that they take."""
    return (
        block.fuse
        and block.has_plain_layers()
        and block.has_plain_norms()
        and block.has_biases()
        and block.conv1.weight.dtype == torch.float32
        and not any(n % MULTIPLE for n in (*block.conv1.weight.shape[:2], len(block.conv3.weight)))
        and not has_hooks(*block.modules())
    )


def fused(block: MBConvBlock, x: Tensor, seen: list[OfBatch]) -> Tensor:
    """[B, n, n_in] -> [B, n / stride, n_out]; appends the batch statistics to ``seen``."""
    y, statistics = mbconv_train(x, *block.weights(), stride=block.conv2.stride[0], eps=block.b0.eps)
    seen.append(OfBatch(block.b0, statistics[:2], x.shape[0] * x.shape[1]))
    seen.append(OfBatch(block.b1, statistics[2:], y.shape[0] * y.shape[1]))
    return x + block.drop(y) if block.residual else y
