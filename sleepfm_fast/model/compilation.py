"""Encoders through torch.compile, which makes a few kernels of the dozens of operations between convolutions."""

from __future__ import annotations

import functools
import getpass
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, MethodType

import torch
from torch import Tensor

from sleepfm_fast.encoder import Encoder, SleepModel
from sleepfm_fast.errors import SleepfmError

__all__ = ["compile_encoders", "settle_compiler_cache"]

PREFIX = "torchinductor_"
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
    user = user_name()
    try:
        folder = default_folder()
        folder.mkdir(exist_ok=True)
    except OSError:  # a folder that exists is all that torch asks for unless it compiles
        folder, user = next(path for path in UNWRITABLE if path.is_dir()), ""
    if not user:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def user_name() -> str:
    """The user's name; empty where the user has none."""
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        return ""


def default_folder() -> Path:
    """Where torch's compiler keeps its code unless TORCHINDUCTOR_CACHE_DIR says otherwise."""
    return Path(tempfile.gettempdir(), f"{PREFIX}{user_name() or os.getuid()}")


def compile_encoders(model: SleepModel) -> None:
    """Compile the network proper of every encoder, in place; names and values of the weights stay the same.

    Nothing is compiled before the first batch. The handling of absent modalities and channels stays outside, so that
    only the batch's size varies: a second size is compiled once more, then for any size.

    Raises
    ------
    SleepfmError
        Where others could have put code into the compiler's folder; in the first batch, where the compiler fails.
    """
    settle_compiler_cache()
    refuse_others_code()
    for name, encoder in model.encoders.items():
        assert isinstance(encoder, Encoder)
        own = MethodType(own_code(type(encoder).embed, name), encoder)
        encoder.embed = explained(torch.compile(own))  # type: ignore[method-assign, assignment]


def refuse_others_code() -> None:
    """Refuse the compiler's default folder where another user owns it, or everybody may write in it.

    Torch runs what it finds there. The folder lies among the temporary files of all users under a name that anybody can
    foresee. A folder of another name was chosen by the user, perhaps to share it.
    """
    try:
        folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default_folder())
        if folder.parent != Path(tempfile.gettempdir()) or not folder.name.startswith(PREFIX):
            return
        found = folder.lstat(), folder.stat()
    except OSError:  # there is none: torch makes it, or says why it cannot
        return
    if any(state.st_uid != os.geteuid() for state in found) or found[1].st_mode & stat.S_IWOTH:
        raise SleepfmError(
            f"torch.compile would run code that it finds in {folder}, where other users of this machine can have put "
            "it. Set TORCHINDUCTOR_CACHE_DIR to a folder of your own, or leave --compile out."
        )


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
