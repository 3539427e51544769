"""What the contrastive loss takes: the arguments of its function, and those of the registered ops below it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sleepfm_fast.ops.arguments import refuse_unlike
from sleepfm_fast.ops.contrastive_results import STATE_ROWS, n_problems
from sleepfm_fast.ops.registry import DTYPE_CODES
from sleepfm_fast.reference.contrastive_loss import Directions, Mode

__all__ = [
    "DIRECTIONS",
    "MODES",
    "Precision",
    "check_kept",
    "check_loss",
    "checked_backward",
    "checked_forward",
    "validate",
]

Precision = Literal["high", "highest"]

MODES = get_args(Mode)
DIRECTIONS = get_args(Directions)
PRECISIONS = get_args(Precision)
LEAST_MODALITIES, MOST_MODALITIES = 2, 8

Forward = Callable[[Tensor, Tensor, Tensor | None, str, str, str, int, int], tuple[Tensor, ...]]
Backward = Callable[
    [Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor, str, str, str, int, int], tuple[Tensor, Tensor]
]


def validate(
    x: Tensor, log_temperature: Tensor, mode: str, mask: Tensor | None, directions: str, precision: str = "highest"
) -> None:
    """Refuse what :func:`contrastive_loss` does not take, in a sentence."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; contrastive_loss takes a tensor [M, N, D].")
    if x.ndim != 3:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; contrastive_loss takes [M, N, D]: modalities, samples, dimensions."
        )
    if x.dtype not in DTYPE_CODES:
        raise TypeError(f"x is {x.dtype}; contrastive_loss takes float32, bfloat16, float16 or float64.")
    if x.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"x is on {x.device}; contrastive_loss runs on cpu and cuda. Move it there with x.to(...).")
    if x.layout != torch.strided:
        raise TypeError(f"x has the layout {x.layout}; contrastive_loss takes dense tensors: x.to_dense().")
    M, N, D = x.shape
    if not LEAST_MODALITIES <= M <= MOST_MODALITIES:
        raise ValueError(f"x has {M} modalities (shape {tuple(x.shape)}); contrastive_loss takes 2 to 8.")
    if D < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; contrastive_loss needs at least one dimension, D >= 1.")
    if not isinstance(log_temperature, Tensor):
        raise TypeError(
            f"log_temperature is a {type(log_temperature).__name__}; contrastive_loss takes a tensor, "
            "for example torch.tensor(0.0) or an nn.Parameter."
        )
    if log_temperature.ndim != 0 or not log_temperature.dtype.is_floating_point:
        raise ValueError(
            f"log_temperature has shape {tuple(log_temperature.shape)} and dtype {log_temperature.dtype}; "
            "contrastive_loss takes a floating-point tensor without dimensions, shape ()."
        )
    if log_temperature.device != x.device:
        raise ValueError(f"log_temperature is on {log_temperature.device}, x on {x.device}; move both to one device.")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; choose 'leave_one_out' or 'pairwise'.")
    if directions not in DIRECTIONS:
        raise ValueError(f"directions is {directions!r}; choose 'both' or 'row'.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; choose 'highest' or 'high'.")
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask is a {type(mask).__name__}; contrastive_loss takes a bool tensor [M, N] or None.")
    if mask.dtype != torch.bool:
        raise TypeError(
            f"mask is {mask.dtype}; contrastive_loss takes bool, True where the modality is present: mask > 0."
        )
    if mask.shape != (M, N):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}; x with shape {tuple(x.shape)} needs [M, N] = ({M}, {N})."
        )
    if mask.device != x.device:
        raise ValueError(f"mask is on {mask.device}, x on {x.device}; move both to one device.")


# ---- the registered ops ----------------------------------------------------------------------------------------------


def check_loss(
    op: str,
    x: Tensor,
    log_temperature: Tensor,
    mask: Tensor | None,
    mode: str,
    directions: str,
    precision: str = "highest",
) -> None:
    """Refuse what :func:`validate` refuses, and a temperature that is not of the type that kernels read for this x."""
    validate(x, log_temperature, mode, mask, directions, precision)
    refuse_unlike(op, x.device, [("log_temperature", log_temperature, (), result_dtype(x))])


def check_kept(op: str, gradient_loss: Tensor, x: Tensor, n_valid: Tensor, state: Tensor, mode: str) -> None:
    """Refuse an upstream gradient and results of forward that do not belong to this x."""
    P = n_problems(x.shape[0], mode)
    expected = [
        ("gradient_loss", gradient_loss, (), result_dtype(x)),
        ("n_valid", n_valid, (P,), torch.int64),
        ("state", state, (P, STATE_ROWS, x.shape[1]), torch.float64),
    ]
    refuse_unlike(op, x.device, expected)


def result_dtype(x: Tensor) -> torch.dtype:
    """Return the type of the loss, its upstream gradient and the temperature inside the op."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_range(op: str, x: Tensor, begin: int, end: int) -> None:
    """Refuse a range of samples that is not within x."""
    if not 0 <= begin <= end <= x.shape[1]:
        raise ValueError(
            f"torch.ops.sleepfm_fast.{op}: samples {begin} to {end} of {x.shape[1]}; expected 0 <= begin <= end <= N."
        )


def checked_forward(forward: Forward) -> Forward:
    """Return ``contrastive_loss_forward`` of a device with its arguments checked first."""

    @functools.wraps(forward)
    def run(*arguments: Any) -> tuple[Tensor, ...]:
        *loss, begin, end = arguments
        check_loss("contrastive_loss_forward", *loss)
        check_range("contrastive_loss_forward", loss[0], begin, end)
        return forward(*arguments)

    return run


def checked_backward(backward: Backward) -> Backward:
    """Return ``contrastive_loss_backward`` of a device with its arguments checked first."""

    @functools.wraps(backward)
    def run(*arguments: Any) -> tuple[Tensor, Tensor]:
        gradient_loss, x, log_temperature, mask, n_valid, state, mode, directions, precision, begin, end = arguments
        check_loss("contrastive_loss_backward", x, log_temperature, mask, mode, directions, precision)
        check_kept("contrastive_loss_backward", gradient_loss, x, n_valid, state, mode)
        check_range("contrastive_loss_backward", x, begin, end)
        return backward(*arguments)

    return run
