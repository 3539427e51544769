"""The MBConv block in training on CUDA, bfloat16, channels last; not yet measured on a GPU.

The matrix products are torch's; between them are a few kernels, those of :mod:`sleepfm_fast.ops.mbconv_between`.
Derivation and predictions: ``docs/kernels/encoder-blocks-cuda.md``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sleepfm_fast.ops import mbconv_between as between
from sleepfm_fast.ops.arguments import refuse_unlike
from sleepfm_fast.ops.contrastive_gemm import multiply
from sleepfm_fast.ops.dispatch import is_plain
from sleepfm_fast.ops.mbconv import WEIGHTS, weight_shapes
from sleepfm_fast.ops.process_settings import float32_factors
from sleepfm_fast.ops.registry import LIBRARY
from sleepfm_fast.ops.unsupported import no_second_derivative, refuse_gradients, refuse_transforms

__all__ = ["MULTIPLE", "mbconv_train"]

MULTIPLE = 8  # all numbers of channels are multiples of it: the library's products want rows of whole 16 bytes


def mbconv_train(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    gamma0: Tensor,
    beta0: Tensor,
    wd: Tensor,
    bd: Tensor,
    gamma1: Tensor,
    beta1: Tensor,
    w3: Tensor,
    b3: Tensor,
    *,
    stride: int = 1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """1x1 expansion, batch norm, ReLU6, depthwise convolution of 3, batch norm, ReLU6, 1x1 projection.

    Parameters
    ----------
    x : Tensor
        ``[B, T, n_in]`` bfloat16 on a CUDA device, channels last.
    w1, b1, gamma0, beta0, wd, bd, gamma1, beta1, w3, b3 : Tensor
        As in :func:`sleepfm_fast.ops.mbconv`, float32 on the same device. ``n_in``, width and ``n_out`` are multiples
        of 8.
    stride : {1, 2}
        Stride of the depthwise convolution.
    eps : float
        Added to the variances, which are those of the batch.

    Returns
    -------
    y : Tensor
        ``[B, (T - 1) // stride + 1, n_out]`` bfloat16. The factors of products and the wide activations are rounded
        to bfloat16; sums, batch norms and the depthwise convolution are float32 or better.
    statistics : Tensor
        ``[4, width]`` float64, without gradient: mean0, variance0, mean1, variance1 as used (population variances).

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, device, shape or value; :func:`sleepfm_fast.reference.mbconv_train` takes any
        device.
    NotImplementedError
        For second derivatives, and inside the transforms of torch.func.

    Notes
    -----
    The gradients of ``b1`` and ``bd`` are exactly zero, since the batch norms remove constants. A residual and its
    dropout are left to the caller.
    """
    weights = (w1, b1, gamma0, beta0, wd, bd, gamma1, beta1, w3, b3)
    validate(x, weights, stride)
    refuse_transforms("mbconv_train", x, *weights)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights)):
        y, statistics = _MBConvTrain.apply(stride, eps, x, *weights)  # type: ignore[no-untyped-call]
    else:
        y, statistics, *_ = call_forward(x, list(weights), stride, eps)
    return y, statistics


def validate(x: Tensor, weights: tuple[Tensor, ...], stride: int) -> None:
    """Refuse what :func:`mbconv_train` does not take."""
    if x.ndim != 3 or x.dtype != torch.bfloat16:
        raise TypeError(f"mbconv_train: x is {x.dtype} of shape {tuple(x.shape)}; expected bfloat16 [B, T, n_in].")
    if stride not in (1, 2):
        raise ValueError(f"mbconv_train: stride is {stride}; choose 1 or 2.")
    if weights[0].ndim != 2 or weights[8].ndim != 2:
        raise ValueError(
            f"mbconv_train: w1 has shape {tuple(weights[0].shape)} and w3 {tuple(weights[8].shape)}; they are "
            "matrices, [width, n_in] and [n_out, width]."
        )
    width, n_in, n_out = len(weights[0]), x.shape[2], len(weights[8])
    for name, tensor, shape in zip(WEIGHTS, weights, weight_shapes(n_in, width, n_out), strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"mbconv_train: {name} has shape {tuple(tensor.shape)}; with x {tuple(x.shape)}, width {width} and "
                f"{n_out} channels out it has shape {shape}."
            )
        if tensor.dtype != torch.float32:
            raise TypeError(f"mbconv_train: {name} is {tensor.dtype}; weights are float32.")
        if tensor.device != x.device:
            raise ValueError(f"mbconv_train: x is on {x.device}, {name} on {tensor.device}; move them to one device.")
    if any(n % MULTIPLE or n == 0 for n in (n_in, width, n_out)):
        raise ValueError(
            f"mbconv_train: {n_in} channels in, {width} inside and {n_out} out; each must be a multiple of {MULTIPLE}. "
            "Leave this block to torch."
        )
    if x.shape[0] * ((x.shape[1] - 1) // stride + 1) < 2 or x.shape[1] < 1:
        raise ValueError(
            f"mbconv_train: x has shape {tuple(x.shape)}; a batch norm needs more than one value a channel to train."
        )


class _MBConvTrain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stride: int, eps: float, x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        y, statistics, *kept = call_forward(x, list(weights), stride, eps)
        ctx.save_for_backward(x, *kept, *weights)
        ctx.options = (stride, eps)
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            raise no_second_derivative("mbconv_train")
        x, *saved = ctx.saved_tensors
        kept, weights = saved[: -len(WEIGHTS)], saved[-len(WEIGHTS) :]
        return (None, None, *call_backward(dy, x, kept, weights, *ctx.options))


def call_forward(x: Tensor, weights: list[Tensor], stride: int, eps: float) -> tuple[Tensor, ...]:
    """Run the registered op, without torch's dispatcher where that would only pass the tensors on."""
    if x.is_cuda and is_plain(x, *weights):
        with torch.no_grad():
            return forward(x, weights, stride, eps)
    return tuple(torch.ops.sleepfm_fast.mbconv_train_forward(x, weights, stride, eps))


def call_backward(
    dy: Tensor, x: Tensor, kept: list[Tensor], weights: list[Tensor], stride: int, eps: float
) -> tuple[Tensor, ...]:
    """Run the registered op, without torch's dispatcher where that would only pass the tensors on."""
    if dy.is_cuda and is_plain(dy, x, *kept, *weights):
        return backward(dy, x, kept, weights, stride, eps)
    return tuple(torch.ops.sleepfm_fast.mbconv_train_backward(dy, x, kept, weights, stride, eps))


# ---- the block ------------------------------------------------------------------------------------------------------


def as_given(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Let products be computed in the type of their factors.

    Autocast, under which training runs, would round float32 factors, and so would TF32, if the process allows it.
    """

    @functools.wraps(function)
    def run(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        with torch.autocast(x.device.type, enabled=False), float32_factors():
            return function(x, *arguments)

    return run


def aligned(kept: Tensor) -> Tensor:
    """Return a tensor that forward kept, contiguous and aligned to 8 bytes, as the kernels access it.

    Hooks on saved tensors may have replaced it by a view, for example. A misaligned access is an error of the device,
    after which the process cannot use the device any more.
    """
    kept = kept.contiguous()
    return kept if kept.data_ptr() % 8 == 0 else kept.clone()


@as_given
def forward(x: Tensor, weights: list[Tensor], stride: int, eps: float) -> tuple[Tensor, ...]:
    """Return y, statistics, and what backward needs: see :func:`_fake_forward`.

    The first batch norm removes the expansion's bias b1. The product adds another one in its place, which brings the
    mean of c1 near 0 before c1 is rounded, and which needs only the mean of x.
    """
    x = x.contiguous()
    w1, b1, gamma0, beta0, wd, bd, gamma1, beta1, w3, b3 = (weight.contiguous() for weight in weights)
    B, T, n_in = x.shape
    flat = x.view(B * T, n_in)
    mean = flat.mean(0, dtype=torch.float32)
    bias = torch.mv(w1, mean).neg_().to(x.dtype)
    c1 = torch.addmm(bias, flat, w1.to(x.dtype).T).view(B, T, -1)
    statistics0, parameters0 = between.expansion_sums(c1, bias, b1, gamma0, beta0, wd, bd, eps)
    c2, statistics1, parameters1 = between.depthwise(c1, parameters0, gamma1, beta1, stride, eps)
    a2 = between.activate(c2, parameters1)
    S = c2.shape[1]
    projection = w3.to(x.dtype)
    y = torch.addmm(b3.to(x.dtype), a2.view(B * S, -1), projection.T).view(B, S, -1)
    statistics = torch.cat((statistics0[:2], statistics1))
    return y, statistics, statistics0, statistics1, parameters0, parameters1, mean, projection, c1, c2, a2


@as_given
def backward(
    dy: Tensor, x: Tensor, kept: list[Tensor], weights: list[Tensor], stride: int, eps: float
) -> tuple[Tensor, ...]:
    """Return the gradients of x and of the weights.

    With ``v`` the vectors of :func:`sleepfm_fast.ops.mbconv_between.depthwise_backward`, the gradient of c1 is ``v0 g0
    + v1 + v2 (c1 - its mean)``. All of it but g0 is a linear function of the narrow x, so that only g0 has to be
    multiplied as a wide matrix.
    """
    dy, x = dy.contiguous(), x.contiguous()
    statistics0, statistics1, parameters0, parameters1, mean, projection, c1, c2, a2 = map(aligned, kept)
    w1, gamma0, gamma1 = (weights[k].contiguous() for k in (0, 2, 6))
    B, T, n_in = x.shape
    rows = B * T
    width, n_out, S = len(w1), len(projection), c2.shape[1]
    flat_dy, flat = dy.view(B * S, n_out), x.view(rows, n_in)
    dw3 = w1.new_empty((n_out, width))
    multiply(flat_dy.T, a2.view(B * S, width), dw3)
    db3 = flat_dy.sum(0, dtype=torch.float32)
    da2 = torch.mm(flat_dy, projection).view(B, S, width)
    dgamma1, dbeta1, parameters = between.gradient_sums(c2, da2, statistics1, parameters0, parameters1, gamma1, eps)
    g0, dgamma0, dbeta0, dwd, vectors = between.depthwise_backward(
        c1, c2, da2, parameters, statistics0, gamma0, stride, eps
    )
    flat_g0 = g0.view(rows, width)
    scale, of_mean, of_c1 = vectors[:, :, None]
    # With m the mean of x, a sample's gradient is w1' v0 g0 + w1' v1 + w1' v2 w1 (x - m). The constant is computed from
    # the rounded matrix `square`, so that it fits to the product with x.
    rounded = w1.to(dy.dtype).float()
    square = torch.mm((rounded * of_c1).T, rounded).to(dy.dtype)
    constant = ((rounded * of_mean).sum(0) - torch.mv(square.float().T, mean)).to(dy.dtype)
    # In place, since torch.addmm copies a matrix that it adds to.
    dx = torch.addmm(constant, flat, square).addmm_(flat_g0, (w1 * scale).to(dy.dtype)).view(B, T, n_in)
    dw1, gram = w1.new_empty((width, n_in)), w1.new_empty((n_in, n_in))
    multiply(flat_g0.T, flat, dw1)
    multiply(flat.T, flat, gram)
    covariance = torch.addr(gram, mean, mean, alpha=-rows)  # of x, times the number of samples
    dw1 = torch.addcmul(scale * torch.addr(dw1, dbeta0, mean, alpha=-1), of_c1, torch.mm(rounded, covariance))
    db1, dbd = torch.zeros_like(dgamma0), torch.zeros_like(dgamma0)  # two, since results of an op must not share memory
    return dx, dw1, db1, dgamma0, dbeta0, dwd, dbd, dgamma1, dbeta1, dw3, db3


# ---- registration ----------------------------------------------------------------------------------------------------

LIBRARY.define(
    "mbconv_train_forward(Tensor x, Tensor[] weights, int stride, float eps) -> (Tensor y, Tensor statistics, "
    "Tensor statistics0, Tensor statistics1, Tensor parameters0, Tensor parameters1, Tensor mean, Tensor projection, "
    "Tensor c1, Tensor c2, Tensor a2)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "mbconv_train_backward(Tensor dy, Tensor x, Tensor[] kept, Tensor[] weights, int stride, float eps) -> (Tensor dx, "
    "Tensor dw1, Tensor db1, Tensor dgamma0, Tensor dbeta0, Tensor dwd, Tensor dbd, Tensor dgamma1, Tensor dbeta1, "
    "Tensor dw3, Tensor db3)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake("sleepfm_fast::mbconv_train_forward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_forward(x: Tensor, weights: list[Tensor], stride: int, eps: float) -> tuple[Tensor, ...]:
    B, T, n_in = x.shape
    S, width, n_out = (T - 1) // stride + 1, weights[0].shape[0], weights[8].shape[0]
    small: list[Any] = [((n, width), torch.float64) for n in (4, 3, 2)]
    small += [((7, width), torch.float32), ((3, width), torch.float32), ((n_in,), torch.float32)]
    small += [((n_out, width), x.dtype)]
    wide = [((B, T, width), x.dtype), *[((B, S, width), x.dtype)] * 2]
    return (
        x.new_empty((B, S, n_out)),
        *(x.new_empty(shape, dtype=dtype) for shape, dtype in (*small, *wide)),
    )


@torch.library.register_fake("sleepfm_fast::mbconv_train_backward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_backward(
    dy: Tensor, x: Tensor, kept: list[Tensor], weights: list[Tensor], stride: int, eps: float
) -> tuple[Tensor, ...]:
    return (x.new_empty(x.shape), *(weight.new_empty(weight.shape) for weight in weights))


def check_forward(x: Tensor, weights: list[Tensor], stride: int) -> None:
    """Refuse what the registered forward does not take."""
    if len(weights) != len(WEIGHTS):
        raise ValueError(f"torch.ops.sleepfm_fast.mbconv_train: {len(weights)} weights; expected {len(WEIGHTS)}.")
    validate(x, tuple(weights), stride)


def check_backward(dy: Tensor, x: Tensor, kept: list[Tensor], weights: list[Tensor], stride: int) -> None:
    """Refuse what the registered backward does not take: ``kept`` are forward's results from the third on."""
    op = "mbconv_train_backward"
    check_forward(x, weights, stride)
    like_y, _, *like_kept = _fake_forward(x.to("meta"), [weight.to("meta") for weight in weights], stride, 0.0)
    if len(kept) != len(like_kept):
        raise ValueError(f"torch.ops.sleepfm_fast.{op}: {len(kept)} tensors in kept; expected {len(like_kept)}.")
    named = [("dy", dy), *((f"kept[{k}]", tensor) for k, tensor in enumerate(kept))]
    like = [like_y, *like_kept]
    expected = [(name, tensor, made.shape, made.dtype) for (name, tensor), made in zip(named, like, strict=True)]
    refuse_unlike(op, x.device, expected)


def _checked_forward(x: Tensor, weights: list[Tensor], stride: int, eps: float) -> tuple[Tensor, ...]:
    check_forward(x, weights, stride)
    return forward(x, weights, stride, eps)


def _checked_backward(
    dy: Tensor, x: Tensor, kept: list[Tensor], weights: list[Tensor], stride: int, eps: float
) -> tuple[Tensor, ...]:
    check_backward(dy, x, kept, weights, stride)
    return backward(dy, x, kept, weights, stride, eps)


def _refuse(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    raise ValueError(
        f"mbconv_train: x is on {x.device}; it runs on CUDA. Use sleepfm_fast.ops.mbconv or "
        "sleepfm_fast.reference.mbconv_train elsewhere."
    )


LIBRARY.impl("mbconv_train_forward", _checked_forward, "CUDA")
LIBRARY.impl("mbconv_train_backward", _checked_backward, "CUDA")
LIBRARY.impl("mbconv_train_forward", _refuse, "CPU")
LIBRARY.impl("mbconv_train_backward", _refuse, "CPU")
refuse_gradients("mbconv_train_forward", "sleepfm_fast.ops.mbconv_train")
refuse_gradients("mbconv_train_backward", "sleepfm_fast.ops.mbconv_train")
