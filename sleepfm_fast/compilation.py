"""Encoders through torch.compile: what stands between the convolutions becomes a few kernels instead of dozens."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from sleepfm_fast.encoder import Encoder, SleepModel
from sleepfm_fast.errors import SleepfmError

__all__ = ["compile_encoders"]


def compile_encoders(model: SleepModel) -> None:
    """Compile the network proper of every encoder, in place; names and values of the weights stay.

    Nothing is compiled before the first batch. Which clips have a modality, and which channels, is decided outside:
    a batch of another size is compiled once more, for any size.

    Raises
    ------
    SleepfmError
        In the first batch, where the compiler fails.
    """
    for encoder in model.encoders.values():
        assert isinstance(encoder, Encoder)
        encoder.embed = explained(torch.compile(encoder.embed))  # type: ignore[method-assign, assignment]


def explained(embed: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function; a compiler that fails is a sentence."""
    from torch._dynamo.exc import TorchDynamoException

    @functools.wraps(embed)
    def run(x: Tensor) -> Tensor:
        try:
            return embed(x)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise SleepfmError(
                f"torch.compile failed on this machine ({reason}). It needs a C++ compiler, and Triton for CUDA. "
                "Install what is missing, or leave --compile out."
            ) from error

    return run
