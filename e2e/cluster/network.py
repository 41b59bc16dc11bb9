"""The addresses of the test cluster."""

from __future__ import annotations

import socket

POD_CIDR = "10.244.0.0/24"
SERVICE_CIDR = "10.96.0.0/16"
KUBERNETES_IP = "10.96.0.1"
DNS_IP = "10.96.0.10"
LOOPBACK = "127.0.0.1"

CONTROL_PLANE_PORTS = (2379, 2380, 6443, 10257, 10259)
NODE_PORTS = (10248, 10249, 10250, 10256)


def node_ip() -> str:
    """Return this machine's own address: the one it would use towards another machine.

    Loopback if there is none: enough for a control plane.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # A documentation address; connecting a datagram socket sends nothing.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return LOOPBACK
        return str(probe.getsockname()[0])


def busy_ports(ports: tuple[int, ...]) -> list[int]:
    """Return those of the ports that some process listens on."""
    return [port for port in ports if _is_busy(port)]


def _is_busy(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0
