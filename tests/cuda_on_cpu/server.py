"""Calls functions of a compiled emulator. Every launch forks this process, which takes the longer the larger it is.

    python server.py LIBRARY FILE BYTES     FILE: descriptor of the memory that the buffers of all calls lie in

A line of standard input is a call in JSON (tests/emulated_cuda.py), a line of standard output its answer: the status
that the function returned, the options, and what it left in the structures and arrays that it was given.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from typing import Any


def main(path: str, file: str, n_bytes: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this ends it
    library = ctypes.CDLL(path)
    library.emulator_open.restype = ctypes.c_void_p
    library.emulator_open.argtypes = [ctypes.c_int, ctypes.c_size_t]
    library.emulator_place.argtypes = [ctypes.c_char_p, *[ctypes.c_size_t] * 4, ctypes.c_int]
    print(library.emulator_open(int(file), int(n_bytes)) or 0, flush=True)
    for line in sys.stdin:
        called: dict[str, Any] = json.loads(line)
        options = ctypes.create_string_buffer(bytes.fromhex(called["options"]))
        library.emulator_forget_all()
        for name, *place in called["buffers"]:
            library.emulator_place(name.encode(), *place)
        given: list[Any] = []
        for kind, value in called["arguments"]:
            if kind == "integer":
                given.append(ctypes.c_int64(value))
            elif kind == "real":
                given.append(ctypes.c_float(value))
            elif kind == "address":
                given.append(ctypes.c_void_p(value))
            else:
                given.append(ctypes.create_string_buffer(bytes.fromhex(value), len(value) // 2))
        status = getattr(library, called["function"])(options, *given)
        left = [argument.raw.hex() for argument in given if isinstance(argument, ctypes.Array)]
        print(json.dumps([status, options.raw[:-1].hex(), left]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
