"""Finds ports that nobody listens on."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def free_ports(count: int) -> list[int]:
    """Return different ports on 127.0.0.1 that nobody listens on at the moment."""
    with ExitStack() as stack:
        # All are held until the last is found, or the system might give one twice.
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def free_port() -> int:
    """Return one such port."""
    (port,) = free_ports(1)
    return port
