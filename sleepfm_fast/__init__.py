"""Contrastive learning on polysomnography, from EDF files to probes and retrieval.

Importing the package does no work and does not import torch. At its top are the commands (``simulate preprocess convert
train import_checkpoint embed transfer probe predict few_shot compare retrieve report``, the baselines ``supervise``,
``classify`` and ``features``, and ``reproduce``, which calls them all for the paper's tables) and the library, in the
order the data flows: ``edf wfdb recordings channels annotations epochs`` (recordings), ``clips batches`` (clip store to
batches), ``filters ops reference distributed`` (the ops), ``encoder pretrained inference rundir`` (a model),
``embeddings results ranks`` (what is made with it). The folders below hold their parts; ``CONTRIBUTING.md`` says which
is which. Each imports from those before it only.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepfm_fast.cli.interruption import say_while_importing
from sleepfm_fast.cli.thread_quota import keep_to_quota
from sleepfm_fast.cli.waiting import wait_briefly
from sleepfm_fast.errors import CompiledModuleError

__version__ = "0.1.0"

__all__ = ["__version__", "build_info"]


def _find_compiled_module() -> None:
    # In a clone the working directory comes first on sys.path, so `python -m sleepfm_fast.train` finds these sources
    # and not the installed package, where `pip install .` put the compiled module. Let the sources find it there.
    if importlib.util.find_spec(f"{__name__}._C") is not None:
        return
    from importlib import metadata

    try:
        installed = Path(str(metadata.distribution(__name__).locate_file(__name__)))
    except metadata.PackageNotFoundError:
        installed = None
    if installed is not None and installed.is_dir() and any(installed.glob("_C.*")):
        __path__.append(str(installed))
        importlib.invalidate_caches()
        return
    raise ImportError(
        f"the compiled module sleepfm_fast._C was found neither in {Path(__file__).parent} nor in an installed "
        "sleepfm_fast. Run `pip install .` in the project's folder."
    )


say_while_importing()
wait_briefly()
keep_to_quota()
_find_compiled_module()


def _load_compiled_module() -> Any:
    try:
        compiled = importlib.import_module(f"{__name__}._C")
    except ImportError as error:
        raise CompiledModuleError(
            f"the compiled module {error.path or '_C'} does not load here: {error}. It was built with system libraries "
            "that this machine lacks or has in an older version. Build it on this machine (`pip install "
            "--force-reinstall --no-deps .` in the project's folder), or install the library: libgomp.so.1 and "
            "libstdc++.so.6 are in the packages libgomp1 and libstdc++6 of Debian and Ubuntu, libgomp and libstdc++ "
            "of Fedora and its kin."
        ) from error
    built = compiled.build_info()["version"]
    if built != __version__:
        raise CompiledModuleError(
            f"the compiled module is of version {built}, the Python sources are of version {__version__}. Run "
            "`pip install .` again in the project's folder."
        )
    return compiled


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # `from sleepfm_fast import _C` asks here before it looks for the file.
        if name == "_C":
            return _load_compiled_module()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_info() -> dict[str, Any]:
    """What this build contains and what this processor offers.

    Returns
    -------
    dict
        ``version``, ``compiler``, ``architecture`` (``x86_64``, ``aarch64``, ...), ``cpu_instruction_sets`` (slowest
        first), ``cpu_instruction_set_in_use``, ``cpu_multiplies_bfloat16`` (whether the encoder's blocks use the
        processor's instructions for it where they are asked for bfloat16), ``openmp``, ``cuda_architectures`` (empty
        for a CPU build) and ``cuda_compiler``. The instruction set ``portable`` is what every processor of the
        architecture has: SSE2 on x86-64, NEON on 64-bit ARM. On x86-64 there are ``avx2``, ``avx512``, ``avx512_bf16``
        and, where Linux lets the process use them, Intel's tiles, ``amx``.

    Raises
    ------
    ImportError
        When the compiled module does not load here, or belongs to another version than these sources.
    """
    compiled = _load_compiled_module().build_info()
    architectures = compiled["cuda_architectures"]
    compiled["cuda_architectures"] = architectures.split(",") if architectures else []
    return dict(compiled)
