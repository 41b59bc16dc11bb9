"""The socket behind a front door."""

from __future__ import annotations

import socket

import pytest

from graft_runtime.server.listener import bind


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_a_connection_is_given_is_sent_at_once(host: str) -> None:
    with bind(host, 0) as bound, socket.create_connection(bound.getsockname()[:2]):
        bound.setblocking(True)
        taken, _ = bound.accept()
        with taken:
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
