"""Encoders through torch.compile, which makes a few kernels of the dozens of operations between convolutions."""

from __future__ import annotations

import functools
import getpass
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, MethodType

import torch
from torch import Tensor

from sleepfm_fast.encoder import Encoder, SleepModel
from sleepfm_fast.errors import SleepfmError

__all__ = ["compile_encoders", "settle_compiler_cache"]

UNWRITABLE = (Path("/proc"), Path("/"))
"""Folders of which at least one exists, on Linux one that nobody can write."""


def settle_compiler_cache() -> None:
    """Name a folder for torch's compiler where it cannot choose one itself; to be called before an optimiser is made.

    With the first optimiser torch imports its compiler, which makes a folder for what it compiles, although nothing may
    ever be compiled: ``torchinductor_USER`` in the folder for temporary files. That ended the command in a container
    whose user has no name (up to torch 2.11 or later), and where temporary files have no room or no folder.
    """
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):
        user = ""
    try:
        folder = Path(tempfile.gettempdir(), f"torchinductor_{user or os.getuid()}")
        folder.mkdir(exist_ok=True)
    except OSError:  # a folder that exists is all that torch asks for unless it compiles
        folder, user = next(path for path in UNWRITABLE if path.is_dir()), ""
    if not user:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def compile_encoders(model: SleepModel) -> None:
    """Compile the network proper of every encoder, in place; names and values of the weights stay the same.

    Nothing is compiled before the first batch. The handling of absent modalities and channels stays outside, so that
    only the batch's size varies: a second size is compiled once more, then for any size.

    Raises
    ------
    SleepfmError
        In the first batch, where the compiler fails.
    """
    settle_compiler_cache()
    for name, encoder in model.encoders.items():
        assert isinstance(encoder, Encoder)
        own = MethodType(own_code(type(encoder).embed, name), encoder)
        encoder.embed = explained(torch.compile(own))  # type: ignore[method-assign, assignment]


def own_code(function: Callable[..., Tensor], name: str) -> FunctionType:
    """Copy a function, so that it has a code object of its own.

    The compiler counts its compilations by code object, and from the ninth on runs a function uncompiled. Three
    encoders in training and evaluation, with full and smaller batches, would reach that if they shared one.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{name}")
    return FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)


def explained(embed: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap ``embed`` so that a failure of the compiler becomes a SleepfmError that says what to do."""
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
