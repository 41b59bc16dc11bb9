"""Ports that nobody listens on."""

from __future__ import annotations

import socket

from graft_operator.cluster.ports import free_ports


def test_ports_found_together_differ_and_can_be_listened_on() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()
