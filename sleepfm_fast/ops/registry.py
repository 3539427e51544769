"""The library in which the ops are registered with torch, and the compiled module's numbers for element types."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["DTYPE_CODES", "LIBRARY"]

LIBRARY: Any = torch.library.Library("sleepfm_fast", "FRAGMENT")  # type: ignore[no-untyped-call]

# The numbers of `DType` in csrc/params.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
