"""Embedding with the published encoder on CUDA, with one kernel for each MBConv block, channels last."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sleepfm_fast.encoder import EfficientNet1d, Encoder, SleepModel
from sleepfm_fast.errors import SleepfmError
from sleepfm_fast.model.mbconv_blocks import MBConvBlock, MBConvStage, has_hooks, is_pointwise
from sleepfm_fast.model.precision import Precision
from sleepfm_fast.ops.cuda_kernels import has_kernels
from sleepfm_fast.ops.mbconv_evaluate import PackedMBConv, covers, mbconv_evaluate, pack

__all__ = ["check_fused_blocks", "fuse_blocks"]


def check_fused_blocks(model: SleepModel, precision: Precision) -> None:
    """Refuse to fuse the blocks of a model where no kernel would run.

    Raises
    ------
    SleepfmError
        Off CUDA, in float32, in a build without kernels for the device, for a design without MBConv blocks.
    """
    device = model.log_temperature.device
    if model.config.design != "efficientnet":
        raise SleepfmError(
            f"--fused-blocks is for the published network (design 'efficientnet'); this model is "
            f"'{model.config.design}'. Leave --fused-blocks out."
        )
    if device.type != "cuda":
        raise SleepfmError(
            f"--fused-blocks runs on CUDA, this is {device.type} (where blocks are fused anyway). Leave it out, or "
            "give --device cuda."
        )
    if precision != "bfloat16":
        raise SleepfmError(
            f"--fused-blocks multiplies in bfloat16, --precision is {precision}. Add --precision bfloat16, or leave "
            "--fused-blocks out."
        )
    if not has_kernels(device):
        raise SleepfmError(
            "--fused-blocks: this build has no CUDA kernels for this GPU. Install the CUDA toolkit (nvcc) and run "
            "`pip install .` again, or leave --fused-blocks out."
        )


def fuse_blocks(model: SleepModel, dtype: torch.dtype) -> SleepModel:
    """Let the encoders of a model, its batch norms folded, run each MBConv block as one kernel, in place.

    Blocks that no kernel is compiled for (the published network's last stage) and those with hooks stay layers of
    torch. All weights but the packed ones are converted to ``dtype``.
    """
    for name, encoder in model.encoders.items():
        assert isinstance(encoder, EfficientNet1d)
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules()):
            raise ValueError("the encoder has batch norms; fold them first, with fold_batch_norms.")
        model.encoders[name] = FusedEfficientNet1d(encoder, dtype)
    return model.to(dtype)


class FusedEfficientNet1d(Encoder):
    """An :class:`EfficientNet1d` in evaluation, with channels last, ``[B, samples, C]``, from stem to average."""

    def __init__(self, encoder: EfficientNet1d, dtype: torch.dtype) -> None:
        super().__init__()
        self.n_channels, self.dim = encoder.n_channels, encoder.dim
        self.stem = encoder.stage1
        layers: list[nn.Module] = []
        for name in encoder.stage_names:
            layers += layers_of(getattr(encoder, name), dtype)
            if name in encoder.pooled_after:
                layers.append(PoolChannelsLast(encoder.pool))
        self.layers = nn.Sequential(*layers)
        self.stage9, self.fc = encoder.stage9, encoder.fc
        self.eval()

    def embed(self, x: Tensor) -> Tensor:
        """[B, C, n] -> [B, dim]."""
        x = self.layers(self.stem(x).transpose(1, 2).contiguous())
        if has_hooks(self.stage9) or not is_pointwise(self.stage9):
            pooled = self.stage9(x.transpose(1, 2)).mean(dim=2)
        else:
            pooled = functional.linear(x.mean(dim=1), self.stage9.weight[:, :, 0], self.stage9.bias)
        y: Tensor = self.fc(torch.relu(pooled))
        return y


def layers_of(stage: MBConvStage, dtype: torch.dtype) -> list[nn.Module]:
    """Layers of a stage, channels last; consecutive blocks that stay torch's become one layer, transposed once."""
    if has_hooks(stage, stage.stack, stage.bn):
        return [ChannelsFirst(stage)]
    layers: list[nn.Module] = []
    for block in stage.stack:
        assert isinstance(block, MBConvBlock)
        if is_covered(block):
            layers.append(FusedBlock(packed(block, dtype)))
        elif layers and isinstance(layers[-1], ChannelsFirst):
            layers[-1].layers.append(block)
        else:
            layers.append(ChannelsFirst(block))
    return layers


def is_covered(block: MBConvBlock) -> bool:
    """Whether the kernel may replace the block's layers: plain ones without hooks, of a shape it is compiled for."""
    if not block.fuse or not block.has_plain_layers() or has_hooks(*block.modules()):
        return False
    width, n_in = block.conv1.weight.shape[:2]
    return covers(n_in, width, len(block.conv3.weight), block.conv2.stride[0])


def packed(block: MBConvBlock, dtype: torch.dtype) -> PackedMBConv:
    """Pack the weights of a block without batch norms; they are on its device."""
    matrices = (block.conv1.weight[:, :, 0], block.conv2.weight[:, 0, :], block.conv3.weight[:, :, 0])
    biases = (layer.bias for layer in (block.conv1, block.conv2, block.conv3))
    weights = [
        tensor
        for matrix, bias in zip(matrices, biases, strict=True)
        for tensor in (matrix, matrix.new_zeros(len(matrix)) if bias is None else bias)
    ]
    stride = block.conv2.stride[0]
    return pack(*weights, stride=stride, residual=block.residual, dtype=dtype).to(block.conv1.weight.device)


class FusedBlock(nn.Module):
    """A block as one kernel. Its weights are not parameters, so that a cast of the model does not touch them."""

    def __init__(self, block: PackedMBConv) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, n_in] -> [B, n / stride, n_out]."""
        return mbconv_evaluate(x, self.block)


class ChannelsFirst(nn.Module):
    """Layers of torch, which want channels first, between layers that have channels last."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, C] -> [B, n', C']."""
        y: Tensor = self.layers(x.transpose(1, 2).contiguous())
        return y.transpose(1, 2)


class PoolChannelsLast(nn.Module):
    """Max pooling of channels-last activations; torch has that in two dimensions only."""

    def __init__(self, pool: nn.MaxPool1d) -> None:
        super().__init__()
        kernel, stride, padding = (int(n) for n in (pool.kernel_size, pool.stride, pool.padding))  # type: ignore[arg-type]
        self.pool = nn.MaxPool2d((1, kernel), stride=(1, stride), padding=(0, padding))

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, C] -> [B, n, C], both contiguous."""
        y: Tensor = self.pool(x.transpose(1, 2)[:, :, None])  # an image of one row, channels last in memory
        return y[:, :, 0].transpose(1, 2)
