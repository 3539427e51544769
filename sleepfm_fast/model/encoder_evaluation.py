"""Runs the published encoder's layers as one compiled op, where nothing needs the activations between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sleepfm_fast.model.mbconv_blocks import (
    MBConvBlock,
    MBConvStage,
    has_hooks,
    is_affine,
    is_plain_pool,
    is_plain_stem,
    running_statistics,
)
from sleepfm_fast.model.precision import cpu_precision
from sleepfm_fast.ops.encoder_evaluate import Block, Norm, Stem, encoder_evaluate
from sleepfm_fast.ops.unsupported import is_transforming

if TYPE_CHECKING:
    from sleepfm_fast.encoder import EfficientNet1d

__all__ = ["average_over_time", "covers"]


def covers(encoder: EfficientNet1d, x: Tensor) -> bool:
    """Whether the op computes what the layers would: on the CPU, in evaluation, without hooks or gradients."""
    return (
        not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and cpu_precision() is not None
        and not is_transforming()
        and is_plain_stem(encoder.stage1)
        and is_affine(encoder.b0)
        and (not encoder.pooled_after or is_plain_pool(encoder.pool))
        and all(covers_stage(stage, x) for _, stage in encoder.stages())
    )


def covers_stage(stage: nn.Module, x: Tensor) -> bool:
    """Whether every block of a stage can be fused, and the stage's batch norm can be folded into the last one."""
    return (
        isinstance(stage, MBConvStage)
        and not has_hooks(stage, stage.stack, *stage.stack)
        and is_affine(stage.bn)
        and all(isinstance(block, MBConvBlock) and block.can_fuse(x) for block in stage.stack)
        and not stage.stack[-1].residual
    )


def average_over_time(encoder: EfficientNet1d, x: Tensor) -> Tensor:
    """[B, C, n] -> [B, channels of the last stage], for encoders and inputs that :func:`covers` accepts."""
    blocks: list[Block] = []
    for name, stage in encoder.stages():
        assert isinstance(stage, MBConvStage)
        last = len(stage.stack) - 1
        for i, block in enumerate(stage.stack):
            assert isinstance(block, MBConvBlock)
            blocks.append(
                Block(
                    block.weights(),
                    (*running_statistics(block.b0), *running_statistics(block.b1)),
                    block.conv2.stride[0],
                    block.b0.eps,
                    block.residual,
                    norm_of(stage.bn) if i == last else None,
                    i == last and name in encoder.pooled_after,
                )
            )
    assert encoder.stage1.bias is not None
    stem = Stem(encoder.stage1.weight, encoder.stage1.bias, norm_of(encoder.b0))
    return encoder_evaluate(x, stem, blocks, precision=cpu_precision() or "float32")


def norm_of(norm: nn.BatchNorm1d) -> Norm:
    """Return a batch norm as the op takes it."""
    return Norm(norm.weight, norm.bias, *running_statistics(norm), norm.eps)
