"""What stands between the matrix products of an MBConv block in training on CUDA: `csrc/cuda/mbconv_train.cuh`.

Wide activations are bfloat16, channels last, contiguous. Parameters of channels travel in small float32 matrices, a row
each, from the kernel that makes them to those that use them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sleepfm_fast import _C

__all__ = ["activate", "depthwise", "depthwise_backward", "expansion_sums", "gradient_sums"]

MOST_PARTIALS = 512  # rows of partial sums: blocks that fill a large device twice


def partial_rows(n_rows: int) -> int:
    """Rows of partial sums for so many samples of all clips: blocks, none of which has next to nothing to do."""
    return max(1, min(MOST_PARTIALS, n_rows // 256))


def place(tensor: Tensor) -> tuple[int, int]:
    """Device and current stream."""
    assert tensor.device.index is not None
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def addresses(*tensors: Tensor) -> tuple[int, ...]:
    """Where the tensors lie; all of them contiguous."""
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
    """From the expansion to the first batch norm; ``bias`` (bfloat16) is what the product had in place of b1.

    Returns
    -------
    statistics : Tensor
        ``[3, width]`` float64, mean and variance of the expansion, mean of c1.
    parameters : Tensor
        ``[7, width]``: scale, shift, three taps and bias of the convolution, and what it makes of a constant.
    """
    B, T, width = c1.shape
    n = partial_rows(B * T)
    partial, parameters = b1.new_empty((n, 2, width)), b1.new_empty((7, width))
    statistics = b1.new_empty((3, width), dtype=torch.float64)
    given = addresses(c1, partial, bias, b1, gamma0, beta0, wd, bd, statistics, parameters)
    _C.mbconv_train_expansion_sums(B * T, width, n, eps, given, *place(c1))
    return statistics, parameters


def depthwise(
    c1: Tensor, parameters0: Tensor, gamma1: Tensor, beta1: Tensor, stride: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm, ReLU6 and depthwise convolution.

    Returns
    -------
    c2 : Tensor
        ``[B, (T - 1) // stride + 1, width]``.
    statistics : Tensor
        ``[2, width]`` float64, mean and variance of c2.
    parameters : Tensor
        ``[3, width]``: scale, shift and mean of the second batch norm.
    """
    B, T, width = c1.shape
    c2 = c1.new_empty((B, (T - 1) // stride + 1, width))
    n = partial_rows(B * c2.shape[1])
    partial = parameters0.new_empty((n, 2, width))
    statistics = parameters0.new_empty((2, width), dtype=torch.float64)
    parameters = parameters0.new_empty((3, width))
    given = addresses(c1, parameters0, c2, partial, parameters0[6], gamma1, beta1, statistics, parameters)
    _C.mbconv_train_depthwise((B, T, width, stride, n), eps, given, *place(c1))
    return c2, statistics, parameters


def activate(c2: Tensor, parameters1: Tensor) -> Tensor:
    """Batch norm and ReLU6, of the shape of c2."""
    B, S, width = c2.shape
    a2 = torch.empty_like(c2)
    _C.mbconv_train_activate(B * S, width, partial_rows(B * S), addresses(c2, parameters1, a2), *place(c2))
    return a2


def gradient_sums(
    c2: Tensor, da2: Tensor, statistics1: Tensor, parameters0: Tensor, parameters1: Tensor, gamma1: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of a2 to those of the second batch norm.

    Returns
    -------
    dgamma1, dbeta1 : Tensor
        ``[width]``.
    parameters : Tensor
        ``[9, width]``: scale and shift of the first batch norm, three taps, scale and shift of the second one, and
        slope and constant by which its gradient depends on c2.
    """
    B, S, width = c2.shape
    n = partial_rows(B * S)
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
    """From the gradient of a2 to that behind the first ReLU6.

    Returns
    -------
    g0 : Tensor
        Of the shape of c1.
    dgamma0, dbeta0, dwd : Tensor
        ``[width]``, ``[width]``, ``[width, 3]``.
    vectors : Tensor
        ``[3, width]``: the gradient of c1 is ``vectors[0] g0 + vectors[1] + vectors[2] (c1 - its mean)``.
    """
    B, T, width = c1.shape
    n = partial_rows(B * c2.shape[1])
    g0, partial = torch.empty_like(c1), parameters.new_empty((n, 5, width))
    dgamma0, dbeta0 = parameters.new_empty((width,)), parameters.new_empty((width,))
    dwd, vectors = parameters.new_empty((width, 3)), parameters.new_empty((3, width))
    given = addresses(c1, c2, da2, parameters, g0, partial, statistics0, gamma0, dgamma0, dbeta0, dwd, vectors)
    _C.mbconv_train_depthwise_backward((B, T, width, stride, n), eps, given, *place(c1))
    return g0, dgamma0, dbeta0, dwd, vectors
