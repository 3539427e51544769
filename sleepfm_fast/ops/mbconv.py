"""The MBConv block of the encoder as one compiled op on the CPU.

Of the block's six wide activations only the inputs of the two batch norms are written to memory. Normalisation, ReLU6
and their gradients are computed in registers on the way through the small matrix products.
Derivation and figures: ``docs/kernels/encoder-blocks.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sleepfm_fast import _C
from sleepfm_fast.ops.arguments import (
    Expected,
    refuse_no_tensors,
    refuse_other_devices,
    refuse_other_types,
    refuse_unlike,
)
from sleepfm_fast.ops.pages import empty
from sleepfm_fast.ops.registry import LIBRARY
from sleepfm_fast.ops.unsupported import no_second_derivative, refuse_gradients, refuse_transforms

__all__ = ["Precision", "is_bfloat16", "mbconv"]

Precision = Literal["float32", "bfloat16"]
Dims = tuple[int, int, int, int, int, int]
WEIGHTS = ("w1", "b1", "gamma0", "beta0", "wd", "bd", "gamma1", "beta1", "w3", "b3")


def mbconv(
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
    running: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    eps: float = 1e-5,
    residual: bool = False,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    precision: Precision = "float32",
) -> tuple[Tensor, Tensor]:
    """Inverted bottleneck of a 1-D EfficientNet (Sandler et al. 2018; as in SleepFM, Thapa et al. 2024), fused.

    ``y = projection(relu6(norm1(depthwise(relu6(norm0(expansion(x)))))))``; with ``residual``, ``x + dropout(y)``.

    Parameters
    ----------
    x : Tensor
        ``[B, n_in, T]`` float32 on the CPU.
    w1, b1 : Tensor
        Weight and bias of the 1x1 expansion, ``[width, n_in]`` and ``[width]``.
    gamma0, beta0 : Tensor
        Weight and bias of the batch norm after it, ``[width]``.
    wd, bd : Tensor
        Weight and bias of the depthwise convolution, ``[width, 3]`` and ``[width]``; its input is padded with one zero
        on either side.
    gamma1, beta1 : Tensor
        Weight and bias of the batch norm after it, ``[width]``.
    w3, b3 : Tensor
        Weight and bias of the 1x1 projection, ``[n_out, width]`` and ``[n_out]``.
    stride : {1, 2}
        Stride of the depthwise convolution.
    running : tuple of four Tensor, optional
        Running statistics ``[width]`` of the two batch norms, for evaluation: mean0, variance0, mean1, variance1. By
        default the batch's own statistics, as in training.
    eps : float
        Added to the variances.
    residual : bool
        Whether x is added; needs as many channels out as in, and stride 1.
    dropout : float
        Probability that a value of the projection is dropped before x is added; only with ``residual``.
    seed : Tensor, optional
        0-d int64 that decides which values are dropped; by default drawn from torch's generator.
    precision : {"float32", "bfloat16"}
        Type to which the factors of the 1x1 convolutions and of their gradients are rounded, and of the wide
        activations in memory. All sums, statistics, inputs and results are float32 or better. bfloat16 is faster on
        processors with instructions for it (``sleepfm_fast.build_info()["cpu_multiplies_bfloat16"]``), and takes half
        of the memory on all.

    Returns
    -------
    y : Tensor
        ``[B, n_out, (T - 1) // stride + 1]``.
    statistics : Tensor
        ``[4, width]`` float64, without gradient: mean0, variance0, mean1, variance1 as used (population variances).

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, device, shape or value.
    NotImplementedError
        For gradients with ``running`` (evaluation has none), for second derivatives, and inside the transforms of
        torch.func.

    Notes
    -----
    The same arguments give the same bits, for every number of threads. One clip runs on one thread, so that threads
    beyond the number of clips are idle; backward uses at most 16. In training the gradients of ``b1`` and ``bd`` are
    exactly zero, since a batch norm with the batch's statistics removes constants.
    """
    weights = (w1, b1, gamma0, beta0, wd, bd, gamma1, beta1, w3, b3)
    named = validate(x, weights, stride, running)
    refuse_other_devices(named)
    bf16 = is_bfloat16(precision)
    refuse_transforms("mbconv", x, *weights)
    if residual and (stride != 1 or x.shape[1] != len(w3)):
        raise ValueError(
            f"a residual needs stride 1 and as many channels out as in; got stride {stride}, {x.shape[1]} channels in "
            f"and {len(w3)} out."
        )
    if not 0.0 <= dropout <= 1.0 or (dropout > 0.0 and not residual):
        raise ValueError(f"dropout is {dropout}; it lies between 0 and 1, and is 0 without a residual.")
    if running is not None:
        if dropout > 0.0:
            raise ValueError("running statistics are for evaluation, which drops nothing; leave dropout at 0.")
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights)):
            raise NotImplementedError(
                "mbconv with running statistics has no gradient; call it under torch.no_grad(), or use "
                "sleepfm_fast.reference.mbconv."
            )
        y = torch.ops.sleepfm_fast.mbconv_evaluate(x, list(weights), list(running), stride, eps, residual, bf16)
        return y, torch.stack([tensor.double() for tensor in running])
    if x.shape[0] * ((x.shape[2] - 1) // stride + 1) < 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, the stride is {stride}; a batch norm needs more than one value a channel "
            "to train."
        )
    if seed is None:
        seed = torch.zeros((), dtype=torch.int64, device=x.device)
        if dropout > 0.0:
            seed = torch.randint(1 << 62, (), device=x.device)
    options = (stride, eps, residual, dropout, bf16)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights)):
        y, statistics = _MBConv.apply(*options, seed, x, *weights)  # type: ignore[no-untyped-call]
    else:
        y, _, _, statistics, _ = torch.ops.sleepfm_fast.mbconv_forward(x, list(weights), seed, *options, False)
    return y, statistics


def is_bfloat16(precision: Precision) -> bool:
    """Whether ``precision`` is bfloat16; anything that is not a precision of the blocks is refused."""
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}; choose float32 or bfloat16.")
    return precision == "bfloat16"


def validate(
    x: Tensor, weights: tuple[Tensor, ...], stride: int, running: tuple[Tensor, Tensor, Tensor, Tensor] | None
) -> list[tuple[str, Tensor]]:
    """Refuse what :func:`mbconv` does not take; return all tensors with their names, for the check of their devices."""
    given = [("x", x), *zip(WEIGHTS, weights, strict=True)]
    given += [(f"running[{k}]", tensor) for k, tensor in enumerate(() if running is None else running)]
    refuse_no_tensors("mbconv", given)
    if x.ndim != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; mbconv takes [B, n_in, T]: clips, channels, samples.")
    if x.shape[2] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; mbconv needs at least one sample.")
    if stride not in (1, 2):
        raise ValueError(f"stride is {stride}; choose 1 or 2.")
    if weights[0].ndim != 2 or weights[8].ndim != 2:
        raise ValueError(
            f"w1 has shape {tuple(weights[0].shape)} and w3 {tuple(weights[8].shape)}; they are matrices, "
            "[width, n_in] and [n_out, width]."
        )
    width, n_in, n_out = len(weights[0]), x.shape[1], len(weights[8])
    refuse_no_channels(n_in, width, n_out)
    shapes = weight_shapes(n_in, width, n_out)
    shapes += [(width,)] * (len(given) - 1 - len(shapes))
    for (name, tensor), shape in zip(given[1:], shapes, strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; with x {tuple(x.shape)}, width {width} and {n_out} channels "
                f"out it has shape {shape}."
            )
    refuse_other_types("mbconv", given)
    return given


def weight_shapes(n_in: int, width: int, n_out: int) -> list[tuple[int, ...]]:
    """Shapes of a block's weights, in the order of ``WEIGHTS``."""
    return [(width, n_in), *[(width,)] * 3, (width, 3), *[(width,)] * 3, (n_out, width), (n_out,)]


def refuse_no_channels(n_in: int, width: int, n_out: int) -> None:
    """Refuse a block without channels somewhere: its workspace would be divided by their number."""
    if min(n_in, width, n_out) < 1:
        raise ValueError(f"mbconv: {n_in} channels in, {width} inside, {n_out} out; at least one of each is needed.")


class _MBConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        stride: int,
        eps: float,
        residual: bool,
        dropout: float,
        bf16: bool,
        seed: Tensor,
        x: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        options = (stride, eps, residual, dropout, bf16)
        y, c1, c2, statistics, moments = torch.ops.sleepfm_fast.mbconv_forward(x, list(weights), seed, *options, True)
        ctx.save_for_backward(x, *weights, seed, c1, c2, statistics, moments)
        ctx.options = options
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
        x, *weights, seed, c1, c2, statistics, moments = ctx.saved_tensors
        arguments = (dy, x, list(weights), seed, c1, c2, statistics, moments, *ctx.options)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            raise no_second_derivative("mbconv")
        return (None, None, None, None, None, None, *torch.ops.sleepfm_fast.mbconv_backward(*arguments))


# ---- registration ----------------------------------------------------------------------------------------------------

LIBRARY.define(
    "mbconv_forward(Tensor x, Tensor[] weights, Tensor seed, int stride, float eps, bool residual, float dropout, "
    "bool bf16, bool for_backward) -> (Tensor y, Tensor c1, Tensor c2, Tensor statistics, Tensor moments)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "mbconv_evaluate(Tensor x, Tensor[] weights, Tensor[] running, int stride, float eps, bool residual, bool bf16) "
    "-> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "mbconv_backward(Tensor dy, Tensor x, Tensor[] weights, Tensor seed, Tensor c1, Tensor c2, Tensor statistics, "
    "Tensor moments, int stride, float eps, bool residual, float dropout, bool bf16) -> (Tensor dx, Tensor dw1, "
    "Tensor db1, "
    "Tensor dgamma0, Tensor dbeta0, Tensor dwd, Tensor dbd, Tensor dgamma1, Tensor dbeta1, Tensor dw3, Tensor db3)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def keeps_expansion(n_in: int) -> bool:
    """Whether forward keeps the expanded activation for backward; from few channels it is cheaper to expand again."""
    return n_in > 32


def results_of_forward(
    x: Tensor, weights: list[Tensor], stride: int, bf16: bool, for_backward: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate y, c1, c2, statistics and moments; c1 is empty where backward does not need it."""
    wide = torch.bfloat16 if bf16 else torch.float32
    B, n_in, T = x.shape
    S, width = (T - 1) // stride + 1, weights[0].shape[0]
    return (
        empty(x, (B, weights[8].shape[0], S)),
        empty(x, (B, width, T) if for_backward and keeps_expansion(n_in) else (0,), wide),
        empty(x, (B, width, S), wide),
        x.new_empty((4, width), dtype=torch.float64),
        x.new_empty((1 + n_in, n_in), dtype=torch.float64),
    )


@torch.library.register_fake("sleepfm_fast::mbconv_forward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_forward(
    x: Tensor,
    weights: list[Tensor],
    seed: Tensor,
    stride: int,
    eps: float,
    residual: bool,
    dropout: float,
    bf16: bool,
    for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return results_of_forward(x, weights, stride, bf16, for_backward)


@torch.library.register_fake("sleepfm_fast::mbconv_evaluate", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_evaluate(
    x: Tensor, weights: list[Tensor], running: list[Tensor], stride: int, eps: float, residual: bool, bf16: bool
) -> Tensor:
    return results_of_forward(x, weights, stride, bf16, False)[0]


@torch.library.register_fake("sleepfm_fast::mbconv_backward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _fake_backward(
    dy: Tensor,
    x: Tensor,
    weights: list[Tensor],
    seed: Tensor,
    c1: Tensor,
    c2: Tensor,
    statistics: Tensor,
    moments: Tensor,
    stride: int,
    eps: float,
    residual: bool,
    dropout: float,
    bf16: bool,
) -> tuple[Tensor, ...]:
    return (x.new_empty(x.shape), *[weight.new_empty(weight.shape) for weight in weights])


def expected_weights(op: str, weights: Sequence[Tensor], n_in: int, stride: int, residual: bool) -> list[Expected]:
    """List the weights of a block with the shapes and types that the compiled functions read.

    Parameters
    ----------
    op : str
        Name of the op in ``torch.ops.sleepfm_fast``, for the message.
    weights : sequence of Tensor
        In the order of ``WEIGHTS``; the biases state the numbers of channels.
    n_in : int
        Channels in.
    stride, residual
        As for :func:`mbconv`.

    Raises
    ------
    ValueError
        When there is no such block.
    """
    if len(weights) != len(WEIGHTS) or stride not in (1, 2):
        raise ValueError(
            f"torch.ops.sleepfm_fast.{op}: {len(weights)} weights and stride {stride}; expected {len(WEIGHTS)} weights "
            "and stride 1 or 2."
        )
    width, n_out = weights[1].numel(), weights[9].numel()
    refuse_no_channels(n_in, width, n_out)
    if residual and (stride != 1 or n_in != n_out):
        raise ValueError(
            f"torch.ops.sleepfm_fast.{op}: a residual needs stride 1 and as many channels out as in; got stride "
            f"{stride}, {n_in} channels in and {n_out} out."
        )
    shapes = weight_shapes(n_in, width, n_out)
    return [(*named, torch.float32) for named in zip(WEIGHTS, weights, shapes, strict=True)]


def check_block(
    op: str, x: Tensor, weights: Sequence[Tensor], stride: int, residual: bool, others: Iterable[Expected] = ()
) -> None:
    """Refuse clips, the weights of a block, and others that are not as the compiled functions read them."""
    if x.ndim != 3 or x.shape[2] < 1:
        raise ValueError(f"torch.ops.sleepfm_fast.{op}: x has shape {tuple(x.shape)}; expected [B, n_in, T], T >= 1.")
    expected = expected_weights(op, weights, x.shape[1], stride, residual)
    refuse_unlike(op, x.device, [("x", x, x.shape, torch.float32), *expected, *others])


def call_arguments(
    x: Tensor, weights: list[Tensor], stride: int, bf16: bool, what: Literal["forward", "backward", "evaluation"]
) -> tuple[tuple[Dims, bool, int, int, tuple[int, ...]], list[Tensor]]:
    """Return the leading arguments of the compiled functions, and the tensors that must stay alive during the call."""
    dims = (x.shape[0], x.shape[1], weights[0].shape[0], weights[8].shape[0], x.shape[2], stride)
    refuse_no_channels(dims[1], dims[2], dims[3])
    n_threads = min(torch.get_num_threads(), max(x.shape[0], 1))
    kept = [weight.contiguous() for weight in weights]
    if what == "evaluation":
        n_bytes = _C.mbconv_evaluate_workspace_bytes(dims, bf16, n_threads)
    else:
        n_bytes = _C.mbconv_workspace_bytes(dims, bf16, n_threads, what == "backward")
    workspace = empty(x, (n_bytes,), torch.uint8)
    addresses = tuple(weight.data_ptr() for weight in kept)
    return (dims, bf16, n_threads, workspace.data_ptr(), addresses), [workspace, *kept]


def _forward(
    x: Tensor,
    weights: list[Tensor],
    seed: Tensor,
    stride: int,
    eps: float,
    residual: bool,
    dropout: float,
    bf16: bool,
    for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_block("mbconv_forward", x, weights, stride, residual, [("seed", seed, (), torch.int64)])
    x = x.contiguous()
    results = results_of_forward(x, weights, stride, bf16, for_backward)
    y, c1, c2, statistics, moments = results
    leading, _alive = call_arguments(x, weights, stride, bf16, "forward")
    tensors = (x, c1, c2, statistics, moments, y)
    _C.mbconv_forward(*leading, (residual, dropout, int(seed) % 2**64), eps, *(tensor.data_ptr() for tensor in tensors))
    return results


def _evaluate(
    x: Tensor, weights: list[Tensor], running: list[Tensor], stride: int, eps: float, residual: bool, bf16: bool
) -> Tensor:
    if len(running) != 4:
        raise ValueError(f"torch.ops.sleepfm_fast.mbconv_evaluate: {len(running)} running statistics; expected 4.")
    check_block("mbconv_evaluate", x, weights, stride, residual)
    width = (len(weights[0]),)
    given = [(f"running[{k}]", tensor, width, torch.float32) for k, tensor in enumerate(running)]
    refuse_unlike("mbconv_evaluate", x.device, given)
    x = x.contiguous()
    S = (x.shape[2] - 1) // stride + 1
    y = x.new_empty((x.shape[0], weights[8].shape[0], S))
    kept = [tensor.contiguous() for tensor in running]
    leading, _alive = call_arguments(x, weights, stride, bf16, "evaluation")
    mean0, variance0, mean1, variance1 = (tensor.data_ptr() for tensor in kept)
    statistics = (mean0, variance0, mean1, variance1)
    _C.mbconv_evaluate(*leading, (residual, 0.0, 0), eps, *statistics, x.data_ptr(), y.data_ptr())
    return y


def _backward(
    dy: Tensor,
    x: Tensor,
    weights: list[Tensor],
    seed: Tensor,
    c1: Tensor,
    c2: Tensor,
    statistics: Tensor,
    moments: Tensor,
    stride: int,
    eps: float,
    residual: bool,
    dropout: float,
    bf16: bool,
) -> tuple[Tensor, ...]:
    check_block("mbconv_backward", x, weights, stride, residual)
    B, n_in, T = x.shape
    S, width, wide = (T - 1) // stride + 1, len(weights[0]), torch.bfloat16 if bf16 else torch.float32
    expected = [
        ("dy", dy, (B, len(weights[8]), S), torch.float32),
        ("seed", seed, (), torch.int64),
        ("c1", c1, (B, width, T) if keeps_expansion(n_in) else (0,), wide),
        ("c2", c2, (B, width, S), wide),
        ("statistics", statistics, (4, width), torch.float64),
        ("moments", moments, (1 + n_in, n_in), torch.float64),
    ]
    refuse_unlike("mbconv_backward", x.device, expected)
    # Hooks on saved tensors may have replaced what forward kept, by tensors with other strides for example.
    x, dy, c1, c2, statistics, moments = (t.contiguous() for t in (x, dy, c1, c2, statistics, moments))
    g1, dx = empty(c2, tuple(c2.shape)), empty(x, tuple(x.shape))
    gradients = [
        torch.zeros_like(weight, memory_format=torch.contiguous_format)
        if name in ("b1", "bd")
        else torch.empty_like(weight, memory_format=torch.contiguous_format)
        for name, weight in zip(WEIGHTS, weights, strict=True)
    ]
    leading, _alive = call_arguments(x, weights, stride, bf16, "backward")
    _C.mbconv_backward(
        *leading,
        (residual, dropout, int(seed) % 2**64),
        eps,
        x.data_ptr(),
        c1.data_ptr(),
        c2.data_ptr(),
        statistics.data_ptr(),
        moments.data_ptr(),
        dy.data_ptr(),
        g1.data_ptr(),
        dx.data_ptr(),
        tuple(g.data_ptr() for name, g in zip(WEIGHTS, gradients, strict=True) if name not in ("b1", "bd")),
    )
    return (dx, *gradients)


LIBRARY.impl("mbconv_forward", _forward, "CPU")
LIBRARY.impl("mbconv_evaluate", _evaluate, "CPU")
LIBRARY.impl("mbconv_backward", _backward, "CPU")
refuse_gradients("mbconv_forward", "sleepfm_fast.ops.mbconv")
refuse_gradients("mbconv_evaluate", "sleepfm_fast.reference.mbconv")
refuse_gradients("mbconv_backward", "sleepfm_fast.reference.mbconv, whose gradient can be differentiated")
