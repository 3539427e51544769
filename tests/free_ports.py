"""Ports for processes that meet on this machine."""

from __future__ import annotations

import socket


def free_ports(n: int) -> int:
    """First of n consecutive ports that nobody has at the moment."""
    for first in range(29600, 60000, 50):
        try:
            for port in range(first, first + n):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")
