"""Where the ops are registered with torch, and the numbers by which element types cross into the compiled module."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["DTYPE_CODES", "LIBRARY"]

LIBRARY: Any = torch.library.Library("sleepfm_fast", "FRAGMENT")  # type: ignore[no-untyped-call]

# As `DType` in csrc/params.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
