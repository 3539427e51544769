"""What the compiled ops share: the torch library they are registered in and the element types they know."""

from __future__ import annotations

import torch

__all__ = ["DTYPE_CODES", "LIBRARY"]

LIBRARY = torch.library.Library("sleepfm_fast", "FRAGMENT")  # type: ignore[no-untyped-call]
# The numbers of sleepfm::DType in csrc/params.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
