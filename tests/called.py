"""Commands called in this process, and what they have said."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest


def last_json(text: str) -> Any:
    """What a command's last line on standard output holds."""
    return json.loads(text.splitlines()[-1])


def called(cli: Callable[..., int], capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any, str]:
    """Call a command; returns its exit status, its result where it has ended well, and what is on standard error."""
    status = cli([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, last_json(out) if status == 0 else None, err
