"""The steps between the matrix products of an MBConv block in training on CUDA: `csrc/cuda/mbconv_train.cuh`.

Names are those of csrc/params.h. Wide activations are bfloat16, channels last, contiguous. What a kernel needs of each
channel (scales, taps, ...) is a row of a small float32 matrix ``[rows, width]``, written by the kernel before it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from sleepfm_fast import _C

__all__ = ["activate", "depthwise", "depthwise_backward", "expansion_sums", "gradient_sums"]

# As in csrc/cuda/mbconv_train.cuh: threads of a block; channels of a thread; the most threads side by side along the
# channels; consecutive samples that a walker of a convolution takes; samples that one of the other kernels loads at
# once.
THREADS, CHANNELS, LANES, RUN, AT_ONCE = 256, 4, 64, 32, 8
# Blocks that a multiprocessor holds, as the kernels' __launch_bounds__ say; the convolution's depends on its stride.
OF_ROWS, OF_DEPTHWISE, OF_DEPTHWISE_BACKWARD = 4, {1: 3, 2: 2}, 2


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of a device; off CUDA, where the kernels are only emulated, that of an H200."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def blocks_for(n_pieces: int, width: int, resident: int, device: torch.device) -> int:
    """Number of blocks along the samples, each of which writes a row of partial sums.

    At most as many as the device holds at once: of more, the last would run while most of the device is idle. Fewer
    where there are fewer pieces of work than walkers, or where fewer blocks need no more rounds.

    Parameters
    ----------
    n_pieces : int
        Pieces of work, of which a walker takes one after the other.
    width : int
        Number of wide channels.
    resident : int
        Blocks that a multiprocessor holds.
    device : torch.device
        Where the kernel runs.
    """
    threads = width // CHANNELS
    tiles = -(-threads // LANES)
    lanes = -(-threads // tiles)
    if tiles > 1:
        lanes = -(-lanes // 4) * 4
    wanted = -(-n_pieces // (THREADS // lanes))
    places = max(1, multiprocessors(device) * resident // tiles)
    rounds = -(-wanted // places)
    return -(-wanted // rounds)


def for_rows(n_rows: int, width: int, device: torch.device) -> int:
    """Number of blocks of a kernel whose walkers take samples one by one."""
    return blocks_for(-(-n_rows // AT_ONCE), width, OF_ROWS, device)


def for_runs(n_clips: int, n_out: int, width: int, resident: int, device: torch.device) -> int:
    """Number of blocks of a kernel whose walkers take runs of a clip's samples."""
    return blocks_for(n_clips * -(-n_out // RUN), width, resident, device)


def place(tensor: Tensor) -> tuple[int, int]:
    """Return a tensor's device number and the current stream there."""
    assert tensor.device.index is not None
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def addresses(*tensors: Tensor) -> tuple[int, ...]:
    """Return the tensors' addresses; all are contiguous."""
    return tuple(tensor.data_ptr() for tensor in tensors)


def expansion_sums(
    c1: Tensor,
    bias: Tensor,
    b1: Tensor,
    gamma0: Tensor,
    beta0: Tensor,
    wd: Tensor,
    bd: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Statistics of the first batch norm, from c1; ``bias`` (bfloat16) is what the product added in place of b1.

    Returns
    -------
    statistics : Tensor
        ``[3, width]`` float64: mean and variance of the expansion (with b1), mean of c1.
    parameters : Tensor
        ``[7, width]``: scale and shift of the batch norm, three taps and bias of the convolution, and a value near the
        mean of c2, around which its sums are taken.
    """
    B, T, width = c1.shape
    n = for_rows(B * T, width, c1.device)
    partial, parameters = b1.new_empty((n, 2, width)), b1.new_empty((7, width))
    statistics = b1.new_empty((3, width), dtype=torch.float64)
    given = addresses(c1, partial, bias, b1, gamma0, beta0, wd, bd, statistics, parameters)
    _C.mbconv_train_expansion_sums(B * T, width, n, eps, given, *place(c1))
    return statistics, parameters


def depthwise(
    c1: Tensor, parameters0: Tensor, gamma1: Tensor, beta1: Tensor, stride: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """First batch norm, ReLU6 and depthwise convolution; statistics of the second batch norm.

    Returns
    -------
    c2 : Tensor
        ``[B, (T - 1) // stride + 1, width]``.
    statistics : Tensor
        ``[2, width]`` float64: mean and variance of c2.
    parameters : Tensor
        ``[3, width]``: scale, shift and mean of the second batch norm.
    """
    B, T, width = c1.shape
    c2 = c1.new_empty((B, (T - 1) // stride + 1, width))
    n = for_runs(B, c2.shape[1], width, OF_DEPTHWISE[stride], c1.device)
    partial = parameters0.new_empty((n, 2, width))
    statistics = parameters0.new_empty((2, width), dtype=torch.float64)
    parameters = parameters0.new_empty((3, width))
    given = addresses(c1, parameters0, c2, partial, parameters0[6], gamma1, beta1, statistics, parameters)
    _C.mbconv_train_depthwise((B, T, width, stride, n), eps, given, *place(c1))
    return c2, statistics, parameters


def activate(c2: Tensor, parameters1: Tensor) -> Tensor:
    """Second batch norm and ReLU6; a2 has the shape of c2."""
    B, S, width = c2.shape
    a2 = torch.empty_like(c2)
    n = for_rows(B * S, width, c2.device)
    _C.mbconv_train_activate(B * S, width, n, addresses(c2, parameters1, a2), *place(c2))
    return a2


def gradient_sums(
    c2: Tensor, da2: Tensor, statistics1: Tensor, parameters0: Tensor, parameters1: Tensor, gamma1: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the second batch norm's weights, from that of a2.

    Returns
    -------
    dgamma1, dbeta1 : Tensor
        ``[width]``.
    parameters : Tensor
        ``[9, width]``: scale and shift of the first batch norm, three taps, scale and shift of the second one, and
        slope and constant in ``dc2 = scale g1 + slope c2 + constant``.
    """
    B, S, width = c2.shape
    n = for_rows(B * S, width, c2.device)
    partial = parameters0.new_empty((n, 2, width))
    dgamma1, dbeta1, parameters = (parameters0.new_empty(shape) for shape in ((width,), (width,), (9, width)))
    given = addresses(c2, da2, parameters1, partial, statistics1, parameters0, gamma1, dgamma1, dbeta1, parameters)
    _C.mbconv_train_gradient_sums(B * S, width, n, eps, given, *place(c2))
    return dgamma1, dbeta1, parameters


def depthwise_backward(
    c1: Tensor,
    c2: Tensor,
    da2: Tensor,
    parameters: Tensor,
    statistics0: Tensor,
    gamma0: Tensor,
    stride: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradient of the first batch norm's output, and of its weights and the taps, from the gradient of a2.

    Returns
    -------
    g0 : Tensor
        Has the shape of c1.
    dgamma0, dbeta0, dwd : Tensor
        ``[width]``, ``[width]``, ``[width, 3]``.
    vectors : Tensor
        ``[3, width]``: the gradient of c1 is ``vectors[0] g0 + vectors[1] + vectors[2] (c1 - its mean)``.
    """
    B, T, width = c1.shape
    n = for_runs(B, c2.shape[1], width, OF_DEPTHWISE_BACKWARD, c1.device)
    g0, partial = torch.empty_like(c1), parameters.new_empty((n, 5, width))
    dgamma0, dbeta0 = parameters.new_empty((width,)), parameters.new_empty((width,))
    dwd, vectors = parameters.new_empty((width, 3)), parameters.new_empty((3, width))
    given = addresses(c1, c2, da2, parameters, g0, partial, statistics0, gamma0, dgamma0, dbeta0, dwd, vectors)
    _C.mbconv_train_depthwise_backward((B, T, width, stride, n), eps, given, *place(c1))
    return g0, dgamma0, dbeta0, dwd, vectors
