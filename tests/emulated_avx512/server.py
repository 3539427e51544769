"""Runs tests on the emulated processor, selection after selection: one process starts it, torch and pytest once.

A line of standard input is a JSON list: the file that takes what pytest prints, then pytest's arguments. Each is
answered with a line on standard output, pytest's exit status.
"""

from __future__ import annotations

import json
import os
import sys

import pytest

from emulated_avx512 import plugin


def main() -> None:
    plugin.leaves_at_the_end = False
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        printed, *arguments = json.loads(line)
        file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        status = int(pytest.main(arguments, plugins=[plugin]))
        sys.stdout.flush()
        print(status, file=answers, flush=True)
    plugin.leave(0)


if __name__ == "__main__":
    main()
