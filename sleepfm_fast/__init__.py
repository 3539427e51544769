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
from typing import Any

from sleepfm_fast.cli.interruption import say_while_importing
from sleepfm_fast.cli.thread_quota import keep_to_quota
from sleepfm_fast.cli.waiting import wait_briefly

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


def build_info() -> dict[str, Any]:
    """What this build contains and what this processor offers.

    Returns
    -------
    dict
        ``version``, ``compiler``, ``architecture`` (``x86_64``, ``aarch64``, ...), ``cpu_instruction_sets`` (slowest
        first), ``cpu_instruction_set_in_use``, ``cpu_multiplies_bfloat16`` (whether the encoder's blocks use the
        processor's instructions for it where they are asked for bfloat16), ``openmp``, ``cuda_architectures`` (empty
        for a CPU build) and ``cuda_compiler``. The instruction set ``portable`` is what every processor of the
        architecture has: SSE2 on x86-64, NEON on 64-bit ARM.

    Raises
    ------
    RuntimeError
        When the compiled module belongs to another version than these sources.
    """
    compiled = importlib.import_module(f"{__name__}._C").build_info()
    if compiled["version"] != __version__:
        raise RuntimeError(
            f"the compiled module is of version {compiled['version']}, the Python sources are of version "
            f"{__version__}. Run `pip install .` again in the project's folder."
        )
    architectures = compiled["cuda_architectures"]
    compiled["cuda_architectures"] = architectures.split(",") if architectures else []
    return dict(compiled)
