"""MBConv blocks in evaluation on CUDA, bfloat16 or float16, one launch for each block; not yet measured on a GPU.

Only a block's input and output pass through memory.
Derivation and predictions: ``docs/kernels/encoder-blocks-cuda.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sleepfm_fast import _C
from sleepfm_fast.ops.dispatch import is_plain
from sleepfm_fast.ops.registry import DTYPE_CODES, LIBRARY
from sleepfm_fast.ops.unsupported import refuse_gradients, refuse_transforms

__all__ = ["PackedMBConv", "covers", "mbconv_evaluate", "pack"]

DTYPES = (torch.bfloat16, torch.float16)
CHUNK = 16  # wide channels in a chunk of weights: `mbconv_chunk` in csrc/cuda/mbconv_evaluate_policy.h


@dataclass(frozen=True)
class PackedMBConv:
    """Weights of a block with its batch norms folded, as the kernel reads them; made by :func:`pack`."""

    packed: Tensor
    """uint8 ``[width / 16, bytes of a chunk]``: fragments of both matrices, then biases and taps."""
    bias: Tensor
    """The projection's, float32 ``[n_out rounded up to a multiple of 16]``."""
    n_in: int
    width: int
    n_out: int
    stride: int
    residual: bool
    dtype: torch.dtype

    def to(self, device: torch.device) -> PackedMBConv:
        """Return a copy on a device."""
        fields = {**self.__dict__, "packed": self.packed.to(device), "bias": self.bias.to(device)}
        return PackedMBConv(**fields)


def covers(n_in: int, width: int, n_out: int, stride: int) -> bool:
    """Whether the kernel is compiled for a block of this shape."""
    return bool(_C.mbconv_evaluate_covers(n_in, width, n_out, stride))


def steps(n: int) -> int:
    """Number of steps of 16 channels that hold ``n`` channels."""
    return -(-n // 16)


def lane_channels(n_steps: int) -> Tensor:
    """The channels that lane ``t`` of four holds in each step of 16: ``[n_steps, 4 lanes, 4]``.

    In two steps together a lane has 8 consecutive channels, in a last single step 4, so that it reads and writes 16 (8)
    bytes at a time. The first two of a lane's four are in the fragment's first half, the others in its second.
    """
    lane, k = torch.arange(4, device="cpu")[:, None], torch.arange(4, device="cpu")
    pairs = [32 * (s // 2) + 8 * lane + 4 * (s % 2) + k for s in range(n_steps // 2 * 2)]
    return torch.stack([*pairs, *[16 * (n_steps - 1) + 4 * lane + k] * (n_steps % 2)])


def pack(
    w1: Tensor,
    b1: Tensor,
    wd: Tensor,
    bd: Tensor,
    w3: Tensor,
    b3: Tensor,
    *,
    stride: int,
    residual: bool,
    dtype: torch.dtype,
) -> PackedMBConv:
    """Round and arrange a block's weights, once, for :func:`mbconv_evaluate`.

    Parameters
    ----------
    w1, b1, wd, bd, w3, b3 : Tensor
        As in :func:`sleepfm_fast.ops.mbconv`, with the batch norms folded into them; float32 or float64.
    stride : {1, 2}
        Stride of the depthwise convolution.
    residual : bool
        Whether the block's input is added.
    dtype : dtype
        Type of the matrices, of the input and of the output: bfloat16 or float16.

    Raises
    ------
    ValueError
        For a block that no kernel is compiled for (:func:`covers`), or another type.
    """
    width, n_in, n_out = len(w1), w1.shape[1], len(w3)
    if dtype not in DTYPES:
        raise ValueError(f"mbconv_evaluate: dtype is {dtype}; choose torch.bfloat16 or torch.float16.")
    if not covers(n_in, width, n_out, stride):
        raise ValueError(
            f"mbconv_evaluate: no kernel is compiled for {n_in} channels in, {width} inside, {n_out} out and stride "
            f"{stride}; leave this block to torch."
        )
    if residual and (stride != 1 or n_in != n_out):
        raise ValueError(
            f"mbconv_evaluate: a residual needs stride 1 and as many channels out as in; got stride {stride}, {n_in} "
            f"channels in and {n_out} out."
        )
    K, N, n_chunks = steps(n_in), steps(n_out), width // CHUNK
    w1, b1, wd, bd, w3, b3 = (weight.detach().cpu().double() for weight in (w1, b1, wd, bd, w3, b3))
    # Fragments b of mma.m16n8k16 (csrc/cuda/ptx.h): lane 4 g + t holds column g, rows 2 t, 2 t + 1, 2 t + 8, 2 t + 9.
    # Packed as [chunk, step of 16, lane, both halves of a fragment]. ReLU6 is a clamp to [0, 1]: w1, b1 and bd are
    # divided by 6, w3 is multiplied by 6.
    expand = w1.new_zeros(width, 16 * K)
    expand[:, :n_in] = w1 / 6
    expand = expand[:, lane_channels(K)].view(n_chunks, 2, 8, K, 4, 4).permute(0, 3, 2, 4, 1, 5)
    project = w3.new_zeros(16 * N, width)
    project[:n_out] = 6 * w3
    columns = lane_channels(N).view(N, 4, 2, 2).transpose(1, 2).reshape(2 * N, 8)
    rows = 2 * torch.arange(4, device="cpu")[:, None] + torch.tensor([0, 1, 8, 9], device="cpu")
    project = project[columns].view(N, 2, 8, n_chunks, 16)[..., rows].permute(3, 0, 2, 4, 1, 5)
    fragments = torch.cat([m.reshape(n_chunks, -1).to(dtype).view(torch.uint8) for m in (expand, project)], dim=1)
    # For lane t of four: bias, taps and bias of channels 2 t and 2 t + 1 of either half of the chunk.
    parameters = torch.cat([b1[:, None] / 6, wd, bd[:, None] / 6], dim=1).float()
    parameters = parameters.view(n_chunks, 2, 4, 2, 5).permute(0, 2, 1, 4, 3).reshape(n_chunks, -1).contiguous()
    bias = torch.zeros(16 * N, dtype=torch.float32, device="cpu")
    bias[:n_out] = b3
    packed = torch.cat([fragments, parameters.view(torch.uint8)], dim=1).contiguous()
    return PackedMBConv(packed, bias, n_in, width, n_out, stride, residual, dtype)


def mbconv_evaluate(x: Tensor, block: PackedMBConv) -> Tensor:
    """Run a block: 1x1 expansion, ReLU6, depthwise convolution of 3, ReLU6, 1x1 projection and, if asked, the residual.

    Parameters
    ----------
    x : Tensor
        ``[B, T, n_in]`` on a CUDA device, channels last, of the type of the block's matrices.
    block : PackedMBConv
        On the same device.

    Returns
    -------
    Tensor
        ``[B, (T - 1) // stride + 1, n_out]``. Sums, biases and the depthwise convolution are float32; the projection's
        factors and the result are rounded to the type of x. A result that depends on a sample which is not finite is
        NaN.

    Raises
    ------
    TypeError, ValueError
        For an x of another type, shape or device; :func:`sleepfm_fast.reference.mbconv_evaluate` takes any.
    NotImplementedError
        Where a gradient of x is wanted, and inside the transforms of torch.func.
    """
    if x.dtype != block.dtype:
        raise TypeError(f"mbconv_evaluate: x is {x.dtype}, the block was packed for {block.dtype}.")
    if x.dim() == 3 and x.shape[2] != block.n_in:  # packed in steps of 16, which hold other numbers of channels too
        raise ValueError(
            f"mbconv_evaluate: x has shape {tuple(x.shape)}; the block was packed for {block.n_in} channels in, "
            f"[B, T, {block.n_in}]."
        )
    refuse_transforms("mbconv_evaluate", x)
    if x.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            "mbconv_evaluate has no gradient; call it under torch.no_grad(), or use the reference's."
        )
    arguments = (x, block.packed, block.bias, block.width, block.n_out, block.stride, block.residual)
    if x.is_cuda and is_plain(x):  # without torch's dispatcher, which costs as much again as the call
        return _run(*arguments)
    y: Tensor = torch.ops.sleepfm_fast.mbconv_evaluate_packed(*arguments)
    return y


# ---- registration ----------------------------------------------------------------------------------------------------

LIBRARY.define(
    "mbconv_evaluate_packed(Tensor x, Tensor packed, Tensor bias, int width, int n_out, int stride, bool residual) "
    "-> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _check(x: Tensor, packed: Tensor, bias: Tensor, width: int, n_out: int, stride: int, residual: bool) -> None:
    if x.dim() != 3 or x.dtype not in DTYPES:
        raise TypeError(
            f"mbconv_evaluate: x is {x.dtype} of shape {tuple(x.shape)}; expected bfloat16 or float16 [B, T, n_in]."
        )
    if x.shape[1] < 1:
        raise ValueError(f"mbconv_evaluate: x has shape {tuple(x.shape)}; at least one sample is needed.")
    n_bytes = 512 * (steps(x.shape[2]) + steps(n_out)) + 320
    if tuple(packed.shape) != (width // CHUNK, n_bytes) or tuple(bias.shape) != (16 * steps(n_out),):
        raise ValueError(
            f"mbconv_evaluate: weights {tuple(packed.shape)} and bias {tuple(bias.shape)} were not packed for x "
            f"{tuple(x.shape)}, {width} channels inside and {n_out} out."
        )
    if packed.dtype != torch.uint8 or bias.dtype != torch.float32:
        raise TypeError(
            f"mbconv_evaluate: weights are {packed.dtype} and the bias {bias.dtype}; expected uint8 and float32."
        )
    for name, tensor in (("packed", packed), ("bias", bias)):
        if tensor.device != x.device:
            raise ValueError(
                f"mbconv_evaluate: x is on {x.device}, {name} on {tensor.device}; move them to one device."
            )


def _fake(x: Tensor, packed: Tensor, bias: Tensor, width: int, n_out: int, stride: int, residual: bool) -> Tensor:
    _check(x, packed, bias, width, n_out, stride, residual)
    return x.new_empty((x.shape[0], (x.shape[1] - 1) // stride + 1, n_out))


def _run(x: Tensor, packed: Tensor, bias: Tensor, width: int, n_out: int, stride: int, residual: bool) -> Tensor:
    y = _fake(x, packed, bias, width, n_out, stride, residual)
    x, packed, bias = x.contiguous(), packed.contiguous(), bias.contiguous()
    if x.data_ptr() % 16 != 0:  # a view into another tensor
        x = x.clone()
    _C.mbconv_evaluate_cuda(
        (x.shape[0], x.shape[2], width, n_out, x.shape[1], stride),
        DTYPE_CODES[x.dtype],
        residual,
        x.data_ptr(),
        packed.data_ptr(),
        bias.data_ptr(),
        y.data_ptr(),
        x.device.index,
        torch.cuda.current_stream(x.device).cuda_stream,
    )
    return y


def _refuse(x: Tensor, packed: Tensor, bias: Tensor, width: int, n_out: int, stride: int, residual: bool) -> Tensor:
    raise ValueError(
        f"mbconv_evaluate: x is on {x.device}; it runs on CUDA. Use sleepfm_fast.reference.mbconv_evaluate elsewhere."
    )


LIBRARY.impl("mbconv_evaluate_packed", _run, "CUDA")
LIBRARY.impl("mbconv_evaluate_packed", _refuse, "CPU")
refuse_gradients("mbconv_evaluate_packed", "sleepfm_fast.reference.mbconv_evaluate")
torch.library.register_fake("sleepfm_fast::mbconv_evaluate_packed", _fake, lib=LIBRARY)
