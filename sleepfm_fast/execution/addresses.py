"""Memory and files by address in compiled code: copies at the speed of ``memcpy``, reads without Python's lock.

Only functions compiled by Numba can call what is here, and nothing here checks a bound.
"""

from __future__ import annotations

import os
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sleepfm_fast.execution.compiled import compiled

__all__ = ["advise_file", "advise_memory", "as_pointer", "copy_bytes", "read_bytes"]


def type_pointer(typing_context: Any, address: Any, like: Any) -> Any:
    """Type :data:`as_pointer`: an integer becomes a pointer to the type of ``like``, whose value is not read."""
    return types.CPointer(like)(address, like), emit_pointer  # type: ignore[no-untyped-call]


def emit_pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Emit the conversion of the integer to a pointer."""
    return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))


# Kernels take their outputs as addresses, since passing a list of arrays costs Numba more than the copying itself.
as_pointer: Any = intrinsic(type_pointer)


def type_copy(typing_context: Any, target: Any, source: Any, n_bytes: Any) -> Any:
    """Type a copy between two addresses."""
    return types.void(types.intp, types.intp, types.intp), emit_copy  # type: ignore[no-untyped-call]


def emit_copy(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Emit a call of ``memcpy``."""
    target, source, n_bytes = arguments
    copy: Any = cgutils.raw_memcpy
    copy(builder, builder.inttoptr(target, cgutils.voidptr_t), builder.inttoptr(source, cgutils.voidptr_t), n_bytes, 1)
    return context.get_dummy_value()


copy_bytes: Any = intrinsic(type_copy)
"""``copy_bytes(target, source, n_bytes)``: copy between two addresses that do not overlap."""

read_bytes: Any = types.ExternalFunction("pread", types.intp(types.intc, types.intp, types.uintp, types.int64))
"""``read_bytes(descriptor, address, n_bytes, position)``: pread(2); returns the number of bytes read, or -1."""


@compiled()
def advise_nothing(descriptor: Any, position: Any, n_bytes: Any, advice: Any) -> int:
    """Stand in for posix_fadvise(2), which macOS lacks: a kernel that names a function of no library does not link."""
    return 0


advise_file: Any = (
    types.ExternalFunction("posix_fadvise", types.intc(types.intc, types.int64, types.int64, types.intc))
    if hasattr(os, "posix_fadvise")
    else advise_nothing
)
"""``advise_file(descriptor, position, n_bytes, advice)``: posix_fadvise(2), or nothing where there is none."""

advise_memory: Any = types.ExternalFunction("madvise", types.intc(types.intp, types.uintp, types.intc))
"""``advise_memory(address, n_bytes, advice)``: madvise(2)."""
