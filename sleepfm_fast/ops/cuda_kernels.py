"""Whether the compiled module holds CUDA kernels that a device can run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from sleepfm_fast import _C

__all__ = ["architectures_serve", "has_kernels"]

LEAST_CAPABILITY = (8, 0)  # cp.async and bfloat16 on tensor cores
ARCHITECTURES = tuple(name for name in str(_C.build_info()["cuda_architectures"]).split(",") if name)  # of this build


def architectures_serve(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code compiled for CMake's ``architectures`` runs on a device of compute capability ``capability``.

    ``"86"`` stands for machine code for 8.6, which newer devices of the same generation run too, together with PTX,
    which the driver compiles for any newer device. ``"86-real"`` is the machine code alone, ``"86-virtual"`` the PTX
    alone. ``"90a"`` runs on 9.0 only, ``"100f"`` on 10.0 and newer devices of its generation.
    """
    for name in architectures:
        number, _, kind = name.partition("-")
        plain = number.rstrip("af")
        if not plain.isdigit():
            continue
        built = int(plain[:-1]), int(plain[-1])
        same_generation = built[0] == capability[0]
        if number.endswith("a"):
            serves = built == capability
        else:
            serves = built <= capability and (same_generation or (kind != "real" and not number.endswith("f")))
        if serves:
            return True
    return False


@cache
def _device_has_kernels(index: int) -> bool:
    capability = torch.cuda.get_device_capability(index)
    return capability >= LEAST_CAPABILITY and architectures_serve(ARCHITECTURES, capability)


def has_kernels(device: torch.device) -> bool:
    """Whether this build's CUDA kernels run on ``device``; False for a device that is not CUDA."""
    if device.type != "cuda" or not ARCHITECTURES:
        return False
    return _device_has_kernels(torch.cuda.current_device() if device.index is None else device.index)
