"""A trained model made ready to embed: batch norms folded and weights in the precision asked for, where that helps."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sleepfm_fast.batches import Batch
from sleepfm_fast.encoder import EfficientNet1d, Encoder, SleepModel, StridedConvNet
from sleepfm_fast.model.compilation import compile_encoders
from sleepfm_fast.model.fused_blocks import check_fused_blocks, fuse_blocks
from sleepfm_fast.model.precision import Precision, arithmetic

__all__ = ["embedder", "fold_batch_norms"]

Embed = Callable[[Batch], tuple[Tensor, Tensor]]


def embedder(
    model: SleepModel,
    precision: Precision,
    *,
    compiled: bool = False,
    folded: bool | None = None,
    fused_blocks: bool = False,
) -> Embed:
    """Return a function from a batch to its embeddings, float32 ``[M, B, dim]``, not normalised, and mask ``[M, B]``.

    Parameters
    ----------
    model : SleepModel
        On the device that embeds. It is put into evaluation mode and, if nothing is folded, compiled in place.
    precision : {"float32", "bfloat16"}
        Arithmetic of the encoders.
    compiled : bool
        Run the encoders through torch.compile.
    folded : bool, optional
        Work with a copy whose batch norms are folded and whose weights have the dtype of ``precision``. This saves a
        third of the passes over the wide activations, and the cast of every weight in every batch. By default it is
        done except on the CPU, where the fused blocks fold by themselves.
    fused_blocks : bool
        Run each MBConv block of the published network as one CUDA kernel, in bfloat16 and folded. Not yet measured on a
        GPU.

    Raises
    ------
    SleepfmError
        Where ``fused_blocks`` cannot run: off CUDA, in float32, for another network.
    """
    device = model.log_temperature.device
    if fused_blocks:
        check_fused_blocks(model, precision)
    if folded is None:
        folded = device.type != "cpu"
    folded = folded or fused_blocks
    model = fold_batch_norms(model) if folded else model.eval()
    dtype = torch.bfloat16 if folded and precision == "bfloat16" else torch.float32
    if fused_blocks:
        model = fuse_blocks(model, dtype)
    model = model.to(dtype)
    if compiled:
        compile_encoders(model)

    def embed(batch: Batch) -> tuple[Tensor, Tensor]:
        if folded:
            embeddings, mask = model({name: x.to(dtype) for name, x in batch.x.items()}, batch.present)
        else:
            with arithmetic(precision, device):
                embeddings, mask = model(batch.x, batch.present)
        return embeddings.float(), mask

    return embed


def fold_batch_norms(model: SleepModel) -> SleepModel:
    """Return a copy in evaluation mode with its batch norms folded, in float64, into the convolutions before them."""
    model = copy.deepcopy(model).eval()
    for encoder in model.encoders.values():
        assert isinstance(encoder, Encoder)
        for place, convolution, owner, norm in convolutions_before_norms(encoder):
            conv, batch_norm = getattr(place, convolution), getattr(owner, norm)
            dtype = conv.weight.dtype
            setattr(place, convolution, fuse_conv_bn_eval(conv.double(), batch_norm.double()).to(dtype))
            setattr(owner, norm, nn.Identity())
    return model


def convolutions_before_norms(encoder: Encoder) -> list[tuple[nn.Module, str, nn.Module, str]]:
    """List every convolution that a batch norm follows: its module and attribute, and those of the norm."""
    found: list[tuple[nn.Module, str, nn.Module, str]] = []
    if isinstance(encoder, StridedConvNet):
        layers = encoder.layers
        found += [
            (layers, str(i), layers, str(i + 1)) for i, layer in enumerate(layers) if isinstance(layer, nn.Conv1d)
        ]
    elif isinstance(encoder, EfficientNet1d):
        found.append((encoder, "stage1", encoder, "b0"))
        for stage in (getattr(encoder, name) for name in encoder.stage_names):
            for block in stage.stack:
                found += [(block, "conv1", block, "b0"), (block, "conv2", block, "b1")]
            found.append((stage.stack[-1], "conv3", stage, "bn"))
    else:
        raise TypeError(f"it is not known which batch norms of a {type(encoder).__name__} can be folded.")
    return found
